"""The options of PPOConfig that bend the algorithm: each by hand-worked numbers, and once in a trainer."""

import math
import re
import shutil
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from test_ppo_trainer import EOS, PROMPTS, TOKENIZER, assert_equal, logged, make, policy, reward_model, weights
from transformers import AutoTokenizer, GPT2Config, GPT2ForSequenceClassification, TrainerCallback

from hf_instructgpt.char_gpt import CharGPTForCausalLM, CharGPTForSequenceClassification, CharGPTTokenizer
from hf_instructgpt.errors import InputError
from hf_instructgpt.functional import adapted_kl_coef, full_kl, kl_estimate, token_entropy
from hf_instructgpt.ppo import models
from hf_instructgpt.ppo.config import PPOConfig

# ---- By hand and by enumeration ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("estimator", "expected"), [("k1", 0.5), ("k2", 0.125), ("k3", math.exp(-0.5) - 0.5)])
def test_kl_estimators_by_hand(estimator, expected):
    kl = kl_estimate(torch.tensor([[-1.0]]), ref_logprobs=torch.tensor([[-1.5]]), estimator=estimator)
    assert kl.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("estimator", "log_ratio", "expected", "gradient"),
    [
        ("k1", -29.0, -29.0, 1.0),
        ("k2", 29.0, 20 * 29 - 200.0, 20.0),  # half a square up to 20, then a line that goes on pulling
        ("k2", -29.0, 20 * 29 - 200.0, -20.0),
        ("k3", -29.0, math.exp(20) - 21, 0.0),  # not 3.9e12
        ("k3", -200.0, math.exp(20) - 21, 0.0),  # not infinite
        ("k3", 29.0, 28.0, 1.0),  # nothing grows there: as it is
    ],
    ids=["k1", "k2 above", "k2 below", "k3 below", "k3 far below", "k3 above"],
)
def test_an_estimate_of_the_kl_is_bounded_at_the_edge(estimator, log_ratio, expected, gradient):
    logprobs = torch.tensor([[log_ratio]], requires_grad=True)
    kl = kl_estimate(logprobs, ref_logprobs=torch.zeros(1, 1), estimator=estimator)
    kl.backward()
    assert (kl.item(), logprobs.grad.item()) == (pytest.approx(expected, rel=1e-6), pytest.approx(gradient))


def two_distributions():
    torch.manual_seed(0)
    return torch.randn(1, 1, 4, dtype=torch.float64), torch.randn(1, 1, 4, dtype=torch.float64)


def test_full_kl_is_the_expectation_of_k1_and_k3_over_the_vocabulary():
    logits, ref_logits = two_distributions()
    temperature = 0.7
    p = torch.softmax(logits[0, 0] / temperature, -1)
    q = torch.softmax(ref_logits[0, 0] / temperature, -1)
    true_kl = sum(p[v] * math.log(p[v] / q[v]) for v in range(4)).item()
    assert full_kl(logits, ref_logits=ref_logits, temperature=temperature).item() == pytest.approx(true_kl, rel=1e-5)
    for estimator in ("k1", "k3"):
        values = kl_estimate(p.log()[None], ref_logprobs=q.log()[None], estimator=estimator)
        assert (p * values).sum().item() == pytest.approx(true_kl, rel=1e-9)
        assert estimator == "k1" or (values >= 0).all()


def test_full_kl_of_bf16_logits_is_worked_out_in_float32():
    torch.manual_seed(0)
    logits = torch.randn(1, 4, 500).bfloat16()
    ref_logits = (logits + 0.1 * torch.randn(1, 4, 500)).bfloat16()
    p, q = ((x.double() / 0.7).log_softmax(-1) for x in (logits, ref_logits))
    actual = full_kl(logits, ref_logits=ref_logits, temperature=0.7)
    torch.testing.assert_close(actual.double(), (p.exp() * (p - q)).sum(-1), atol=1e-6, rtol=1e-4)


