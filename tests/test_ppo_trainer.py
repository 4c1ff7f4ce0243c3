"""PPOTrainer as a whole: what moves, what a step is made of, resume, saving, logs, and what is refused."""

import copy
import itertools
import json
import logging
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    TrainerCallback,
    TrainingArguments,
)

from hf_instructgpt.char_gpt import (
    CharGPTConfig,
    CharGPTForCausalLM,
    CharGPTForSequenceClassification,
    CharGPTTokenizer,
)
from hf_instructgpt.errors import InputError
from hf_instructgpt.models.forward import response_logprobs
from hf_instructgpt.ppo import trainer as trainer_module
from hf_instructgpt.ppo.config import PPOConfig
from hf_instructgpt.ppo.critic import load_value_model
from hf_instructgpt.ppo.prompt_sampler import RolloutSampler
from hf_instructgpt.ppo.trainer import PPOTrainer

EOS = 66
TOKENIZER = CharGPTTokenizer.from_document()
PROMPTS = Dataset.from_list([{"prompt": text} for text in ("a", "bcd", "ef", "ghij", "klm", "no")])
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
T5 = T5Config(vocab_size=68, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0)


def policy(seed=0, eos_bias=3.0, **config):
    """A tiny policy whose responses often end early: their lengths are uneven."""
    torch.manual_seed(seed)
    model = CharGPTForCausalLM(CharGPTConfig(**{**SIZES, "dropout": 0.3, **config}))
    with torch.no_grad():
        model.lm_head.bias[EOS] += eos_bias
    return model


def reward_model(seed=1, **config):
    torch.manual_seed(seed)
    return CharGPTForSequenceClassification(CharGPTConfig(**{**SIZES, "num_labels": 1, **config}))


def gpt2(**config):
    torch.manual_seed(0)
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32, "vocab_size": 68}
    return GPT2LMHeadModel(GPT2Config(**sizes, eos_token_id=EOS, bos_token_id=None, **config))


def lengths(completion_ids, **_):
    """A reward function: longer is better."""
    return [float(len(ids)) for ids in completion_ids]


def make(tmp_path, model=None, reward_funcs=lengths, train_dataset=PROMPTS, processing_class=TOKENIZER, **options):
    names = ("eval_dataset", "ref_model", "value_model", "callbacks", "reward_processing_classes")
    names += ("ptx_dataset", "generator", "peft_config", "optimizers")
    arguments = {name: options.pop(name) for name in names if name in options}
    defaults = {
        "output_dir": str(tmp_path),
        "use_cpu": True,
        "report_to": [],
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_steps": 1,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "per_device_train_batch_size": 4,
        "num_ppo_epochs": 2,
        "max_completion_length": 6,
    }
    return PPOTrainer(
        model or policy(),
        reward_funcs,
        args=PPOConfig(**{**defaults, **options}),
        train_dataset=train_dataset,
        processing_class=processing_class,
        **arguments,
    )


