"""The configurations for `accelerate launch`: accelerate itself takes every key and every value.

DDP is run here, FSDP2 and DeepSpeed in `test_ppo_sharded.py`. And a launch that is not what was asked for is refused.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DeepSpeedPlugin, FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "recipes" / "accelerate").glob("*.yaml"))
SECTIONS = ("fsdp_config", "deepspeed_config")


def launch_args(path: Path):
    """The launcher's arguments as accelerate completes them from a file."""
    command = ["--config_file", str(path), "--main_process_port", "0", "-m", "hf_instructgpt.cli", "ppo"]
    args, defaults, _ = _validate_launch_command(launch_command_parser().parse_args(command))
    args.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
    return args


@pytest.fixture
def launched(monkeypatch):
    """The environment accelerate would start a file's processes in, set in this process."""

    def launch(name: str):
        args = launch_args(ROOT / "recipes" / "accelerate" / f"{name}.yaml")
        env = prepare_deepspeed_cmd_env(args)[1] if args.use_deepspeed else prepare_multi_gpu_env(args)
        for key, value in env.items():
            monkeypatch.setenv(key, value)
        return args

    return launch


def test_there_is_one_for_each_way_to_launch():
    assert [path.stem for path in CONFIGS] == ["ddp", "deepspeed_zero2", "deepspeed_zero3", "fsdp2", "multi_node"]


def check_keys(path: Path) -> None:
    config = load_config_from_file(str(path))  # raises for an unknown key at the top
    known = vars(launch_command_parser().parse_args(["script.py"]))
    for section in SECTIONS:  # accelerate takes any key here and ignores those it does not know
        unknown = set(getattr(config, section)) - set(known)
        if unknown:
            raise ValueError(f"unknown keys in {section}: {unknown}")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_accelerate_knows_every_key_and_the_header_has_the_command(path):
    check_keys(path)
    header = path.read_text(encoding="utf-8").split("compute_environment")[0]
    assert f"accelerate launch --config_file {path.relative_to(ROOT)} -m hf_instructgpt.cli ppo" in header
    assert "run: " in header.lower()


@pytest.mark.parametrize("section", [None, *SECTIONS])
def test_an_unknown_key_fails(section, tmp_path):
    path = tmp_path / "unknown.yaml"
    unknown = {"fsdp_shard_everything": True}
    content = {"distributed_type": "MULTI_GPU", **(unknown if section is None else {section: unknown})}
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    with pytest.raises(ValueError, match="unknown keys"):
        check_keys(path)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_launcher_takes_it(path):
    args = launch_args(path)
    assert args.num_processes >= 2 and args.num_processes % args.num_machines == 0
    ways = {"ddp": "multi_gpu", "multi_node": "multi_gpu", "fsdp2": "use_fsdp"}
    assert getattr(args, ways.get(path.stem, "use_deepspeed"))
    # The stage's own options decide: the launcher must not set them.
    assert args.mixed_precision == "no" and args.gradient_accumulation_steps is None and args.gradient_clipping is None


def test_fsdp2_is_what_the_file_says(launched):
    launched("fsdp2")
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2 and plugin.reshard_after_forward is True
    assert plugin.auto_wrap_policy.__name__ == "transformer_auto_wrap_policy"
    assert plugin.state_dict_type.name == "FULL_STATE_DICT"
    assert not plugin.cpu_ram_efficient_loading


@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed_is_what_the_file_says(launched, stage):
    launched(f"deepspeed_zero{stage}")
    plugin = DeepSpeedPlugin()
    config = plugin.deepspeed_config
    zero = config["zero_optimization"]
    assert plugin.zero_stage == zero["stage"] == stage and not plugin.zero3_init_flag
    assert stage == 2 or zero["stage3_gather_16bit_weights_on_model_save"] is True
    assert zero["offload_optimizer"]["device"] == zero["offload_param"]["device"] == "none"
    filled_in_by_trainer = ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
    assert [config[key] for key in filled_in_by_trainer] == ["auto"] * 3


def test_two_machines_start_eight_processes_each():
    args = launch_args(ROOT / "recipes" / "accelerate" / "multi_node.yaml")
    args.machine_rank = 1  # the first machine's launcher looks whether its port is free
    prepare_multi_gpu_env(args)
    assert (args.nnodes, args.nproc_per_node, args.node_rank) == ("2", "8", 1)
    assert args.rdzv_endpoint.startswith("10.0.0.1:")


@pytest.mark.slow
def test_ddp_runs_on_two_processes(tmp_path):
    rows = [{"prompt": text} for text in ("a", "b", "c", "d", "e", "f", "g", "h")]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (tmp_path / "my_rewards.py").write_text(
        "import torch.distributed as dist\n"
        "def length(completions, **columns):\n"
        "    assert dist.get_world_size() == 2 and dist.get_backend() == 'gloo'\n"
        "    return [float(len(text)) for text in completions]\n",
        encoding="utf-8",
    )
    code = (
        "from hf_instructgpt.char_gpt import CharGPTConfig, CharGPTForCausalLM, CharGPTTokenizer\n"
        "tokenizer = CharGPTTokenizer.from_document()\n"
        "CharGPTForCausalLM(CharGPTConfig(hidden_size=16, num_hidden_layers=1)).save_pretrained('model')\n"
        "tokenizer.save_pretrained('model')\n"
    )
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)])}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env=env, timeout=300)
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0"]
    launch += ["--config_file", str(ROOT / "recipes" / "accelerate" / "ddp.yaml"), "-m", "hf_instructgpt.cli", "ppo"]
    options = ["--model_name_or_path", "model", "--reward_funcs", "my_rewards.length", "--use_cpu", "true"]
    options += ["--dataset_name", "prompts.jsonl", "--output_dir", "ppo", "--report_to", "none", "--max_steps", "2"]
    options += ["--per_device_train_batch_size", "2", "--max_completion_length", "4", "--save_strategy", "no"]
    subprocess.run([*launch, *options], check=True, cwd=tmp_path, env=env, timeout=600)
    assert (tmp_path / "ppo" / "model.safetensors").is_file()
    assert (tmp_path / "ppo" / "value_model").is_dir()
