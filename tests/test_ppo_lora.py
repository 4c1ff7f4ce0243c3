"""PPO with adapters: the policy's, the critic's, the reward model's; what moves, what is saved, what loads."""

import copy

import pytest
import torch
from datasets import Dataset
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, PrefixTuningConfig, get_peft_model
from test_ppo_trainer import PROMPTS, assert_equal, gpt2, lengths, llama, logged, make, policy, reward_model, weights
from transformers import AutoModelForCausalLM

from hf_instructgpt.char_gpt import CharGPTTokenizer
from hf_instructgpt.errors import InputError
from hf_instructgpt.models.forward import response_logprobs
from hf_instructgpt.ppo.critic import load_value_model
from hf_instructgpt.scoring.reward_models import reward_model_scores

LORA = LoraConfig(r=2, target_modules="all-linear", lora_dropout=0.3)


@pytest.fixture(scope="module")
def saved_policy(tmp_path_factory):
    """A policy with a name, so that adapters can say what they stand on."""
    folder = tmp_path_factory.mktemp("policy")
    policy().save_pretrained(folder)
    CharGPTTokenizer.from_document().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def reward_adapter(saved_policy, tmp_path_factory):
    """A reward model as an adapter with a full score head, on the policy's body."""
    from hf_instructgpt.char_gpt import CharGPTForSequenceClassification

    folder = str(tmp_path_factory.mktemp("reward"))
    torch.manual_seed(7)
    body = CharGPTForSequenceClassification.from_pretrained(saved_policy, num_labels=1)
    config = LoraConfig(r=2, target_modules="all-linear", modules_to_save=["score"], task_type="SEQ_CLS")
    model = get_peft_model(body, config)
    with torch.no_grad():  # as if trained: a new adapter does nothing yet
        for name, p in model.named_parameters():
            if "lora_B" in name or "score" in name:
                p.normal_(std=0.3)
    model.save_pretrained(folder)
    return folder, model.eval()


@pytest.mark.parametrize("build", [policy, gpt2, llama])
@pytest.mark.parametrize("value_model", [None, "shared"])
def test_only_adapters_and_heads_move_and_the_reference_is_the_policy_without_its_adapter(
    tmp_path, build, value_model
):
    model = build()
    before = weights(model)
    trainer = make(tmp_path, model, peft_config=LORA, value_model=value_model, max_steps=4, num_ppo_epochs=2)
    assert trainer.ref_model is None
    start = weights(trainer.model)
    trainer.train()
    assert logged(trainer, "kl")[0] == 0.0 == logged(trainer, "approx_kl")[0]
    assert logged(trainer, "kl")[1] != 0.0
    moved = {name for name, tensor in trainer.model.state_dict().items() if not tensor.equal(start[name])}
    trainable = {name for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert moved == trainable
    assert all("lora_" in name or "value_head" in name for name in trainable)
    with trainer.model.policy.disable_adapter():
        rows = list(PROMPTS)
        rollout = trainer._roll_out(rows, num_generations=1)
    assert_equal(trainer.model.policy.unload().state_dict(), before)
    assert rollout.old_logprobs.equal(rollout.ref_logprobs)


@pytest.mark.parametrize("options", [{"bias": "all"}, {"init_lora_weights": "pissa"}])
def test_an_adapter_that_cannot_be_switched_off_has_a_copy_as_reference(tmp_path, options):
    model = policy()
    before = weights(model)
    config = LoraConfig(r=2, target_modules=["fc1", "fc2"], **options)
    trainer = make(tmp_path, model, peft_config=config, max_steps=4)
    assert_equal(trainer.ref_model.state_dict(), before)
    trainer.train()
    assert logged(trainer, "kl")[0] == pytest.approx(0.0, abs=1e-4)
    rollout = trainer._roll_out(list(PROMPTS), num_generations=1)
    expected = response_logprobs(trainer.ref_model, *rollout.sequences)
    torch.testing.assert_close(rollout.ref_logprobs, expected)


def test_an_adapter_can_be_the_reference(tmp_path):
    """Its base model learns positions: read without those of the padding, it is as far from the policy as a copy."""
    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=["c_attn"], init_lora_weights=False)
    adapter = get_peft_model(gpt2(), config)
    trainer = make(tmp_path, copy.deepcopy(adapter), ref_model=adapter, max_steps=1)
    trainer.train()
    assert trainer._rollout.prompt_mask.logical_not().any()
    assert logged(trainer, "kl") == [0.0]


def test_a_configuration_that_served_before_serves_again(tmp_path):
    config = copy.deepcopy(LORA)
    get_peft_model(gpt2(), config)  # PEFT writes the names it found into it
    assert "transformer.h.0.attn.c_attn" in config.target_modules
    trainer = make(tmp_path, gpt2(), peft_config=config)
    names = [name for name, p in trainer.model.named_parameters() if p.requires_grad and "c_attn" in name]
    assert sum("value_model" in name for name in names) == sum("policy" in name for name in names) > 0