def weights(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def assert_equal(left, right):
    assert left.keys() == right.keys()
    different = [name for name in left if not torch.equal(left[name], right[name])]
    assert different == []


def timeless(log):
    """A log without what depends on the machine."""
    return {name: x for name, x in log.items() if not name.startswith("system/")}


def logged(trainer, name):
    return [logs[name] for logs in trainer.state.log_history if name in logs]


# ---- The first step ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("temperature", "bf16"), [(0.7, False), (1.3, False), (1.0, True)])
def test_the_first_ratio_is_exactly_one_whatever_the_dropout(tmp_path, monkeypatch, temperature, bf16):
    ratios = []

    def spy(logprobs, *, old_logprobs, **kwargs):
        ratios.append((logprobs - old_logprobs).abs().max().item())
        assert ratios[:2] in ([0.0], [0.0, 0.0])  # here: a run whose first ratio is far from 1 is stopped
        return policy_loss(logprobs, old_logprobs=old_logprobs, **kwargs)

    policy_loss = trainer_module.policy_loss
    monkeypatch.setattr(trainer_module, "policy_loss", spy)
    options = {"gradient_accumulation_steps": 2, "num_mini_batches": 2, "per_device_train_batch_size": 2}
    trainer = make(tmp_path, policy(dropout=0.5), temperature=temperature, bf16=bf16, max_steps=2, **options)
    trainer.train()
    assert ratios[:2] == [0.0, 0.0]  # both micro-batches of the first step
    assert ratios[2] > 0
    assert logged(trainer, "approx_kl")[0] == logged(trainer, "clip_fraction")[0] == 0.0
    # Policy and reference are two models, and their memory may lie so that kernels round differently.
    assert logged(trainer, "kl")[0] == pytest.approx(0.0, abs=1e-6)
    assert trainer._rollout.old_logprobs.allclose(trainer._rollout.ref_logprobs, rtol=0, atol=1e-6)
    assert not trainer._rollout.response_mask.all()


def test_old_logprobs_are_those_of_the_sampling_temperature(tmp_path):
    trainer = make(tmp_path, temperature=0.5)
    rollout = trainer._roll_out(list(PROMPTS), num_generations=1)
    expected = response_logprobs(trainer.model.policy.eval(), *rollout.sequences, temperature=0.5)
    torch.testing.assert_close(rollout.old_logprobs, expected)


# ---- What moves ----------------------------------------------------------------------------------------------------


def test_policy_and_critic_move_reference_and_reward_model_do_not_and_nothing_is_shared(tmp_path):
    reward = reward_model()
    trainer = make(tmp_path, reward_funcs=reward, max_steps=3)
    modules = [trainer.model.policy, trainer.model.value_model, trainer.ref_model, reward]
    storages = [{t.untyped_storage().data_ptr() for t in m.state_dict().values()} for m in modules]
    for left, right in itertools.combinations(storages, 2):
        assert not left & right
    before = [weights(module) for module in modules]
    trainer.train()
    for module, old in zip(modules[:2], before[:2], strict=True):
        names = [name for name, _ in module.named_parameters()]
        assert [name for name in names if module.state_dict()[name].equal(old[name])] == []
    for module, old in zip(modules[2:], before[2:], strict=True):
        assert_equal(module.state_dict(), old)
        assert not any(p.requires_grad for p in module.parameters())


def test_the_critic_starts_from_the_reward_model_and_learns_though_that_one_is_frozen(tmp_path):
    reward = reward_model().requires_grad_(False)
    trainer = make(tmp_path, reward_funcs=[lengths, reward], max_steps=2)
    critic = trainer.model.value_model
    assert_equal(critic.backbone.state_dict(), reward.model.state_dict())
    trainer.train()
    for name, tensor in critic.backbone.named_parameters():
        assert not tensor.equal(reward.model.state_dict()[name])


def test_the_critic_starts_from_the_policy_or_from_a_given_model_otherwise(tmp_path):
    model, other = policy(), policy(seed=5)
    assert_equal(make(tmp_path, model).model.value_model.backbone.state_dict(), model.model.state_dict())
    trainer = make(tmp_path, model, reward_funcs=reward_model(), value_model=other)
    assert_equal(trainer.model.value_model.backbone.state_dict(), other.model.state_dict())
    critic = trainer.model.value_model
    assert make(tmp_path, model, value_model=critic).model.value_model is critic


def test_the_critic_has_its_own_learning_rate(tmp_path):
    trainer = make(tmp_path, critic_learning_rate=0.0, max_steps=2)
    critic, actor = weights(trainer.model.value_model), weights(trainer.model.policy)
    trainer.train()
    assert_equal(trainer.model.value_model.state_dict(), critic)
    assert not trainer.model.policy.lm_head.weight.equal(actor["lm_head.weight"])
    trainer = make(tmp_path, critic_learning_rate=0.5, learning_rate=0.25, weight_decay=0.1)
    rates = {id(p): group["lr"] for group in trainer.create_optimizer().param_groups for p in group["params"]}
    assert {rates[id(p)] for p in trainer.model.value_model.parameters()} == {0.5}
    assert {rates[id(p)] for p in trainer.model.policy.parameters()} == {0.25}


def test_max_grad_norm_bounds_the_step(tmp_path):
    options = {"optim": "sgd", "learning_rate": 1.0, "max_grad_norm": 1e-3, "max_steps": 1}
    trainer = make(tmp_path, reward_funcs=lambda completions, **_: [1e6] * len(completions), **options)
    before = weights(trainer.model)
    trainer.train()
    step = sum((t - before[name]).double().square().sum() for name, t in trainer.model.state_dict().items()).sqrt()
    assert step.item() == pytest.approx(1e-3, rel=1e-3)
    assert logged(trainer, "grad_norm")[0] > 1e3


# ---- What one step is made of --------------------------------------------------------------------------------------


@pytest.mark.parametrize("aggregation", ["token", "response", "fixed_length"])
def test_the_gradient_does_not_depend_on_the_split_into_micro_batches(tmp_path, aggregation):
    results = []
    for size, accumulation in ((8, 1), (2, 4), (1, 8)):
        trainer = make(
            tmp_path,
            reward_funcs=reward_model(),
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
            loss_aggregation=aggregation,
            optim="sgd",
            max_steps=1,
        )
        before = weights(trainer.model)
        trainer.train()
        assert len(set(trainer._rollout.response_mask.sum(-1).tolist())) > 2  # uneven lengths
        moved = {name: tensor - before[name] for name, tensor in trainer.model.state_dict().items()}
        results.append((moved, logged(trainer, "loss")[0]))
    for moved, loss in results[1:]:
        assert loss == pytest.approx(results[0][1], abs=1e-4)
        for name, tensor in moved.items():
            torch.testing.assert_close(tensor, results[0][0][name], rtol=1e-3, atol=1e-8)


@pytest.mark.parametrize(
    ("aggregation", "mean"),
    [
        ("token", lambda loss, mask: loss[mask].mean()),
        ("response", lambda loss, mask: ((loss * mask).sum(-1) / mask.sum(-1)).mean()),
        ("fixed_length", lambda loss, mask: (loss * mask).sum() / (len(loss) * 6)),
    ],
)
def test_the_policy_s_loss_with_its_kl_and_entropy_is_aggregated_and_the_value_loss_is_a_token_mean(
    tmp_path, aggregation, mean
):
    options = {"kl_penalty_in": "loss", "kl_estimator": "k3", "kl_coef": 0.7, "entropy_coef": 0.3, "vf_coef": 0.5}
    options |= {"ref_model": policy(seed=3), "per_device_train_batch_size": 6, "whiten_advantages": False}
    trainer = make(tmp_path, reward_funcs=reward_model(), loss_aggregation=aggregation, **options)
    trainer._rollout = rollout = trainer._roll_out(list(PROMPTS), num_generations=1)
    (inputs,) = trainer._take_mini_batch(0)
    trainer.guard.begin_update()
    loss = trainer.compute_loss(trainer.model, inputs).item()
    batch, mask = inputs.rollout, inputs.rollout.response_mask
    assert len(set(mask.sum(-1).tolist())) > 2 and len(batch) == len(rollout) == 6
    with torch.no_grad():
        logprobs, values, _, logits = trainer.model(*batch.sequences, temperature=1.0)
    logprobs, values = (torch.where(mask, x, 0) for x in (logprobs, values))
    k3 = torch.exp(batch.ref_logprobs - logprobs) - 1 + logprobs - batch.ref_logprobs
    entropy = -(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1)
    expected = mean(-batch.advantages + 0.7 * k3 - 0.3 * entropy, mask)
    expected = expected + 0.5 * (0.5 * (values - batch.returns).square())[mask].mean()
    assert loss == pytest.approx(expected.item(), abs=1e-5)


def test_the_clips_reach_the_loss(tmp_path):
    """A policy that has moved since the rollout: of its tokens' losses, the options bound some."""
    found = []
    for options in ({}, {"cliprange_high": 2.0}, {"dual_clip": 1.05}):
        trainer = make(tmp_path, whiten_advantages=False, reward_funcs=reward_model(), **options)
        trainer._rollout = trainer._roll_out(list(PROMPTS)[:4], num_generations=1)
        ratio = torch.linspace(0.5, 1.9, 24).view(4, 6)[:, : trainer._rollout.response_mask.shape[1]]
        trainer._rollout.advantages = torch.where(trainer._rollout.response_mask, torch.tensor([[1.0], [-1.0]] * 2), 0)
        old = trainer._rollout.old_logprobs - ratio.log()
        trainer._rollout.old_logprobs = torch.where(trainer._rollout.response_mask, old, 0)
        (inputs,) = trainer._take_mini_batch(0)
        trainer.guard.begin_update()
        trainer.compute_loss(trainer.model, inputs)
        sums, mask = trainer.metrics.take(), trainer._rollout.response_mask
        advantages = trainer._rollout.advantages
        low, high = (ratio.clamp(0.8, 1 + options.get("cliprange_high", 0.2)) * advantages), ratio * advantages
        objective = torch.minimum(low, high)
        if "dual_clip" in options:
            objective = torch.where(advantages < 0, objective.clamp(min=-1.05), objective)
        assert sums["policy_loss"] == pytest.approx(-objective[mask].mean().item(), abs=1e-5)
        found.append(sums["policy_loss"])
    assert found[1] < found[0] and found[2] < found[0]


def test_a_trainer_from_before_5_19_does_not_divide_gradients_again(tmp_path, monkeypatch):
    monkeypatch.setattr(PPOTrainer, "loss_is_scaled_for_ga", None)  # such a one does not read it
    norms = []
    for size, accumulation in ((4, 1), (1, 4)):
        options = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulation, "max_steps": 1}
        trainer = make(tmp_path, **options)
        trainer.train()
        norms.append(logged(trainer, "grad_norm")[0])
    assert norms[1] == pytest.approx(norms[0], rel=1e-3)


