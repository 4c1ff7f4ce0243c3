"""PPO against exact enumeration: every response of a tiny vocabulary, by plain loops in float64.

A vocabulary of four with the stop token 0, responses of at most three tokens: 40 responses to each of two prompts. The
oracle runs one forward a prefix, without padding; the product runs its own rollout, over every response or sampled.
"""

import copy
import itertools
import math
from dataclasses import replace

import pytest
import torch
from datasets import Dataset
from transformers import GPT2Config, GPT2LMHeadModel

from hf_instructgpt.char_gpt import CharGPTTokenizer
from hf_instructgpt.functional import importance_weights, policy_loss, token_entropy, token_logprobs
from hf_instructgpt.models.forward import model_inputs, response_logits
from hf_instructgpt.models.surgery import independent_copy
from hf_instructgpt.ppo.advantages import generalized_advantage_estimation as gae
from hf_instructgpt.ppo.advantages import group_advantages
from hf_instructgpt.ppo.config import PPOConfig
from hf_instructgpt.ppo.critic import ValueModel
from hf_instructgpt.ppo.rollout import MicroBatch
from hf_instructgpt.ppo.trainer import PPOTrainer

STOP, VOCAB, LENGTH = 0, 4, 3
TEMPERATURE, KL_COEF, PENALTY = 0.8, 0.3, 0.5
SAMPLES = 16384
TOKENIZER = CharGPTTokenizer(
    vocab={"<eos>": STOP, "a": 1, "b": 2, "c": 3}, pad_token="<eos>", unk_token="c", chat_template=None
)
PROMPTS = ["a", "bca"]  # of two lengths: the shorter one is padded


def is_whole(response):
    return response[-1:] == (STOP,) or len(response) == LENGTH


PREFIXES = [row for n in range(LENGTH) for row in itertools.product(range(1, VOCAB), repeat=n)]
RESPONSES = [(*prefix, token) for prefix in PREFIXES for token in range(VOCAB) if is_whole((*prefix, token))]
PAIRS = list(itertools.product(PROMPTS, RESPONSES))


def score(ids):
    """A number without a pattern for each response: no two states have the same value by accident."""
    return 2 * math.sin(1 + sum((i + 2) * (token + 1) ** 2 for i, token in enumerate(ids)))


def final_score(response):
    return score(response) - PENALTY * (response[-1] != STOP)


def gpt2(seed):
    """Weights far from 0: next-token probabilities are far from uniform and differ between models."""
    torch.manual_seed(seed)
    sizes = {"n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 8, "vocab_size": VOCAB, "initializer_range": 0.3}
    return GPT2LMHeadModel(GPT2Config(**sizes, eos_token_id=STOP, bos_token_id=None))


def token_scores(ids):
    """A number for each token, which depends on all those before it."""
    return [score(ids[: t + 1]) for t in range(len(ids))]


def make(tmp_path, reward=score, **options):
    """A trainer whose critic is wrong everywhere: nothing that is exact on average may depend on it."""
    policy = gpt2(0)
    critic = ValueModel(independent_copy(policy.base_model))
    torch.nn.init.normal_(critic.value_head.weight)
    defaults = {"max_completion_length": LENGTH, "temperature": TEMPERATURE, "kl_coef": KL_COEF, "lam": 1.0}
    defaults |= {"missing_eos_penalty": PENALTY, "per_device_train_batch_size": 16}
    options = {**defaults, **options}
    return PPOTrainer(
        policy,
        lambda completion_ids, **_: [reward(ids) for ids in completion_ids],
        args=PPOConfig(output_dir=str(tmp_path), use_cpu=True, report_to=[], **options),
        train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in PROMPTS]),
        processing_class=TOKENIZER,
        ref_model=gpt2(1),
        value_model=critic if options.get("advantage_estimator", "gae") == "gae" else None,
    )


