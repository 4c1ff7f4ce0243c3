"""What makes PPO's critic learn apart from the policy: warm-up, normalised values, its own clip, its own size."""

import itertools
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from test_ppo_trainer import TOKENIZER, assert_equal, logged, make, policy, resumable, reward_model, weights
from transformers import TrainerCallback

from hf_instructgpt.char_gpt import CharGPTTokenizer
from hf_instructgpt.errors import InputError
from hf_instructgpt.ppo import critic_training
from hf_instructgpt.ppo.checks import check_fsdp
from hf_instructgpt.ppo.config import PPOConfig
from hf_instructgpt.ppo.critic import ValueModel, load_value_model
from hf_instructgpt.ppo.critic_training import CriticTraining

LAMBDAS = {"critic_lam": 1.0, "length_adaptive_lam": 1.0}
ALL = {**LAMBDAS, "normalize_values": True, "critic_max_grad_norm": 0.01}


def rollout(returns, values):
    """A rollout of one response, as far as the critic's training looks at it."""
    returns, values = torch.tensor([returns]), torch.tensor([values])
    return SimpleNamespace(returns=returns, values=values, response_mask=torch.ones_like(returns, dtype=torch.bool))


def training(tmp_path, **options):
    return CriticTraining(PPOConfig(output_dir=str(tmp_path), use_cpu=True, **options), lambda x: x)


def head_of_two():
    """`2 h_1 - h_2 + 0.5`."""
    critic = ValueModel(None, hidden_size=2)
    with torch.no_grad():
        critic.value_head.weight.copy_(torch.tensor([[2.0, -1.0]]))
        critic.value_head.bias.fill_(0.5)
    return critic


# ---- Normalised values ---------------------------------------------------------------------------------------------


def test_a_head_is_rescaled_by_hand_and_its_values_stay():
    critic, hidden = head_of_two(), torch.tensor([[[3.0, 1.0], [0.0, 4.0]]])
    assert critic.head(hidden).tolist() == [[5.5, -3.5]]
    critic.rescale(mean=3.0, std=2.0)  # W / 2, (0.5 - 3) / 2
    assert critic.value_head.weight.tolist() == [[1.0, -0.5]] and critic.value_head.bias.tolist() == [-1.25]
    assert critic.head(hidden).tolist() == [[5.5, -3.5]]
    critic.rescale(mean=1.0, std=4.0)  # 2 / 4 W, (2 * -1.25 + 3 - 1) / 4
    assert critic.value_head.weight.tolist() == [[0.5, -0.25]] and critic.value_head.bias.tolist() == [-0.125]
    assert critic.head(hidden).tolist() == [[5.5, -3.5]]


def test_the_statistics_are_those_of_all_returns_so_far(tmp_path):
    care, critic, hidden = training(tmp_path, normalize_values=True), head_of_two(), torch.tensor([[[3.0, 1.0]]])
    care.begin_rollout(rollout([2.0, 2.0], [0.0, 0.0]), critic)
    assert (critic.mean, critic.std) == (2.0, 1.0)  # they do not vary yet
    care.begin_rollout(rollout([5.0], [0.0]), critic)
    assert critic.mean == 3.0 and critic.std == pytest.approx(math.sqrt((1 + 1 + 4) / 3))
    assert critic.head(hidden).item() == pytest.approx(5.5)


def test_the_value_loss_is_in_standard_deviations_of_the_returns(tmp_path):
    losses = []
    for normalizes in (False, True):
        trainer = make(tmp_path, max_steps=1, normalize_values=normalizes, cliprange_value=0.5)
        trainer.train()
        returns = trainer._rollout.returns[trainer._rollout.response_mask]
        losses.append(logged(trainer, "value_loss")[0])
        # Values are 0 at first, and stay in the first update, whose loss is not clipped.
        std = returns.std(correction=0).item() if normalizes else 1.0
        assert losses[-1] == pytest.approx((returns.square().mean() / std**2 / 2).item(), rel=1e-5)
        assert trainer.model.value_model.std == pytest.approx(std)
    assert losses[0] != pytest.approx(losses[1], rel=0.05)


