"""Options from YAML and flags: what is right arrives, what is wrong is named."""

import pytest

from hf_instructgpt.errors import InputError
from hf_instructgpt.stages.parsing import parse_stage


def parse(stage, tmp_path, text, *argv):
    (tmp_path / "c.yaml").write_text(text)
    return parse_stage(stage, ["--config", str(tmp_path / "c.yaml"), *argv])


def test_flags_win_over_yaml_and_yaml_over_defaults(tmp_path):
    args, training_args, _ = parse(
        "sft", tmp_path, "learning_rate: 1e-3\nnum_train_epochs: 5\ndataset_name: lab", "--num_train_epochs", "2"
    )
    assert (training_args.learning_rate, training_args.num_train_epochs, args.dataset_name) == (1e-3, 2, "lab")
    assert training_args.per_device_train_batch_size == 8


def test_every_kind_of_value_arrives(tmp_path):
    text = """
model_init_kwargs: {hidden_size: 16, dropout: 0.0}
report_to: none
bf16: false
gradient_checkpointing: no
max_length: null
optim_target_modules: [a, b]
lora_target_modules: [q, k]
output_dir: -odd
"""
    _, training_args, model_args = parse("sft", tmp_path, text)
    assert training_args.model_init_kwargs == {"hidden_size": 16, "dropout": 0.0}
    assert training_args.report_to == [] and training_args.bf16 is False
    assert training_args.gradient_checkpointing is False and training_args.max_length is None
    assert training_args.optim_target_modules == ["a", "b"] and model_args.lora_target_modules == ["q", "k"]
    assert training_args.output_dir == "-odd"
    args, training_args, _ = parse("ppo", tmp_path, "reward_funcs: [a.b, ./rm]\nreward_weights: [1, -1e-5]")
    assert args.reward_funcs == ["a.b", "./rm"] and training_args.reward_weights == [1, -1e-5]


@pytest.mark.parametrize(("text", "value"), [("0.1", 0.1), ("1e-2", 0.01), ("auto", "auto"), ("null", 0.0)])
def test_label_noise_is_a_number_or_auto(tmp_path, text, value):
    assert parse("reward", tmp_path, f"label_noise: {text}")[1].label_noise == value
    if text != "null":
        assert parse("reward", tmp_path, "seed: 1", f"--label_noise={text}")[1].label_noise == value


@pytest.mark.parametrize("form", [["--config", "{}"], ["--config={}"]])
def test_both_forms_of_config(tmp_path, form):
    (tmp_path / "c.yaml").write_text("dataset_name: lab")
    args, _, _ = parse_stage("sft", [part.format(tmp_path / "c.yaml") for part in form])
    assert args.dataset_name == "lab"


def test_flags_may_be_written_with_hyphens(tmp_path):
    assert parse("sft", tmp_path, "seed: 1", "--learning-rate=0.5")[1].learning_rate == 0.5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rate: [1]", "`learning_rate` takes one value, not a list"),
        ("learning_rate: {a: 1}", "`learning_rate` takes one value, not a mapping"),
        ("output_dir: {a: 1}", "`output_dir` takes one value, not a mapping"),
        ("learning_rate: null", "`learning_rate` needs a value"),
        ("learning_rate: -1", "`learning_rate` must be 0 or more"),
        ("learning_rate: .nan", "`learning_rate` must be a finite number"),
        ("learning_rate: true", "`learning_rate`: invalid float value: 'true'"),
        ("num_train_epochs: three", "`num_train_epochs`: invalid float value: 'three'"),
        ("num_train_epochs: 0", "`num_train_epochs` must be 0.01 or more"),
        ("max_steps: -5", "`max_steps` must be -1 or more"),
        ("max_grad_norm: -1", "`max_grad_norm` must be 0 or more"),
        ("per_device_train_batch_size: 2.5", "`per_device_train_batch_size`: invalid int value: '2.5'"),
        ("per_device_train_batch_size: 0", "`per_device_train_batch_size` must be 1 or more"),
        ("gradient_accumulation_steps: 0", "`gradient_accumulation_steps` must be 1 or more"),
        ("max_length: 0", "`max_length` must be 1 or more"),
        ("seed: -1", "`seed` must be 0 or more, not -1"),
        ("seed: 4294967296", "`seed` must be at most 4294967295"),
        ("model_init_kwargs: 5", "`model_init_kwargs` must be a mapping, not '5'"),
        ("model_init_kwargs: [5]", "`model_init_kwargs` takes one value, not a list"),
        ("model_init_kwargs: '{broken'", "c.yaml"),
        ("bf16: 3", "`bf16`: Truthy value expected"),
        ("eval_strategy: sometimes", "`eval_strategy`: invalid choice"),
        ("report_to: abacus", "`report_to`: abacus is unknown or not installed"),
        ("resume_from_checkpoint: x", "pass --resume"),
        ("output_dir: ''", "`output_dir` must name a folder"),
        ("output_dir: .", "`output_dir` must name a folder"),
        ("learing_rate: 1", "unknown key `learing_rate`. Did you mean `learning_rate`?"),
        ("1: 2", "unknown key `1`"),
        ("dataset_streaming: true", "unknown key `dataset_streaming`"),
        ("config: c.yaml", "unknown key `config`"),
        ("kl_coef: 0.1", "option of `hf-instructgpt ppo`: is this a config for another stage?"),
        ("sft: {}", "This looks like a config for `hf-instructgpt run`"),
        ("", "must hold a mapping"),
        ("- a", "must hold a mapping"),
        ("a: [1\nb: 2", "not valid YAML"),
        ("a: \x00", "not valid YAML"),
    ],
)
def test_a_wrong_file_is_named_with_its_field(tmp_path, text, message):
    with pytest.raises(InputError) as error:
        parse("sft", tmp_path, text)
    assert message in str(error.value) and "c.yaml" in str(error.value)


def test_options_out_of_range_for_ppo(tmp_path):
    with pytest.raises(InputError, match="`lam` must be at most 1"):
        parse("ppo", tmp_path, "lam: 2")
    with pytest.raises(InputError, match="`kl_coef` needs a value"):
        parse("ppo", tmp_path, "kl_coef: null")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--learing_rate", "1"], "unknown argument `--learing_rate`. Did you mean `learning_rate`?"),
        (["--learning-rat=1"], "unknown argument `--learning-rat=1`. Did you mean `learning_rate`?"),
        (["--kl_coef", "1"], "option of `hf-instructgpt ppo`"),
        (["c.yaml"], "unknown argument `c.yaml`"),
        (["--learning_rate", "fast"], "`learning_rate`: invalid float value: 'fast'"),
        (["--learning_rate"], "`learning_rate`: expected one argument"),
        (["--config"], "`config`: expected one argument"),
        (["--config", "--seed", "1"], "`config`: expected one argument"),
        (["--config", "none.yaml"], "the config file none.yaml does not exist"),
        (["--config", "."], "does not exist"),
    ],
)
def test_a_wrong_flag_is_named(argv, message):
    with pytest.raises(InputError) as error:
        parse_stage("sft", argv)
    assert message in str(error.value)
