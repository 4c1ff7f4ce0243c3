"""What a reward function may return: numbers, a number per token, spans; process reward models; calls that fail."""

import asyncio
import math
import time
from functools import partial

import numpy as np
import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2ForTokenClassification, PreTrainedTokenizerFast

from hf_instructgpt import RewardSpan
from hf_instructgpt.errors import InputError
from hf_instructgpt.functional import clip_totals, combine_token_scores, on_last_token, token_rewards
from hf_instructgpt.sampling.generate import Samples
from hf_instructgpt.scoring import reward_functions
from hf_instructgpt.scoring.process_rewards import process_rewards, steps_of
from hf_instructgpt.scoring.reward_functions import Calling, call_functions, check_signatures
from hf_instructgpt.scoring.reward_models import score_responses

IDS, TEXTS = [[3], [4, 5, 6]], ["x", "yyy"]
ARGUMENTS = {"prompts": ["a", "b"], "completions": TEXTS, "completion_ids": IDS}


def byte_tokenizer():
    """A token per byte, and three tokens of several characters: bytes of one character can lie in two tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate(["<eos>", *alphabet, "ab", "ĊĊ", "bĊ"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[("a", "b"), ("Ċ", "Ċ"), ("b", "Ċ")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<eos>")


TOKENIZER = byte_tokenizer()


def scored(*funcs, rows=None, ids=IDS, texts=TEXTS, **options):
    rows = rows or [{"prompt": "a"}, {"prompt": "b"}]
    samples = Samples(rows, [[1]] * len(ids), ids, texts, [True] * len(ids))
    return score_responses(funcs, [None] * len(funcs), samples, policy_tokenizer=TOKENIZER, **options)


# ---- What is returned ----------------------------------------------------------------------------------------------


def test_numbers_tokens_and_spans_fall_where_they_belong():
    """Sums 2, 1 + 2 - 4, 3 and 0.5 + 0.25; a number is the last token's, a span's reward its last token's."""
    tokens = scored(
        lambda **_: [[2.0], (1, np.float32(2.0), -4.0)],
        lambda **_: [None, 3.0],
        lambda **_: [[], [RewardSpan(0, 2, 0.5), RewardSpan(1, 2, 0.25)]],
        lambda **_: [torch.tensor([7.0]), np.array([1.0, 0.0, 1.0])],
    )
    assert tokens.terms.tolist() == [[2.0, 0.0, 0.0, 7.0], [-1.0, 3.0, 0.75, 2.0]]
    assert tokens.given.tolist() == [[True, False, True, True], [True] * 4]
    assert tokens.token_terms[0].T.tolist() == [[2, 0, 0], [0, 0, 0], [0, 0, 0], [7, 0, 0]]
    assert tokens.token_terms[1].T.tolist() == [[1, 2, -4], [0, 0, 3], [0, 0.75, 0], [1, 0, 1]]
    assert scored(lambda **_: [1.0, 2.0]).token_terms is None


def test_characters_belong_to_the_token_with_which_they_can_be_read():
    """Tokens of "ab中\\n\\n!": "ab", three bytes of the second letter, both line ends, "!", the end of text."""
    text = "ab中\n\n!"
    ids = [*TOKENIZER.encode(text), 0]
    assert [TOKENIZER.decode([i]) for i in ids[4:]] == ["\n\n", "!", "<eos>"] and len(ids) == 7

    def at(start, end):
        result = scored(
            lambda **_: [[RewardSpan(start, end, 1.0, "char")]], rows=[{"prompt": ""}], ids=[ids], texts=[text]
        )
        return result.token_terms[0, :, 0].nonzero().item()

    assert [at(0, end) for end in range(1, 7)] == [0, 0, 3, 4, 4, 5]
    # Sampled ids need not be those of the tokenizer: "ab" as two tokens.
    a, b = (TOKENIZER.convert_tokens_to_ids(letter) for letter in "ab")
    ids[:1] = [a, b]
    assert [at(0, end) for end in range(1, 7)] == [0, 1, 4, 5, 5, 6]


