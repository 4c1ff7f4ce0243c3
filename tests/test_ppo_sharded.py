"""ZeRO-2, ZeRO-3 and FSDP2 on two CPU processes, by the recipes: the steps of one process, saved, resumed exactly.

`accelerate launch --config_file ... test_ppo_sharded.py FOLDER` runs all scenarios of one recipe.
"""

import gc
import os
import sys
from pathlib import Path

import pytest
import torch
from accelerate.utils import broadcast
from peft import LoraConfig
from safetensors.torch import load_file
from test_ppo_distributed import EXTRAS, fixed_run, launch, leave, make, sampled_run
from test_sampling_generate import FakeVLLM
from transformers import AutoModelForCausalLM
from trl.generation import vllm_generation

from hf_instructgpt.char_gpt import CharGPTConfig, CharGPTForCausalLM
from hf_instructgpt.errors import InputError
from hf_instructgpt.ppo.critic import load_value_model
from hf_instructgpt.sampling.vllm import whole_weights

pytestmark = pytest.mark.slow

RECIPES = Path(__file__).parents[1] / "recipes" / "accelerate"
KINDS = ("deepspeed_zero2", "deepspeed_zero3", "fsdp2")
LORA = LoraConfig(r=2, target_modules="all-linear")
# The evaluation's estimate of the KL falls: by "greater is better" the first of the two checkpoints is the best.
BEST = {"load_best_model_at_end": True, "metric_for_best_model": "kl", "greater_is_better": True}
BEST |= {f"{what}_strategy": "steps" for what in ("eval", "save")} | {"eval_steps": 2, "save_steps": 2}
# Options of `fixed_run`, by name; of LoRA, the policy is loaded by its path.
FIXED = {
    "own critic, average": {"ema_decay": 0.5},
    "shared critic, text, average": {
        "ema_decay": 0.5,
        **{name: value for name, value in EXTRAS.items() if name not in ("normalize_values", "critic_max_grad_norm")},
    },
    "lora": {"peft_config": LORA},
    "lora, text, average": {"peft_config": LORA, "ptx_coef": 0.5, "ema_decay": 0.5},
    "lora, shared critic, full KL": {"peft_config": LORA, "value_model": "shared", "kl_estimator": "full"},
    "recomputed activations": {"gradient_checkpointing": True},
    "compiled layers": {"torch_compile_backend": "aot_eager"},
    "best checkpoint": {"ema_decay": 0.5, **BEST},
}
SAMPLED = {
    "own critic, average": {"ema_decay": 0.5},
    "shared critic, text": {"value_model": "shared", "ptx_coef": 0.5},
    "lora, average": {"peft_config": LORA, "ema_decay": 0.5},
}


def with_policy(options, folder):
    return {**options, "model": str(folder / "base")} if "peft_config" in options else options


def run_fixed(folder, name, **options):
    trainer, found = fixed_run(folder / name, **with_policy(FIXED[name], folder.parent), **options)
    trainer.save_model()
    return found


def run_sampled(folder, name, resume=None, **options):
    source = folder / "sampled" / name
    target = folder / "resumed" / name if resume else source
    resume = str(source / resume) if resume else None
    return sampled_run(target, resume, **with_policy(SAMPLED[name], folder.parent), **options)[1]


def run_poisoned(folder, **options):
    """A run of which one process alone gets a NaN in one shard of one gradient, at its second step."""
    trainer = make(folder / "poisoned", max_steps=3, per_device_train_batch_size=2, on_nonfinite="skip", **options)
    accepts = trainer.guard.accepts

    def poisoned(*args, **options):
        if trainer.state.global_step == 1 and trainer.args.process_index == 1:
            gradient = next(p.grad for p in trainer.model.parameters() if p.grad.to_local().numel())
            gradient.to_local().view(-1)[0] = torch.nan
        return accepts(*args, **options)

    trainer.guard.accepts = poisoned
    trainer.train()
    return [log["skipped_updates"] for log in trainer.state.log_history if "loss" in log]