@pytest.mark.parametrize("normalizes", [True, False])
def test_a_normalised_critic_learns_the_same_whatever_the_unit_of_the_reward(tmp_path, normalizes):
    values = []
    for unit in (1.0, 1024.0):

        def reward(completion_ids, unit=unit, **_):
            return [unit * len(ids) for ids in completion_ids]

        options = {"normalize_values": normalizes, "kl_coef": 0.0, "critic_max_grad_norm": 1.0}
        trainer = make(tmp_path, reward_funcs=reward, max_steps=8, **options)
        trainer.train()
        values.append(trainer._rollout.values / unit)
    assert values[0].abs().max() > 0.1
    same = values[0].shape == values[1].shape and values[0].allclose(values[1], rtol=1e-2, atol=1e-4)
    assert same == normalizes


def test_a_saved_critic_has_its_statistics_and_gives_the_same_values(tmp_path):
    trainer = make(tmp_path, max_steps=3, normalize_values=True)
    trainer.train()
    trainer.save_model()
    critic, saved = trainer.model.value_model, load_value_model(tmp_path / "value_model")
    assert (saved.mean, saved.std) == (critic.mean, critic.std) != (0.0, 1.0)
    inputs = {"input_ids": torch.tensor([[5, 6, 7, 8]]), "attention_mask": torch.ones(1, 4, dtype=torch.long)}
    assert saved.eval()(response_length=2, **inputs).equal(critic.eval()(response_length=2, **inputs))
    again = make(tmp_path / "again", value_model=saved, max_steps=1, normalize_values=True)  # and goes on from them
    again.train()
    assert again._rollout.values.abs().max() > 0.1


# ---- Warm-up until the explained variance has stopped rising -------------------------------------------------------


def test_the_warm_up_ends_after_so_many_rollouts_without_a_new_best(tmp_path):
    care, critic = training(tmp_path, critic_warmup_steps=100, critic_warmup_patience=2), head_of_two()
    returns = [1.0, 2.0, 3.0]
    guesses = [[0.0] * 3, [1.0, 1.5, 2.0], [0.0] * 3, [1.0, 1.6, 2.2], [1.0, 1.5, 2.0], [5.0] * 3, returns]
    explained, on = [], []
    for values in guesses:
        explained.append(care.begin_rollout(rollout(returns, values), critic).item())
        on.append(care.is_warming_up(99))
    # Errors 0 to 1 by halves have a quarter of the returns' variance; by 0.4 apart, 0.16 of it.
    assert explained == pytest.approx([0.0, 0.75, 0.0, 0.84, 0.75, 0.0, 1.0])
    assert on == [True, True, True, True, True, False, False]  # and it does not come back
    assert not care.is_warming_up(100)


def test_returns_that_do_not_vary_say_nothing_about_the_critic(tmp_path):
    care = training(tmp_path, critic_warmup_steps=100, critic_warmup_patience=1)
    for values in ([1.0, 3.0], [2.0, 2.0]):
        assert care.begin_rollout(rollout([2.0, 2.0], values), head_of_two()).tolist() == []
        assert care.is_warming_up(0)


def test_the_policy_moves_from_the_rollout_on_in_which_the_warm_up_ends(tmp_path, monkeypatch):
    snapshots, explained = [], iter([0.1, 0.3, 0.2, 0.9])
    monkeypatch.setattr(critic_training, "explained_variance", lambda *_, **__: torch.tensor(next(explained)))

    class Snapshot(TrainerCallback):
        def on_step_end(self, *args, **kwargs):
            snapshots.append(trainer.model.policy.lm_head.weight.clone())

    options = {"critic_warmup_steps": 100, "critic_warmup_patience": 1, "max_steps": 8}
    trainer = make(tmp_path, callbacks=[Snapshot()], **options)
    snapshots.append(trainer.model.policy.lm_head.weight.clone())
    trainer.train()
    moved = [not before.equal(after) for before, after in itertools.pairwise(snapshots)]
    assert moved == [False] * 4 + [True] * 4  # two steps a rollout
    assert logged(trainer, "explained_variance") == pytest.approx([0.1, 0.3, 0.2, 0.9])


# ---- A gradient clip of its own ------------------------------------------------------------------------------------


def norm_of_step(after, before, part):
    moved = (t - before[name] for name, t in after.items() if name.startswith(part))
    return sum(x.double().square().sum() for x in moved).sqrt().item()