def test_the_critic_s_adapter_has_the_ranks_of_the_policy_s(tmp_path):
    config = LoraConfig(r=2, target_modules=["c_attn"], rank_pattern={"transformer.h.0.attn.c_attn": 5})
    trainer = make(tmp_path, gpt2(), peft_config=config)
    names = [(name, p.shape[0]) for name, p in trainer.model.named_parameters() if "lora_A" in name]
    assert [rank for name, rank in names if "policy" in name] == [5, 2]
    assert [rank for name, rank in names if "value_model" in name] == [5, 2]


def test_a_regular_expression_of_the_policy_s_names_finds_the_critic_s(tmp_path):
    config = LoraConfig(r=2, target_modules=r"transformer\.h\.1\.attn\.(c_attn|c_proj)")
    trainer = make(tmp_path, gpt2(), peft_config=config)
    names = {name for name, _ in trainer.model.named_parameters() if "lora_A" in name}
    assert len(names) == 4 and all(".h.1.attn." in name for name in names)
    assert sum("value_model" in name for name in names) == 2


def test_measuring_the_reference_leaves_the_adapter_on_and_trainable(tmp_path):
    trainer = make(tmp_path, peft_config=LORA, kl_penalty_in="loss", kl_estimator="full", max_steps=3)
    trainer.train()
    flags = {name: p.requires_grad for name, p in trainer.model.policy.named_parameters()}
    assert all(flag == ("lora_" in name) for name, flag in flags.items())
    rollout = trainer._roll_out(list(PROMPTS), num_generations=1)
    assert not rollout.old_logprobs.equal(rollout.ref_logprobs)


def test_activation_checkpointing_gives_adapters_the_same_weights(tmp_path):
    results = []
    for flag in (False, True):
        options = {"gradient_checkpointing": flag, "max_steps": 3, "optim": "sgd"}
        trainer = make(tmp_path, gpt2(), peft_config=LORA, **options)
        trainer.train()
        results.append(weights(trainer.model))
    for name, tensor in results[0].items():
        torch.testing.assert_close(tensor, results[1][name], atol=1e-7, rtol=1e-6)


def test_a_policy_s_adapter_loads_and_its_merged_model_is_the_same_policy(tmp_path, saved_policy):
    trainer = make(tmp_path / "run", saved_policy, peft_config=LORA, max_steps=3)
    trainer.train()
    trainer.save_model()
    trainer.save_merged_model(str(tmp_path / "merged"))
    ids = torch.tensor([[5, 6, 7, 8]])
    expected = trainer.model.language_model.eval()(input_ids=ids).logits
    adapter = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "run").eval()
    assert adapter(input_ids=ids).logits.equal(expected)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    assert not any("lora" in name for name in merged.state_dict())
    torch.testing.assert_close(merged(input_ids=ids).logits, expected, atol=1e-5, rtol=1e-4)
    assert not (tmp_path / "run" / "model.safetensors").exists()
    trainer.create_model_card(model_name="mine")  # as push_to_hub does
    assert "library_name: peft" in (tmp_path / "run" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("reward_funcs", "value_model", "has_base"),
    [("lengths", None, False), ("lengths", "shared", False), ("adapter", None, True)],
)
def test_every_kind_of_critic_reloads_with_the_values_it_had(
    tmp_path, saved_policy, reward_adapter, reward_funcs, value_model, has_base
):
    funcs = {"lengths": lengths, "adapter": reward_adapter[0]}[reward_funcs]
    trainer = make(tmp_path, saved_policy, funcs, peft_config=LORA, value_model=value_model, max_steps=3)
    trainer.train()
    trainer.save_model()
    # A trunk whose weights no name stands for goes with its adapter: here a reward model with its adapter merged.
    assert (tmp_path / "value_model" / "base").is_dir() == has_base
    critic = load_value_model(tmp_path / "value_model").eval()
    inputs = {"input_ids": torch.tensor([[5, 6, 7, 8, 9]]), "attention_mask": torch.ones(1, 5, dtype=torch.long)}
    mask = torch.ones(1, 3, dtype=torch.bool)
    batch = inputs["input_ids"][:, :2], mask[:, :2], inputs["input_ids"][:, 2:], mask
    with torch.no_grad():
        _, expected, *_ = trainer.model.eval()(*(x.to(trainer.model.device) for x in batch))
        values = critic(response_length=3, **inputs)
    assert values.abs().max() > 0
    torch.testing.assert_close(values, expected, atol=1e-5, rtol=1e-4)


def test_an_adapter_without_a_named_base_says_so_when_its_critic_is_loaded(tmp_path):
    trainer = make(tmp_path, peft_config=LORA, value_model="shared", max_steps=1)
    trainer.train()
    trainer.save_model()
    with pytest.raises(InputError, match="base model had no name"):
        load_value_model(tmp_path / "value_model")


