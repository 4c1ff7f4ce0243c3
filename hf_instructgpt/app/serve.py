"""Serve the pages, safe by default: on this machine, to nobody without a password, without uploads."""

import asyncio
import hmac
import os
from collections import Counter, defaultdict
from pathlib import Path
from urllib.parse import urlsplit

import gradio as gr
from accelerate import PartialState
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import PlainTextResponse

from ..errors import InputError
from ..models.loading import load_policy, load_reward_model
from ..sampling.generate import room_for_response
from ..stages.arguments import StageArguments
from ..stages.load_data import checked_split, load_rows, rows_to_read
from ..stages.load_models import check_reward_model, load_tokenizer
from ..stages.samples import known_of
from .compare_page import ComparePage, Contestant
from .prompt_queue import Items
from .rank_page import KEYS, STYLE, RankPage
from .ranking_store import RankingFile, prompt_key

LOCAL = ("127.0.0.1", "localhost", "::1")
# System fonts: the page loads nothing from other machines.
THEME = gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
PASSWORD_VARIABLE = "HF_INSTRUCTGPT_PASSWORD"
EVERYWHERE = ("0.0.0.0", "::")
# Seconds that a login waits after a failed one from the same address; doubled with each failure.
FIRST_DELAY, LONGEST_DELAY = 0.25, 8.0


class Guard:
    """ASGI middleware: only the page itself may send requests, nobody may upload, and guessing passwords is slow."""

    def __init__(self, app):
        self.app, self.failures, self.locks = app, Counter(), defaultdict(asyncio.Lock)

    async def __call__(self, scope, receive, send) -> None:
        """Pass a request on, or refuse it."""
        headers, path = Headers(scope=scope) if scope["type"] == "http" else {}, scope.get("path", "").rstrip("/")
        if "origin" in headers and urlsplit(headers["origin"]).netloc != headers.get("host"):
            await PlainTextResponse("Another page's request.", status_code=403)(scope, receive, send)
        elif path.endswith(("/upload", "/upload_progress")):
            await PlainTextResponse("No uploads here.", status_code=403)(scope, receive, send)
        elif path.endswith("/login") and scope["method"] == "POST":
            await self._slow_login(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _slow_login(self, scope, receive, send) -> None:
        address = scope["client"][0]

        async def noting(message) -> None:
            if message["type"] == "http.response.start":
                failed = self.failures[address] + (message["status"] >= 400)  # a redirect tells nothing
                self.failures[address] = 0 if message["status"] == 200 else failed
            await send(message)

        async with self.locks[address]:  # simultaneous guesses wait for each other
            if self.failures[address]:
                await asyncio.sleep(min(FIRST_DELAY * 2 ** (self.failures[address] - 1), LONGEST_DELAY))
            await self.app(scope, receive, noting)


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

    def is_known(username: str, given: str) -> bool:
        return bool(username.strip()) and hmac.compare_digest(given.encode(), password.encode())

    return {
        "server_name": host,
        "server_port": port,
        "share": share,
        "auth": is_known if password else None,
        "auth_message": "Your name (any), and the password." if password else None,
        "max_file_size": "1mb",
        "allowed_paths": [],
        "app_kwargs": {
            "middleware": [
                Middleware(TrustedHostMiddleware, allowed_hosts=hosts, www_redirect=False),
                Middleware(Guard),
            ]
        },
        "strict_cors": True,
        "theme": THEME,
        "ssr_mode": False,
        "footer_links": [],
        "run_history": False,
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
    **server,
) -> None:
    """Serve the ranking page until it is stopped; the arguments are the command's options."""
    options = launch_options(**server)
    if not 2 <= num_responses <= 9:
        raise InputError(f"`--num_responses` must be 2 to 9, not {num_responses}.")
    if len(reward) not in (0, 2):
        raise InputError(f"`--reward` takes two reward models, not {len(reward)}.")
    file = RankingFile(output)
    args = StageArguments(dataset_name=prompts)
    rows = load_rows(args, "prompts", split)
    rows = checked_split(rows, split, "prompts", source=prompts, option="--split")
    trust = {"trust_remote_code": trust_remote_code}
    tokenizer = load_tokenizer(model, **trust)
    asked = {prompt_key(prompt): prompt for prompt in rows_to_read(rows, args, tokenizer)["prompt"]}
    policy, asked = load_policy(model, tokenizer, **trust).to(PartialState().device), list(asked.values())
    room = room_for_response(policy, tokenizer, [{"prompt": prompt} for prompt in asked], wanted=max_new_tokens)
    if room < 1:
        raise InputError(f"a prompt of {prompts} fills the model's context, or `--max_new_tokens` is below 1.")
    items = Items(
        policy,
        tokenizer,
        asked,
        num_responses=num_responses,
        max_new_tokens=room,
        reward_models=[_reward_model(name, **trust) for name in reward],
        seed=seed,
    )
    _launch(RankPage(items, file).build(), **options, head=KEYS, css=STYLE)


def compare(
    *,
    models: list[str],
    reward: str | None,
    max_new_tokens: int,
    seed: int,
    trust_remote_code: bool,
    **server,
) -> None:
    """Serve the page of comparisons until it is stopped; the arguments are the command's options."""
    options = launch_options(**server)
    if max_new_tokens < 1:
        raise InputError(f"`--max_new_tokens` must be 1 or more, not {max_new_tokens}.")
    named = [model.partition("=") for model in models]
    if len(named) != 2 or len({name for name, *_ in named}) != 2 or not all(name and path for name, _, path in named):
        raise InputError("`--models` takes two models as NAME=DIR, such as `sft=runs/char/sft ppo=runs/char/ppo`.")
    trust = {"trust_remote_code": trust_remote_code}
    contestants = []
    for name, _, path in named:
        tokenizer = load_tokenizer(path, **trust)
        policy = load_policy(path, tokenizer, **trust).to(PartialState().device).eval()
        contestants.append(Contestant(name, policy, tokenizer, known_of(path)))
    reward_model = None if reward is None else _reward_model(reward, **trust)
    page = ComparePage(contestants, reward_model=reward_model, max_new_tokens=max_new_tokens, seed=seed)
    _launch(page.build(), **options)


def _launch(app: gr.Blocks, **options) -> None:
    try:
        app.launch(**options)
    except OSError as error:
        raise InputError(f"the page cannot be served: {error} Choose another `--port` or `--host`.") from error


def _reward_model(name: str, **trust):
    check_reward_model(name, option="--reward", **trust)
    tokenizer = load_tokenizer(name, **trust)
    return load_reward_model(name, tokenizer=tokenizer, **trust).to(PartialState().device).eval(), tokenizer