def test_counting_tokens_across_devices_does_not_rescale_the_loss(tmp_path):
    results = []
    for flag in (True, False):
        trainer = make(tmp_path, average_tokens_across_devices=flag, max_steps=2, gradient_accumulation_steps=2)
        trainer.train()
        results.append(weights(trainer.model))
    assert_equal(*results)


def test_padding_with_the_end_of_text_token_changes_nothing(tmp_path):
    results = []
    for tokenizer in (TOKENIZER, CharGPTTokenizer.from_document(pad_token="<eos>")):
        trainer = make(tmp_path, processing_class=tokenizer, max_steps=4, optim="sgd")
        trainer.train()
        results.append((trainer.generation_config.pad_token_id, logged(trainer, "loss"), weights(trainer.model)))
    assert [pad for pad, *_ in results] == [0, EOS]
    assert results[0][1] == pytest.approx(results[1][1], abs=1e-5)
    for name, tensor in results[0][2].items():
        torch.testing.assert_close(tensor, results[1][2][name], atol=1e-6, rtol=1e-4)


def test_rollout_sampler_by_hand():
    epoch = 0
    sampler = RolloutSampler(5, block_size=3, repeats=2, seed=4, epoch_fn=lambda: epoch)
    order = torch.randperm(5, generator=torch.Generator().manual_seed(4)).tolist()
    first, second = order[:3], [*order[3:], order[0]]  # the last block is filled from the start
    assert list(sampler) == first * 2 + second * 2
    assert len(sampler) == 12
    epoch = 1
    assert list(sampler)[:3] == torch.randperm(5, generator=torch.Generator().manual_seed(5)).tolist()[:3]
    tiny = list(RolloutSampler(2, block_size=5, repeats=1, seed=0, epoch_fn=lambda: 0))
    assert tiny == [tiny[0], tiny[1], tiny[0], tiny[1], tiny[0]]


@pytest.mark.parametrize(
    ("size", "accumulation", "mini_batches", "ppo_epochs", "generations", "rollouts"),
    [(4, 1, 1, 2, 1, 2), (1, 2, 2, 3, 1, 2), (2, 1, 4, 1, 1, 1), (2, 2, 2, 1, 4, 3), (16, 1, 1, 1, 1, 1)],
)
def test_batch_algebra(tmp_path, size, accumulation, mini_batches, ppo_epochs, generations, rollouts):
    seen = []

    def reward(prompts, completions, **_):
        seen.append(prompts)
        return [0.0] * len(completions)

    trainer = make(
        tmp_path,
        reward_funcs=reward,
        per_device_train_batch_size=size,
        gradient_accumulation_steps=accumulation,
        num_mini_batches=mini_batches,
        num_ppo_epochs=ppo_epochs,
        num_generations=generations,
        num_train_epochs=2,
        max_completion_length=2,
    )
    trainer.train()
    assert trainer.state.global_step == 2 * rollouts * ppo_epochs * mini_batches
    assert len(seen) == 2 * rollouts
    assert {len(prompts) for prompts in seen} == {size * accumulation * mini_batches}
    for epoch in (seen[:rollouts], seen[rollouts:]):
        assert {prompt for prompts in epoch for prompt in prompts} == set(PROMPTS["prompt"])
    for prompts in seen:  # the responses of one prompt stand side by side
        assert [prompts[i - i % generations] for i in range(len(prompts))] == prompts


def test_max_steps_is_exact(tmp_path):
    trainer = make(tmp_path, max_steps=7, num_ppo_epochs=4)
    trainer.train()
    assert trainer.state.global_step == len(logged(trainer, "loss")) == 7


def real_logprobs(rollout):
    """Of each row; a mini-batch has no columns in which all of its rows have padding."""
    rows = zip(rollout.old_logprobs, rollout.response_mask, strict=True)
    return [tuple(row[mask].tolist()) for row, mask in rows]


def test_mini_batches_divide_a_rollout_and_are_drawn_anew_each_pass(tmp_path):
    options = {"per_device_train_batch_size": 2, "num_mini_batches": 4, "num_ppo_epochs": 2}
    trainer = make(tmp_path, **options)
    seen = []
    trainer._micro_step = 0
    for _ in range(8):
        batch = trainer._prepare_inputs(list(PROMPTS)[:4] * 2).rollout
        seen.append(real_logprobs(batch))
    whole = sorted(real_logprobs(trainer._rollout))
    first, second = (sorted(itertools.chain(*half)) for half in (seen[:4], seen[4:]))
    assert first == second == whole
    assert seen[:4] != seen[4:]


def test_advantages_are_whitened_in_the_mini_batch_unless_told_not_to(tmp_path):
    for whiten in (True, False):
        trainer = make(tmp_path, whiten_advantages=whiten)
        inputs = trainer._prepare_inputs(list(PROMPTS)[:4])
        batch, raw = inputs.rollout, trainer._rollout
        real = batch.advantages[batch.response_mask]
        assert inputs.num_tokens == batch.response_mask.sum()
        assert torch.allclose(real.mean(), torch.zeros(()), atol=1e-6) == whiten
        assert torch.allclose(real.var(correction=0), torch.ones(()), atol=1e-4) == whiten
        rows = [raw.old_logprobs.tolist().index(row) for row in batch.old_logprobs.tolist()]
        assert batch.advantages.equal(raw.advantages[rows]) != whiten


def test_the_penalty_for_a_missing_end_is_taken_from_cut_off_responses_only(tmp_path):
    trainer = make(tmp_path, reward_funcs=lambda completions, **_: [0.0] * len(completions), missing_eos_penalty=2.5)
    rollout = trainer._roll_out(list(PROMPTS) * 4, num_generations=1)
    ended = (rollout.response_ids.eq(EOS) & rollout.response_mask).any(-1)
    assert 0 < ended.sum() < len(ended)
    assert rollout.scores.equal(torch.where(ended, 0.0, -2.5))


def test_reward_functions_get_the_columns_of_their_own_prompts(tmp_path):
    seen = []

    def reward(prompts, completions, tag, number, **_):
        seen.append((prompts, tag))
        return [float(n) for n in number]

    rows = [{"prompt": p, "tag": f"<{p}>", "number": i} for i, p in enumerate(PROMPTS["prompt"])]
    trainer = make(tmp_path, reward_funcs=reward, train_dataset=Dataset.from_list(rows), num_generations=2)
    trainer.train()
    rollout = trainer._roll_out(rows, num_generations=2)
    assert rollout.scores.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert all([f"<{prompt}>" for prompt in prompts] == tag for prompts, tag in seen)


