"""PPO against exact enumeration: every response of a tiny vocabulary, by plain loops in float64.

A vocabulary of four with the stop token 0, responses of at most three tokens: 40 responses to each of two prompts. The
oracle runs one forward a prefix, without padding; the product runs its own rollout, over every response or sampled.
"""

import copy
import itertools
import math

import pytest
import torch
from datasets import Dataset
from transformers import GPT2Config, GPT2LMHeadModel

from hf_instructgpt.char_gpt import CharGPTTokenizer
from hf_instructgpt.functional import policy_loss, token_entropy, token_logprobs, truncated_importance_weights
from hf_instructgpt.models.forward import model_inputs, response_logits
from hf_instructgpt.models.surgery import independent_copy
from hf_instructgpt.ppo.advantages import generalized_advantage_estimation as gae
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
        value_model=None if options.get("advantage_estimator") == "reward" else critic,
    )


class Planned:
    """An engine that returns planned responses, and the log-probs that it is given for them."""

    def __init__(self, responses, logprobs=None):
        self.responses, self.logprobs, self.last_logprobs = iter(responses), logprobs, None

    def sync_weights(self, policy):
        pass

    def generate(self, prompt_ids, *, generation_config):
        rows = [list(response) for response in itertools.islice(self.responses, len(prompt_ids))]
        self.last_logprobs = self.logprobs and [[self.logprobs[token] for token in row] for row in rows]
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
    trainer.generator = Planned([(token,) for token, count in enumerate(counts.tolist()) for _ in range(count)], mu)
    rollout = trainer._roll_out([{"prompt": "a"}] * int(counts.sum()), num_generations=1)
    trainer.guard.begin_update()
    loss = trainer.compute_loss(trainer.model, MicroBatch(rollout, rollout.response_mask.sum()))
    gradient = -flat(torch.autograd.grad(loss, list(trainer.model.policy.parameters())))
    off = (gradient - true).norm() / true.norm()
    assert off < 1e-5 if cap else off > 0.02


def test_importance_weights_are_truncated():
    """Probabilities of 1/2 and 1/4 under the policy, 1/4 and 1/2 under the sampler; then a policy of 9/10 to 1/10."""
    logprobs = torch.tensor([[0.5, 0.25, 0.9]]).log()
    sampled = torch.tensor([[0.25, 0.5, 0.1]]).log()
    weights = truncated_importance_weights(logprobs, sampled=sampled, cap=3.0)
    torch.testing.assert_close(weights, torch.tensor([[2.0, 0.5, 3.0]]))