class Planned:
    """An engine that returns planned responses, and the log-probs, one list for each, that it is given for them."""

    def __init__(self, responses, logprobs=None):
        self.responses, self.logprobs, self.last_logprobs = iter(responses), logprobs and iter(logprobs), None

    def sync_weights(self, policy):
        pass

    def generate(self, prompt_ids, *, generation_config):
        rows = [list(response) for response in itertools.islice(self.responses, len(prompt_ids))]
        self.last_logprobs = self.logprobs and list(itertools.islice(self.logprobs, len(rows)))
        return rows


def roll_out_everything(trainer):
    """The trainer's own rollout, with every response to every prompt in the place of the sampled ones."""
    trainer.generator = Planned(itertools.cycle(RESPONSES))
    rollout = trainer._roll_out([{"prompt": prompt} for prompt, _ in PAIRS], num_generations=1)
    assert seen(rollout) == PAIRS
    return rollout


def seen(rollout):
    """Prompt and response of each row."""
    rows = zip(*rollout.sequences, strict=True)
    return [(TOKENIZER.decode(p[p_mask]), tuple(r[r_mask].tolist())) for p, p_mask, r, r_mask in rows]


# ---- The oracle ----------------------------------------------------------------------------------------------------


def tables(model):
    """The model in float64, and after each prompt and prefix the log-probs of the next token, `(V,)`."""
    model = copy.deepcopy(model).double().eval()
    rows = {(p, prefix): [*TOKENIZER(p)["input_ids"], *prefix] for p in PROMPTS for prefix in PREFIXES}
    logits = {key: model(torch.tensor([row])).logits[0, -1] / TEMPERATURE for key, row in rows.items()}
    return model, {key: x - x.exp().sum().log() for key, x in logits.items()}


def logprob(table, prompt, response):
    """Log-probability of a whole response, or of a beginning of one."""
    return sum(table[prompt, response[:t]][token] for t, token in enumerate(response))


def true_values(policy, ref, *, gamma):
    """Value of each state and of each token in it, by backward induction: the longest prefixes first."""
    values, q_values = {}, {}
    for prompt, prefix in sorted(policy, key=lambda key: -len(key[1])):
        values[prompt, prefix] = 0.0
        for token in range(VOCAB):
            log_p, log_q = (table[prompt, prefix][token].item() for table in (policy, ref))
            response = (*prefix, token)
            following = final_score(response) if is_whole(response) else gamma * values[prompt, response]
            q_values[prompt, response] = following - KL_COEF * (log_p - log_q)
            values[prompt, prefix] += math.exp(log_p) * q_values[prompt, response]
    return values, q_values


def mean_given(beginning, numbers, probabilities):
    """Mean of `numbers`, a tensor `(B, R)`, at token t over the responses that begin like this."""
    prompt, prefix, t = beginning
    rows = [i for i, (p, response) in enumerate(PAIRS) if p == prompt and response[: len(prefix)] == prefix]
    return (probabilities[rows] @ numbers[rows, t].double() / probabilities[rows].sum()).item()


@pytest.fixture(scope="module")
def oracle():
    """Next-token log-probs of policy and reference, and the probability of each response to each prompt."""
    with torch.no_grad():
        policy, ref = tables(gpt2(0))[1], tables(gpt2(1))[1]
        probabilities = torch.stack([logprob(policy, *pair) for pair in PAIRS]).exp()
    assert probabilities.view(2, 40).sum(-1).tolist() == pytest.approx([1, 1], abs=1e-12)
    return policy, ref, probabilities


# ---- What holds on average ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", ["k1", "k3", "full"])
def test_the_penalised_kl_is_on_average_that_of_whole_responses(tmp_path, oracle, estimator):
    policy, ref, p = oracle
    exact = (p @ torch.stack([logprob(policy, *pair) - logprob(ref, *pair) for pair in PAIRS])).item()
    assert exact > 0.5
    rollout = roll_out_everything(make(tmp_path, kl_estimator=estimator))
    for kl in (rollout.kl_penalty, rollout.kl):  # what is penalised, and what is logged
        assert (p @ kl.sum(-1).double()).item() == pytest.approx(exact, abs=1e-5)


