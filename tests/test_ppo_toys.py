"""Toys whose optimum is known, learned from random weights with GAE: each must be reached, from three seeds."""

import pytest
import torch
from datasets import Dataset

from hf_instructgpt.char_gpt import CharGPTConfig, CharGPTForCausalLM, CharGPTTokenizer
from hf_instructgpt.ppo.config import PPOConfig
from hf_instructgpt.ppo.trainer import PPOTrainer

pytestmark = pytest.mark.slow

TOKENIZER = CharGPTTokenizer(vocab={"<pad>": 0, "a": 1, "b": 2, "c": 3, "<eos>": 4, "<unk>": 5})
EOS = TOKENIZER.eos_token_id
LIMIT = 6


def never_stop(completion_ids, **_):
    """A share of the limit: 1 for a response that runs into it."""
    return [len(ids) / LIMIT for ids in completion_ids]


def four_tokens(completion_ids, **_):
    """0 for a length of four with the stop token, else minus the distance: stopping must wait, and then be done."""
    return [-abs(len(ids) - 4.0) for ids in completion_ids]


def one_character(completions, **_):
    """Share of "b" in the text."""
    return [text.count("b") / max(len(text), 1) for text in completions]


TARGETS = {"a": "bc", "b": "cab", "ca": "ab"}


def match(prompts, completion_ids, **_):
    """Share of places at which the response has the target's token: 1 for the prompt's own target and then a stop."""
    scores = []
    for prompt, ids in zip(prompts, completion_ids, strict=True):
        target = [*TOKENIZER(TARGETS[prompt])["input_ids"], EOS]
        scores.append(sum(x == y for x, y in zip(ids, target, strict=False)) / max(len(ids), len(target)))
    return scores


def train(tmp_path, reward, seed, **options):
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    policy = CharGPTForCausalLM(CharGPTConfig(**sizes, vocab_size=len(TOKENIZER), eos_token_id=EOS))
    defaults = {
        "max_completion_length": LIMIT,
        "per_device_train_batch_size": 64,
        "num_ppo_epochs": 2,
        "kl_coef": 0.0,
        "learning_rate": 5e-3,
        # At an optimum all advantages are noise, which whitening scales up: the steps must become small by themselves.
        "lr_scheduler_type": "linear",
        "logging_steps": 1000,
        "seed": seed,
    }
    defaults |= {"output_dir": str(tmp_path), "use_cpu": True, "report_to": [], "disable_tqdm": True}
    trainer = PPOTrainer(
        policy,
        reward,
        args=PPOConfig(**{**defaults, "save_strategy": "no", **options}),
        train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in TARGETS]),
        processing_class=TOKENIZER,
    )
    trainer.train()
    return trainer


# The entropy bonus keeps `match` from settling on a response that has only a part of a target.
TOYS = [
    (never_stop, 1.0, {"max_steps": 40}),
    (four_tokens, 0.0, {"max_steps": 140}),
    (one_character, 1.0, {"max_steps": 40}),
    (match, 1.0, {"max_steps": 120, "max_completion_length": 4, "entropy_coef": 0.1}),
]


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("reward", "optimum", "options"), TOYS, ids=[toy[0].__name__ for toy in TOYS])
def test_the_optimum_is_reached_for_every_prompt(tmp_path, reward, optimum, options, seed):
    trainer = train(tmp_path, reward, seed, **options)
    rollout = trainer._roll_out([{"prompt": prompt} for prompt in TARGETS], num_generations=64)
    for mean in rollout.scores.view(len(TARGETS), 64).mean(-1):
        assert mean.item() == pytest.approx(optimum, abs=0.1)


LONG = 24


def letters(completion_ids, **_):
    """For each token its part of the share of "b" in a response of `LONG` tokens."""
    return [[float(token == 2) / LONG for token in ids] for ids in completion_ids]


def letters_at_the_end(completion_ids, **_):
    """The same, as one number per response."""
    return [sum(row) for row in letters(completion_ids)]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_rewards_of_tokens_are_learned_in_fewer_steps_than_their_sum(tmp_path, seed):
    """The optimum is 1: only "b", and never an end. With lambda = 0.5 a reward t tokens later counts 0.5^t.

    Measured: a mean score of 0.8 after 6, 7 and 6 rollouts with rewards of tokens, 23, 24 and 15 with their sum.
    """
    options = {"max_completion_length": LONG, "max_steps": 60, "per_device_train_batch_size": 32, "lam": 0.5}
    options |= {"learning_rate": 3e-3, "lr_scheduler_type": "constant", "logging_steps": 2}
    rollouts = {}
    for reward in (letters, letters_at_the_end):
        history = train(tmp_path, reward, seed, **options).state.log_history
        scores = [logs["score"] for logs in history if "score" in logs]
        rollouts[reward] = next(i for i, score in enumerate(scores) if score >= 0.8)
        assert scores[-1] == pytest.approx(1.0, abs=0.05) or reward is letters_at_the_end
    assert 2 * rollouts[letters] <= rollouts[letters_at_the_end]