def test_messages_are_answered_by_messages(tmp_path):
    def reward(prompts, completions, **_):
        assert prompts[0] == [{"role": "user", "content": "ab"}]
        assert [message["role"] for completion in completions for message in completion] == ["assistant"] * 4
        return [0.0] * len(completions)

    tokenizer = CharGPTTokenizer.from_texts(["ab"])
    data = Dataset.from_list([{"prompt": [{"role": "user", "content": "ab"}]}])
    trainer = make(tmp_path, reward_funcs=reward, train_dataset=data, processing_class=tokenizer, max_steps=1)
    trainer.train()
    prompt = trainer._rollout.prompt_ids[0]
    assert tokenizer.decode(prompt) == "指令：ab 回答："


# ---- The document's estimator --------------------------------------------------------------------------------------


def test_the_reward_estimator_gives_every_token_the_score_less_the_kl(tmp_path):
    trainer = make(
        tmp_path, reward_funcs=reward_model(), ref_model=policy(seed=3), advantage_estimator="reward", kl_coef=0.3
    )
    assert trainer.model.value_model is None
    rollout = trainer._roll_out(list(PROMPTS), num_generations=1)
    for i, mask in enumerate(rollout.response_mask):
        kl = (rollout.old_logprobs[i] - rollout.ref_logprobs[i])[mask].sum()
        assert kl.abs() > 1e-3
        expected = torch.where(mask, rollout.scores[i] - 0.3 * kl, 0)
        torch.testing.assert_close(rollout.advantages[i], expected)


def test_the_group_mean_is_subtracted_among_responses_of_the_same_prompt(tmp_path):
    numbers = itertools.count(1)
    options = {"advantage_estimator": "reward", "num_generations": 2, "subtract_group_mean": True, "kl_coef": 0.0}
    trainer = make(
        tmp_path, reward_funcs=lambda completions, **_: [float(next(numbers)) ** 2 for _ in completions], **options
    )
    rollout = trainer._roll_out(list(PROMPTS)[:2], num_generations=2)
    # Scores 1, 4 | 9, 16: means 2.5 and 12.5.
    assert rollout.advantages[:, 0].tolist() == [-1.5, 1.5, -3.5, 3.5]


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [
        # Scores 1, 4, 9 and 16, 25, 36: less the mean of the other two; of all three, over sqrt(49/3), sqrt(301/3).
        ("rloo", [-5.5, -1.0, 6.5, -14.5, -1.0, 15.5]),
        ("grpo", [-0.907242, -0.164953, 1.072195, -0.965050, -0.066555, 1.031605]),
    ],
)
def test_advantages_from_the_group_without_a_critic(tmp_path, estimator, expected):
    numbers = itertools.count(1)
    trainer = make(
        tmp_path,
        reward_funcs=lambda completions, **_: [float(next(numbers)) ** 2 for _ in completions],
        advantage_estimator=estimator,
        num_generations=3,
        per_device_train_batch_size=6,
        kl_coef=0.0,
    )
    assert trainer.model.value_model is None and not trainer.args.whitens_advantages
    rollout = trainer._roll_out(list(PROMPTS)[:2], num_generations=3)
    assert rollout.advantages[:, 0].tolist() == pytest.approx(expected, abs=2e-6)
    assert rollout.advantages.equal(torch.where(rollout.response_mask, rollout.advantages[:, :1], 0))


def test_the_reward_estimator_is_the_documents_loop(tmp_path):
    model = policy(dropout=0.0)
    mine = copy.deepcopy(model)
    trainer = make(
        tmp_path,
        model,
        train_dataset=PROMPTS.select([1]),
        advantage_estimator="reward",
        per_device_train_batch_size=1,
        num_ppo_epochs=4,
        max_steps=4,
        optim="sgd",
        learning_rate=0.1,
        max_grad_norm=0.0,
        kl_coef=0.0,
        seed=3,
    )
    trainer.train()
    rollout = trainer._rollout
    prompt = TOKENIZER("bcd")["input_ids"]
    response = rollout.response_ids[0].tolist()
    reward, n = float(len(response)), len(prompt)
    assert len(response) > 2

    def logprobs():
        logits = mine(input_ids=torch.tensor([prompt + response])).logits[0, n - 1 : -1]
        return logits.log_softmax(-1)[torch.arange(len(response)), response]

    # The document: one response, its reward as every token's advantage, the mean of the clipped objective.
    old = logprobs().detach()
    optimizer = torch.optim.SGD(mine.parameters(), lr=0.1)
    clipped = []
    for _ in range(4):
        ratio = (logprobs() - old).exp()
        bounded = ratio.clamp(0.8, 1.2)
        clipped.append((ratio > 1.2).any().item())
        loss = -torch.min(ratio * reward, bounded * reward).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert clipped == sorted(clipped)
    assert clipped[-1]  # the clip did matter
    for name, tensor in mine.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], tensor, atol=1e-5, rtol=1e-4)


# ---- It learns -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "estimator"), [(0, "gae"), (1, "gae"), (2, "gae"), (0, "reward")])
def test_a_bandits_best_token_is_found(tmp_path, seed, estimator):
    group = {"num_generations": 32, "subtract_group_mean": True} if estimator == "reward" else {}
    trainer = make(
        tmp_path,
        policy(seed, eos_bias=0.0),
        reward_funcs=lambda completions, **_: [float(text == "b") + 0.5 * (text == "c") for text in completions],
        train_dataset=Dataset.from_list([{"prompt": "a"}]),
        advantage_estimator=estimator,
        per_device_train_batch_size=64,
        max_completion_length=1,
        num_ppo_epochs=4,
        kl_coef=0.0,
        max_steps=160,
        logging_steps=40,
        seed=seed,
        **group,
    )
    trainer.train()
    with torch.no_grad():
        logits = trainer.model.policy.eval()(input_ids=torch.tensor([TOKENIZER("a")["input_ids"]])).logits[0, -1]
    assert logits.softmax(-1)[TOKENIZER("b")["input_ids"][0]] > 0.9


def test_the_critic_learns_the_expected_return(tmp_path):
    trainer = make(
        tmp_path,
        reward_funcs=lambda prompts, **_: [1.0 if prompt == "a" else -1.0 for prompt in prompts],
        train_dataset=PROMPTS.select([0, 1]),
        kl_coef=0.0,
        learning_rate=0.0,
        critic_learning_rate=1e-2,
        max_steps=60,
        logging_steps=20,
        max_completion_length=2,
    )
    trainer.train()
    values = trainer._roll_out(list(PROMPTS.select([0, 1])), num_generations=1).values[:, 0]
    assert values.tolist() == pytest.approx([1.0, -1.0], abs=0.2)


def test_the_kl_penalty_holds_the_policy_near_the_reference(tmp_path):
    kl = []
    for coefficient in (0.0, 5.0):
        options = {
            "max_steps": 40,
            "kl_coef": coefficient,
            "advantage_estimator": "reward",
            "whiten_advantages": False,
        }
        trainer = make(tmp_path, learning_rate=3e-3, per_device_train_batch_size=16, **options)
        trainer.train()
        kl.append(trainer.evaluate(PROMPTS)["eval_kl"])
    assert kl[0] > 1
    assert kl[1] < 0.3 * kl[0]


