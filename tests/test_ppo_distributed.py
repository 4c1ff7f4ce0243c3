"""PPOTrainer on two processes: the same step as on one, its own samples on each, one saved run, an exact resume."""

import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.utils import is_deepspeed_available
from datasets import Dataset
from transformers import AutoModelForCausalLM

from hf_instructgpt.char_gpt import CharGPTConfig, CharGPTForCausalLM, CharGPTTokenizer
from hf_instructgpt.errors import InputError
from hf_instructgpt.functional import response_mask
from hf_instructgpt.ppo import trainer as trainer_module
from hf_instructgpt.ppo.config import PPOConfig
from hf_instructgpt.ppo.trainer import PPOTrainer

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("two processes")]

EOS = 66
HAS_DEEPSPEED = is_deepspeed_available()
TOKENIZER = CharGPTTokenizer.from_document()
PROMPTS = Dataset.from_list([{"prompt": text} for text in ("a", "bcd", "ef", "ghij", "klm", "no")])

TEXT = Dataset.from_dict({"text": ["abc", "defgh", "ij", "klmno", "pq"]})
EXTRAS = {
    "value_model": "shared",
    "ptx_coef": 0.5,
    "scale_scores": True,
    "normalize_rewards": True,
    "whiten_rewards": True,
    "entropy_coef": 0.01,
    "loss_aggregation": "response",
    "kl_target": 0.1,
    "critic_lam": 1.0,
    "length_adaptive_lam": 0.5,
    "normalize_values": True,
    "critic_max_grad_norm": 0.05,
}


def make(output_dir, train_dataset=PROMPTS, model=None, value_model=None, peft_config=None, **options):
    torch.manual_seed(0)
    if model is None:
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
        "per_device_eval_batch_size": 1,
    }
    args = PPOConfig(**(defaults | options))

    def reward(completions, completion_ids, log_metric, **_):
        if not args.normalize_rewards:
            return [float(len(text)) for text in completions]
        log_metric("mean", sum(map(len, completions)) / len(completions))
        return [[0.1 * i for i in ids] for ids in completion_ids]

    eval_dataset = train_dataset if args.eval_strategy != "no" else None
    data = {"train_dataset": train_dataset, "eval_dataset": eval_dataset}
    extras = {"value_model": value_model, "peft_config": peft_config, "ptx_dataset": TEXT if args.ptx_coef else None}
    return PPOTrainer(model, reward, args=args, processing_class=TOKENIZER, **data, **extras)


def responses_by_prompt(model, prompt_ids, prompt_mask, *, generation_config, synced_gpus=None):
    """In place of sampling: responses that follow from the prompts alone, of uneven lengths."""
    sums = (prompt_ids * prompt_mask).sum(-1, keepdim=True)
    places = torch.arange(6)
    ids = torch.where(places == sums % 6, EOS, 1 + (sums + 7 * places) % 60)
    return ids, response_mask(ids, stop_token_ids=[EOS])


def fixed_run(output_dir, **options):
    """A trainer after two rollouts of four given responses, two steps each, its logs, and an evaluation."""
    sampler, trainer_module.generate_responses = trainer_module.generate_responses, responses_by_prompt
    try:
        sampled = {"generation_kwargs": {"use_cache": True}}  # by `generate`, whose place the function takes
        trainer = make(output_dir, optim="sgd", max_steps=4, **({"learning_rate": 0.1} | sampled | options))
        trainer.train()
        metrics = trainer.evaluate(PROMPTS.select(range(5)))  # one after another: the last one leaves a process none
    finally:
        trainer_module.generate_responses = sampler
    logs = [log for log in trainer.state.log_history if "loss" in log]
    logs = [{name: x for name, x in log.items() if not name.startswith("system/")} for log in logs]
    return trainer, {"logs": logs, "metrics": metrics}


def fixed_steps(output_dir, **options):
    trainer, found = fixed_run(output_dir, **options)
    return {"weights": trainer.model.state_dict(), **found}


def sampled_run(output_dir, resume=None, **options):
    """A trainer after two epochs on one and the same prompt, saved as it went, and the responses it sampled."""
    data = Dataset.from_list([{"prompt": "ab"}] * 8)
    defaults = {"save_strategy": "steps", "save_steps": 1, "log_tokens": 1, "num_train_epochs": 2}
    trainer = make(output_dir, data, per_device_train_batch_size=2, **(defaults | options))
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
    return trainer, {"responses": seen, "steps": trainer.state.global_step}


def sampled_steps(output_dir, resume=None):
    trainer, found = sampled_run(output_dir, resume)
    return {"weights": trainer.model.state_dict(), **found}


def refusal(environment, **options):
    """What PPOTrainer says of these options, launched in this environment."""
    os.environ |= environment
    try:
        make("never", **options)
    except InputError as error:
        return str(error)
    finally:
        for name in environment:
            os.environ.pop(name)
    return ""


def main(folder: Path):
    gc.freeze()  # see conftest.py
    rank = int(os.environ["RANK"])
    results = {
        "fixed": fixed_steps(folder / "fixed", per_device_train_batch_size=2),
        "accumulated": fixed_steps(
            folder / "accumulated", per_device_train_batch_size=1, gradient_accumulation_steps=2
        ),
        "extras": fixed_steps(folder / "extras", per_device_train_batch_size=2, **EXTRAS),
        "sampled": sampled_steps(folder / "sampled"),
        # In the middle of the second epoch's first rollout.
        "resumed": sampled_steps(folder / "resumed", resume=str(folder / "sampled" / "checkpoint-5")),
        "fsdp asked": refusal({"ACCELERATE_USE_FSDP": "true"}),
        "deepspeed asked": refusal({"ACCELERATE_USE_DEEPSPEED": "true"}) if HAS_DEEPSPEED else "",
    }
    # From here on accelerate finds no device for the processes: each is on its own, in a world of two.
    os.environ.pop("ACCELERATE_USE_CPU")
    results["half started"] = refusal({}, use_cpu=False, ddp_backend="gloo")
    torch.save(results, folder / f"{rank}.pt")


def launch(command, folder, environment=None):
    """Run this or a file like it on two processes, which leave what they found in `folder`."""
    env = os.environ | {"OMP_NUM_THREADS": "1"} | (environment or {})
    done = subprocess.run([sys.executable, "-m", *command], env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-8000:]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


def leave():
    """End a launched process: threads that libraries leave behind can abort one that ends by itself."""
    torch.distributed.barrier()
    sys.stdout.flush()
    os._exit(0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("two")


@pytest.fixture(scope="module")
def ranks(folder):
    command = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2", __file__, str(folder)]
    return launch(command, folder, {"ACCELERATE_USE_CPU": "true"})


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
        assert rank[name]["metrics"] == pytest.approx(alone["metrics"], abs=2e-4)


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


def test_a_run_that_is_not_what_was_asked_for_is_refused(ranks):
    for rank in ranks:
        assert rank["half started"].startswith("2 processes were started, but accelerate runs each of them as if")
        assert "`use_cpu=True`" in rank["half started"]
        assert rank["fsdp asked"].startswith("FSDP was asked for and is not on")
        if HAS_DEEPSPEED:
            assert rank["deepspeed asked"].startswith("DeepSpeed was asked for and is not on")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    leave()
