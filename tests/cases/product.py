"""The product as a case meets it: its command line, small models and tokenizers, and files of rows."""

import contextlib
import io
import json
import logging
import re
import unittest
from dataclasses import dataclass
from pathlib import Path

TEXTS = ["abcdefghijklmnopqrstuvwxyz", "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "0123456789 .,:;?!'\"-_/|<>[]{}()\n"]
# What chat templates write behind the end of a turn: nothing, or ChatML's and Zephyr's newline.
TURNS = {
    "clean": "{{ eos_token }}",
    "chatml": "{{ eos_token }}{{ '\\n' }}",
    "endless": "{{ '\\n' }}",
}


@dataclass
class Result:
    """What a command left: its exit code and what it printed."""

    code: int
    out: str
    err: str


def command(*argv: str | Path) -> Result:
    """Run `hf-instructgpt ARGV` in this process."""
    from hf_instructgpt.cli import main

    out, err = io.StringIO(), io.StringIO()
    handlers = [h for name in ("transformers", "datasets", "trl", None) for h in logging.getLogger(name).handlers]
    streams = [(h, h.stream) for h in handlers if isinstance(h, logging.StreamHandler)]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            for handler, _ in streams:
                handler.setStream(err)
            code = main([str(arg) for arg in argv])
        except SystemExit as error:
            code = error.code or 0
        finally:
            for handler, stream in streams:
                handler.setStream(stream)
    return Result(code, out.getvalue(), err.getvalue())


def assert_refused(result: Result, *words: str) -> None:
    """The command ended with exit code 2 and one line that holds all `words`."""
    last = result.err.strip().split("\n")[-1]
    assert result.code == 2, f"exit code {result.code}: {result.err[-2000:]}"
    assert last.startswith("hf-instructgpt"), last
    assert "Traceback" not in result.err, result.err
    for word in words:
        assert word in last, f"{word!r} is not in: {last}"


def assert_done(result: Result, *words: str) -> None:
    """The command succeeded, and printed all `words`."""
    assert result.code == 0, f"exit code {result.code}: {result.err[-2000:]}"
    for word in words:
        assert word in result.out + result.err, f"{word!r} is not in: {result.out}{result.err}"


def write_rows(path: Path, rows: list[dict]) -> Path:
    """A JSON Lines file of `rows`."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def write_yaml(path: Path, content: dict) -> Path:
    """A YAML file of `content`."""
    import yaml

    path.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    return path


def tokenizer(turn: str = "clean"):
    """A character tokenizer with a chat template whose turns end as `TURNS` says, or `none` without a template."""
    from hf_instructgpt.char_gpt import CharGPTTokenizer

    made = CharGPTTokenizer.from_texts(TEXTS)
    made.chat_template = turn != "none" and (
        "{% for m in messages %}{{ m.role + ':' + m.content }}" + TURNS[turn] + "{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    made.chat_template = made.chat_template or None
    return made


def sizes(tok, **more) -> dict:
    """The sizes of a tiny Llama for `tok`."""
    ids = {"pad_token_id": tok.pad_token_id, "bos_token_id": None, "eos_token_id": tok.eos_token_id}
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return {"vocab_size": len(tok), **shape, **ids, **more}


def policy(tok, **more):
    """A tiny Llama of random weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**sizes(tok, initializer_range=0.2, **more)))


def reward_model(tok, **more):
    """A tiny Llama that scores, of random weights."""
    import torch
    from transformers import LlamaConfig, LlamaForSequenceClassification

    torch.manual_seed(1)
    return LlamaForSequenceClassification(LlamaConfig(**sizes(tok, initializer_range=0.2, num_labels=1, **more)))


def saved(folder: Path, model, tok) -> Path:
    """A folder with a model and its tokenizer."""
    model.save_pretrained(folder)
    tok.save_pretrained(folder)
    return folder


# Options with which a stage takes seconds.
_QUICK = ["--max_steps", "2", "--use_cpu", "--report_to", "none", "--save_strategy", "no"]
QUICK = {
    "sft": [*_QUICK, "--eval_strategy", "no"],
    "reward": [*_QUICK, "--eval_strategy", "no"],
    "ppo": [*_QUICK, "--max_completion_length", "8"],
}


def ppo_trainer(
    folder: Path, reward=None, prompts=("abc",) * 8, *, train_dataset=None, tok=None, model=None, **options
):
    """A `PPOTrainer` on tiny parts; `options` that PPOConfig does not have go to the trainer."""
    from dataclasses import fields

    from datasets import Dataset

    from hf_instructgpt import PPOConfig, PPOTrainer

    tok = tok or tokenizer()
    own = {field.name for field in fields(PPOConfig)}
    config = {name: options.pop(name) for name in list(options) if name in own}
    quick = {"max_steps": 2, "max_completion_length": 8, "report_to": [], "use_cpu": True, "save_strategy": "no"}
    return PPOTrainer(
        policy(tok) if model is None else model,
        reward or (lambda completions, **_: [float(len(str(c))) for c in completions]),
        args=PPOConfig(output_dir=str(folder / "out"), **{**quick, "disable_tqdm": True, **config}),
        processing_class=tok,
        train_dataset=train_dataset
        or Dataset.from_list([row if isinstance(row, dict) else {"prompt": row} for row in prompts]),
        **options,
    )