# ---- Other models --------------------------------------------------------------------------------------------------


class PlainGPT2(GPT2LMHeadModel):
    """Neither `position_ids` nor `logits_to_keep`."""

    def forward(self, input_ids=None, attention_mask=None, use_cache=None, return_dict=None, **cache):
        positions = (attention_mask.cumsum(-1) - 1).clamp(min=0)[:, -input_ids.shape[1] :]
        return super().forward(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=positions, use_cache=use_cache, **cache
        )


def llama():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=68, attention_dropout=0.3, eos_token_id=EOS))


def test_a_model_without_the_optional_arguments_trains_from_a_ratio_of_one(tmp_path):
    trainer = make(tmp_path, PlainGPT2(gpt2().config), max_steps=2)
    before = weights(trainer.model)
    trainer.train()
    assert logged(trainer, "approx_kl")[0] == logged(trainer, "kl")[0] == 0.0
    moved = [not tensor.equal(before[name]) for name, tensor in trainer.model.named_parameters()]
    assert sum(moved) > 0.9 * len(moved)


def test_activation_checkpointing_gives_the_same_weights(tmp_path):
    results = []
    for flag in (False, True):
        trainer = make(tmp_path, gpt2(), gradient_checkpointing=flag, max_steps=3, optim="sgd")
        trainer.train()
        models = (trainer.model.policy, trainer.model.value_model.backbone)
        assert all(any(getattr(x, "gradient_checkpointing", False) for x in m.modules()) == flag for m in models)
        results.append(weights(trainer.model))
    for name, tensor in results[0].items():
        torch.testing.assert_close(tensor, results[1][name], atol=1e-7, rtol=1e-6)


def test_responses_that_all_end_at_once(tmp_path):
    trainer = make(tmp_path, policy(eos_bias=100.0), max_steps=2)
    trainer.train()
    assert trainer._rollout.response_ids.tolist() == [[EOS]] * 4
    assert logged(trainer, "completion_length") == [1.0]
    assert logged(trainer, "eos_fraction") == [1.0]


# ---- Resume, save, stop --------------------------------------------------------------------------------------------


def resumable(tmp_path, **options):
    # Rollouts of 4, two an epoch, 4 steps each: 16 steps. Checkpoint 8 ends the first epoch.
    return make(
        tmp_path,
        reward_funcs=[reward_model(), lengths],
        per_device_train_batch_size=1,
        gradient_accumulation_steps=2,
        num_mini_batches=2,
        num_train_epochs=2,
        lr_scheduler_type="linear",
        logging_steps=3,
        log_tokens=2,
        num_generations=2,
        save_strategy="steps",
        save_steps=1,
        train_dataset=PROMPTS.select(range(4)),
        **options,
    )


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    trainer = resumable(folder)
    trainer.train()
    assert trainer.state.global_step == 16
    return folder, trainer


@pytest.mark.parametrize("step", [2, 3, 4, 8, 11])
def test_a_resumed_run_ends_with_the_same_bytes(tmp_path, whole_run, step):
    folder, whole = whole_run
    Path(tmp_path, "tokens.jsonl").write_bytes((folder / "tokens.jsonl").read_bytes())
    trainer = resumable(tmp_path)
    trainer.train(resume_from_checkpoint=str(folder / f"checkpoint-{step}"))
    assert trainer.state.global_step == 16
    assert_equal(trainer.model.state_dict(), whole.model.state_dict())
    for left, right in zip(trainer.state.log_history[:-1], whole.state.log_history[:-1], strict=True):
        # Trainer itself averages `loss` over the steps since the resume.
        assert timeless(left) | {"loss": 0} == timeless(right) | {"loss": 0}
    # The broken run had written further than its last checkpoint: nothing stands there twice.
    assert (tmp_path / "tokens.jsonl").read_text() == (folder / "tokens.jsonl").read_text()