def test_entropy_of_whole_responses_is_that_of_the_states_on_their_way(oracle):
    policy, _, p = oracle
    reached = torch.tensor([math.exp(logprob(policy, *state)) for state in policy]).double()
    entropy = token_entropy(torch.stack(list(policy.values()))).double()
    assert (reached @ entropy).item() == pytest.approx(-(p @ p.log()).item(), abs=1e-5)


@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_returns_are_on_average_the_values_of_their_states(tmp_path, oracle, gamma):
    policy, ref, p = oracle
    rollout = roll_out_everything(make(tmp_path, gamma=gamma))
    for (prompt, prefix), value in true_values(policy, ref, gamma=gamma)[0].items():
        assert mean_given((prompt, prefix, len(prefix)), rollout.returns, p) == pytest.approx(value, abs=1e-5)


@pytest.mark.parametrize(
    "lambdas", [{"lam": 0.5, "critic_lam": 1.0}, {"length_adaptive_lam": 0.5}], ids=["decoupled", "adaptive"]
)
def test_the_critic_s_returns_at_lambda_one_are_the_values_whatever_the_policy_s_lambda(tmp_path, oracle, lambdas):
    policy, ref, p = oracle
    rollout, plain = (roll_out_everything(make(tmp_path, **options)) for options in (lambdas, {"lam": 1.0}))
    for (prompt, prefix), value in true_values(policy, ref, gamma=1.0)[0].items():
        assert mean_given((prompt, prefix, len(prefix)), rollout.returns, p) == pytest.approx(value, abs=1e-5)
    assert (rollout.advantages - plain.advantages).abs().max() > 0.1


@pytest.mark.parametrize(("lam", "gamma"), [(0.0, 1.0), (0.5, 1.0), (1.0, 1.0), (0.5, 0.9)])
def test_with_true_values_advantages_are_on_average_q_minus_v(tmp_path, oracle, lam, gamma):
    policy, ref, p = oracle
    rollout = roll_out_everything(make(tmp_path))
    values, q_values = true_values(policy, ref, gamma=gamma)
    critic = torch.full(rollout.rewards.shape, math.nan)
    for i, (prompt, response) in enumerate(PAIRS):
        critic[i, : len(response)] = torch.tensor([values[prompt, response[:t]] for t in range(len(response))])
    advantages, _ = gae(rollout.rewards, values=critic, mask=rollout.response_mask, gamma=gamma, lam=lam)
    for (prompt, beginning), q_value in q_values.items():
        actual = mean_given((prompt, beginning, len(beginning) - 1), advantages, p)
        assert actual == pytest.approx(q_value - values[prompt, beginning[:-1]], abs=1e-5)


# ---- The policy gradient and samples -------------------------------------------------------------------------------


def flat(tensors):
    return torch.cat([tensor.detach().flatten().double() for tensor in tensors])


def next_logprobs(model, prompt, response, temperature):
    """Log-probs of all next tokens `(R, V)` by one forward pass per token, in float64."""
    ids, made = list(TOKENIZER(prompt)["input_ids"]), []
    for token in response:
        logits = model.double().eval()(torch.tensor([ids])).logits[0, -1]
        made.append((logits / temperature).log_softmax(-1).detach())
        ids.append(token)
    return torch.stack(made)


@pytest.mark.parametrize(("estimator", "penalty_in"), [("k1", "reward"), ("full", "reward"), ("full", "loss")])
def test_the_kl_is_from_the_reference_at_its_temperature(tmp_path, estimator, penalty_in):
    options = {"kl_estimator": estimator, "kl_penalty_in": penalty_in, "ref_temperature": 0.5}
    trainer = make(tmp_path, **options)
    rollout = roll_out_everything(trainer)
    expected = torch.zeros(rollout.response_mask.shape, dtype=torch.float64)
    for row, (prompt, response) in enumerate(PAIRS):
        policy = next_logprobs(gpt2(0), prompt, response, TEMPERATURE)
        reference = next_logprobs(gpt2(1), prompt, response, TEMPERATURE * 0.5)
        kl = (policy.exp() * (policy - reference)).sum(-1)
        token = torch.tensor(response)[:, None]
        k1 = (policy - reference).gather(-1, token).squeeze(-1)
        log_ratio = (policy - next_logprobs(gpt2(1), prompt, response, TEMPERATURE)).gather(-1, token).squeeze(-1)
        torch.testing.assert_close(rollout.kl[row, : len(response)].double(), log_ratio, atol=2e-5, rtol=1e-4)
        expected[row, : len(response)] = k1 if estimator == "k1" else kl
    if penalty_in == "reward":
        actual = rollout.kl_penalty
    else:
        batch = rollout.sequences
        logprobs, _, _, logits = trainer.model(*batch, temperature=TEMPERATURE)
        actual = trainer._regularizers(rollout, logits, logprobs) / KL_COEF
        actual = torch.where(rollout.response_mask, actual, 0)
    torch.testing.assert_close(actual.detach().double(), expected, atol=2e-5, rtol=1e-4)