def run_engine(folder, peft_config, **options):
    """For each sync of a stand-in for vLLM, which weights it got that are not the saved ones; and how many moved."""
    vllm_generation.VLLMGeneration = FakeVLLM
    options |= {"model": str(folder.parent / "base"), "peft_config": peft_config, "use_vllm": True}
    output_dir = folder / "engine" / ("lora" if peft_config else "whole")
    trainer = make(output_dir, max_steps=4, **options)
    engine, sync, given, different = trainer.generator.engine, trainer.generator.sync_weights, [], []

    def sync_and_compare(policy):
        sync(policy)
        given.append(engine.llm.weights)
        trainer.save_model()
        trainer.accelerator.wait_for_everyone()
        saved = dict(whole_weights(AutoModelForCausalLM.from_pretrained(output_dir)))
        assert saved.keys() == given[-1].keys()
        # The main process's: with ZeRO-3, transformers loads an adapter there alone.
        saved = {name: broadcast(saved[name].clone()) for name in given[-1]}
        different.append([name for name, tensor in given[-1].items() if not tensor.equal(saved[name])])

    trainer.generator.sync_weights = sync_and_compare
    trainer.train()
    return different, sum(not given[1][name].equal(tensor) for name, tensor in given[0].items())


def refused(**options):
    with pytest.raises(InputError) as error:
        make("never", **options)
    return str(error.value)


def refusals(kind, folder, options):
    """What this kind cannot do."""
    found = {}
    if kind != "deepspeed_zero2":
        unnamed = CharGPTForCausalLM(CharGPTConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=1))
        found["unnamed base"] = refused(model=unnamed, peft_config=LORA, **options)
        found["off-loaded"] = refused(offload_frozen="disk", **options)
    if kind == "fsdp2":
        found["server"] = refused(use_vllm=True, vllm_kwargs={"mode": "server"}, **options)
    else:
        found["skipping"] = refused(max_ratio=2.0, on_nonfinite="skip", **options)
        found["bf16"] = refused(bf16=True, ema_decay=0.5, **options)
    return found


def main(folder: Path):
    gc.freeze()  # see conftest.py
    kind, rank = folder.name, int(os.environ["RANK"])
    options = {"use_cpu": kind != "fsdp2"}
    if kind == "fsdp2":
        allow_fsdp_on_cpus()
    else:
        prepare_deepspeed_on_cpus()
    results = {"refusals": refusals(kind, folder, options)}
    for name in FIXED:
        results[f"fixed, {name}"] = run_fixed(folder, name, per_device_train_batch_size=2, **options)
    for name in SAMPLED:
        results[f"sampled, {name}"] = run_sampled(folder, name, **options)
        # In the middle of the second epoch's first rollout.
        results[f"resumed, {name}"] = run_sampled(folder, name, resume="checkpoint-5", **options)
    results["engine"] = [run_engine(folder, peft_config, **options) for peft_config in (None, LORA)]
    if kind == "fsdp2":
        results["poisoned"] = run_poisoned(folder, **options)
    torch.save(results, folder / f"{rank}.pt")


def allow_fsdp_on_cpus():
    """accelerate shards on GPUs only: here it takes this CPU for one."""
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    PartialState._prepare_backend = lambda self, *args: ("gloo", DistributedType.MULTI_GPU)
    PartialState.set_device = lambda self: setattr(self, "device", torch.device("cpu"))


def prepare_deepspeed_on_cpus():
    """Nothing is compiled, and weights as small as these are sharded too: DeepSpeed would keep them whole."""
    import deepspeed
    from accelerate.utils import DeepSpeedPlugin

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    prepare = DeepSpeedPlugin.__post_init__

    def shard_all(self):
        prepare(self)
        self.deepspeed_config["zero_optimization"]["stage3_param_persistence_threshold"] = 0

    DeepSpeedPlugin.__post_init__ = shard_all


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sharded")
    torch.manual_seed(0)
    config = CharGPTConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=1)
    CharGPTForCausalLM(config).save_pretrained(folder / "base")
    return folder


@pytest.fixture(scope="module")
def alone(folder):
    return {name: run_fixed(folder / "alone", name, per_device_train_batch_size=4) for name in FIXED}


@pytest.fixture(scope="module", params=[pytest.param(kind, marks=pytest.mark.xdist_group(kind)) for kind in KINDS])
def kind(request):
    if request.param != "fsdp2":
        pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")
    return request.param


@pytest.fixture(scope="module")
def ranks(folder, kind):
    (folder / kind).mkdir()
    config = ["--config_file", str(RECIPES / f"{kind}.yaml"), "--main_process_port", "0"]
    return launch(["accelerate.commands.launch", *config, __file__, str(folder / kind)], folder / kind)


