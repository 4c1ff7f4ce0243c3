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
    """The README's commands, from a third of the usual SFT. The rule: longer is better. Three seeds after that."""
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    monkeypatch.chdir(tmp_path)
    sft = ["sft", "--config", "recipes/char_gpt/sft.yaml", "--num_train_epochs", "3", "--output_dir", "runs/char/sft"]
    assert main([*sft, "--seed", "0"]) == 0
    assert main(readme("rank")) == 0
    rank_by_length(open_page(launched[0].local_url))
    rows = [json.loads(line) for line in (tmp_path / "runs/rankings.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(rows) == NUM_RANKED == len({str(row["prompt"]) for row in rows})
    for row in rows:
        pairs = list(zip(row["ranks"], map(len, row["responses"]), strict=True))
        assert all((rank < other) == (size > its) for rank, size in pairs for other, its in pairs)

    prompts = load_sample_dataset("lab", "prompts")["test"]["prompt"][:200]
    before = answer_lengths("runs/char/sft", prompts)
    for seed in ("0", "1", "2"):
        for stage in ("reward", "ppo"):
            assert main([*readme(stage), "--overwrite_output_dir", "--seed", seed]) == 0
        after = answer_lengths("runs/human/ppo", prompts)
        low, high = bootstrap_ci([b - a for a, b in zip(before, after, strict=True)])
        print(
            f"seed {seed}: {fmean(before):.1f} characters before, {fmean(after):.1f} after [{low:+.1f}, {high:+.1f}]"
        )
        assert low > 0.5


def readme(verb):
    """The README's command of a verb under "People in the loop"."""
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition("## People in the loop")[2]
    line = next(line for line in section.splitlines() if line.startswith(f"hf-instructgpt {verb} "))
    return shlex.split(line)[1:]


def rank_by_length(tab):
    """As a person with one rule would: read the answers, press digits and Enter."""
    tab.fill("#annotator input, #annotator textarea", "ann")
    tab.click("#start")
    said = "text => document.querySelector('#status textarea, #status input').value.includes(text)"
    for number in range(NUM_RANKED):
        tab.wait_for_function(said, arg=f" {number} of ")
        boxes = [tab.locator(f"#answer-{place}").locator("textarea, input") for place in range(1, 5)]
        sizes = [len(box.input_value()) if box.is_visible() else None for box in boxes]
        order = sorted({size for size in sizes if size is not None}, reverse=True)
        for place, size in enumerate(sizes, start=1):
            if size is not None:
                tab.locator(f"#rank-{place} input").nth(order.index(size)).check()
        tab.click("#save")
    tab.wait_for_function(said, arg=f" {NUM_RANKED} of ")


def answer_lengths(folder, prompts):
    tokenizer = load_tokenizer(folder)
    policy = load_policy(folder, tokenizer).eval()
    torch.manual_seed(0)
    return [
        len(text)
        for text in sample(policy, tokenizer, [{"prompt": prompt} for prompt in prompts], max_new_tokens=26).texts
    ]
