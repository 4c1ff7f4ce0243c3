"""Runs that accelerate did not set up as asked, and two runs in one folder, are refused before anything is written."""

import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import DeepSpeedPlugin, DistributedType
from test_ppo_trainer import make
from transformers import TrainerCallback
from trl import ModelConfig, SFTConfig

from hf_instructgpt.errors import InputError
from hf_instructgpt.models.checks import check_launch
from hf_instructgpt.ppo.checks import check_fsdp, check_processes
from hf_instructgpt.ppo.config import PPOConfig
from hf_instructgpt.resuming.checkpoint import alone_in
from hf_instructgpt.resuming.run_folder import stage_folder
from hf_instructgpt.stages.arguments import SFTArguments
from hf_instructgpt.stages.run_stage import run_stage

HOLDER = """
import sys, time
from hf_instructgpt.resuming.checkpoint import alone_in
with alone_in(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def other_run():
    """Another process at work in a folder, until it is killed."""
    processes = []

    def start(folder):
        command = [sys.executable, "-c", HOLDER, str(folder)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        processes.append(process)
        assert process.stdout.readline() == "held\n"

        def kill():
            process.send_signal(signal.SIGKILL)
            process.wait()

        return kill

    yield start
    for process in processes:
        process.kill()
        process.wait()


# ---- What was asked for ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["WORLD_SIZE", "OMPI_COMM_WORLD_SIZE"])
def test_processes_that_know_nothing_of_each_other_are_refused(tmp_path, monkeypatch, name):
    monkeypatch.setenv(name, "2")
    args = PPOConfig(output_dir=str(tmp_path / "ppo"))
    with pytest.raises(InputError, match=r"2 processes were started, but accelerate runs each .* unset WORLD_SIZE"):
        check_launch(args)
    monkeypatch.setenv(name, "1")
    check_launch(args)


def test_a_stage_that_is_half_started_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    args = SFTConfig(output_dir=str(tmp_path / "sft"), report_to=[], bf16=False)
    with pytest.raises(InputError, match="2 processes were started"):
        run_stage("sft", None, SFTArguments(dataset_name="document"), args, ModelConfig())
    assert not any(tmp_path.iterdir())


def test_a_world_of_two_without_averaged_gradients_is_refused(tmp_path, monkeypatch):
    args = PPOConfig(output_dir=str(tmp_path), use_cpu=True)
    check_launch(args)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    args.distributed_state.num_processes = 2  # as with `ddp_backend="gloo"` and without `use_cpu`
    with pytest.raises(InputError, match="gradients would not be averaged"):
        check_launch(args)
    args.distributed_state.distributed_type = DistributedType.MULTI_CPU
    check_launch(args)


@pytest.mark.parametrize("asked", ["environment", "option"])
def test_fsdp_that_is_not_on_is_refused(tmp_path, monkeypatch, asked):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true" if asked == "environment" else "false")
    args = PPOConfig(output_dir=str(tmp_path), use_cpu=True, fsdp=asked == "option")
    for kind in (DistributedType.NO, DistributedType.MULTI_CPU):
        args.distributed_state.distributed_type = kind
        with pytest.raises(InputError, match="FSDP was asked for and is not on"):
            check_launch(args)
    args.distributed_state.distributed_type = DistributedType.MULTI_GPU
    check_launch(args)


def test_deepspeed_that_is_not_on_is_refused(tmp_path, monkeypatch):
    args = PPOConfig(output_dir=str(tmp_path), use_cpu=True)
    args.deepspeed_plugin = object()
    check_launch(args)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    with pytest.raises(InputError, match="DeepSpeed was asked for and is not on"):
        check_launch(args)


# ---- Settings under which a model would be lost ---------------------------------------------------------------------


def test_zero3_that_shards_at_loading_or_saves_no_model_is_refused(tmp_path):
    pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")
    args = PPOConfig(output_dir=str(tmp_path), use_cpu=True)
    for flags, message in [
        ({"zero3_init_flag": True, "zero3_save_16bit_model": True}, "`zero3_init_flag: false`"),
        ({"zero3_init_flag": False, "zero3_save_16bit_model": False}, "`zero3_save_16bit_model: true`"),
    ]:
        args.deepspeed_plugin = DeepSpeedPlugin(zero_stage=3, **flags)
        with pytest.raises(InputError, match=message):
            check_processes(args)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"fsdp_version": 1}, "`fsdp_version: 2`"),
        ({"state_dict_type": SimpleNamespace(name="SHARDED_STATE_DICT")}, "`fsdp_state_dict_type: FULL_STATE_DICT`"),
    ],
)
def test_fsdp_settings_that_lose_the_model_are_refused(tmp_path, changed, message):
    plugin = SimpleNamespace(fsdp_version=2, state_dict_type=SimpleNamespace(name="FULL_STATE_DICT"))
    args = PPOConfig(output_dir=str(tmp_path), use_cpu=True)
    check_fsdp(args, plugin)
    vars(plugin).update(changed)
    with pytest.raises(InputError, match=message):
        check_fsdp(args, plugin)


def test_models_that_one_process_alone_loads_are_refused(tmp_path, monkeypatch):
    args = PPOConfig(output_dir=str(tmp_path), use_cpu=True)
    args.distributed_state.distributed_type = DistributedType.MULTI_GPU
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    check_processes(args)
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")
    with pytest.raises(InputError, match="`fsdp_cpu_ram_efficient_loading: false`"):
        check_processes(args)


def test_a_policy_in_shards_is_refused(tmp_path):
    trainer = make(tmp_path)
    next(trainer.model.policy.parameters()).ds_id = 0  # as `deepspeed.zero.Init` marks it
    with pytest.raises(InputError, match="make PPOConfig first and load the model then, or pass its path"):
        make(tmp_path, model=trainer.model.policy)


# ---- Two runs in one folder -----------------------------------------------------------------------------------------


def test_ppo_does_not_train_where_another_run_does_and_a_killed_one_locks_nothing(tmp_path, other_run):
    trainer = make(tmp_path, max_steps=1)
    kill = other_run(tmp_path)
    with pytest.raises(InputError, match=f"another process is at work in {tmp_path}"):
        trainer.train()
    assert trainer.state.global_step == 0
    kill()
    trainer.train()
    assert trainer.state.global_step == 1
    assert not [path for path in tmp_path.iterdir() if "lock" in path.name]


def test_a_folder_is_free_again_after_a_run_that_failed(tmp_path):
    class Fails(TrainerCallback):
        def on_step_end(self, *args, **kwargs):
            raise RuntimeError("a full disk")

    trainer = make(tmp_path, max_steps=1)
    trainer.add_callback(Fails())
    for _ in range(2):
        with pytest.raises(RuntimeError, match="a full disk"):
            trainer.train()


@pytest.mark.slow
def test_a_block_within_a_block_is_the_same_run(tmp_path, other_run):
    with alone_in(tmp_path):
        with alone_in(tmp_path / "."):
            pass
        child = subprocess.run([sys.executable, "-c", HOLDER, str(tmp_path)], capture_output=True, text=True)
        assert "another process is at work" in child.stderr  # the inner block did not give the folder up
    other_run(tmp_path)


def test_a_file_system_without_locks_gives_a_warning(tmp_path, monkeypatch, caplog):
    from hf_instructgpt.resuming import checkpoint

    def flock(*args):
        raise OSError(38, os.strerror(38))

    monkeypatch.setattr(checkpoint.fcntl, "flock", flock)
    warnings = []
    monkeypatch.setattr(checkpoint.logger, "warning", warnings.append)
    with alone_in(tmp_path):
        pass
    assert len(warnings) == 1 and "cannot be locked" in warnings[0]


@pytest.mark.parametrize("resume", [False, True])
def test_a_stage_leaves_what_another_run_writes(tmp_path, other_run, resume):
    out = tmp_path / "sft"
    (out / "checkpoint-1").mkdir(parents=True)
    (out / "stage.json").write_text('{"options": {}, "finished": false}')
    (out / "checkpoint-1" / "trainer_state.json").write_text("{}")
    kill = other_run(out)
    stage = stage_folder(tmp_path / "sft", options={}, overwrite=True, resume=resume)
    with pytest.raises(InputError, match="another process is at work in"), stage:
        raise AssertionError
    assert (out / "checkpoint-1" / "trainer_state.json").is_file()
    kill()
    with stage_folder(tmp_path / "sft", options={}, overwrite=True, resume=False) as work:
        work.begin()
        assert [path.name for path in out.iterdir()] == ["stage.json"]
        with alone_in(out):  # as PPO's own training in a stage
            (out / "model").touch()
    assert (out / "model").is_file()
