"""The guide from TRL's PPOTrainer: it forgets no old name, names only what exists here, and its example runs."""

import inspect
import json
import re
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from hf_instructgpt import PPOConfig, PPOTrainer
from hf_instructgpt.char_gpt import (
    CharGPTConfig,
    CharGPTForCausalLM,
    CharGPTForSequenceClassification,
    CharGPTTokenizer,
)

ROOT = Path(__file__).parents[1]
GUIDE = (ROOT / "recipes" / "ppo" / "README.md").read_text(encoding="utf-8")

# What the wheels of TRL declare. C: ppo_config.py and ppo_trainer.py of 0.11.4. N: PPOv2Config, OnPolicyConfig and
# PPOv2Trainer of 0.11.4, PPOConfig, OnPolicyConfig and PPOTrainer of 0.12.2 to 1.12.0, all together.
OPTIONS_C = """
    accelerator_kwargs adap_kl_ctrl backward_batch_size batch_size cliprange cliprange_value compare_steps
    dataset_num_proc early_stopping exp_name forward_batch_size gamma global_backward_batch_size global_batch_size
    gradient_accumulation_steps gradient_checkpointing horizon init_kl_coef is_encoder_decoder is_peft_model kl_penalty
    lam learning_rate log_with max_grad_norm mini_batch_size model_name optimize_cuda_cache optimize_device_cache
    ppo_epochs project_kwargs push_to_hub_if_best_kwargs query_dataset ratio_threshold remove_unused_columns
    reward_model score_clip seed steps target target_kl task_name tracker_kwargs tracker_project_name use_score_norm
    use_score_scaling vf_coef whiten_rewards world_size
"""
OPTIONS_N = """
    batch_size bf16 cliprange cliprange_value dataset_num_proc ds3_gather_for_generation exp_name gamma
    gradient_checkpointing kl_coef kl_estimator lam learning_rate local_batch_size local_mini_batch_size
    local_rollout_forward_batch_size logging_steps lr_scheduler_kwargs micro_batch_size mini_batch_size
    missing_eos_penalty model_adapter_name num_mini_batches num_ppo_epochs num_sample_generations num_total_batches
    push_to_hub ref_adapter_name response_length reward_model_path run_name sft_model_path stop_token stop_token_id
    temperature total_episodes vf_coef whiten_rewards world_size
"""
ARGUMENTS_C = """
    config model ref_model tokenizer dataset optimizer data_collator num_shared_layers lr_scheduler
    training_data_collator
"""
ARGUMENTS_N = """
    config args tokenizer processing_class policy model ref_policy ref_model reward_model train_dataset value_model
    data_collator eval_dataset optimizers callbacks peft_config
"""
METHODS_C = """
    prepare_dataloader generate step gather_stats prepare_model_inputs batched_forward_pass train_minibatch
    compute_rewards compute_advantages loss record_step_stats log_stats create_model_card
"""
METHODS_N = """
    get_train_dataloader get_eval_dataloader null_ref_context save_model train generate_completions create_model_card
    push_to_hub
"""
METRICS_C = """
    objective/kl objective/kl_dist objective/logprobs objective/ref_logprobs objective/kl_coef objective/entropy
    ppo/mean_non_score_reward ppo/mean_scores ppo/std_scores ppo/loss/policy ppo/loss/value ppo/loss/total
    ppo/policy/entropy ppo/policy/approxkl ppo/policy/policykl ppo/policy/clipfrac ppo/policy/advantages
    ppo/policy/advantages_mean ppo/policy/ratio ppo/returns/mean ppo/returns/var ppo/val/vpred ppo/val/error
    ppo/val/clipfrac ppo/val/mean ppo/val/var ppo/val/var_explained ppo/learning_rate tokens/queries_len_mean
    tokens/queries_len_std tokens/queries_dist tokens/responses_len_mean tokens/responses_len_std
    tokens/responses_dist env/reward_mean env/reward_std env/reward_dist game_log time/ppo/forward_pass
    time/ppo/compute_rewards time/ppo/compute_advantages time/ppo/optimize_step time/ppo/calc_stats time/ppo/total
"""
METRICS_N = """
    eps objective/kl objective/entropy objective/non_score_reward objective/rlhf_reward objective/scores
    policy/approxkl_avg policy/clipfrac_avg policy/entropy_avg loss/policy_avg loss/value_avg val/clipfrac_avg
    val/ratio val/ratio_var val/num_eos_tokens lr episode
"""