def test_only_k2_full_have_the_gradient_of_the_kl_and_k1_has_none():
    logits, ref_logits = two_distributions()

    def gradient(loss_of):
        x = logits.clone().requires_grad_()
        loss_of(x).backward()
        return x.grad

    def expected_sampled(estimator):
        def loss(x):
            logprobs = x.log_softmax(-1)
            kl = kl_estimate(logprobs, ref_logprobs=ref_logits.log_softmax(-1), estimator=estimator)
            return (logprobs.detach().exp() * kl).sum()  # tokens are sampled: no gradient through their frequency

        return gradient(loss)

    true_gradient = gradient(lambda x: full_kl(x, ref_logits=ref_logits).sum())
    torch.testing.assert_close(expected_sampled("k2"), true_gradient, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(expected_sampled("k1"), torch.zeros_like(logits))
    with pytest.raises(ValueError, match="`kl_penalty_in='loss'` cannot use `kl_estimator='k1'`"):
        PPOConfig(kl_penalty_in="loss")


def test_a_token_that_cannot_be_sampled_adds_nothing_and_no_nan():
    logits = torch.tensor([[[0.0, 1.0, -math.inf]]], requires_grad=True)
    ref_logits = torch.tensor([[[1.0, 0.0, -math.inf]]])
    two, ref_two = logits[..., :2].detach(), ref_logits[..., :2]
    entropy, kl = token_entropy(logits), full_kl(logits, ref_logits=ref_logits)
    torch.testing.assert_close(entropy, token_entropy(two))
    torch.testing.assert_close(kl, full_kl(two, ref_logits=ref_two))
    (entropy + kl).sum().backward()
    assert logits.grad.isfinite().all()


def test_entropy_by_hand():
    logits = torch.log(torch.tensor([[[0.5, 0.25, 0.25]], [[1.0, 1.0, 1.0]]]))
    assert token_entropy(logits).flatten().tolist() == pytest.approx([1.5 * math.log(2), math.log(3)])
    halves = torch.tensor([[[0.0, math.log(3.0)]]])  # 1/4, 3/4 at temperature 1; 1/10, 9/10 at 1/2
    expected = -(0.1 * math.log(0.1) + 0.9 * math.log(0.9))
    assert token_entropy(halves, temperature=0.5).item() == pytest.approx(expected)


@pytest.mark.parametrize(("kl", "expected"), [(12.0, 0.102), (5.4, 0.099), (0.0, 0.098), (6.0, 0.1)])
def test_adaptive_kl_coefficient_by_hand(kl, expected):
    assert adapted_kl_coef(0.1, kl=kl, target=6.0, horizon=1000, num_responses=100) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kl_estimator": "k4"}, "`kl_estimator` must be one of k1, k2, k3, full"),
        ({"kl_penalty_in": "value"}, "`kl_penalty_in` must be one of reward, loss"),
        ({"kl_target": 0}, "`kl_target` must be above 0"),
        ({"kl_horizon": 0}, "`kl_horizon` must be above 0"),
        ({"score_clip": -1}, "`score_clip` must be above 0"),
        ({"max_update_kl": 0}, "`max_update_kl` must be above 0"),
        ({"max_ratio": 1}, "`max_ratio` must be above 1"),
        ({"entropy_coef": -0.1}, "`entropy_coef` must be 0 or more"),
        ({"whiten_rewards": True, "advantage_estimator": "reward"}, "`whiten_rewards` needs"),
        ({"advantage_estimator": "rloo"}, "'rloo'` compares responses .* `num_generations` of 2 or more"),
        ({"advantage_estimator": "grpo", "num_generations": 1}, "'grpo'` compares responses"),
        ({"advantage_estimator": "grpo", "num_generations": 2, "subtract_group_mean": True}, "`subtract_group_mean`"),
    ],
)
def test_values_out_of_range_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        PPOConfig(**options)


# ---- In the trainer ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3", "full"])
def test_the_penalty_in_the_reward_is_the_estimator_s(tmp_path, estimator):
    trainer = make(tmp_path, reward_funcs=lambda completions, **_: [0.0] * len(completions), ref_model=policy(seed=5))
    trainer.args.kl_estimator, trainer.token_rewards.kl_coef = estimator, 0.3
    rollout = trainer._roll_out(list(PROMPTS), num_generations=1)
    x = torch.where(rollout.response_mask, rollout.old_logprobs - rollout.ref_logprobs, 0)
    expected = {"k1": x, "k2": x**2 / 2, "k3": torch.exp(-x) - 1 + x}.get(estimator, rollout.kl_penalty)
    torch.testing.assert_close(rollout.kl_penalty, expected)
    torch.testing.assert_close(rollout.rewards, -0.3 * expected)
    assert (rollout.kl_penalty[~rollout.response_mask] == 0).all()
    if estimator == "full":
        assert (rollout.kl_penalty[rollout.response_mask] > 0).all()