def test_an_epoch_stopped_in_mid_rollout_is_followed_by_a_new_rollout(tmp_path):
    rollouts = []

    class StopEpoch(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_epoch_stop = state.global_step == 1

    def reward(prompts, completions, **_):
        rollouts.append((trainer.state.global_step, tuple(prompts)))
        return [0.0] * len(completions)

    options = {"num_ppo_epochs": 4, "num_train_epochs": 2, "callbacks": [StopEpoch()]}
    trainer = make(tmp_path, reward_funcs=reward, train_dataset=PROMPTS.select(range(4)), **options)
    trainer.train()
    assert [step for step, _ in rollouts] == [0, 1]
    assert rollouts[0][1] != rollouts[1][1]  # the second epoch's own order
    assert trainer.state.global_step == 5


def test_training_again_begins_with_a_new_rollout(tmp_path):
    steps = []

    def reward(completions, **_):
        steps.append(trainer.state.global_step)
        return [0.0] * len(completions)

    trainer = make(tmp_path, reward_funcs=reward, max_steps=3, num_ppo_epochs=2)
    trainer.train()
    trainer.train()
    assert steps == [0, 2, 0, 2]


def test_the_best_model_is_loaded_at_the_end(tmp_path):
    falling = itertools.count(0, -1)
    trainer = make(
        tmp_path,
        reward_funcs=lambda completions, **_: [float(next(falling))] * len(completions),
        eval_dataset=PROMPTS,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        metric_for_best_model="score",
        load_best_model_at_end=True,
        max_steps=3,
    )
    trainer.train()
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-1")
    best = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint-1")
    last = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint-3")
    assert not best.lm_head.weight.equal(last.lm_head.weight)
    assert_equal(trainer.model.policy.state_dict(), best.state_dict())
    assert_equal(
        trainer.model.value_model.state_dict(), load_value_model(tmp_path / "checkpoint-1/value_model").state_dict()
    )


@pytest.mark.parametrize("build", [policy, gpt2])
def test_a_saved_run_loads_with_the_auto_classes_bit_for_bit(tmp_path, build):
    trainer = make(tmp_path, build(), max_steps=2)
    trainer.train()
    trainer.save_model()
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert_equal(model.state_dict(), trainer.model.policy.state_dict())
    critic = load_value_model(tmp_path / "value_model")
    assert_equal(critic.state_dict(), trainer.model.value_model.state_dict())
    assert critic.value_head.weight.abs().sum() > 0
    assert AutoTokenizer.from_pretrained(tmp_path)("abc")["input_ids"] == TOKENIZER("abc")["input_ids"]
    # Dropout is off in training only: the configuration keeps its rates.
    rates = {k: v for k, v in build().config.to_dict().items() if "drop" in k}
    assert rates == {k: v for k, v in model.config.to_dict().items() if "drop" in k}


def test_models_and_tokenizer_may_be_paths(tmp_path):
    model, reward = policy(), reward_model()
    model.save_pretrained(tmp_path / "policy")
    TOKENIZER.save_pretrained(tmp_path / "policy")
    reward.save_pretrained(tmp_path / "reward")
    paths = [str(tmp_path / name) for name in ("policy", "reward")]
    trainer = make(tmp_path, *paths, processing_class=None, max_steps=1)
    assert_equal(trainer.model.policy.state_dict(), model.state_dict())
    assert_equal(trainer.model.value_model.backbone.state_dict(), reward.model.state_dict())
    trainer.train()
    assert trainer.state.global_step == 1


# ---- Evaluation and logs -------------------------------------------------------------------------------------------


def test_evaluate_reports_means_and_leaves_training_alone(tmp_path):
    data = Dataset.from_list([{"prompt": "a", "other": 1}, {"prompt": "bc", "other": 2}, {"prompt": "d", "other": 6}])

    def reward(completions, other=None, **_):
        return [float(x) for x in other or [0.0] * len(completions)]

    trainer = make(tmp_path, reward_funcs=reward, eval_dataset=data, per_device_eval_batch_size=2, max_steps=1)
    trainer.train()
    trainer.metrics.record(score=torch.tensor([5.0]))
    rollout, state = trainer._rollout, (trainer._micro_step, trainer.model.training)
    metrics = trainer.evaluate()
    assert trainer._rollout is rollout
    assert (trainer._micro_step, trainer.model.training) == state
    assert {name: sums.tolist() for name, sums in trainer.metrics.state_dict().items()} == {"score": [[5.0, 1.0]]}
    assert metrics["eval_score"] == 3.0
    assert set(metrics) - {"epoch"} == {
        f"eval_{n}" for n in ("score", "reward", "kl", "kl_penalty", "completion_length", "eos_fraction")
    }
    assert metrics["eval_reward"] == pytest.approx(3.0 - 0.05 * metrics["eval_kl"], abs=1e-5)
    assert 1 <= metrics["eval_completion_length"] <= 6
    assert "eval_score" in trainer.state.log_history[-1]
    assert not any("policy_loss" in logs for logs in trainer.state.log_history if "eval_score" in logs)


def test_logged_means_are_over_responses_and_real_tokens(tmp_path):
    trainer = make(tmp_path, max_steps=2, num_ppo_epochs=2, logging_steps=2, kl_coef=0.0, vf_coef=0.0)
    trainer.train()
    mask = trainer._rollout.response_mask
    assert logged(trainer, "completion_length") == [pytest.approx(mask.sum(-1).float().mean().item())]
    assert logged(trainer, "score") == logged(trainer, "reward") == logged(trainer, "completion_length")
    # Whitened advantages sum to 0, and so does the first step's policy loss: half the mean is the second's.
    assert logged(trainer, "loss")[0] == pytest.approx(logged(trainer, "policy_loss")[0], abs=1e-6)


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("ref_temperature", [1.0, 0.5])
def test_the_token_log_is_consistent(tmp_path, ref_temperature):
    options = {"log_tokens": 2, "max_steps": 6, "kl_coef": 0.2, "learning_rate": 0.03}
    options["ref_temperature"] = ref_temperature
    trainer = make(tmp_path, ref_model=policy(seed=3), eval_dataset=PROMPTS.select([2, 1, 0]), **options)
    trainer.train()
    rows = read(tmp_path / "tokens.jsonl")
    assert [(row["step"], row["prompt"]) for row in rows] == [(s, p) for s in range(1, 7) for p in ("ef", "bcd")]
    clipped = 0
    for row in rows:
        tokens = row["tokens"]
        assert row["score"] == len(tokens)
        for t in tokens:
            assert t["kl"] == pytest.approx(t["logprob"] - t["ref_logprob"], abs=2e-6)
            left = t["new_logprob"] - t["logprob"]
            ratio = torch.tensor(left).exp().item()
            assert t["clipped"] == (ratio > 1.2 if t["advantage"] > 0 else ratio < 0.8)
            clipped += t["clipped"]
        assert row["kl"] == pytest.approx(sum(t["kl"] for t in tokens), abs=1e-4)
        penalties = [t["kl_penalty"] for t in tokens]
        assert (penalties == [t["kl"] for t in tokens]) == (ref_temperature == 1)
        assert sum(t["reward"] for t in tokens) == pytest.approx(row["score"] - 0.2 * sum(penalties), abs=1e-4)
        assert tokens[-1]["reward"] == pytest.approx(row["score"] - 0.2 * penalties[-1], abs=1e-5)
    assert clipped > 0


def test_the_token_log_of_a_second_run_does_not_mix_with_the_first(tmp_path):
    for _ in range(2):
        make(tmp_path, log_tokens=1, max_steps=3).train()
    assert [row["step"] for row in read(tmp_path / "tokens.jsonl")] == [1, 2, 3]


# ---- What is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train_dataset": Dataset.from_list([{"text": "a"}])}, "`train_dataset` has no column `prompt`.*text"),
        ({"eval_dataset": Dataset.from_list([{"text": "a"}])}, "`eval_dataset` has no column `prompt`"),
        ({"train_dataset": PROMPTS.select([])}, "`train_dataset` has no rows"),
        ({"train_dataset": Dataset.from_list([{"prompt": "a"}, {"prompt": ""}])}, "row 2: the prompt is empty"),
        (
            {"train_dataset": Dataset.from_list([{"prompt": "a" * 45}])},
            "row 1: the policy reads at most 50 tokens.*45",
        ),
        ({"model": policy(vocab_size=67)}, "has 68 tokens and the model 67"),
        ({"reward_funcs": reward_model(num_labels=2)}, "num_labels = 2"),
        ({"reward_funcs": reward_model(vocab_size=70)}, "knows 70 tokens and the policy 68"),
        ({"reward_funcs": reward_model(pad_token_id=None)}, "no `pad_token_id`"),
        ({"reward_weights": [1.0, 2.0]}, "2 entries for 1 reward functions"),
        ({"advantage_estimator": "reward", "value_model": policy()}, "no critic"),
    ],
)
def test_bad_input_is_named(tmp_path, arguments, message):
    with pytest.raises(InputError, match=message):
        make(tmp_path, **arguments)


def test_an_optimizer_that_leaves_the_critic_out_is_refused(tmp_path):
    model = policy()
    optimizer = torch.optim.AdamW(model.parameters())
    with pytest.raises(InputError, match=r"the optimizer lacks \d+ parameters, such as value_model\."):
        make(tmp_path, model, optimizers=(optimizer, None))


def test_the_critic_learns_in_the_policy_s_precision(tmp_path):
    trainer = make(tmp_path, reward_funcs=reward_model().bfloat16())
    assert {p.dtype for p in trainer.model.value_model.parameters()} == {torch.float32}


class Dropping(GPT2LMHeadModel):
    """Its dropout is no module, and its rate no number of one: by default it stands in the configuration (Falcon)."""

    rate = None

    def forward(self, input_ids=None, attention_mask=None, position_ids=None, **kwargs):
        outputs = super().forward(input_ids, attention_mask=attention_mask, position_ids=position_ids, **kwargs)
        rate = self.config.resid_pdrop if self.rate is None else self.rate
        outputs.logits = torch.nn.functional.dropout(outputs.logits, rate, self.training)
        return outputs