def gradient_of_expectation(oracle, final_score):
    """Of the mean over prompts of E[score] - kl_coef * KL, by autograd through the enumerated expectation."""
    model, policy = tables(gpt2(0))
    objective = 0.0
    for pair in PAIRS:
        log_p = logprob(policy, *pair)
        objective += log_p.exp() * (final_score(pair[1]) - KL_COEF * (log_p - logprob(oracle[1], *pair)))
    return flat(torch.autograd.grad(objective / len(PROMPTS), list(model.parameters())))


@pytest.fixture(scope="module")
def true_gradient(oracle):
    return gradient_of_expectation(oracle, final_score)


@pytest.fixture(scope="module")
def gradients(tmp_path_factory):
    return gradients_of_responses(make(tmp_path_factory.mktemp("gradients")))


def gradients_of_responses(trainer):
    """Of minus the product's policy loss, summed over each response's tokens: `(B, parameters)`."""
    rollout, model = roll_out_everything(trainer), trainer.model.policy.eval()
    logits = response_logits(model, response_length=LENGTH, **model_inputs(model, *rollout.sequences))
    logprobs = token_logprobs(logits, token_ids=rollout.response_ids, temperature=TEMPERATURE)
    loss, _ = policy_loss(logprobs, old_logprobs=rollout.old_logprobs, advantages=rollout.advantages, cliprange=0.2)
    losses = torch.where(rollout.response_mask, loss, 0).sum(-1)
    return torch.stack([-flat(torch.autograd.grad(x, model.parameters(), retain_graph=True)) for x in losses])