def test_the_reported_kl_is_the_log_ratio_whatever_is_penalised(tmp_path):
    trainer = make(tmp_path, kl_estimator="k3", max_steps=4, num_ppo_epochs=2)
    trainer.train()
    kl = logged(trainer, "kl_penalty")
    assert kl[0] == 0 and kl[-1] > 0
    assert logged(trainer, "kl")[-1] != kl[-1]


@pytest.mark.parametrize("estimator", ["k2", "k3", "full"])
def test_kl_in_the_loss_pulls_the_policy_to_the_reference(tmp_path, estimator):
    options = {"kl_penalty_in": "loss", "kl_estimator": estimator, "kl_coef": 1.0, "per_device_train_batch_size": 12}
    zero = lambda completions, **_: [0.0] * len(completions)  # noqa: E731
    trainer = make(tmp_path, policy(seed=3), zero, ref_model=policy(seed=5), max_steps=80, vf_coef=0.0, **options)
    trainer.train()
    assert trainer._rollout.rewards.abs().max() == 0  # not penalised twice
    kl = logged(trainer, "kl")
    assert sum(kl[-5:]) < 0.5 * sum(kl[:5])


def test_the_entropy_bonus_raises_the_entropy(tmp_path):
    zero = lambda completions, **_: [0.0] * len(completions)  # noqa: E731
    trainer = make(tmp_path, policy(eos_bias=5.0), zero, entropy_coef=1.0, kl_coef=0.0, max_steps=10, vf_coef=0.0)
    trainer.train()
    entropy = logged(trainer, "entropy")
    assert entropy[-1] > entropy[0] + 0.5