class Noisy(Dropping):
    rate = 0.1


def test_a_policy_whose_first_ratio_is_not_one_is_refused(tmp_path):
    with pytest.raises(InputError, match="other log-probs in an update than in the rollout"):
        make(tmp_path, Noisy(gpt2(resid_pdrop=0.0).config), max_steps=1).train()


def test_dropout_rates_in_the_configuration_are_off_in_updates_and_saved_as_they_were(tmp_path):
    trainer = make(tmp_path, Dropping(gpt2(resid_pdrop=0.3).config), max_steps=4)
    trainer.train()
    assert logged(trainer, "ratio")[0] == 1 and trainer.model.config.resid_pdrop == 0.3
    trainer.save_model(str(tmp_path))
    assert GPT2Config.from_pretrained(tmp_path).resid_pdrop == 0.3


def test_noise_in_what_is_routed_to_experts_is_off_but_its_number_stays(tmp_path):
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {"vocab_size": len(TOKENIZER), "eos_token_id": TOKENIZER.eos_token_id, "pad_token_id": 0}
    torch.manual_seed(0)
    config = MixtralConfig(**sizes, **ids, num_local_experts=4, num_key_value_heads=2, router_jitter_noise=0.5)
    trainer = make(tmp_path, MixtralForCausalLM(config), max_steps=1)
    trainer.train()
    assert logged(trainer, "ratio")[0] == 1 and trainer.model.policy.training
    noisy = [module for module in trainer.model.policy.modules() if "jitter_noise" in vars(module)]
    # PhiMoE's number says in evaluation, too, which experts are near enough to be chosen.
    assert noisy and {module.jitter_noise for module in noisy} == {0.5}


def test_ratios_that_are_not_one_later_do_not_stop_a_run_but_stop_one_that_is_resumed(tmp_path, caplog):
    class DropLater(TrainerCallback):
        def on_step_end(self, args, state, control, model, **kwargs):
            model.policy.rate = 0.5

    logging.getLogger("transformers").propagate = True
    options = {"max_steps": 6, "save_strategy": "steps", "save_steps": 4, "learning_rate": 0.0}
    make(tmp_path, Dropping(gpt2().config), callbacks=[DropLater()], **options).train()
    logging.getLogger("transformers").propagate = False
    warnings = [message for message in caplog.messages if "other log-probs in an update" in message]
    assert len(warnings) == 1 and warnings[0].startswith("after step 2: ")
    with pytest.raises(InputError, match=r"after step 4: .* other log-probs in an update"):
        make(tmp_path, Noisy(gpt2().config), **options).train(f"{tmp_path}/checkpoint-4")


class Counting(GPT2LMHeadModel):
    """Its positions count padding, whatever it is told."""

    def forward(self, input_ids=None, attention_mask=None, position_ids=None, **kwargs):
        return super().forward(input_ids=input_ids, attention_mask=attention_mask, **kwargs)


def test_a_model_that_cannot_read_padding_is_refused(tmp_path):
    with pytest.raises(InputError, match="Counting gives other log-probs for a prompt that is padded on the left"):
        make(tmp_path, Counting(gpt2(initializer_range=0.5).config))


def test_what_is_trained_is_nobody_else_s(tmp_path):
    model, reward = policy(), reward_model()
    reward.model = model.model
    with pytest.raises(InputError, match="shares parameters with the policy"):
        make(tmp_path, model, reward)
    with pytest.raises(InputError, match="`value_model` knows 67 tokens and the policy 68"):
        make(tmp_path, value_model=policy(vocab_size=67))
    with pytest.raises(InputError, match="`processing_class` is missing"):
        make(tmp_path, processing_class=None)


class Plain(torch.nn.Module):
    """Reads ids, and has no configuration."""

    def forward(self, input_ids, **kwargs):
        return input_ids.float().mean(-1)


class Processor:
    """A vision-language model's: it has a tokenizer, and is none."""

    tokenizer = TOKENIZER


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        ("`args` must be a PPOConfig, not TrainingArguments", {"args": TrainingArguments(output_dir="unused")}),
        (
            r"`processing_class` must be a tokenizer, not Processor. Pass its `.tokenizer`",
            {"processing_class": Processor()},
        ),
        ("`processing_class` must be a tokenizer, not str. Load one", {"processing_class": "path"}),
        ("T5ForConditionalGeneration is an encoder-decoder", {"model": T5ForConditionalGeneration(T5)}),
        ("`reward_funcs`: Plain is a module without a Transformers config", {"reward_funcs": Plain()}),
        ("`ref_model` knows 67 tokens and the policy 68: it must know", {"ref_model": policy(vocab_size=67)}),
    ],
)
def test_arguments_of_another_kind(tmp_path, message, arguments):
    arguments = {"model": policy(), "processing_class": TOKENIZER, "reward_funcs": lengths, **arguments}
    with pytest.raises(InputError, match=message):
        PPOTrainer(
            train_dataset=PROMPTS,
            **{"args": PPOConfig(output_dir=str(tmp_path), use_cpu=True, max_completion_length=8), **arguments},
        )


def test_a_reference_with_more_tokens_serves_all_but_the_exact_kl(tmp_path):
    make(tmp_path, ref_model=policy(vocab_size=70), max_steps=1).train()
    with pytest.raises(InputError, match="`ref_model` knows 70 tokens and the policy 68: `kl_estimator='full'`"):
        make(tmp_path, ref_model=policy(vocab_size=70), kl_estimator="full")


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (None, "row 2: .* not NoneType"),
        ([5, 6], "row 2: .* not a list of int"),
        ({"role": "user"}, "row 2: .* not dict"),
    ],
)
def test_a_prompt_that_is_neither_text_nor_messages(tmp_path, prompt, message):
    rows = Dataset.from_list([{"prompt": prompt}] * 2)
    rows = rows if prompt is not None else Dataset.from_list([{"prompt": "a"}, {"prompt": None}])
    with pytest.raises(InputError, match=message.replace("row 2", r"row [12]")):
        make(tmp_path, train_dataset=rows)


def test_generation_settings_that_cannot_be_saved_are_refused_before_the_training(tmp_path):
    model = policy()
    model.generation_config = GenerationConfig(temperature=0.6, eos_token_id=EOS)
    with pytest.raises(InputError, match=r"`generation_config` could not be saved with it: .*temperature"):
        make(tmp_path, model)
    # What a published model has is saved as it came.
    GenerationConfig(temperature=0.6, do_sample=True).save_pretrained(tmp_path / "model")
    policy().save_pretrained(tmp_path / "model")
    text = (tmp_path / "model" / "generation_config.json").read_text().replace("{", '{"temperature": 0.6,', 1)
    (tmp_path / "model" / "generation_config.json").write_text(text)
    trainer = make(tmp_path, str(tmp_path / "model"))
    trainer.save_model(str(tmp_path / "again"))