@pytest.mark.parametrize("value_model", [None, "shared"])
def test_policy_and_critic_are_clipped_apart(tmp_path, value_model):
    options = {"optim": "sgd", "learning_rate": 1.0, "max_grad_norm": 1e-3, "critic_max_grad_norm": 2e-3}
    rewards = {"reward_funcs": lambda completions, **_: [1e6] * len(completions)}
    trainer = make(tmp_path, max_steps=1, value_model=value_model, **options, **rewards)
    before = weights(trainer.model)
    trainer.train()
    after = trainer.model.state_dict()
    assert norm_of_step(after, before, "policy.") == pytest.approx(1e-3, rel=1e-3)
    assert norm_of_step(after, before, "value_model.") == pytest.approx(2e-3, rel=1e-3)


@pytest.mark.parametrize(("max_norm", "is_as_without"), [(0.5, True), (None, False)], ids=["apart", "joint"])
def test_a_large_value_loss_does_not_shrink_the_policy_s_step_if_clipped_apart(tmp_path, max_norm, is_as_without):
    steps, norms = [], []
    for vf_coef in (0.0, 1e4):
        options = {"optim": "sgd", "learning_rate": 1.0, "max_grad_norm": 0.01, "critic_max_grad_norm": max_norm}
        trainer = make(tmp_path, max_steps=1, vf_coef=vf_coef, **options)
        trainer.train()
        steps.append(trainer.model.policy.state_dict())
        norms.append(logged(trainer, "grad_norm")[0])
    same = [steps[0][name].equal(steps[1][name]) for name in steps[0]]
    assert all(same) == is_as_without and (norms[0] == norms[1]) == is_as_without


def test_without_a_bound_the_critic_takes_its_whole_gradient_and_the_policy_its_own(tmp_path):
    options = {"optim": "sgd", "learning_rate": 1.0, "max_grad_norm": 0.0, "max_steps": 1}
    steps = []
    for max_norm in (None, 0.0):
        trainer = make(tmp_path, critic_max_grad_norm=max_norm, **options)
        trainer.train()
        steps.append(trainer.model.state_dict())
    assert_equal(*steps)


def test_in_a_warm_up_or_a_skipped_step_there_is_nothing_to_clip(tmp_path):
    options = {"critic_max_grad_norm": 0.01, "critic_warmup_steps": 2, "max_update_kl": 1e-12}
    trainer = make(tmp_path, max_steps=4, num_ppo_epochs=2, **options)
    before = weights(trainer.model)
    trainer.train()
    assert logged(trainer, "grad_norm")[:2] == [0.0, 0.0] and logged(trainer, "grad_norm")[2] > 0
    assert logged(trainer, "skipped_updates") == [0.0, 0.0, 0.0, 1.0]
    assert not before["value_model.value_head.bias"].equal(trainer.model.value_model.value_head.bias)


# ---- All of them together ------------------------------------------------------------------------------------------


def test_the_split_into_micro_batches_changes_nothing(tmp_path):
    results = []
    for size, accumulation in ((8, 1), (2, 4)):
        options = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulation, "optim": "sgd"}
        trainer = make(tmp_path, reward_funcs=reward_model(), max_steps=2, **options, **ALL)
        before = weights(trainer.model)
        trainer.train()
        moved = {name: tensor - before[name] for name, tensor in trainer.model.state_dict().items()}
        results.append((moved, logged(trainer, "explained_variance"), trainer.model.value_model.std))
    (left, *others), (right, *same) = results
    assert others[0] == pytest.approx(same[0]) and others[1] == pytest.approx(same[1])
    for name, tensor in left.items():
        torch.testing.assert_close(tensor, right[name], rtol=1e-3, atol=1e-7)


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    trainer = run_with_all(folder)
    trainer.train()
    care = trainer.critic_training
    assert 1 < care.args.critic_warmup_patience <= care.num_without_best  # it ended before its maximum
    return folder, trainer


def run_with_all(folder):
    return resumable(folder, critic_warmup_steps=16, critic_warmup_patience=2, **ALL)


def test_a_second_training_warms_up_anew(tmp_path):
    trainer = make(tmp_path, max_steps=1, critic_warmup_steps=9, critic_warmup_patience=1)
    care = trainer.critic_training
    care.best, care.num_without_best = 1.0, 1  # the warm-up of an earlier training has ended
    assert not care.is_warming_up(0)
    trainer.train()
    assert care.best < 1 and care.num_without_best == 0 and care.is_warming_up(0)