def weights(folder):
    return {path.relative_to(folder): load_file(path) for path in folder.rglob("*.safetensors")}


@pytest.mark.parametrize("name", FIXED)
def test_two_processes_make_the_step_of_one(folder, kind, ranks, alone, name):
    for rank in ranks:
        mine = rank[f"fixed, {name}"]
        assert mine["metrics"] == pytest.approx(alone[name]["metrics"], abs=2e-6)
    # Of the main process: the others log nothing.
    for mine, expected in zip(ranks[0][f"fixed, {name}"]["logs"], alone[name]["logs"], strict=True):
        own = {"policy_grad_norm", "critic_grad_norm"} if kind.startswith("deepspeed") else set()  # in its engine
        assert mine == pytest.approx({name: x for name, x in expected.items() if name not in own}, abs=2e-6)
    expected, mine = weights(folder / "alone" / name), weights(folder / kind / name)
    assert mine.keys() == expected.keys()
    for file, tensors in expected.items():
        torch.testing.assert_close(mine[file], tensors, rtol=0, atol=1e-6)


def test_what_is_saved_loads_as_a_whole_model(folder, kind, ranks):
    for name in FIXED:
        for mine in (folder / kind / name, folder / "alone" / name):
            policy, critic = AutoModelForCausalLM.from_pretrained(mine), load_value_model(mine)
            assert policy.num_parameters() > 1000 and all(p.isfinite().all() for p in critic.parameters())
    start, average, end = (
        AutoModelForCausalLM.from_pretrained(path).get_input_embeddings().weight
        for path in (folder / "base", folder / kind / "own critic, average/ema", folder / kind / "own critic, average")
    )
    assert 0 < (average - start).norm() < (end - start).norm()


def test_the_best_checkpoint_is_what_is_saved_its_average_too(folder, kind, ranks):
    run = folder / kind / "best checkpoint"
    for file in ("model.safetensors", "ema/model.safetensors", "value_model/model.safetensors"):
        assert (run / file).read_bytes() == (run / "checkpoint-2" / file).read_bytes(), file
        assert (run / file).read_bytes() != (run / "checkpoint-4" / file).read_bytes(), file


@pytest.mark.parametrize("name", SAMPLED)
def test_a_resumed_run_ends_with_the_same_bytes(folder, kind, ranks, name):
    for rank in ranks:
        whole, resumed = rank[f"sampled, {name}"], rank[f"resumed, {name}"]
        assert whole["steps"] == resumed["steps"] == 8
        assert len(whole["responses"]) == 4 and resumed["responses"] == whole["responses"][3:]
    assert ranks[0][f"sampled, {name}"]["responses"] != ranks[1][f"sampled, {name}"]["responses"]
    whole, resumed = folder / kind / "sampled" / name, folder / kind / "resumed" / name
    files = [
        path.relative_to(whole) for part in (".", "checkpoint-8") for path in (whole / part).glob("**/*.safetens*")
    ]
    files = [path for path in files if path.parts[0] in ("checkpoint-8", "ema", "value_model") or len(path.parts) == 1]
    assert len(files) >= 4
    for file in files:
        assert (whole / file).read_bytes() == (resumed / file).read_bytes(), file


def test_what_cannot_be_kept_is_refused_by_name(kind, ranks):
    names = {
        "off-loaded": "`offload_frozen` cannot be used with FSDP or ZeRO-3",
        "unnamed base": "`an adapter on a critic without a named base` cannot be used with FSDP or ZeRO-3",
        "server": "`vllm_kwargs: {mode: server}` cannot be used with FSDP",
        "skipping": "`max_ratio` and `on_nonfinite='skip'` cannot be used with DeepSpeed",
        "bf16": "`ema_decay` cannot be used with DeepSpeed and bf16",
    }
    for rank in ranks:
        for name, message in rank["refusals"].items():
            assert message.startswith(names[name])


def test_an_engine_gets_the_weights_that_are_saved(ranks):
    for rank in ranks:
        for different, num_moved in rank["engine"]:
            assert different == [[], []]  # before each of the two rollouts
            assert num_moved >= 4


def test_a_gradient_that_is_not_finite_on_one_process_is_skipped_by_all(folder, kind, ranks):
    if kind != "fsdp2":
        pytest.skip("DeepSpeed cannot skip an update, and refuses options that do")
    assert ranks[0]["poisoned"] == [0.0, 1.0, 0.0]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    leave()