def test_options_of_from_pretrained_reach_the_policy(tmp_path):
    policy().save_pretrained(tmp_path / "policy")
    trainer = make(tmp_path, str(tmp_path / "policy"), model_init_kwargs={"attn_implementation": "eager"})
    assert trainer.model.policy.config._attn_implementation == "eager"


def test_fsdp_shards_the_layers_of_both_models(tmp_path):
    # A class that is named and not there is an error of accelerate's.
    trainer = make(tmp_path, gpt2(), value_model=llama())
    assert trainer.model._no_split_modules == ["GPT2Block", "LlamaDecoderLayer"]
    assert make(tmp_path, gpt2(), value_model="shared").model._no_split_modules == ["GPT2Block"]


@pytest.mark.parametrize("value_model", [None, "shared"])
def test_a_trunk_narrower_at_its_end_than_its_config_says_gets_a_head_that_fits(tmp_path, value_model):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "ffn_dim": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 68}
    config = OPTConfig(**sizes, word_embed_proj_dim=8, max_position_embeddings=32, eos_token_id=EOS)
    trainer = make(tmp_path, OPTForCausalLM(config), value_model=value_model, max_steps=2)
    assert trainer.model.value_model.value_head.weight.shape == (1, 8)
    trainer.train()
    assert logged(trainer, "approx_kl")[0] == 0.0


def test_evaluate_reports_each_reward_function_s_own_score(tmp_path):
    def two(completions, **_):
        return [2.0] * len(completions)

    def sometimes(prompts, **_):
        return [None if i else -1.0 for i in range(len(prompts))]

    trainer = make(tmp_path, reward_funcs=[two, sometimes], eval_dataset=PROMPTS, reward_weights=[1.0, 0.0])
    metrics = trainer.evaluate()
    assert metrics["eval_scores/two"] == metrics["eval_score"] == 2
    assert metrics["eval_scores/sometimes"] == -1


def test_several_evaluation_sets_have_their_names_in_their_metrics(tmp_path):
    data = {"short": PROMPTS.select([0]), "long": PROMPTS.select([1, 2])}
    trainer = make(tmp_path, eval_dataset=data, eval_strategy="steps", eval_steps=1, max_steps=1)
    trainer.train()
    assert logged(trainer, "eval_short_score") and logged(trainer, "eval_long_score")


def test_a_reference_may_be_a_path_and_reward_functions_a_tuple(tmp_path):
    policy(seed=9).save_pretrained(tmp_path / "reference")
    trainer = make(tmp_path, reward_funcs=(lengths, lengths), ref_model=str(tmp_path / "reference"))
    assert_equal(trainer.ref_model.state_dict(), policy(seed=9).state_dict())


def test_the_best_model_is_the_one_of_the_best_score_by_default(tmp_path):
    options = {"load_best_model_at_end": True, "eval_strategy": "steps", "save_strategy": "steps"}
    args = PPOConfig(output_dir=str(tmp_path), use_cpu=True, eval_steps=1, save_steps=1, **options)
    assert (args.metric_for_best_model, args.greater_is_better) == ("score", True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"auto_find_batch_size": True}, "`auto_find_batch_size`"),
        ({"neftune_noise_alpha": 5.0}, "`neftune_noise_alpha`"),
        ({"label_smoothing_factor": 0.1}, "`label_smoothing_factor`"),
        ({"include_num_input_tokens_seen": "all"}, "`include_num_input_tokens_seen`"),
        ({"train_sampling_strategy": "group_by_length"}, "`train_sampling_strategy`"),
        ({"accelerator_config": {"split_batches": True}}, "`split_batches`"),
        ({"accelerator_config": {"dispatch_batches": True}}, "`dispatch_batches`"),
        ({"enable_jit_checkpoint": True}, "`enable_jit_checkpoint`"),
        ({"train_dataset": PROMPTS.to_iterable_dataset()}, "`train_dataset` is a stream and has no length"),
        ({"train_dataset": PROMPTS.add_column("prompts", ["x"] * 6)}, "a column `prompts`"),
    ],
)
def test_what_a_rollout_has_no_use_for_is_refused(tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        make(tmp_path, **options)


def test_the_policy_itself_is_no_reference(tmp_path):
    model = policy()
    with pytest.raises(InputError, match="`ref_model` is the policy itself"):
        make(tmp_path, model, ref_model=model)


def test_several_gpus_in_one_process_are_refused(tmp_path):
    args = PPOConfig(output_dir=str(tmp_path), use_cpu=True)
    assert args.n_gpu < 2  # read first: that is when the devices are set up
    args._n_gpu = 2
    with pytest.raises(InputError, match="sees 2 GPUs"):
        PPOTrainer(policy(), lengths, args=args, train_dataset=PROMPTS, processing_class=TOKENIZER)


def test_training_needs_prompts_and_evaluation_too(tmp_path):
    trainer = make(tmp_path, train_dataset=None)
    with pytest.raises(InputError, match="train_dataset"):
        trainer.train()
    with pytest.raises(InputError, match="eval_dataset"):
        trainer.evaluate()


def test_a_longest_prompt_that_just_fits(tmp_path):
    data = Dataset.from_list([{"prompt": "a" * 44}])
    trainer = make(tmp_path, policy(eos_bias=-100.0), train_dataset=data, max_steps=1)
    trainer.train()
    assert trainer._rollout.response_mask.sum(-1).tolist() == [6] * 4


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_completion_length", 0),
        ("num_generations", 0),
        ("num_ppo_epochs", 0),
        ("num_mini_batches", 0),
        ("kl_coef", -0.1),
        ("vf_coef", -1.0),
        ("log_tokens", -1),
        ("temperature", 0.0),
        ("cliprange", 0.0),
        ("cliprange_value", -0.2),
        ("gamma", 1.1),
        ("lam", -0.1),
        ("advantage_estimator", "a2c"),
        ("cliprange_high", 0.0),
        ("dual_clip", 1.0),
        ("loss_aggregation", "sum"),
        ("num_generations", 3),  # does not divide 4
        ("subtract_group_mean", True),
    ],
)
def test_options_out_of_range_are_named(tmp_path, name, value):
    with pytest.raises(ValueError, match=f"`{name}`"):
        PPOConfig(output_dir=str(tmp_path), per_device_train_batch_size=4, **{name: value})


def test_a_target_for_the_kl_is_one_from_the_reference_as_it_is(tmp_path):
    with pytest.raises(ValueError, match="`kl_target` needs `ref_temperature` = 1"):
        PPOConfig(output_dir=str(tmp_path), kl_target=3.0, ref_temperature=0.5)


def test_one_log_a_rollout_by_default(tmp_path):
    args = PPOConfig(output_dir=str(tmp_path), num_ppo_epochs=3, num_mini_batches=2)
    assert (args.logging_steps, args.rollout_size) == (6, 16)
