"""PPOTrainer on two processes: the same step as on one, its own samples on each, one saved run, an exact resume."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM

from hf_instructgpt.char_gpt import CharGPTConfig, CharGPTForCausalLM, CharGPTTokenizer
from hf_instructgpt.ppo import trainer as trainer_module
from hf_instructgpt.ppo.config import PPOConfig
from hf_instructgpt.ppo.functional import response_mask
from hf_instructgpt.ppo.trainer import PPOTrainer

EOS = 66
TOKENIZER = CharGPTTokenizer.from_document()
PROMPTS = Dataset.from_list([{"prompt": text} for text in ("a", "bcd", "ef", "ghij", "klm", "no")])

TEXT = Dataset.from_dict({"text": ["abc", "defgh", "ij", "klmno", "pq"]})
EXTRAS = {"ptx_coef": 0.5, "scale_scores": True, "whiten_rewards": True, "entropy_coef": 0.01, "kl_target": 0.1}


def make(output_dir, train_dataset=PROMPTS, **options):
    torch.manual_seed(0)
    model = CharGPTForCausalLM(CharGPTConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=1))
    defaults = {
        "output_dir": str(output_dir),
        "use_cpu": True,
        "report_to": [],
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_steps": 1,
        "learning_rate": 1e-2,
        "num_ppo_epochs": 2,
        "max_completion_length": 6,
    }
    args = PPOConfig(**(defaults | options))

    def reward(completions, **_):
        return [float(len(text)) for text in completions]

    extras = {"value_model": "shared", "ptx_dataset": TEXT} if args.ptx_coef else {}
    return PPOTrainer(model, reward, args=args, train_dataset=train_dataset, processing_class=TOKENIZER, **extras)


def responses_by_prompt(model, prompt_ids, prompt_mask, *, generation_config):
    """In place of sampling: responses that follow from the prompts alone, of uneven lengths."""
    sums = (prompt_ids * prompt_mask).sum(-1, keepdim=True)
    places = torch.arange(6)
    ids = torch.where(places == sums % 6, EOS, 1 + (sums + 7 * places) % 60)
    return ids, response_mask(ids, stop_token_ids=[EOS])


def fixed_steps(output_dir, **options):
    """Two rollouts of four given responses, two steps each, and what they left in the weights and the logs."""
    sampler, trainer_module.generate_responses = trainer_module.generate_responses, responses_by_prompt
    try:
        trainer = make(output_dir, optim="sgd", learning_rate=0.1, max_steps=4, **options)
        trainer.train()
    finally:
        trainer_module.generate_responses = sampler
    logs = [log for log in trainer.state.log_history if "loss" in log]
    return {"weights": trainer.model.state_dict(), "logs": logs, "metrics": trainer.evaluate(PROMPTS)}


def sampled_run(output_dir, resume=None):
    """A run of two epochs on one and the same prompt, saved as it goes."""
    data = Dataset.from_list([{"prompt": "ab"}] * 8)
    options = {"save_strategy": "steps", "save_steps": 1, "log_tokens": 1, "num_train_epochs": 2}
    trainer = make(output_dir, data, per_device_train_batch_size=2, **options)
    seen = []
    roll_out = trainer._roll_out

    def spy(rows, **kwargs):
        rollout = roll_out(rows, **kwargs)
        if len(rows) > 1:  # not the token log's
            seen.append(rollout.response_ids.tolist())
        return rollout

    trainer._roll_out = spy
    trainer.train(resume_from_checkpoint=resume)
    trainer.save_model()
    return {"responses": seen, "weights": trainer.model.state_dict(), "steps": trainer.state.global_step}


def main(folder: Path):
    rank = int(os.environ["RANK"])
    results = {
        "fixed": fixed_steps(folder / "fixed", per_device_train_batch_size=2),
        "accumulated": fixed_steps(
            folder / "accumulated", per_device_train_batch_size=1, gradient_accumulation_steps=2
        ),
        "extras": fixed_steps(folder / "extras", per_device_train_batch_size=2, **EXTRAS),
        "sampled": sampled_run(folder / "sampled"),
        # In the middle of the second epoch's first rollout.
        "resumed": sampled_run(folder / "resumed", resume=str(folder / "sampled" / "checkpoint-5")),
    }
    torch.save(results, folder / f"{rank}.pt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    launch = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [sys.executable, "-m", *launch, __file__, str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.fixture(scope="module")
def ranks(folder):
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    plain = fixed_steps(folder, per_device_train_batch_size=4)
    # A shared trunk, pretraining text, scores and rewards scaled over all processes, an adaptive coefficient.
    extras = fixed_steps(folder, per_device_train_batch_size=4, **EXTRAS)
    return {"fixed": plain, "accumulated": plain, "extras": extras}


@pytest.mark.parametrize("name", ["fixed", "accumulated", "extras"])
def test_two_processes_make_the_step_of_one(ranks, alone, name):
    alone = alone[name]
    start = make(".", **(EXTRAS if name == "extras" else {})).model.state_dict()
    moved = {key: tensor - start[key] for key, tensor in alone["weights"].items()}
    assert all(tensor.abs().max() > 0 for tensor in moved.values())
    for rank in ranks:
        for key, tensor in rank[name]["weights"].items():
            torch.testing.assert_close(tensor - start[key], moved[key], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", ["fixed", "accumulated", "extras"])
def test_logs_and_evaluation_are_over_both_processes(ranks, alone, name):
    alone = alone[name]
    for mine, expected in zip(ranks[0][name]["logs"], alone["logs"], strict=True):
        assert mine == pytest.approx(expected, abs=2e-4)
    for rank in ranks:
        assert rank[name]["metrics"].keys() == alone["metrics"].keys()


def test_the_processes_sample_different_responses_in_every_rollout(ranks):
    first, second = (rank["sampled"]["responses"] for rank in ranks)
    assert len(first) == len(second) == 4  # two rollouts an epoch
    for left, right in zip(first, second, strict=True):
        assert left != right


def test_a_run_is_saved_once_and_loads(folder, ranks):
    for rank in ranks:
        assert rank["sampled"]["steps"] == 8
    model = AutoModelForCausalLM.from_pretrained(folder / "sampled")
    for rank in ranks:
        for name, tensor in model.state_dict().items():
            assert tensor.equal(rank["sampled"]["weights"][f"policy.{name}"])
    lines = (folder / "sampled/tokens.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 9))


def test_a_resumed_run_ends_with_the_same_bytes_on_both_processes(ranks):
    for rank in ranks:
        assert rank["resumed"]["steps"] == 8
        assert rank["resumed"]["responses"] == rank["sampled"]["responses"][3:]
        for name, tensor in rank["sampled"]["weights"].items():
            assert tensor.equal(rank["resumed"]["weights"][name])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