@pytest.mark.parametrize("as_path", [True, False])
def test_a_reward_model_may_be_an_adapter_and_scores_as_it_does_alone(tmp_path, saved_policy, reward_adapter, as_path):
    folder, model = reward_adapter
    trainer = make(tmp_path, saved_policy, folder if as_path else model, max_steps=2)
    rollout = trainer._roll_out(list(PROMPTS), num_generations=1)
    rows = []
    for i in range(len(PROMPTS)):
        prompt, prompt_mask, response, mask = (x[i] for x in rollout.sequences)
        rows.append([*prompt[prompt_mask].tolist(), *response[mask].tolist()])
    alone = torch.cat([reward_model_scores(model, [row], batch_size=1) for row in rows])
    torch.testing.assert_close(rollout.scores, alone, atol=1e-5, rtol=1e-4)
    # The critic starts from its body, the adapter merged; nothing of the reward model moves.
    critic = trainer.model.value_model
    assert not any("lora" in name for name in critic.state_dict())
    before = weights(trainer.reward_funcs[0])
    trainer.train()
    assert_equal(trainer.reward_funcs[0].state_dict(), before)


def test_an_adapter_on_recomputed_activations_is_sampled_from_in_half_precision(tmp_path, saved_policy):
    options = {"peft_config": LORA, "sampling_dtype": "bfloat16", "gradient_checkpointing": True}
    trainer = make(tmp_path, saved_policy, **options, max_steps=4)
    trainer.train()
    assert trainer.generator.model.dtype == torch.bfloat16 and len(logged(trainer, "score")) == 2
    assert 0 < max(logged(trainer, "sampling_logprob_diff")) < 0.1


def test_libraries_do_not_warn_of_their_own_old_names(tmp_path, saved_policy, recwarn):
    make(tmp_path, saved_policy, peft_config=LORA, max_steps=1).train()
    assert not [str(warning.message) for warning in recwarn if "deprecated" in str(warning.message)]


def test_an_adapter_that_comes_in_is_trained_on_and_the_reference_is_where_it_started(tmp_path, saved_policy):
    first = make(tmp_path / "first", saved_policy, peft_config=LORA, max_steps=4)
    first.train()
    first.save_model()
    second = make(tmp_path / "second", str(tmp_path / "first"), max_steps=4)
    assert isinstance(second.model.policy, PeftModel) and second.ref_model is not None
    second.train()
    assert logged(second, "kl")[0] == pytest.approx(0.0, abs=1e-4)  # the reference's adapter is merged: not to the bit
    assert logged(second, "kl")[1] != 0.0
    second.save_model()
    one, two = (AutoPeftModelForCausalLM.from_pretrained(tmp_path / name) for name in ("first", "second"))
    different = {name for name, tensor in one.state_dict().items() if not tensor.equal(two.state_dict()[name])}
    assert different and all("lora_" in name for name in different)


@pytest.mark.parametrize("more", [{}, {"sampling_dtype": "bfloat16"}, {"sampling_dtype": "bfloat16", "bf16": True}])
@pytest.mark.parametrize("adapter", [LORA, None])
def test_a_resumed_run_ends_with_the_same_bytes_with_an_average_and_a_copy_that_samples(
    tmp_path, saved_policy, adapter, more
):
    options = {"peft_config": adapter, "ema_decay": 0.9, "max_steps": 8, "num_mini_batches": 2, "save_steps": 3}
    options |= more
    options |= {"per_device_train_batch_size": 2, "save_strategy": "steps", "reward_funcs": reward_model()}
    whole = make(tmp_path / "whole", saved_policy, **options)
    whole.train()
    resumed = make(tmp_path / "resumed", saved_policy, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert_equal(resumed.model.state_dict(), whole.model.state_dict())
    for left, right in zip(resumed.ema.average, whole.ema.average, strict=True):
        assert left.equal(right)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"peft_config": LoraConfig(target_modules=["none_such"])}, "`peft_config`: .*none_such"),
        ({"peft_config": PrefixTuningConfig(num_virtual_tokens=2)}, "prompt learning"),
        ({"model": get_peft_model(policy(), copy.deepcopy(LORA)), "peft_config": LORA}, "has an adapter already"),
        ({"model": get_peft_model(policy(), copy.deepcopy(LORA)).requires_grad_(False)}, "`is_trainable=True`"),
        ({"model": get_peft_model(policy(), copy.deepcopy(LORA), adapter_name="mine")}, "adapters mine; .*`default`"),
        (
            {
                "model": policy(tie_word_embeddings=True),
                "peft_config": LoraConfig(target_modules=["embed_tokens", "fc1"]),
            },
            "input and output embeddings are one matrix",
        ),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, arguments, message):
    with pytest.raises(InputError, match=message):
        make(tmp_path, **arguments)


def test_a_conversation_with_an_adapter(tmp_path):
    tokenizer = CharGPTTokenizer.from_texts(["ab"])
    data = Dataset.from_list([{"prompt": [{"role": "user", "content": "ab"}]}])
    trainer = make(tmp_path, policy(), train_dataset=data, processing_class=tokenizer, peft_config=LORA, max_steps=2)
    trainer.train()
    assert logged(trainer, "completion_length")[0] > 0
