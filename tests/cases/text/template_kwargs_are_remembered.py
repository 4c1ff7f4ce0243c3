"""`chat_template_kwargs` as an option reaches all that a stage reads, and later `generate` and the model's card."""

import json
from pathlib import Path
from unittest.mock import patch

from product import QUICK, assert_done, assert_refused, assistant, command, policy, reward_model, saved, tokenizer

from product import user, write_rows  # isort: skip


def check(folder: Path) -> None:
    from hf_instructgpt.sampling import generate
    from hf_instructgpt.stages import samples
    from hf_instructgpt.stages.conversation import Speaker

    tok = tokenizer("chatml")
    tok.chat_template = "{% if mode is defined %}<{{ mode }}>{% endif %}" + tok.chat_template
    model, scorer = saved(folder / "m", policy(tok), tok), saved(folder / "rm", reward_model(tok), tok)
    rows = {
        "sft": [{"prompt": [user("ab")], "completion": [assistant("cd")]}] * 4,
        "reward": [{"prompt": [user("ab")], "chosen": [assistant("c")], "rejected": [assistant("d")]}] * 4,
        "ppo": [{"prompt": [user("ab")]}] * 8,
    }
    files = {name: write_rows(folder / f"{name}.jsonl", some) for name, some in rows.items()}
    more = {
        "sft": ["--pretraining_fraction", "0.5", "--pretraining_dataset_name", files["sft"]],
        "reward": ["--calibration_dataset_name", files["sft"]],
        "ppo": ["--reward_funcs", scorer, "--ptx_coef", "1", "--ptx_dataset_name", files["sft"]],
    }
    from hf_instructgpt.text import encode_text

    for stage in ("sft", "reward", "ppo"):
        module = "reward.calibration" if stage == "reward" else "data.pretraining_text"
        read = []

        def noted(*args, read=read, **options):
            ids = encode_text(*args, **options)
            read.append(tok.decode(ids))
            return ids

        argv = [stage, "--model_name_or_path", model, "--dataset_name", files[stage], *more[stage], *QUICK[stage]]
        with patch(f"hf_instructgpt.{module}.encode_text", noted):
            options = ["--chat_template_kwargs", '{"mode": "off"}', "--output_dir", folder / stage]
            assert_done(command(*argv, *options))
        assert set(read) == {"<off>user:ab<eos>\nassistant:cd<eos>\n"}, (stage, read)
        assert json.loads((folder / stage / "card.json").read_text())["chat_template_kwargs"] == {"mode": "off"}
        code = "**{'mode': 'off'}" if stage == "reward" else "tokenizer_encode_kwargs={'mode': 'off'}"
        assert code in (folder / stage / "README.md").read_text()
    asked, encode = [], generate.encode_row
    with patch.object(generate, "encode_row", lambda tok, row: asked.append(encode(tok, row)) or asked[-1]):
        assert_done(command("generate", folder / "sft", "--prompt", "ab"))
    assert {tok.decode(ids) for ids in asked} == {"<off>user:ab<eos>\nassistant:"}
    for name in ("messages", "tokenize", "add_generation_prompt", "tools", "continue_final_message", "return_dict"):
        options = ["--chat_template_kwargs", json.dumps({name: True}), "--output_dir", folder / "x"]
        assert_refused(command(*argv, *options), "chat_template_kwargs", name)
    speaker = Speaker("a", policy(tok), tok, samples.known_of(str(folder / "sft")))
    assert tok.decode(encode(tok, speaker.row("ab"))) == "<off>user:ab<eos>\nassistant:"
