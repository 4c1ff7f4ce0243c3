"""Serve the pages, safe by default: on this machine, to nobody without a password, without uploads."""

import os
import re
from pathlib import Path

import gradio as gr
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from ..errors import InputError
from ..language import say
from ..options import named_models
from ..rankings.ranking_file import RankingFile
from ..stages.conversation import Chat, Speaker, check_settings, load_scorer
from ..stages.load_items import load_items, load_prompts, read_guidelines
from ..stages.samples import check_sampling
from .chat_page import STYLE as CHAT_STYLE
from .chat_page import ChatPage
from .compare_page import ComparePage
from .compare_rounds import Arena
from .rank_page import RankPage
from .web import Guard

LOCAL = ("127.0.0.1", "localhost", "::1")
# System fonts: the page loads nothing from other machines.
THEME = gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
PASSWORD_VARIABLE = "HF_INSTRUCTGPT_PASSWORD"
EVERYWHERE = ("0.0.0.0", "::")


def launch_options(
    *, host: str, port: int | None, share: bool, password: str | None, password_file: str | None = None
) -> dict:
    """Keyword arguments of Gradio's `launch`; a password may also come from the environment."""
    if port is not None and not 1 <= port <= 65535:
        raise InputError(f"`--port` must be 1 to 65535, not {port}.")
    password = _read_password(password_file) if password_file else password or os.environ.get(PASSWORD_VARIABLE)
    if (share or host not in LOCAL) and not password:
        raise InputError(
            "`--share` and a `--host` other than 127.0.0.1 let others in: set a `--password`, better by "
            f"`--password_file` or the environment variable {PASSWORD_VARIABLE}."
        )
    hosts = ["*"] if host in EVERYWHERE else [*LOCAL, "[::1]", host, *(["*.gradio.live"] if share else [])]

    return {
        "server_name": host,
        "server_port": port,
        "share": share,
        "max_file_size": "1mb",
        "allowed_paths": [],
        "app_kwargs": {
            "middleware": [
                Middleware(TrustedHostMiddleware, allowed_hosts=hosts, www_redirect=False),
                Middleware(Guard, password=password),
            ]
        },
        "strict_cors": True,
        "theme": THEME,
        "ssr_mode": False,
        "footer_links": [],
        "run_history": False,
        "enable_monitoring": False,
    }


def _read_password(path: str) -> str:
    try:
        password = Path(path).read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"`--password_file`: {path} cannot be read: {error}") from error
    if not password.strip():
        raise InputError(f"`--password_file`: {path} holds no password.")
    return password


def rank(
    *,
    model: str,
    prompts: str,
    split: str,
    output: str | Path,
    num_responses: int,
    max_new_tokens: int,
    reward: list[str],
    seed: int,
    trust_remote_code: bool,
    overlap: float,
    mode: str,
    guidelines: str | None,
    push_to: str | None,
    **server,
) -> None:
    """Serve the ranking page until it is stopped; the arguments are the command's options."""
    options = launch_options(**server)
    if mode == "best-worst" and num_responses < 3:
        raise InputError("`--mode best-worst` needs `--num_responses` of 3 or more.")
    if push_to is not None and not re.fullmatch(r"[\w.-]+/[\w.-]+", push_to):
        raise InputError(f"`--push_to` must be NAMESPACE/NAME on the Hub, not {push_to}.")
    guidelines = "" if guidelines is None else read_guidelines(guidelines)
    file = RankingFile(output)
    items = load_items(
        model=model,
        prompts=prompts,
        split=split,
        num_responses=num_responses,
        max_new_tokens=max_new_tokens,
        seed=seed,
        trust_remote_code=trust_remote_code,
        reward=reward,
        overlap=overlap,
        mode=mode,
    )
    page = RankPage(items, file, guidelines=guidelines, push_to=push_to)
    _launch(page.build(options["app_kwargs"]["middleware"]), **options)


def compare(
    *,
    models: list[str],
    output: str | Path,
    reward: str | None,
    prompts: str | None,
    split: str,
    max_new_tokens: int,
    seed: int | None,
    trust_remote_code: bool,
    **server,
) -> None:
    """Serve the page of comparisons until it is stopped; the arguments are the command's options."""
    options = launch_options(**server)
    check_sampling(max_new_tokens=max_new_tokens, seed=seed or 0)
    named = named_models(models)
    trust = {"trust_remote_code": trust_remote_code}
    asked = []
    if prompts is not None:
        asked = load_prompts(prompts, split)["prompt"]
    speakers = [Speaker.load(name, path, **trust) for name, path in named.items()]
    reward_model = None if reward is None else load_scorer(reward, **trust)
    limits = {"max_new_tokens": max_new_tokens, "seed": seed}
    arena = Arena(speakers, output, reward_model=reward_model, prompts=list(asked), **limits)
    where, count = arena.file.path.resolve(), len(arena.file.rows())
    print(say(f"Votes are kept in {where} ({count} so far).", f"投票保存在 {where}（已有 {count} 票）。"), flush=True)
    _launch(ComparePage(arena).build(options["app_kwargs"]["middleware"]), **options)


def chat(
    *,
    folder: str,
    answers: str,
    reward: str | None,
    temperature: float,
    seed: int,
    max_new_tokens: int | None,
    trust_remote_code: bool,
    **server,
) -> None:
    """Serve the page of a chat until it is stopped; the arguments are the command's options."""
    options = launch_options(**server)
    check_settings(temperature, seed)
    check_sampling(max_new_tokens=max_new_tokens)
    model = {"answers": answers, "reward": reward, "max_new_tokens": max_new_tokens}
    chat = Chat.load(folder, **model, trust_remote_code=trust_remote_code)
    _launch(ChatPage(chat, temperature=temperature, seed=seed).build(), **options, css=CHAT_STYLE)


def _launch(app: gr.Blocks | gr.Server, **options) -> None:
    if isinstance(app, gr.Server):  # it has its middleware, and pages of its own
        options = {name: value for name, value in options.items() if name not in ("app_kwargs", "theme")}
        options["_frontend"] = False
    try:
        app.launch(**options)
    except OSError as error:
        raise InputError(f"the page cannot be served: {error} Choose another `--port` or `--host`.") from error
