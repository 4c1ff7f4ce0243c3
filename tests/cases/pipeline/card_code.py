"""A run card's code did not run without a chat template; right: each card's code runs, whatever the model is."""

import contextlib
import io
import re

from product import assert_done, command, pipeline_file, policy, saved, tokenizer

from hf_instructgpt.hub.model_card import Made
from hf_instructgpt.stages.model_cards import stage_card

SLOW = True

LORA = {"use_peft": True, "lora_r": 2, "lora_target_modules": ["q_proj", "v_proj"]}


def printed(text):
    """What a card's code prints."""
    (block,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(block, "card", "exec"), {"__name__": "card"})
    return out.getvalue().removesuffix("\n")


def check(folder):
    for kind, turn in (("char_gpt", None), ("chatml", "chatml"), ("plain", "none"), ("adapter", "chatml")):
        place, options = folder / kind, dict.fromkeys(("sft", "reward", "ppo"), LORA) if kind == "adapter" else {}
        place.mkdir()
        if turn is not None:
            tok = tokenizer(turn)
            options["model"] = saved(place / "base", policy(tok), tok)
        config = pipeline_file(place, chat=turn == "chatml", **options)
        assert_done(command("run", "--config", config))
        out = place / "out"
        for stage in ("sft", "reward", "ppo"):
            made, card = Made.load(out / stage), (out / stage / "README.md").read_text()
            assert made.is_adapter == (kind == "adapter") and isinstance(made.prompt, list) == (turn == "chatml")
            first = made.samples[0]
            if stage == "reward":
                right = "\n".join(f"{first[f'{which}_score']:+.2f}  {first[which]}" for which in ("best", "worst"))
            else:
                right = first["after"]
            assert printed(card) == right, (kind, stage)
            pushed = str(stage_card(out / stage, made, name="me/mine", links={}))
            assert printed(pushed.replace('"me/mine"', f'"{out / stage}"')) == right, (kind, stage)
        assert printed((out / "README.md").read_text()) == Made.load(out / "ppo").samples[0]["after"], kind