@pytest.mark.parametrize("step", [3, 4, 8])
def test_a_resumed_run_ends_with_the_same_bytes(tmp_path, whole_run, step):
    folder, whole = whole_run
    Path(tmp_path, "tokens.jsonl").write_bytes((folder / "tokens.jsonl").read_bytes())
    trainer = run_with_all(tmp_path)
    trainer.train(resume_from_checkpoint=str(folder / f"checkpoint-{step}"))
    assert_equal(trainer.model.state_dict(), whole.model.state_dict())
    critics = [some.model.value_model for some in (trainer, whole)]
    assert (critics[0].mean, critics[0].std) == (critics[1].mean, critics[1].std) != (0.0, 1.0)
    states = [some.critic_training.state_dict() for some in (trainer, whole)]
    assert states[0].pop("return_sums").equal(states[1].pop("return_sums")) and states[0] == states[1]
    assert (tmp_path / "tokens.jsonl").read_text() == (folder / "tokens.jsonl").read_text()


# ---- Its size ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "depth"), [(24, 3), (8, 1)])
def test_the_critic_may_be_wider_and_deeper_or_smaller_than_the_policy(tmp_path, width, depth):
    base = reward_model(hidden_size=width, num_hidden_layers=depth)
    base.save_pretrained(tmp_path / "base")
    TOKENIZER.save_pretrained(tmp_path / "base")
    trainer = make(tmp_path / "run", policy(), value_model=str(tmp_path / "base"), max_steps=2)
    critic, before = trainer.model.value_model, weights(trainer.model.value_model)
    assert critic.value_head.in_features == width and len(critic.backbone.layers) == depth
    trainer.train()
    assert not any(tensor.equal(before[name]) for name, tensor in critic.state_dict().items())
    trainer.save_model()
    saved = load_value_model(tmp_path / "run")
    assert_equal(saved.state_dict(), critic.state_dict())


def test_a_critic_of_another_tokenizer_is_refused(tmp_path):
    reward_model().save_pretrained(tmp_path / "base")
    vocab = TOKENIZER.get_vocab()
    vocab |= {"a": vocab["b"], "b": vocab["a"]}
    CharGPTTokenizer(vocab=vocab, chat_template=None).save_pretrained(tmp_path / "base")
    with pytest.raises(InputError, match=r"the tokenizer of .* gives other ids than the policy's"):
        make(tmp_path, value_model=str(tmp_path / "base"))


# ---- What is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"critic_lam": 1.1}, "`critic_lam` must be at most 1"),
        ({"critic_lam": -0.1}, "`critic_lam` must be 0 or more"),
        ({"length_adaptive_lam": 0.0}, "`length_adaptive_lam` must be above 0"),
        ({"critic_warmup_patience": 0}, "`critic_warmup_patience` must be 1 or more"),
        ({"critic_max_grad_norm": -1.0}, "`critic_max_grad_norm` must be 0 or more"),
        ({"critic_warmup_patience": 2}, "`critic_warmup_patience` needs `critic_warmup_steps`"),
        ({"critic_lam": 0.0, "advantage_estimator": "reward"}, "`critic_lam` needs `advantage_estimator='gae'`"),
        ({"normalize_values": True, "advantage_estimator": "reward"}, "`normalize_values` needs"),
        ({"critic_max_grad_norm": 0.0, "advantage_estimator": "reward"}, "`critic_max_grad_norm` needs"),
    ],
)
def test_options_that_do_not_fit_are_named(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        training(tmp_path, **options)


@pytest.mark.parametrize("options", [{"normalize_values": True}, {"critic_max_grad_norm": 1.0}])
def test_sharded_weights_are_refused(tmp_path, options):
    plugin = SimpleNamespace(fsdp_version=2, state_dict_type=SimpleNamespace(name="FULL_STATE_DICT"))
    check_fsdp(training(tmp_path).args, plugin)
    with pytest.raises(InputError, match=f"`{next(iter(options))}` cannot be used with FSDP"):
        check_fsdp(training(tmp_path, **options).args, plugin)