def stage_files(folder: Path) -> dict[str, list]:
    """Of each stage a command on tiny data and a tiny model of `folder`, with checkpoints, and no `--output_dir`."""
    tok = tokenizer("chatml")
    model, scorer = saved(folder / "model", policy(tok), tok), saved(folder / "scorer", reward_model(tok), tok)
    words = ["abc", "de", "fghi", "jkl", "m", "nop", "qr", "stuv"]
    rows = {
        "sft": [{"prompt": word, "completion": word[::-1]} for word in words],
        "reward": [{"prompt": word, "chosen": f"{word} yes", "rejected": f"no {word}"} for word in words],
        "ppo": [{"prompt": word} for word in words],
    }
    quick = ["--use_cpu", "--report_to", "none", "--max_steps", 4, "--save_steps", 2, "--logging_steps", 1]
    quick += ["--disable_tqdm", "true", "--learning_rate", "1e-3"]
    more = {"sft": ["--per_device_train_batch_size", 2], "reward": ["--per_device_train_batch_size", 2], "ppo": []}
    more["ppo"] = ["--reward_funcs", scorer, "--max_completion_length", 4, "--log_tokens", 1]
    return {
        stage: [
            *(stage, "--model_name_or_path", model, "--dataset_name", write_rows(folder / f"{stage}.jsonl", some)),
            *(*quick, *more[stage]),
        ]
        for stage, some in rows.items()
    }


def broken_off(*argv: str | Path, step: int) -> Result:
    """The command, ended by Ctrl-C at a pass over a micro-batch, counted from 1."""
    from unittest.mock import patch

    from transformers import Trainer

    training_step, passes = Trainer.training_step, iter(range(1, step + 1))

    def interrupted(*args, **kwargs):
        if next(passes) == step:
            raise KeyboardInterrupt
        return training_step(*args, **kwargs)

    with patch.object(Trainer, "training_step", interrupted):
        result = command(*argv)
    assert result.code == 130, result
    return result


def left(folder: Path) -> dict[str, object]:
    """What a stage left that must not depend on when it ran: bytes, and logs without times."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".safetensors", ".jsonl"):
            found[str(path.relative_to(folder))] = path.read_bytes()
        elif path.name == "trainer_state.json":
            logs = json.loads(path.read_text(encoding="utf-8"))["log_history"]
            times = re.compile("system/|.*(runtime|per_second)$")
            logs = [{key: x for key, x in entry.items() if not times.match(key)} for entry in logs]
            found[str(path.relative_to(folder))] = logs
    return found


def rows_read(source: Path | str, kind: str, **options) -> list[dict]:
    """The rows of a data set as a stage of this kind ("sft", "reward" or "prompts") reads them."""
    from hf_instructgpt.stages.arguments import StageArguments
    from hf_instructgpt.stages.load_data import load_stage_datasets

    args = StageArguments(dataset_name=str(source), **options)
    return list(load_stage_datasets(args, kind, needs_eval=False)[0])


def user(text: str) -> dict:
    """A turn of the user."""
    return {"role": "user", "content": text}


def assistant(text: str) -> dict:
    """A turn of the assistant."""
    return {"role": "assistant", "content": text}


def pipeline_file(
    folder: Path, *, chat=False, ppo_rows=({},), model=None, sft=None, reward=None, ppo=None, **options
) -> Path:
    """A pipeline of seconds, without a judge, on text or, with `chat`, messages.

    `ppo_rows` are other columns of PPO's rows, in turn; `model` a folder, None for a new CharGPT; `sft`, `reward` and
    `ppo` options of the stages, and `options` the file's.
    """
    words = ["abc", "bca", "cab", "abca", "ccb", "bab"]
    ask, say = (lambda w: [user(w)], lambda w: [assistant(w)]) if chat else (str, str)
    rows = {
        "sft": [{"prompt": ask(w), "completion": say(w + w)} for w in words],
        "reward": [{"prompt": ask(w), "chosen": say(w), "rejected": say("a")} for w in words],
        "ppo": [{"prompt": ask(w), **ppo_rows[i % len(ppo_rows)]} for i, w in enumerate(words)],
    }
    common = {"report_to": "none", "save_strategy": "no", "per_device_train_batch_size": 2, "max_steps": 2}
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    start = {"model_name_or_path": str(model)} if model else {"model_init_kwargs": sizes}
    short = {"max_completion_length": 8, "num_ppo_epochs": 1, "num_mini_batches": 1}
    own = {"sft": {**start, **(sft or {})}, "reward": reward or {}, "ppo": {**short, **(ppo or {})}}
    content = {**options, "output_dir": str(folder / options.get("output_dir", "out"))}
    for stage, some in rows.items():
        path = write_rows(folder / f"{stage}.jsonl", some)
        content[stage] = {**common, "dataset_name": str(path), **own[stage]}
    return write_yaml(folder / "pipeline.yaml", content)


@contextlib.contextmanager
def rank_page(folder: Path, prompts=("ab", "cd", "ef", "gh"), **server):
    """The page of `hf-instructgpt rank`, served: its address, and the file of its rankings."""
    from unittest.mock import patch

    try:
        import gradio

        from hf_instructgpt.app import serve
    except ModuleNotFoundError as error:
        raise unittest.SkipTest("Gradio is not installed") from error
    from hf_instructgpt.rankings.items import Items

    tok, file = tokenizer("none"), serve.RankingFile(folder / "rankings.jsonl")
    items = Items(policy(tok), tok, list(prompts), num_responses=2, max_new_tokens=4)
    options = serve.launch_options(**{"host": "127.0.0.1", "port": None, "share": False, "password": None, **server})
    page = serve.RankPage(items, file).build(options["app_kwargs"]["middleware"])
    launch, apps = gradio.Blocks.launch, []

    def start(app, **given):
        apps.append(app)
        return launch(app, **given | {"quiet": True, "prevent_thread_lock": True})

    with patch.object(gradio.Blocks, "launch", start):
        serve._launch(page, **options)
    try:
        yield apps[0].local_url, file
    finally:
        apps[0].close()