OLD_NAMES = {
    "Options": {"C": OPTIONS_C, "N": OPTIONS_N},
    "Arguments of the trainer": {"C": ARGUMENTS_C, "N": ARGUMENTS_N},
    "Methods": {"C": METHODS_C, "N": METHODS_N},
    "Metrics": {"C": METRICS_C, "N": METRICS_N},
}
TRAINERS_METRICS = {"loss", "learning_rate", "grad_norm", "epoch"}


def sections() -> dict[str, str]:
    parts = re.split(r"^## (.+)$", GUIDE, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def code(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


def rows(section: str) -> list[tuple[list[str], str, list[str]]]:
    """Old names, versions and names here of every row of a section's tables."""
    cells = [re.split(r"(?<!\\)\|", line) for line in sections()[section].splitlines() if line.startswith("| `")]
    assert all(len(row) == 6 for row in cells)
    return [(code(row[1]), row[2].strip(), code(row[3])) for row in cells]


def config_names() -> set[str]:
    return {field.name for field in fields(PPOConfig)} | {"rollout_size"}


def argument_names() -> set[str]:
    return set(inspect.signature(PPOTrainer.__init__).parameters) - {"self"}


def metric_names() -> set[str]:
    page = (ROOT / "recipes" / "docs" / "en" / "guides" / "metrics.md").read_text(encoding="utf-8")
    table = page.split("## All metrics of PPO")[1].split("\n## ")[0]
    first_cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    return TRAINERS_METRICS | {name for cell in first_cells for name in code(cell)}


def test_every_old_name_has_a_row():
    for section, by_era in OLD_NAMES.items():
        for era, names in by_era.items():
            there = {name for old, versions, _ in rows(section) if era in versions for name in old}
            assert set(names.split()) - there == set(), (section, era)


def names_here(section: str) -> set[str]:
    return {name for _, _, here in rows(section) for name in here}


def test_options_lead_to_options_or_arguments():
    assert names_here("Options") - config_names() - argument_names() == set()


def test_arguments_lead_to_arguments():
    assert names_here("Arguments of the trainer") - argument_names() == set()


def test_methods_lead_to_methods_options_or_arguments():
    methods = {name for name, _ in inspect.getmembers(PPOTrainer, callable) if not name.startswith("_")}
    assert names_here("Methods") - methods - config_names() - argument_names() == set()


def test_metrics_lead_to_metrics_or_options():
    assert names_here("Metrics") - metric_names() - config_names() == set()


def test_what_is_called_new_exists():
    (metrics,) = re.findall(r"^New metrics.*?\n\n", GUIDE, flags=re.MULTILINE | re.DOTALL)
    assert set(code(metrics)) - metric_names() == set()
    options = GUIDE.split("- Options that neither trainer had:")[1]
    assert set(code(options)) - config_names() - argument_names() == set()


def test_a_row_without_a_counterpart_says_so_and_what_to_do():
    for section in OLD_NAMES:
        for line in sections()[section].splitlines():
            if line.startswith("| `"):
                _, _, _, here, changed, _ = line.split("|")
                assert code(here) or (here.strip() == "none" and changed.strip()), line


@pytest.fixture
def models(tmp_path, monkeypatch):
    """What the example loads, in the current folder."""
    monkeypatch.chdir(tmp_path)
    tokenizer = CharGPTTokenizer.from_document()
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    CharGPTForCausalLM(CharGPTConfig(**size)).save_pretrained("my-sft")
    CharGPTForSequenceClassification(CharGPTConfig(num_labels=1, **size)).save_pretrained("my-reward-model")
    for name in ("my-sft", "my-reward-model"):
        tokenizer.save_pretrained(name)
    prompts = [{"prompt": text} for text in ("a", "bc", "def", "gh")]
    Path("my-prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts), encoding="utf-8")


def test_the_example_runs_and_takes_as_many_steps_as_it_says(models):
    before, after = re.findall(r"```python\n(.*?)```", GUIDE, flags=re.DOTALL)
    compile(before, "before", "exec")
    namespace = {"__name__": "example"}
    exec(compile(after, "after", "exec"), namespace)
    trainer = namespace["trainer"]
    total_episodes = int(re.search(r"total_episodes=(\d+)", before)[1])
    assert trainer.state.global_step == total_episodes // trainer.args.rollout_size * trainer.args.num_ppo_epochs
    assert Path("ppo", "model.safetensors").is_file() and Path("ppo", "value_model").is_dir()