def test_the_policy_losss_gradient_is_on_average_the_true_one(oracle, true_gradient, gradients):
    assert true_gradient.abs().max() > 0.1
    torch.testing.assert_close(oracle[2] @ gradients / len(PROMPTS), true_gradient, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("estimator", ["gae", "reward"])
def test_the_gradient_of_rewards_of_tokens_is_on_average_that_of_their_sum(tmp_path, oracle, estimator):
    true = gradient_of_expectation(oracle, lambda ids: sum(token_scores(ids)) - PENALTY * (ids[-1] != STOP))
    found = gradients_of_responses(make(tmp_path, token_scores, advantage_estimator=estimator))
    assert true.abs().max() > 0.1
    torch.testing.assert_close(oracle[2] @ found / len(PROMPTS), true, atol=1e-6, rtol=1e-5)


@pytest.fixture(scope="module")
def one_step(tmp_path_factory):
    """A large sampled rollout and the mean over its responses of what one step of plain gradient descent did."""
    options = {"per_device_train_batch_size": SAMPLES, "num_ppo_epochs": 1, "max_steps": 1, "save_strategy": "no"}
    options |= {"optim": "sgd", "learning_rate": 1.0, "lr_scheduler_type": "constant", "max_grad_norm": 0.0}
    trainer = make(tmp_path_factory.mktemp("step"), whiten_advantages=False, disable_tqdm=True, **options)
    before = flat(trainer.model.policy.parameters())
    trainer.train()
    step = flat(trainer.model.policy.parameters()) - before
    return trainer._rollout, step * trainer._rollout.response_mask.sum() / SAMPLES  # the loss is a mean over tokens


def test_sampled_responses_are_as_frequent_as_they_are_probable(one_step, oracle):
    count = dict.fromkeys(PAIRS, 0)
    for pair in seen(one_step[0]):
        count[pair] += 1
    observed, expected = torch.tensor(list(count.values())).double(), oracle[2] * SAMPLES / len(PROMPTS)
    common = expected > 5
    degrees = common.sum().item()
    assert degrees > 70
    # Mean: the degrees of freedom; standard deviation: the root of twice as many. Five of them are beyond luck.
    chi_square = ((observed - expected).square() / expected)[common].sum().item()
    assert chi_square < degrees + 5 * math.sqrt(2 * degrees)


def test_one_optimizer_step_is_the_true_gradient_within_sampling_error(one_step, oracle, true_gradient, gradients):
    weights = oracle[2] / len(PROMPTS)
    variance = weights @ (gradients - weights @ gradients).square()
    error = (variance / SAMPLES).sqrt() + 1e-6
    assert ((one_step[1] - true_gradient) / error).abs().max() < 5
    assert (true_gradient / error).abs().max() > 25  # a step of 0, or of the other sign, would be far out


def test_rloo_s_gradient_is_on_average_the_true_one(tmp_path, oracle, true_gradient):
    """Over all pairs of responses to each prompt, by their probability; the mean alone gives half of it."""
    trainer = make(tmp_path, advantage_estimator="rloo", num_generations=2)
    rollout, model = roll_out_everything(trainer), trainer.model.policy.eval()
    logits = response_logits(model, response_length=LENGTH, **model_inputs(model, *rollout.sequences))
    logprobs = token_logprobs(logits, token_ids=rollout.response_ids, temperature=TEMPERATURE)
    logprobs = torch.where(rollout.response_mask, logprobs, 0).sum(-1)
    slopes = [flat(torch.autograd.grad(x, model.parameters(), retain_graph=True)) for x in logprobs]
    slopes, p = torch.stack(slopes).view(2, 40, -1), oracle[2].view(2, 40)
    found = {"rloo": 0.0, "reward": 0.0}
    for prompt, (rewards, prob) in enumerate(zip(rollout.rewards.sum(-1).view(2, 40), p, strict=True)):
        pairs = torch.cartesian_prod(torch.arange(40), torch.arange(40))
        chances, totals = prob[pairs].prod(-1), rewards[pairs]
        for estimator in found:
            advantages = group_advantages(totals, kept=torch.ones_like(pairs).bool(), estimator=estimator)
            mean = (advantages.double().unsqueeze(-1) * slopes[prompt][pairs]).mean(1)  # of the two responses
            found[estimator] = found[estimator] + chances @ mean / len(PROMPTS)
    torch.testing.assert_close(found["rloo"], true_gradient, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(2 * found["reward"], true_gradient, atol=1e-6, rtol=1e-5)


# ---- An engine that samples from another distribution --------------------------------------------------------------


@pytest.mark.parametrize("cap", [10.0, None], ids=["corrected", "not"])
def test_importance_weights_make_the_gradient_of_a_wrong_engine_the_true_one(tmp_path, cap):
    """One token is sampled, each as often as a distribution says that is off by 0.08 nats before it is normalised."""
    options = {"advantage_estimator": "reward", "kl_coef": 0.0, "max_completion_length": 1, "missing_eos_penalty": 0.0}
    trainer = make(tmp_path, importance_sampling_cap=cap, **options)
    model = copy.deepcopy(trainer.model.policy).double()
    logprobs = (model(torch.tensor([TOKENIZER("a")["input_ids"]])).logits[0, -1] / TEMPERATURE).log_softmax(-1)
    scores = torch.tensor([score([token]) for token in range(VOCAB)]).double()
    true = flat(torch.autograd.grad(logprobs.exp() @ scores, list(model.parameters())))
    counts = (2000 * (logprobs + torch.tensor([0.08, -0.08] * 2)).exp()).round().long()  # of 2000 samples, nearly
    mu = (counts / counts.sum()).log().tolist()
    tokens = [token for token, count in enumerate(counts.tolist()) for _ in range(count)]
    trainer.generator = Planned([(token,) for token in tokens], [[mu[token]] for token in tokens])
    rollout = trainer._roll_out([{"prompt": "a"}] * int(counts.sum()), num_generations=1)
    trainer.guard.begin_update()
    loss = trainer.compute_loss(trainer.model, MicroBatch(rollout, rollout.response_mask.sum(), rollout.kept.sum()))
    gradient = -flat(torch.autograd.grad(loss, list(trainer.model.policy.parameters())))
    off = (gradient - true).norm() / true.norm()
    assert off < 1e-5 if cap else off > 0.02


ENGINES = {  # that are wrong by a known amount, besides the temperature
    "flatter": lambda logprobs, generator: logprobs / 1.3,
    "noisy": lambda logprobs, generator: logprobs + 0.1 * torch.randn(VOCAB, generator=generator),
    "top 3": lambda logprobs, generator: logprobs.masked_fill(logprobs == logprobs.min(), -math.inf),
}


def engine_logprobs(policy, pairs, engine):
    """An engine's log-probs of the tokens of each response, one list per response."""
    generator = torch.Generator().manual_seed(1)
    wrong = {state: ENGINES[engine](x.detach(), generator).log_softmax(-1) for state, x in policy.items()}
    return [[wrong[p, r[:t]][token].item() for t, token in enumerate(r)] for p, r in pairs]


def engine_gradient(trainer, pairs, mu):
    """Of the mean, over the responses that an engine samples to each prompt, of the trainer's own objective.

    All responses are there that it can sample, each with its probability by the engine's log-probs `mu`.
    """
    pairs, mu = zip(*[(pair, row) for pair, row in zip(pairs, mu, strict=True) if -math.inf not in row], strict=True)
    trainer.generator = Planned([response for _, response in pairs], mu)
    trainer.guard.is_coarse = True  # the engine may differ by 0.3 nats per token
    rollout = trainer._roll_out([{"prompt": prompt} for prompt, _ in pairs], num_generations=1)
    probabilities = torch.tensor([math.exp(sum(row)) for row in mu]).unsqueeze(-1)
    # At a ratio of 1 the loss is linear in the advantages: a response counts by its probability.
    rollout = replace(rollout, advantages=rollout.advantages * probabilities)
    trainer.guard.begin_update()
    loss = trainer.compute_loss(trainer.model, MicroBatch(rollout, torch.tensor(len(PROMPTS)), rollout.kept.sum()))
    return -flat(torch.autograd.grad(loss, list(trainer.model.policy.parameters())))


def error(found, true):
    """Distance from the true gradient, as a part of its length."""
    return ((found - true).norm() / true.norm()).item()


@pytest.mark.parametrize(
    ("cap", "mode", "expected"),
    [(None, "token_truncate", 0.137), (100.0, "token_truncate", 0), (100.0, "token_mask", 0)],
)
def test_weights_make_the_gradient_of_single_tokens_the_true_one(tmp_path, oracle, cap, mode, expected):
    """Responses of one token, all of them, of an engine that divides the logits by 1.3."""
    pairs = [(prompt, (token,)) for prompt in PROMPTS for token in range(VOCAB)]
    model, policy = tables(gpt2(0))
    objective = 0.0
    for prompt, response in pairs:
        log_p = logprob(policy, prompt, response)
        objective += log_p.exp() * (final_score(response) - KL_COEF * (log_p - logprob(oracle[1], prompt, response)))
    true = flat(torch.autograd.grad(objective / len(PROMPTS), list(model.parameters())))
    options = {"importance_sampling_cap": cap, "importance_sampling_mode": mode, "max_completion_length": 1}
    trainer = make(tmp_path, advantage_estimator="reward", **options)
    found = engine_gradient(trainer, pairs, engine_logprobs(policy, pairs, "flatter"))
    assert error(found, true) == pytest.approx(expected, abs=0.001 if cap is None else 1e-5)


@pytest.mark.parametrize(
    ("engine", "mode", "expected"),
    [
        ("flatter", None, 0.260),
        ("flatter", "token_truncate", 0.299),
        ("flatter", "sequence_truncate", 0),
        ("flatter", "sequence_mask", 0),
        ("noisy", None, 0.068),
        ("noisy", "token_truncate", 0.039),
        ("noisy", "sequence_truncate", 0),
        # No weight brings back tokens that are never sampled.
        ("top 3", None, 0.306),
        ("top 3", "token_truncate", 0.347),
        ("top 3", "sequence_truncate", 0.340),
    ],
)
def test_of_longer_responses_only_weights_of_whole_ones_make_it_the_true_one(
    tmp_path, oracle, true_gradient, engine, mode, expected
):
    """Responses of up to three tokens, all of them. Weights of tokens leave states and rewards those of the engine."""
    options = {"importance_sampling_cap": None} if mode is None else {"importance_sampling_cap": 100.0}
    if mode is not None:
        options["importance_sampling_mode"] = mode
    trainer = make(tmp_path, advantage_estimator="reward", **options)
    found = engine_gradient(trainer, PAIRS, engine_logprobs(oracle[0], PAIRS, engine))
    assert error(found, true_gradient) == pytest.approx(expected, abs=0.001 if expected else 1e-5)


def test_the_difference_between_sampler_and_policy_is_logged(tmp_path):
    """Of eight tokens, one is 2.5 times as probable under the policy as under the sampler, and one a quarter."""
    trainer = make(tmp_path)
    trainer.guard.is_coarse = True
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    logprobs = torch.where(mask, -3.0, 0)
    sampled = [[-3.0] * 5, [-3.0 - math.log(2.5), -3.0 + math.log(4), -3.0]]
    engine = Planned([])
    engine.last_logprobs = sampled
    weights = trainer.guard.importance_weights(engine, logprobs, mask, is_training=True)
    torch.testing.assert_close(weights, torch.tensor([[1.0] * 5, [2.0, 0.25, 1.0, 1.0, 1.0]]))
    found = {name: x for name, x in trainer.metrics.take().items() if "sampling" in name or "cap" in name}
    assert found == {
        "sampling_logprob_diff": pytest.approx((math.log(2.5) + math.log(4)) / 8),
        # w - 1 - log w, with w = 2.5 and 0.25
        "sampling_kl": pytest.approx((1.5 - math.log(2.5) - 0.75 + math.log(4)) / 8),
        "sampling_ratio_max": pytest.approx(2.5),
        "sampling_ratio_beyond_2": pytest.approx(2 / 8),
        "importance_cap_fraction": pytest.approx(1 / 8),
    }


def test_importance_weights_are_truncated_or_masked():
    """Probabilities of 1/2 and 1/4 under the policy, 1/4 and 1/2 under the sampler; then a policy of 9/10 to 1/10."""
    logprobs = torch.tensor([[0.5, 0.25, 0.9]]).log()
    sampled = torch.tensor([[0.25, 0.5, 0.1]]).log()
    mask = torch.ones_like(logprobs, dtype=torch.bool)

    def weights(mode, *, cap=3.0):
        found, is_cut = importance_weights(logprobs, sampled=sampled, mask=mask, cap=cap, mode=mode)
        return found, is_cut.tolist()

    for mode, expected, is_cut in [
        ("token_truncate", [[2.0, 0.5, 3.0]], [[False, False, True]]),
        ("token_mask", [[2.0, 0.5, 0.0]], [[False, False, True]]),
        # The response's ratio is 2 * 1/2 * 9 = 9.
        ("sequence_truncate", [[3.0, 3.0, 3.0]], [[True, True, True]]),
        ("sequence_mask", [[0.0, 0.0, 0.0]], [[True, True, True]]),
    ]:
        torch.testing.assert_close(weights(mode)[0], torch.tensor(expected))
        assert weights(mode)[1] == is_cut
    torch.testing.assert_close(weights("sequence_mask", cap=10.0)[0], torch.full((1, 3), 9.0))
    mask[0, 2] = False
    logprobs[0, 2] = math.nan
    torch.testing.assert_close(weights("sequence_mask")[0], torch.ones(1, 3))
    sampled[0, 0] = -1000.0  # an infinite ratio
    assert weights("token_mask")[0].tolist() == [[0.0, 0.5, 1.0]]
