"""The loop closed: rankings made in a browser, by a rule, train a reward model, and PPO moves the policy that way."""

import json
from statistics import fmean

import pytest
import torch

from hf_instructgpt.cli import main
from hf_instructgpt.data import load_sample_dataset
from hf_instructgpt.evaluation.intervals import bootstrap_ci
from hf_instructgpt.stages.inputs import load_causal_lm, load_tokenizer
from hf_instructgpt.stages.samples import answers_to

NUM_RANKED = 30


@pytest.mark.slow
def test_thirty_rankings_move_the_policy(tmp_path, monkeypatch, launched, open_page):
    """Longer answers are better. From a third of the usual SFT; reward model and PPO with three seeds."""
    monkeypatch.chdir(tmp_path)
    sft = "--dataset_name lab --output_dir sft --num_train_epochs 3 --per_device_train_batch_size 32 --max_length 50"
    sft += " --learning_rate 5e-3 --activation_checkpointing false --report_to none --save_strategy no --seed 0"
    assert main(["sft", *sft.split()]) == 0
    flags = "--model sft --prompts lab --output rankings.jsonl --num_responses 4 --max_new_tokens 26"
    assert main(["rank", *flags.split()]) == 0
    rank_by_length(open_page(launched[0].local_url))
    rows = [json.loads(line) for line in (tmp_path / "rankings.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(rows) == NUM_RANKED == len({str(row["prompt"]) for row in rows})
    for row in rows:
        pairs = list(zip(row["ranks"], map(len, row["responses"]), strict=True))
        assert all((rank < other) == (size > its) for rank, size in pairs for other, its in pairs)

    prompts = load_sample_dataset("lab", "prompts")["test"]["prompt"][:200]
    before = answer_lengths("sft", prompts)
    for seed in (0, 1, 2):
        train(seed)
        after = answer_lengths(f"ppo{seed}", prompts)
        low, high = bootstrap_ci([b - a for a, b in zip(before, after, strict=True)])
        print(
            f"seed {seed}: {fmean(before):.1f} characters before, {fmean(after):.1f} after, [{low:+.1f}, {high:+.1f}]"
        )
        assert low > 0.5


def train(seed):
    """Reward model and PPO from the rankings."""
    reward = f"--dataset_name rankings.jsonl --model_name_or_path sft --output_dir reward{seed} --num_train_epochs 8"
    reward += " --per_device_train_batch_size 4 --learning_rate 1.5e-3 --max_length 50"
    reward += f" --activation_checkpointing false --report_to none --save_strategy no --seed {seed}"
    assert main(["reward", *reward.split()]) == 0
    ppo = f"--dataset_name lab --model_name_or_path sft --reward_funcs reward{seed} --output_dir ppo{seed}"
    ppo += " --per_device_train_batch_size 32 --num_mini_batches 4 --num_ppo_epochs 2 --max_completion_length 26"
    ppo += " --max_steps 64 --learning_rate 3e-4 --critic_learning_rate 1e-3 --kl_coef 0.05"
    ppo += f" --report_to none --save_strategy no --seed {seed}"
    assert main(["ppo", *ppo.split()]) == 0


def rank_by_length(tab):
    """As a person with one rule would: read the answers, press digits and Enter."""
    tab.fill("#annotator input, #annotator textarea", "ann")
    tab.click("#start")
    said = "text => document.querySelector('#status textarea, #status input').value.includes(text)"
    for number in range(NUM_RANKED):
        tab.wait_for_function(said, arg=f" {number} of yours")
        boxes = [tab.locator(f"#answer-{place}").locator("textarea, input") for place in range(1, 5)]
        sizes = [len(box.input_value()) if box.is_visible() else None for box in boxes]
        order = sorted({size for size in sizes if size is not None}, reverse=True)
        for place, size in enumerate(sizes, start=1):
            if size is not None:
                tab.locator(f"#rank-{place} input").nth(order.index(size)).check()
        tab.click("#save")
    tab.wait_for_function(said, arg=f" {NUM_RANKED} of yours")


def answer_lengths(folder, prompts):
    tokenizer = load_tokenizer(folder)
    policy = load_causal_lm(folder, tokenizer).eval()
    torch.manual_seed(0)
    return [len(text) for text in answers_to(policy, tokenizer, prompts, max_new_tokens=26, do_sample=True)]
