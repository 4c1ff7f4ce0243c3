"""The cases: arguments, the numbers that must come out, and where they are from.

Numbers are worked by hand, or enumerated, and each case catches a bug that implementations have shipped (a row of
`tests/mutants.py`, by its number). Only real tokens are compared: what a function leaves behind the mask is its own
affair. Padding stands at the end of a row.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

# The functions of the protocol by name, as they are called: every argument by name. B batch, R response tokens.
FUNCTIONS = {
    "response_mask": "response_mask(response_ids (B,R), stop_token_ids list) -> bool (B,R), True on real tokens",
    "token_logprobs": "token_logprobs(logits (B,R,V), token_ids (B,R), temperature) -> (B,R), nats",
    "kl_estimate": "kl_estimate(logprobs, ref_logprobs, estimator 'k1'|'k2'|'k3') -> (B,R), nats",
    "token_rewards": "token_rewards(scores (B,), logprobs, ref_logprobs, mask, kl_coef) -> (B,R), with the k1 penalty",
    "gae": "gae(rewards, values, mask, gamma, lam) -> advantages (B,R), returns (B,R); not whitened",
    "masked_whiten": "masked_whiten(values, mask, shift_mean) -> (B,R), variance 1; mean 0 if shift_mean, else kept",
    "whitened_advantages": "whitened_advantages(rewards, values, mask, gamma, lam) -> (B,R), what enters the loss",
    "policy_loss": "policy_loss(logprobs, old_logprobs, advantages, mask, cliprange) -> mean over real tokens",
    "value_loss": "value_loss(values, old_values, returns, mask, cliprange_value) -> mean over real tokens",
}
NAN, LOG2, LOG3 = math.nan, math.log(2), math.log(3)
ALL, SHORT = [[True, True, True]] * 2, [[True, True, False], [True, True, True]]
HAND = "worked by hand in tests/test_functional.py"


@dataclass(frozen=True)
class Case:
    """`function(**arguments)` must be `expected`: numbers, or several results in a tuple.

    Lists among the arguments become tensors, but for `stop_token_ids`. With `gradient` it is the gradient of the
    result for that argument that is compared, and with `weights` the sum of the result times these weights.
    """

    name: str
    function: str
    checks: str
    source: str
    arguments: dict[str, Any]
    expected: Any
    gradient: str | None = None
    weights: list | None = None
    dtype: torch.dtype = torch.float32
    tolerance: float = 1e-5

    def seen(self, function: Callable) -> Any:
        """What the function gives, in the form of `expected`."""
        given = {
            name: torch.tensor(value, dtype=self._dtype(name, value))
            if isinstance(value, list) and name != "stop_token_ids"
            else value
            for name, value in self.arguments.items()
        }
        if self.gradient is not None:
            given[self.gradient].requires_grad_()
        mask = given.get("mask")
        result = function(**given)
        if self.gradient is not None:
            result.backward()
            result = given[self.gradient].grad
        if isinstance(result, tuple):
            return tuple(self._numbers(part, mask) for part in result)
        if self.weights is not None:
            return (result.double() * torch.tensor(self.weights).double()).sum().item()
        return self._numbers(result, mask)

    def _dtype(self, name: str, value: list) -> torch.dtype | None:
        return None if name == "mask" or name.endswith("_ids") else self.dtype

    @staticmethod
    def _numbers(result: torch.Tensor, mask: torch.Tensor | None) -> Any:
        result = result.detach()
        if mask is not None and result.shape == mask.shape:
            result = torch.where(mask, result, 0)
        return result.tolist()


def check(functions: Any) -> list[dict]:
    """The verdict on each case of a module's functions, or those of any object.

    "pass"; "fail"; "not provided", also where the function raises `NotImplementedError`; or "differs by convention": a
    case that does not pass and that the mapping `CONVENTIONS` of the module names, with the place where its
    documentation says so. `NOTES` has remarks by case.
    """
    conventions, notes = getattr(functions, "CONVENTIONS", {}), getattr(functions, "NOTES", {})
    if unknown := {*conventions, *notes} - {case.name for case in CASES}:
        raise ValueError(f"`CONVENTIONS` or `NOTES` names no case: {', '.join(sorted(unknown))}.")
    results = []
    for case in CASES:
        function, seen = getattr(functions, case.function, None), None
        if function is None:
            verdict = "not provided"
        else:
            verdict = "differs by convention" if case.name in conventions else "fail"
            try:
                seen = case.seen(function)
                verdict = "pass" if _is_close(seen, case.expected, case.tolerance) else verdict
            except NotImplementedError:
                verdict = "not provided"
            except Exception as error:  # whatever a stranger's function does
                seen = f"{type(error).__name__}: {error}"
        results.append(
            {
                **{key: getattr(case, key) for key in ("name", "function", "checks", "source")},
                "expected": _rounded(case.expected),
                "seen": _rounded(seen),
                "verdict": verdict,
                "note": conventions.get(case.name) or notes.get(case.name),
            }
        )
    return results


def _is_close(seen: Any, expected: Any, tolerance: float) -> bool:
    if isinstance(expected, list | tuple):
        same = isinstance(seen, list | tuple) and len(seen) == len(expected)
        return same and all(_is_close(a, b, tolerance) for a, b in zip(seen, expected, strict=True))
    return isinstance(seen, int | float) and math.isclose(seen, expected, rel_tol=1e-5, abs_tol=tolerance)


def _rounded(value: Any) -> Any:
    """Numbers to show, NaN and infinity as text, which JSON has no numbers for."""
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    if not isinstance(value, float):
        return value
    return round(value, 6) if math.isfinite(value) else str(value)


# ---- The cases -----------------------------------------------------------------------------------------------------

_ROW = {"rewards": [[1.0, 2.0, 0.0], [0.0, 0.0, 4.0]], "values": [[0.5, 1.0, 0.0], [1.0, 2.0, 3.0]]}
_GAE = ([[1.25, 1.0, 0.0], [-0.0625, -0.25, 1.0]], [[1.75, 2.0, 0.0], [0.9375, 1.75, 4.0]])
_BEHIND = {"rewards": [[1.0, 2.0, 99.0], [0.0, 0.0, 4.0]], "values": [[0.5, 1.0, 99.0], [1.0, 2.0, 3.0]]}
_NANS = {"rewards": [[1.0, 2.0, NAN], [0.0, 0.0, 4.0]], "values": [[0.5, 1.0, NAN], [1.0, 2.0, 3.0]]}
_HALF = {"mask": SHORT, "gamma": 0.5, "lam": 0.5}
_LOG_RATIOS = [[math.log(x) for x in row] for row in ([1.5, 0.5, 1.0], [1.5, 0.5, 1.1])]
_POLICY = {"logprobs": _LOG_RATIOS, "old_logprobs": [[0.0] * 3] * 2, "cliprange": 0.2}
_SIGNS = [[2.0] * 3, [-2.0] * 3]
_VALUE = {"values": [[1.0, 1.0, 0.1], [0.0, 3.0, 1.0]], "old_values": [[0.0] * 3, [1.0] * 3], "cliprange_value": 0.5}
_RETURNS = [[2.0, 0.0, 1.0], [2.0, 1.0, 5.0]]
_REWARDS = {"scores": [10.0, 20.0], "ref_logprobs": [[0.0] * 3] * 2, "kl_coef": 0.1}
# Two tokens with probabilities 3/4 and 1/4, and 1/2 each for the reference: the KL is 3/4 log 3/2 + 1/4 log 1/2.
_TWO = {"logprobs": [[math.log(0.75), math.log(0.25)]], "ref_logprobs": [[math.log(0.5)] * 2]}
_KL = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)

CASES = [
    Case(
        "mask: first stop token",
        "response_mask",
        "the first stop token is real, what is behind it is not; a response without one is real throughout",
        f"{HAND}; mutant 5b",
        {"response_ids": [[5, 9, 0], [7, 5, 8]], "stop_token_ids": [9]},
        [[True, True, False], [True, True, True]],
    ),
    Case(
        "mask: no hole",
        "response_mask",
        "tokens behind the first stop token stay unreal, stop tokens among them too",
        "mutant 19",
        {"response_ids": [[3, 9, 4, 9, 5]], "stop_token_ids": [9]},
        [[True, True, False, False, False]],
    ),
    Case(
        "log-probs: by hand",
        "token_logprobs",
        "logits that differ by log 3 are probabilities 3/4 and 1/4",
        HAND,
        {"logits": [[[LOG3, 0.0], [0.0, LOG3]]], "token_ids": [[0, 0]], "temperature": 1.0},
        [[math.log(0.75), math.log(0.25)]],
    ),
    Case(
        "log-probs: temperature",
        "token_logprobs",
        "at temperature 1/2 the odds 3 become 9",
        f"{HAND}; mutant 8a",
        {"logits": [[[LOG3, 0.0]]], "token_ids": [[0]], "temperature": 0.5},
        [[math.log(0.9)]],
    ),
    Case(
        "log-probs: bfloat16 logits",
        "token_logprobs",
        "512 equal logits in bfloat16: -log 512, to 0.001 nats; in bfloat16 it would be -6.25",
        "mutant 14a",
        {"logits": [[[0.0] * 512]], "token_ids": [[7]], "temperature": 1.0},
        [[-math.log(512)]],
        dtype=torch.bfloat16,
        tolerance=1e-3,
    ),
    *(
        Case(
            f"KL: {estimator} by hand",
            "kl_estimate",
            f"a token twice, and one half as likely as under the reference: {formula}",
            "Schulman, Approximating KL divergence, 2020; by hand",
            {"logprobs": [[LOG2, -LOG2]], "ref_logprobs": [[0.0, 0.0]], "estimator": estimator},
            [expected],
        )
        for estimator, formula, expected in [
            ("k1", "x", [LOG2, -LOG2]),
            ("k2", "x^2 / 2", [LOG2**2 / 2] * 2),
            ("k3", "exp(-x) - 1 + x", [LOG2 - 0.5, 1 - LOG2]),
        ]
    ),
    *(
        Case(
            f"KL: {estimator} is unbiased",
            "kl_estimate",
            "the mean over all tokens, by their probabilities 3/4 and 1/4, is the KL to a fair coin",
            "enumeration of a vocabulary of two tokens",
            {**_TWO, "estimator": estimator},
            _KL,
            weights=[[0.75, 0.25]],
        )
        for estimator in ("k1", "k3")
    ),
    Case(
        "rewards: KL penalty",
        "token_rewards",
        "each token is charged kl_coef times its log-ratio, with a minus",
        f"{HAND}; mutant 13a",
        {**_REWARDS, "logprobs": [[0.5, -1.0, 2.0], [1.0, 2.0, 3.0]], "scores": [0.0, 0.0], "mask": ALL},
        [[-0.05, 0.1, -0.2], [-0.1, -0.2, -0.3]],
    ),
    Case(
        "rewards: score at the last token",
        "token_rewards",
        "the score lands on the last real token (the end-of-text token), beside its penalty",
        f"{HAND}; mutant 1",
        {**_REWARDS, "logprobs": [[0.5, -1.0, 0.0], [1.0, 2.0, 3.0]], "mask": SHORT},
        [[-0.05, 10.1, 0.0], [-0.1, -0.2, 19.7]],
    ),
    Case(
        "rewards: a full row",
        "token_rewards",
        "a response that was cut off, without padding, has its score on its last token",
        f"{HAND}; mutant 1",
        {**_REWARDS, "logprobs": [[0.0] * 3] * 2, "mask": ALL},
        [[0.0, 0.0, 10.0], [0.0, 0.0, 20.0]],
    ),
    Case(
        "GAE: by hand",
        "gae",
        "gamma and lambda 1/2; the value behind the last real token is 0; returns are advantages plus values",
        f"{HAND} (Schulman et al. 2016, eq. 16)",
        {**_ROW, **_HALF},
        _GAE,
    ),
    Case(
        "GAE: lambda 1",
        "gae",
        "at gamma = lambda = 1 the returns are the rewards to go, and the advantages these less the values",
        "an identity, worked by hand",
        {**_ROW, "mask": ALL, "gamma": 1.0, "lam": 1.0},
        ([[2.5, 1.0, 0.0], [3.0, 2.0, 1.0]], [[3.0, 2.0, 0.0], [4.0, 4.0, 4.0]]),
    ),
    Case(
        "GAE: lambda 0",
        "gae",
        "at lambda = 0 the advantages are the one-step errors",
        "an identity, worked by hand",
        {**_ROW, "mask": ALL, "gamma": 1.0, "lam": 0.0},
        ([[1.5, 1.0, 0.0], [1.0, 1.0, 1.0]], [[2.0, 2.0, 0.0], [2.0, 3.0, 4.0]]),
    ),
    Case(
        "GAE: padding",
        "gae",
        "rewards and values behind the mask, here 99, change no real token",
        f"{HAND}; mutant 18a",
        {**_BEHIND, **_HALF},
        _GAE,
    ),
    Case(
        "GAE: NaN in the padding",
        "gae",
        "a NaN behind the mask reaches no real token",
        f"{HAND}; mutant 18b",
        {**_NANS, **_HALF},
        _GAE,
    ),
    Case(
        "whitening: population variance",
        "masked_whiten",
        "1, 3, 1, 3, 2 have mean 2 and population variance 4/5",
        HAND,
        {"values": [[1.0, 3.0, 0.0], [1.0, 3.0, 2.0]], "mask": SHORT, "shift_mean": True},
        [[-(0.8**-0.5), 0.8**-0.5, 0.0], [-(0.8**-0.5), 0.8**-0.5, 0.0]],
    ),
    Case(
        "whitening: mean 0",
        "masked_whiten",
        "the sum over the real tokens is 0, whatever variance is used",
        "mutant 20a",
        {"values": [[1.0, 3.0, 0.0], [1.0, 3.0, 2.0]], "mask": SHORT, "shift_mean": True},
        0.0,
        weights=[[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]],
    ),
    Case(
        "whitening: padding",
        "masked_whiten",
        "1,000,000 behind the mask changes nothing: the token that is the mean, 2, becomes 0",
        "mutant 20a",
        {"values": [[1.0, 3.0, 1e6], [1.0, 3.0, 2.0]], "mask": SHORT, "shift_mean": True},
        0.0,
        weights=[[0.0, 0.0, 0.0], [0.0, 0.0, 1.0]],
    ),
    Case(
        "whitening: mean kept",
        "masked_whiten",
        "without shift_mean the token that is the mean, 2, stays 2",
        "Ziegler et al. 2019, OpenAI's code: rewards keep their mean",
        {"values": [[1.0, 3.0, 0.0], [1.0, 3.0, 2.0]], "mask": SHORT, "shift_mean": False},
        2.0,
        weights=[[0.0, 0.0, 0.0], [0.0, 0.0, 1.0]],
    ),
    Case(
        "whitening: one token",
        "masked_whiten",
        "a single real token becomes 0, not NaN",
        f"{HAND}; mutant 20c",
        {"values": [[5.0, 0.0, 0.0]], "mask": [[True, False, False]], "shift_mean": True},
        [[0.0, 0.0, 0.0]],
    ),
    Case(
        "advantages: mean 0",
        "whitened_advantages",
        "the advantages that enter the loss sum to 0 over the real tokens",
        "Ziegler et al. 2019, OpenAI's code; worked by hand",
        {**_ROW, **_HALF},
        0.0,
        weights=[[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]],
    ),
    Case(
        "policy loss: by hand",
        "policy_loss",
        "the mean of -min(ratio A, clip(ratio, 0.8, 1.2) A) with both signs of A",
        f"{HAND} (Schulman et al. 2017, eq. 7)",
        {**_POLICY, "advantages": _SIGNS, "mask": ALL},
        (-2.4 - 1.0 - 2.0 + 3.0 + 1.6 + 2.2) / 6,
    ),
    Case(
        "policy loss: gradient",
        "policy_loss",
        "-ratio A / 6 at each token, and 0 where clipping decides",
        HAND,
        {**_POLICY, "advantages": _SIGNS, "mask": ALL},
        [[0.0, -1 / 6, -2 / 6], [0.5, 0.0, 2.2 / 6]],
        gradient="logprobs",
    ),
    Case(
        "policy loss: padding",
        "policy_loss",
        "the mean is over the 5 real tokens; an advantage of 1,000,000 behind the mask counts nothing",
        "worked by hand",
        {**_POLICY, "advantages": [[2.0, 2.0, 1e6], [-2.0] * 3], "mask": SHORT},
        (-2.4 - 1.0 + 3.0 + 1.6 + 2.2) / 5,
    ),
    Case(
        "policy loss: a ratio past all bounds",
        "policy_loss",
        "a log-ratio of 100, clipped: its gradient is 0, not NaN",
        f"{HAND}; mutant 21c",
        {"logprobs": [[100.0]], "old_logprobs": [[0.0]], "advantages": [[2.0]], "mask": [[True]], "cliprange": 0.2},
        [[0.0]],
        gradient="logprobs",
    ),
    Case(
        "value loss: by hand",
        "value_loss",
        "the mean of 1/2 max((V - G)^2, (V_clipped - G)^2), clipped around the old value",
        f"{HAND}; mutant 27c",
        {**_VALUE, "returns": _RETURNS, "mask": ALL},
        (1.125 + 0.5 + 0.405 + 2.0 + 2.0 + 8.0) / 6,
    ),
    Case(
        "value loss: gradient",
        "value_loss",
        "(V - G) / 6 at each token, and 0 where clipping decides",
        HAND,
        {**_VALUE, "returns": _RETURNS, "mask": ALL},
        [[0.0, 1 / 6, -0.9 / 6], [-2 / 6, 2 / 6, -4 / 6]],
        gradient="values",
    ),
    Case(
        "value loss: padding",
        "value_loss",
        "the mean is over the 5 real tokens; a return of 1,000,000 behind the mask counts nothing",
        "worked by hand",
        {**_VALUE, "returns": [[2.0, 0.0, 1e6], _RETURNS[1]], "mask": SHORT},
        (1.125 + 0.5 + 2.0 + 2.0 + 8.0) / 5,
    ),
]