@pytest.mark.parametrize(
    ("result", "words"),
    [
        ([[1.0], [1.0, 2.0]], "For response 1, to the prompt 'b' it returned .*: 2 rewards of tokens, .* 3 tokens"),
        ([[1.0, 2.0], 0.0], "For response 0, to the prompt 'a' it returned .*: 2 rewards of tokens, .* 1 tokens"),
        ([0.0, [RewardSpan(0, 4, 1.0)]], r"end=4, .* is outside of the response, which has 3 tokens"),
        ([0.0, [RewardSpan(2, 2, 1.0)]], r"is outside of the response"),
        ([[RewardSpan(0, 2, 1.0, "char")], 0.0], "which has 1 chars"),
        ([0.0, [RewardSpan(0, 1, 1.0, "word")]], "is none of token, char"),
        ([0.0, [1.0, None, 1.0]], "argument must be a string or a real number, not 'NoneType'"),
        ([0.0, {"start": 0, "end": 1, "value": 1.0}], "not 'dict'"),
        ([0.0, ["1", "2", "3"]], "'1' is text"),
    ],
)
def test_what_is_neither_is_named_with_its_function_row_and_lengths(result, words):
    def mine(**_):
        return result

    with pytest.raises(InputError, match=f"the reward function mine must return a list of numbers.*{words}"):
        scored(mine)


def test_a_judge_gets_sums():
    both = reward_functions.call_reward_functions(
        [lambda **_: [[1.0], [1.0, 2.0, 3.0]], lambda **_: [None, [RewardSpan(0, 1, 0.5, "char")]]], **ARGUMENTS
    )
    assert both == [[1.0, 6.0], [None, 0.5]]


# ---- Formulas ------------------------------------------------------------------------------------------------------

MASK = torch.tensor([[True, True, True], [True, True, False]])


def test_token_scores_are_combined_by_hand():
    """Weights 2 and 1: sums, and the mean with the weights 2 and 1 over 3; the second row has the first one only."""
    terms = torch.tensor([[[1.0, 0.0], [2.0, 3.0], [0.0, 6.0]], [[4.0, math.nan], [1.0, 0.0], [0.0, 0.0]]])
    given, weights = torch.tensor([[True, True], [True, True]]), torch.tensor([2.0, 1.0])
    combined = combine_token_scores(terms, given=given, weights=weights)
    assert combined.tolist() == [[2.0, 7.0, 6.0], [8.0, 2.0, 0.0]]
    mean = combine_token_scores(terms, given=given, weights=weights, aggregation="mean")
    torch.testing.assert_close(mean, torch.tensor([[2 / 3, 7 / 3, 2.0], [4.0, 1.0, 0.0]]))
    nothing = combine_token_scores(terms, given=~given, weights=weights, aggregation="mean")
    assert nothing.tolist() == [[0.0] * 3] * 2


def test_the_sum_of_a_response_is_clipped_by_one_factor():
    """3 + 1 - 2 = 2 is within 2; 3 + 3 = 6 is scaled by 1/3, -8 by 1/4; a sum of 0 stays."""
    scores = torch.tensor([[3.0, 1.0, -2.0], [3.0, 3.0, 0.0], [-9.0, 1.0, 0.0], [5.0, -5.0, 0.0]])
    clipped = clip_totals(scores, bound=2.0)
    expected = [[3.0, 1.0, -2.0], [1.0, 1.0, 0.0], [-2.25, 0.25, 0.0], [5.0, -5.0, 0.0]]
    torch.testing.assert_close(clipped, torch.tensor(expected))


def test_rewards_from_scores_of_tokens_by_hand():
    kl = torch.tensor([[1.0, 0.0, -2.0], [0.5, 0.0, math.nan]])
    scores = torch.tensor([[1.0, 2.0, 3.0], [4.0, 0.0, math.nan]])
    rewards = token_rewards(scores, kl=kl, mask=MASK, kl_coef=0.1)
    torch.testing.assert_close(rewards, torch.tensor([[0.9, 2.0, 3.2], [3.95, 0.0, 0.0]]))
    one = on_last_token(torch.tensor([5.0, 7.0]), mask=MASK)
    assert one.tolist() == [[0.0, 0.0, 5.0], [0.0, 7.0, 0.0]]