def test_the_kl_coefficient_adapts_by_the_last_rollout_s_kl_and_is_resumed(tmp_path):
    options = {"kl_target": 1e-3, "kl_horizon": 100, "num_ppo_epochs": 1, "kl_coef": 0.1}
    trainer = make(tmp_path / "a", max_steps=4, save_strategy="steps", save_steps=3, **options)
    trainer.train()
    expected, kls = [0.1], logged(trainer, "kl_penalty")
    for kl in kls[:-1]:
        expected.append(adapted_kl_coef(expected[-1], kl=kl, target=1e-3, horizon=100, num_responses=4))
    assert logged(trainer, "kl_coef") == pytest.approx(expected, rel=1e-6)
    assert len(set(expected)) > 2
    resumed = make(tmp_path / "b", max_steps=4, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-3"))
    assert resumed.token_rewards.kl_coef == trainer.token_rewards.kl_coef
    assert_equal(weights(resumed.model), weights(trainer.model))


def test_the_coefficient_adapts_to_the_mean_kl_of_a_response(tmp_path):
    trainer = make(tmp_path, ref_model=policy(seed=5), kl_estimator="k3", kl_horizon=60, kl_coef=0.1)
    trainer._rollout = trainer._roll_out(list(PROMPTS), num_generations=1)
    mean_kl = trainer._rollout.kl_penalty.sum().item() / 6
    trainer.args.kl_target = mean_kl / 1.1  # 10 % above the target, 6 of 60 responses
    trainer.token_rewards.adapt(trainer._rollout)
    assert trainer.token_rewards.kl_coef == pytest.approx(0.1 * (1 + 0.1 * 0.1), rel=1e-5)


def test_the_coefficient_adapts_to_the_responses_that_count(tmp_path):
    def reward(completions, **_):
        return [1.0, None, None, None, None, None][: len(completions)]

    trainer = make(tmp_path, reward_funcs=reward, ref_model=policy(seed=5), kl_estimator="k3", kl_horizon=10)
    trainer._rollout = trainer._roll_out(list(PROMPTS), num_generations=1)
    trainer.args.kl_target = (
        trainer._rollout.kl_penalty.sum().item() / 1.1
    )  # the one response's, 10 % above the target
    trainer.token_rewards.adapt(trainer._rollout)
    assert trainer.token_rewards.kl_coef == pytest.approx(0.05 * (1 + 0.1 * 1 / 10), rel=1e-5)


def test_scores_are_clipped_and_zero_stays_zero(tmp_path):
    trainer = make(
        tmp_path, reward_funcs=lambda completions, **_: [-9.0, 0.0, 9.0, 1.0, 0.5, -3.0], score_clip=2.0, kl_coef=0.0
    )
    rollout = trainer._roll_out(list(PROMPTS), num_generations=1)
    assert rollout.rewards.sum(-1).tolist() == [-2.0, 0.0, 2.0, 1.0, 0.5, -2.0]
    assert rollout.scores.tolist() == [-9.0, 0.0, 9.0, 1.0, 0.5, -3.0]  # what is logged stays as it is


def test_whitened_rewards_have_variance_one_and_keep_their_mean(tmp_path):
    plain = make(tmp_path, reward_funcs=reward_model())
    white = make(tmp_path, reward_funcs=reward_model(), whiten_rewards=True)
    rollouts = []
    for trainer in (plain, white):
        torch.manual_seed(0)
        rollouts.append(trainer._roll_out(list(PROMPTS), num_generations=1))
    mask = rollouts[0].response_mask
    assert not mask.all()
    before, after = rollouts[0].rewards[mask], rollouts[1].rewards[mask]
    assert after.var(correction=0).item() == pytest.approx(1, rel=1e-3)
    assert after.mean().item() == pytest.approx(before.mean().item(), abs=1e-6)
    assert (rollouts[1].rewards[~mask] == 0).all()


class Snapshots(TrainerCallback):
    """The weights after each optimizer step."""

    def __init__(self):
        self.weights = []

    def on_step_end(self, args, state, control, model, **kwargs):
        self.weights.append(weights(model))


@pytest.mark.parametrize("accumulation", [1, 2])
def test_updates_stop_when_the_kl_passes_its_bound_and_the_next_rollout_begins_anew(tmp_path, accumulation):
    snapshots = Snapshots()
    options = {"num_ppo_epochs": 3, "gradient_accumulation_steps": accumulation, "max_update_kl": 1e-9}
    trainer = make(tmp_path, max_steps=6, callbacks=[snapshots], logging_steps=3, **options)
    trainer.train()
    moved = [
        any(not torch.equal(after[name], before[name]) for name in before)
        for before, after in zip(snapshots.weights, snapshots.weights[1:], strict=False)
    ]
    # Of each rollout's three steps the first alone is taken: there the KL is still 0.
    assert moved == [False, False, True, False, False]
    assert logged(trainer, "skipped_updates") == pytest.approx([2 / 3, 2 / 3])


def test_a_mini_batch_whose_ratio_spikes_is_skipped_and_the_next_one_taken(tmp_path):
    snapshots = Snapshots()
    trainer = make(tmp_path, max_steps=3, num_ppo_epochs=3, callbacks=[snapshots], max_ratio=1.5)
    compute_loss = trainer.compute_loss

    def spike_in_the_second_step(model, inputs, **kwargs):
        loss = compute_loss(model, inputs, **kwargs)
        if trainer.state.global_step == 1:
            trainer.guard.sums[1] *= 2
        return loss

    trainer.compute_loss = spike_in_the_second_step
    trainer.train()
    assert_equal(snapshots.weights[0], snapshots.weights[1])
    assert not torch.equal(snapshots.weights[1]["policy.lm_head.bias"], snapshots.weights[2]["policy.lm_head.bias"])


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_logged_metric_is_explained(tmp_path, language):
    options = {"entropy_coef": 0.1, "max_update_kl": 1.0, "kl_target": 1.0, "num_generations": 2}
    options |= {"sampling_dtype": "bfloat16"}
    trainer = make(tmp_path, max_steps=2, **options)
    trainer.train()
    own = {"loss", "grad_norm", "learning_rate", "epoch", "step"}  # Trainer's
    page = Path(__file__).parents[1] / "recipes" / "docs" / language / "guides" / "metrics.md"
    text = re.split("^## .*PPO.*$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)[1]
    assert set(trainer.state.log_history[0]) - own <= set(re.findall(r"`([\w/]+)`", text))


@pytest.mark.parametrize("estimator", ["gae", "reward", "rloo", "grpo"])
def test_a_response_nobody_scored_has_no_part_in_the_step_nor_in_the_metrics(tmp_path, estimator):
    def reward(completions, completion_ids, **_):
        # The second and the third of four are not scored; the others get 1 and 3.
        return [1.0, None, None, 3.0] if len(completions) == 4 else [0.0] * len(completions)

    options = {"num_ppo_epochs": 1, "advantage_estimator": estimator, "max_steps": 1, "kl_coef": 0.0}
    if estimator != "gae":
        options |= {"num_generations": 4, "subtract_group_mean": estimator == "reward"}
    trainer = make(tmp_path, policy(), reward, **options)
    trainer.train()
    rollout = trainer._rollout
    assert rollout.kept.tolist() == rollout.response_mask.any(-1).tolist() == [True, False, False, True]
    assert (rollout.advantages[1:3] == 0).all() and rollout.scores.isfinite().all()
    assert logged(trainer, "score") == [2.0] and logged(trainer, "dropped_samples") == [0.5]
    assert trainer._micro_batches[0].num_tokens == rollout.response_mask.sum()
    assert trainer._micro_batches[0].num_responses == 2
    if estimator != "gae":  # 1 and 3: the mean is 2, the other one's reward 3 and 1, the sample deviation sqrt(2)
        expected = {"reward": 1.0, "rloo": 2.0, "grpo": 1 / (2**0.5 + 1e-4)}[estimator]
        assert rollout.advantages[[0, 3], 0].tolist() == pytest.approx([-expected, expected], abs=1e-6)


@pytest.mark.parametrize("place", ["reward", "loss"])
def test_tokens_whose_kl_is_clamped_are_counted(tmp_path, place):
    reference = policy()
    with torch.no_grad():
        reference.lm_head.bias[EOS] -= 60.0  # an end that the policy chooses is nearly impossible to the reference
    options = {"kl_estimator": "k2", "kl_penalty_in": place, "num_ppo_epochs": 1, "max_steps": 1}
    trainer = make(tmp_path, ref_model=reference, **options)
    trainer.train()
    rollout = trainer._rollout
    ends = (rollout.response_ids == EOS) & rollout.response_mask
    assert ends.any() and rollout.kl[ends].gt(20).all()
    share = ends.sum().item() / rollout.response_mask.sum().item()
    assert logged(trainer, "kl_clamp_fraction") == [pytest.approx(share)]
    other = make(tmp_path, ref_model=reference, num_ppo_epochs=1, max_steps=1)
    other.train()
    assert logged(other, "kl_clamp_fraction") == []  # k1 is not clamped


# ---- A reward model with a tokenizer of its own --------------------------------------------------------------------


def foreign_reward_model(tokenizer):
    torch.manual_seed(2)
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64, "vocab_size": len(tokenizer)}
    config = GPT2Config(
        **sizes, num_labels=1, pad_token_id=tokenizer.pad_token_id, bos_token_id=None, eos_token_id=None
    )
    return GPT2ForSequenceClassification(config).eval()


@pytest.mark.parametrize("messages", [False, True])
def test_a_foreign_reward_model_reads_the_text_as_it_was_trained_to(tmp_path, messages):
    other = CharGPTTokenizer.from_texts([TOKENIZER.convert_ids_to_tokens(i) for i in range(1, 66)])
    other.chat_template = "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}<eos>{% endfor %}"
    model = foreign_reward_model(other)
    texts = ["a", "bcd", "ef", "ghij", "klm", "no"]
    prompts = [[{"role": "user", "content": text}] for text in texts] if messages else texts
    data = Dataset.from_list([{"prompt": prompt} for prompt in prompts])
    trainer = make(tmp_path, reward_funcs=model, train_dataset=data, reward_processing_classes=other)
    torch.manual_seed(1)
    rollout = trainer._roll_out(list(data), num_generations=1)
    expected = []
    for text, ids, mask in zip(texts, rollout.response_ids, rollout.response_mask, strict=True):
        answer = TOKENIZER.decode(ids[mask], skip_special_tokens=True)
        end = "<eos>" if messages or ids[mask][-1] == EOS else ""
        row = other((f"u:{text}<eos>a:{answer}" if messages else text + answer) + end)["input_ids"]
        with torch.no_grad():
            expected.append(model(input_ids=torch.tensor([row])).logits.item())
    torch.testing.assert_close(rollout.scores, torch.tensor(expected))
    ended = [
        (ids[mask][-1] == EOS).item() for ids, mask in zip(rollout.response_ids, rollout.response_mask, strict=True)
    ]
    assert True in ended and False in ended
    # Of another vocabulary and family: the critic starts from the policy.
    assert type(trainer.model.value_model.backbone) is type(trainer.model.policy.base_model)


def test_a_reward_model_s_broken_tokenizer_is_not_passed_over(tmp_path):
    reward_model().save_pretrained(tmp_path / "reward")
    TOKENIZER.save_pretrained(tmp_path / "reward")
    (tmp_path / "reward" / "vocab.json").write_text("{")
    with pytest.raises(ValueError):
        make(tmp_path / "out", reward_funcs=str(tmp_path / "reward"))


def test_a_reward_model_of_the_policy_s_tokenizer_reads_the_ids(tmp_path):
    same = CharGPTTokenizer.from_document()
    trainer = make(tmp_path, reward_funcs=[reward_model(), lambda **_: [0.0]], reward_processing_classes=[same, None])
    assert trainer.reward_tokenizers == [None, None]
    with pytest.raises(InputError, match="`reward_processing_classes` has 1 entries for 2"):
        make(tmp_path, reward_funcs=[reward_model(), reward_model()], reward_processing_classes=[same])


def saved(folder, model, tokenizer=None):
    """The folder of a model, with a tokenizer if one is given."""
    model.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return str(folder)


def loaded(folder):
    return CharGPTForSequenceClassification.from_pretrained(folder)


@pytest.mark.parametrize("rows", [68, 70, 90])
def test_embeddings_may_be_padded_differently(tmp_path, rows):
    """A policy of 72 rows; its tokenizer, which the reward model shares, has 68 tokens."""
    same = CharGPTTokenizer.from_document()
    reward = reward_model(vocab_size=rows)
    folder = saved(tmp_path / "reward", reward, same)
    for func, given in ((reward, same), (folder, None), (loaded(folder), None)):
        model = policy(vocab_size=72)
        with torch.no_grad():
            model.lm_head.bias[70:] += 4.0  # ids without a text are sampled often
        trainer = make(tmp_path, model, func, reward_processing_classes=given, max_steps=1, num_ppo_epochs=1)
        assert trainer.reward_tokenizers == [None]
        # The critic must read whatever is sampled.
        critic = trainer.model.value_model.backbone
        assert critic.get_input_embeddings().num_embeddings == (90 if rows == 90 else 72)
        trainer.train()
        rollout = trainer._rollout
        assert rollout.response_ids[rollout.response_mask].max() >= 70
        expected = []
        for prompt, prompt_mask, ids, mask in zip(*rollout.sequences, strict=True):
            row = [*prompt[prompt_mask].tolist(), *ids[mask].tolist()]
            row = torch.tensor([[i for i in row if i < rows]])
            with torch.no_grad():
                expected.append(reward(input_ids=row).logits.item())
        torch.testing.assert_close(rollout.scores, torch.tensor(expected))


def test_a_reward_model_passed_as_an_object_gets_its_own_tokenizer_by_its_name(tmp_path):
    """Its embeddings have as many rows as the policy's, so that nothing else tells that its ids are others."""
    other = CharGPTTokenizer.from_texts(["一二三"])
    assert len(other) < 80 and other.get_vocab() != TOKENIZER.get_vocab()

    def tokenizers(func):
        return make(tmp_path, policy(vocab_size=80), func).reward_tokenizers

    folder = saved(tmp_path / "reward", reward_model(vocab_size=80), other)
    for func in (folder, loaded(folder)):
        (tokenizer,) = tokenizers(func)
        assert tokenizer is not None and tokenizer.get_vocab() == other.get_vocab()
    # One that was trained in memory has no name: it reads the ids.
    assert tokenizers(reward_model(vocab_size=80)) == [None]
    # A folder without a tokenizer says nothing of it.
    assert tokenizers(loaded(saved(tmp_path / "bare", reward_model(vocab_size=80)))) == [None]


def test_a_reward_model_whose_tokenizer_cannot_be_found_is_refused(tmp_path):
    folder = saved(tmp_path / "reward", reward_model(), TOKENIZER)
    model = loaded(folder)
    shutil.rmtree(folder)
    with pytest.raises(InputError, match=r"the tokenizer of the reward model .*reward cannot be loaded: .*_classes`"):
        make(tmp_path, reward_funcs=model)
    assert make(tmp_path, reward_funcs=model, reward_processing_classes=TOKENIZER).reward_tokenizers == [None]
    model.config._name_or_path = "nobody/nothing"
    with pytest.raises(InputError, match="the tokenizer of the reward model nobody/nothing cannot be loaded"):
        make(tmp_path, reward_funcs=model)


def test_a_tokenizer_of_more_tokens_than_the_reward_model_is_refused(tmp_path):
    with pytest.raises(InputError, match="has 68 tokens and the model 60: they do not belong together"):
        make(tmp_path, reward_funcs=reward_model(vocab_size=60), reward_processing_classes=TOKENIZER)


def test_what_was_added_to_the_tokenizer_in_memory_is_the_reward_model_s_too(tmp_path):
    """A base model's tokenizer is given a token and a template, with which both models are trained."""
    base = CharGPTTokenizer.from_document()
    base.chat_template = None
    folder = saved(tmp_path / "base", reward_model(vocab_size=80), base)
    mine = AutoTokenizer.from_pretrained(folder)
    mine.add_special_tokens({"additional_special_tokens": ["<call>"]})
    mine.chat_template = "{% for m in messages %}<call>{{ m.content }}{% endfor %}"
    arguments = {"model": policy(vocab_size=80), "processing_class": mine}
    assert make(tmp_path, reward_funcs=loaded(folder), **arguments).reward_tokenizers == [None]
    mine.name_or_path = "elsewhere"  # then by what the two know
    assert make(tmp_path, reward_funcs=loaded(folder), **arguments).reward_tokenizers == [None]
    base.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    base.save_pretrained(folder)
    (tokenizer,) = make(tmp_path, reward_funcs=loaded(folder), **arguments).reward_tokenizers
    assert tokenizer.chat_template == base.chat_template


# ---- What a policy is loaded with -----------------------------------------------------------------------------------


def test_foreign_code_runs_by_its_option_alone(tmp_path):
    folder = saved(tmp_path / "policy", policy(), TOKENIZER)
    with pytest.raises(InputError, match="`model_init_kwargs` has `trust_remote_code`, but the option"):
        make(tmp_path, folder, model_init_kwargs={"trust_remote_code": True})


def test_the_tokenizer_has_the_policy_s_revision_and_the_reference_its_precision(tmp_path, monkeypatch):
    folder = saved(tmp_path / "policy", policy(dropout=0.0), TOKENIZER)
    load_policy, from_pretrained = models.load_policy, AutoTokenizer.from_pretrained
    policies, tokenizers = [], []

    def load(model, **kwargs):
        policies.append(kwargs)
        return load_policy(model, **kwargs)

    def load_tokenizer(name, **kwargs):
        tokenizers.append(kwargs)
        return from_pretrained(name, **kwargs)

    monkeypatch.setattr(models, "load_policy", load)
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", load_tokenizer)
    kwargs = {"trust_remote_code": True, "revision": "v2", "torch_dtype": "float64", "attn_implementation": "eager"}
    options = {"model_init_kwargs": kwargs, "trust_remote_code": True, "ref_model": folder, "processing_class": None}
    trainer = make(tmp_path, folder, **options)
    alike = {"trust_remote_code": True, "dtype": "float64", "attn_implementation": "eager"}
    assert policies == [{**alike, "revision": "v2"}, alike]
    assert tokenizers == [{"trust_remote_code": True, "revision": "v2"}]
    for model in (trainer.model.policy, trainer.ref_model):
        assert model.dtype == torch.float64 and model.config._attn_implementation == "eager"
    # Of a policy that is loaded already, the options are not asked for.
    make(tmp_path, CharGPTForCausalLM.from_pretrained(folder), **{**options, "ref_model": None})
    assert tokenizers[1:] == [{"trust_remote_code": True}]


def test_a_reference_with_fewer_tokens_and_a_needless_padding_token_are_named(tmp_path):
    with pytest.raises(InputError, match="`ref_model` knows 68 tokens and the policy 72"):
        make(tmp_path, policy(vocab_size=72), ref_model=policy())
    mine = CharGPTTokenizer.from_document()
    mine.add_special_tokens({"pad_token": "[PAD]"})
    with pytest.raises(InputError, match="a padding token need not be added at all"):
        make(tmp_path, processing_class=mine)
