"""The loop closed: rankings made in a browser, by a rule, train a reward model, and PPO moves the policy that way."""

import json
import shlex
from pathlib import Path
from statistics import fmean

import pytest
import torch

from hf_instructgpt.cli import main
from hf_instructgpt.data import load_sample_dataset
from hf_instructgpt.evaluation.intervals import bootstrap_ci
from hf_instructgpt.models.loading import load_policy
from hf_instructgpt.sampling.generate import sample
from hf_instructgpt.stages.load_models import load_tokenizer

ROOT = Path(__file__).parents[1]
NUM_RANKED = 30


@pytest.mark.slow
def test_thirty_rankings_move_the_policy(tmp_path, monkeypatch, launched, open_page):
    """The guide's commands, from a third of the usual SFT. The rule: longer is better. Three seeds after that."""
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    monkeypatch.chdir(tmp_path)
    sft = ["sft", "--config", "recipes/char_gpt/sft.yaml", "--output_dir", "runs/char_gpt/sft", "--seed", "0"]
    assert main([*sft, "--num_train_epochs", "3"]) == 0
    assert main(guide("rank")) == 0
    rank_by_length(open_page(launched[0].local_url))
    rows = [json.loads(line) for line in (tmp_path / "runs/rankings.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(rows) == NUM_RANKED == len({str(row["prompt"]) for row in rows})
    for row in rows:
        pairs = list(zip(row["ranks"], map(len, row["responses"]), strict=True))
        assert all((rank < other) == (size > its) for rank, size in pairs for other, its in pairs)

    prompts = load_sample_dataset("lab", "prompts")["test"]["prompt"][:200]
    before = answer_lengths("runs/char_gpt/sft", prompts)
    for seed in ("0", "1", "2"):
        for stage in ("reward", "ppo"):
            assert main([*guide(stage), "--overwrite_output_dir", "--seed", seed]) == 0
        after = answer_lengths("runs/human/ppo", prompts)
        low, high = bootstrap_ci([b - a for a, b in zip(before, after, strict=True)])
        print(
            f"seed {seed}: {fmean(before):.1f} characters before, {fmean(after):.1f} after [{low:+.1f}, {high:+.1f}]"
        )
        assert low > 0.5


def guide(verb):
    """The command of a verb in the guide on people."""
    page = (ROOT / "recipes" / "docs" / "en" / "guides" / "people.md").read_text(encoding="utf-8")
    line = next(line for line in page.splitlines() if line.startswith(f"hf-instructgpt {verb} "))
    return shlex.split(line)[1:]


def rank_by_length(tab):
    """As a person with one rule would: read the answers, press digits and Enter."""
    tab.wait_for_function("document.activeElement.id === 'annotator'")
    tab.keyboard.type("ann")
    tab.keyboard.press("Enter")
    for number in range(NUM_RANKED):
        said = "text => document.querySelector('#counts').textContent.startsWith(text)"
        tab.wait_for_function(said, arg=f"{number} of ")
        tab.wait_for_selector("main:not([aria-busy]) .answer")
        tab.wait_for_timeout(450)  # as long as it takes to look
        sizes = tab.evaluate("[...document.querySelectorAll('.answer .shown')].map((text) => [...text.raw].length)")
        order = sorted(set(sizes), reverse=True)
        if len(sizes) == 2:  # a pair: which is better?
            keys = "0" if len(order) == 1 else str(1 + sizes.index(order[0]))
        else:
            keys = [str(order.index(size) + 1) for size in sizes]
        for key in [*keys, "Enter"]:
            tab.keyboard.press(key)
    tab.wait_for_function(said, arg=f"{NUM_RANKED} of ")


def answer_lengths(folder, prompts):
    tokenizer = load_tokenizer(folder)
    policy = load_policy(folder, tokenizer).eval()
    torch.manual_seed(0)
    return [
        len(text)
        for text in sample(policy, tokenizer, [{"prompt": prompt} for prompt in prompts], max_new_tokens=26).texts
    ]