# ---- Process reward models -----------------------------------------------------------------------------------------


def test_the_steps_of_a_text():
    assert steps_of("a\n\nbc", "\n") == [("a", 0, 2), ("bc", 3, 5)]
    assert steps_of("a\n \n", "\n") == [("a", 0, 2)] and steps_of("", "\n") == []
    assert steps_of("one; two;", "; ") == [("one", 0, 5), ("two;", 5, 9)]


def process_model(num_labels):
    torch.manual_seed(0)
    sizes = {"n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 16, "vocab_size": len(TOKENIZER)}
    sizes |= {"initializer_range": 1.0, "pad_token_id": 0, "eos_token_id": 0, "bos_token_id": None}
    return GPT2ForTokenClassification(GPT2Config(**sizes, num_labels=num_labels)).eval()


@pytest.mark.parametrize("num_labels", [1, 2])
@torch.no_grad()
def test_a_process_reward_model_reads_each_step_as_in_training(num_labels):
    """Two responses, of two steps and one: the rows that TRL's PRMTrainer made of them, read at each separator."""
    model, newline = process_model(num_labels), TOKENIZER.encode("\n")
    texts = ["ab\nc", "dd\n\n"]
    ids = [[*TOKENIZER.encode("ab"), *newline, *TOKENIZER.encode("c"), 0], TOKENIZER.encode("dd\n\n")]
    samples = Samples([{"prompt": "q"}, {"prompt": "rs"}], [[1], [1]], ids, texts, [True, False])
    first = [*TOKENIZER.encode("q"), *TOKENIZER.encode("ab"), *newline, *TOKENIZER.encode("c"), *newline]
    second = [*TOKENIZER.encode("rs"), *TOKENIZER.encode("dd"), *newline]

    def expected(row, place):
        logits = model(input_ids=torch.tensor([row])).logits[0, place]
        return (logits.softmax(-1)[1] if num_labels == 2 else logits[0]).item()

    options = {"separator": "\n", "policy_tokenizer": TOKENIZER, "batch_size": 2}
    found = process_rewards(model, TOKENIZER, samples, **options)
    assert found[0] == pytest.approx([0.0, expected(first, 2), expected(first, 4), 0.0], abs=1e-5)
    # The response's own two line ends are one token, which ends the step.
    assert found[1] == pytest.approx([0.0, 0.0, expected(second, -1)], abs=1e-5)
    terms = score_responses([model], [TOKENIZER], samples, policy_tokenizer=TOKENIZER)
    torch.testing.assert_close(terms.terms[:, 0], torch.tensor([sum(row) for row in found]))
    other = process_rewards(model, TOKENIZER, samples, **options | {"separator": ";"})
    assert [sum(x != 0 for x in row) for row in other] == [1, 1]


def test_a_process_reward_model_that_reads_too_little_is_named():
    samples = Samples([{"prompt": "q"}], [[1]], [TOKENIZER.encode("c" * 16)], ["c" * 16], [True])
    with pytest.raises(InputError, match=r"reads at most 16 tokens, and a response .* has 18"):
        process_rewards(process_model(2), TOKENIZER, samples, separator="\n", policy_tokenizer=TOKENIZER, batch_size=1)


# ---- Calls ---------------------------------------------------------------------------------------------------------


def call(*funcs, calling=None, **arguments):
    arguments = {**ARGUMENTS, **arguments}
    return call_functions(funcs, arguments, tokenizer=TOKENIZER, calling=calling or Calling())


def test_functions_get_what_trl_passes_if_they_ask_for_it():
    metrics, columns = [], []
    calling = Calling("state", lambda *x: metrics.append(x), lambda *x: columns.append(x))

    def asks(completions, trainer_state, log_metric, log_extra, **_):
        assert trainer_state == "state"
        log_metric("mean", 2.0)
        log_extra("length", [1, 3])
        return [1.0, 2.0]

    def takes_all(**arguments):
        assert {"trainer_state", "log_metric", "log_extra", "prompts"} <= arguments.keys()
        return [0.0, 0.0]

    def takes_none(prompts, completions, completion_ids):
        return [3.0, 4.0]

    assert call(asks, takes_all, takes_none, calling=calling) == [[1.0, 2.0], [0.0, 0.0], [3.0, 4.0]]
    assert metrics == [("mean", 2.0)] and columns == [("length", [1, 3])]
    # Where nobody trains, what is reported goes nowhere.
    assert reward_functions.call_reward_functions([partial(takes_all, weight=2)], **ARGUMENTS) == [[0.0, 0.0]]


def weighed(completions, answer, *, weight, log_metric, **_):
    return [weight * float(len(text)) for text in completions]


@pytest.mark.parametrize(
    ("func", "words"),
    [
        (partial(weighed, weight=2), None),
        (weighed, "missing a required argument: 'weight'"),
        (partial(lambda completions, **_: [], answer=3), "has the argument `answer` already"),
        (partial(lambda completions, **_: [], log_extra=3), "has the argument `log_extra` already"),
        (partial(lambda prompts, completions, completion_ids, answer: [], weigth=3), "unexpected keyword .*'weigth'"),
    ],
)
def test_signatures_are_checked_with_their_own_arguments(func, words):
    datasets = [Dataset.from_dict({"prompt": ["a"], "answer": ["b"]})]
    if words is None:
        check_signatures([func], datasets)
        return
    with pytest.raises(InputError, match=words):
        check_signatures([func], datasets)


def test_an_error_names_the_response_and_keeps_its_cause():
    def broken(completions, answer, log_metric, **_):
        log_metric("calls", 1.0)
        return [float(text) for text in answer]

    numbers = []
    with pytest.raises(InputError, match=r"broken raised ValueError: .*'x' \(.*py, line \d+\) for response 1, to the"):
        call(broken, answer=["1", "x"], calling=Calling(log_metric=lambda *x: numbers.append(x)))
    assert numbers == [("calls", 1.0)]  # none of the calls that looked for the response
    try:
        call(broken, answer=["1", "x"])
    except InputError as error:
        assert isinstance(error.__cause__, ValueError) and "to the prompt 'b'" in str(error)

    def together(completions, **_):
        raise OSError("away" if len(completions) > 1 else 1 / 0)

    with pytest.raises(InputError, match=r"OSError: away .* for responses 0 to 1 of a call; the first prompt is 'a'"):
        call(together)


def test_an_async_function_is_given_time_and_called_again(monkeypatch, caplog):
    waits, calls, sleep = [], [], asyncio.sleep

    async def wait(seconds):
        waits.append(seconds)

    monkeypatch.setattr(reward_functions.asyncio, "sleep", wait)

    async def slow(completions, **_):
        calls.append(len(completions))
        if len(calls) < 3:
            await sleep(60)
        return [1.0, 2.0]

    start = time.monotonic()
    with caplog.at_level("WARNING", logger="hf_instructgpt"):
        assert call(slow, calling=Calling(timeout=0.05, retries=2)) == [[1.0, 2.0]]
    assert waits == [1, 2] and calls == [2, 2, 2] and time.monotonic() - start < 5
    assert (
        "slow raised TimeoutError: no result after `reward_timeout` = 0.05 seconds. It is called again" in caplog.text
    )
    calls.clear()
    with pytest.raises(InputError, match=r"slow raised TimeoutError: no result .* for responses 0 to 1"):
        call(slow, calling=Calling(timeout=0.05, retries=1))
    assert calls == [2, 2]


def test_a_timeout_of_the_function_s_own_is_told_as_it_is():
    async def own(completions, **_):
        raise TimeoutError("the server said so")

    with pytest.raises(InputError, match="own raised TimeoutError: the server said so"):
        call(own, calling=Calling(timeout=60))


def test_async_functions_run_side_by_side():
    async def slow(completions, **_):
        await asyncio.sleep(0.2)
        return [1.0, 2.0]

    start = time.monotonic()
    assert call(*[slow] * 5) == [[1.0, 2.0]] * 5
    assert time.monotonic() - start < 0.8
