"""The conformance kit: our functions pass it, each case catches a bug, and what the command says."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from hf_instructgpt.conformance import CASES, FUNCTIONS, check, reference
from hf_instructgpt.conformance.__main__ import main

ROOT = Path(__file__).parents[1]
BY_NAME = {case.name: case for case in CASES}


def verdicts(**functions):
    return {result["name"]: result["verdict"] for result in check(SimpleNamespace(**functions))}


def test_our_functions_pass_every_case():
    found = check(reference)
    assert {result["verdict"] for result in found} == {"pass"} and len(found) == len(BY_NAME)
    assert {case.function for case in CASES} == set(FUNCTIONS)


# ---- Broken functions: each case fails for one, named after the mutant that it is like -----------------------------


def mask_beyond_the_end(*, response_ids, stop_token_ids):  # 5b
    real = reference.response_mask(response_ids=response_ids, stop_token_ids=stop_token_ids)
    return torch.cat([real[:, :1], real[:, :-1]], 1)


def mask_with_a_hole(*, response_ids, stop_token_ids):  # 19
    is_stop = torch.isin(response_ids, torch.tensor(stop_token_ids)).long()
    return (is_stop.cumsum(-1) - is_stop) % 2 == 0


def logprobs_without_temperature(*, logits, token_ids, temperature):  # 8a
    return reference.token_logprobs(logits=logits, token_ids=token_ids, temperature=1.0)


def logprobs_in_the_type_of_the_logits(*, logits, token_ids, temperature):  # 14a
    return (logits / temperature).log_softmax(-1).gather(-1, token_ids.unsqueeze(-1)).squeeze(-1)


def logprobs_unnormalised(*, logits, token_ids, temperature):
    return (logits / temperature).gather(-1, token_ids.unsqueeze(-1)).squeeze(-1)


def kl_of_the_other_sign(*, logprobs, ref_logprobs, estimator):
    return reference.kl_estimate(logprobs=ref_logprobs, ref_logprobs=logprobs, estimator=estimator)


def kl_twice(*, logprobs, ref_logprobs, estimator):
    return 2 * reference.kl_estimate(logprobs=logprobs, ref_logprobs=ref_logprobs, estimator=estimator)


def rewards_that_pay_the_kl(*, kl_coef, **arguments):  # 13a
    return reference.token_rewards(**arguments, kl_coef=-kl_coef)


def score_behind_the_end(*, scores, mask, **arguments):  # 1
    kl = reference.token_rewards(scores=0 * scores, mask=mask, **arguments)
    behind = mask.sum(-1).clamp(max=mask.shape[1] - 1)
    return kl.scatter_add(1, behind.unsqueeze(-1), scores.unsqueeze(-1))


def score_one_place_early(*, scores, mask, **arguments):
    kl = reference.token_rewards(scores=0 * scores, mask=mask, **arguments)
    return kl.scatter_add(1, (mask.sum(-1) - 2).unsqueeze(-1), scores.unsqueeze(-1))


def gae_that_bootstraps(*, rewards, values, mask, gamma, lam):
    """The value behind the last token is the last token's own."""
    last = values.gather(1, mask.sum(-1, keepdim=True) - 1)
    ends = mask & ~torch.nn.functional.pad(mask[:, 1:], (0, 1))
    return reference.gae(rewards=rewards + gamma * last * ends, values=values, mask=mask, gamma=gamma, lam=lam)


def gae_without_a_mask(*, rewards, values, mask, gamma, lam):  # 18a
    return reference.gae(rewards=rewards, values=values, mask=torch.ones_like(mask), gamma=gamma, lam=lam)


def gae_that_multiplies_the_mask(*, rewards, values, mask, gamma, lam):  # 18b
    return gae_without_a_mask(rewards=rewards * mask, values=values * mask, mask=mask, gamma=gamma, lam=lam)


def gae_of_returns_without_values(**arguments):
    advantages, _ = reference.gae(**arguments)
    return advantages, advantages


def whiten_without_a_mask(*, values, mask, shift_mean):  # 20a
    return reference.masked_whiten(values=values, mask=torch.ones_like(mask), shift_mean=shift_mean)


def whiten_by_the_sample_variance(*, values, mask, shift_mean):  # 20c too: 0/0 of a single token
    real = values[mask]
    whitened = (values - real.mean()) / (real.var() + 1e-8).sqrt()
    return whitened if shift_mean else whitened + real.mean()


def whiten_with_shift_mean_the_other_way(*, shift_mean, **arguments):
    return reference.masked_whiten(**arguments, shift_mean=not shift_mean)


def advantages_that_keep_their_mean(*, mask, **arguments):
    advantages, _ = reference.gae(mask=mask, **arguments)
    return reference.masked_whiten(values=advantages, mask=mask, shift_mean=False)


def policy_loss_by_the_better(*, logprobs, old_logprobs, advantages, mask, cliprange):
    """The larger of the two objectives instead of the smaller."""
    ratio = (logprobs - old_logprobs).exp()
    return -torch.maximum(ratio * advantages, ratio.clamp(1 - cliprange, 1 + cliprange) * advantages)[mask].mean()


def policy_loss_of_all(*, mask, **arguments):
    return reference.policy_loss(mask=torch.ones_like(mask), **arguments)


def policy_loss_unbounded(*, logprobs, old_logprobs, advantages, mask, cliprange):  # 21c
    ratio = (logprobs - old_logprobs).exp()
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - cliprange, 1 + cliprange) * advantages)[mask].mean()


def policy_loss_summed(*, mask, **arguments):
    return reference.policy_loss(mask=mask, **arguments) * mask.sum()


def value_loss_clipped_around_the_target(*, values, old_values, returns, mask, cliprange_value):  # 27c
    del old_values
    near = returns + (values - returns).clamp(-cliprange_value, cliprange_value)
    return 0.5 * torch.maximum((values - returns).square(), (near - returns).square())[mask].mean()


def value_loss_of_all(*, mask, **arguments):
    return reference.value_loss(mask=torch.ones_like(mask), **arguments)


CATCHES = {
    "mask: first stop token": mask_beyond_the_end,
    "mask: no hole": mask_with_a_hole,
    "log-probs: by hand": logprobs_unnormalised,
    "log-probs: temperature": logprobs_without_temperature,
    "log-probs: bfloat16 logits": logprobs_in_the_type_of_the_logits,
    "KL: k1 by hand": kl_of_the_other_sign,
    "KL: k2 by hand": kl_twice,
    "KL: k3 by hand": kl_of_the_other_sign,
    "KL: k1 is unbiased": kl_of_the_other_sign,
    "KL: k3 is unbiased": kl_of_the_other_sign,
    "rewards: KL penalty": rewards_that_pay_the_kl,
    "rewards: score at the last token": score_behind_the_end,
    "rewards: a full row": score_one_place_early,
    "GAE: by hand": gae_that_bootstraps,
    "GAE: lambda 1": gae_of_returns_without_values,
    "GAE: lambda 0": gae_that_bootstraps,
    "GAE: padding": gae_without_a_mask,
    "GAE: NaN in the padding": gae_that_multiplies_the_mask,
    "whitening: population variance": whiten_by_the_sample_variance,
    "whitening: mean 0": whiten_with_shift_mean_the_other_way,
    "whitening: padding": whiten_without_a_mask,
    "whitening: mean kept": whiten_with_shift_mean_the_other_way,
    "whitening: one token": whiten_by_the_sample_variance,
    "advantages: mean 0": advantages_that_keep_their_mean,
    "policy loss: by hand": policy_loss_by_the_better,
    "policy loss: gradient": policy_loss_summed,
    "policy loss: padding": policy_loss_of_all,
    "policy loss: a ratio past all bounds": policy_loss_unbounded,
    "value loss: by hand": value_loss_clipped_around_the_target,
    "value loss: gradient": value_loss_clipped_around_the_target,
    "value loss: padding": value_loss_of_all,
}


def test_there_is_a_bug_for_each_case():
    assert CATCHES.keys() == BY_NAME.keys()


@pytest.mark.parametrize("name", BY_NAME)
def test_a_case_catches_a_bug(name):
    assert verdicts(**{BY_NAME[name].function: CATCHES[name]})[name] == "fail"


# ---- Verdicts and the command --------------------------------------------------------------------------------------


def test_what_is_not_there_and_what_differs_by_convention():
    found = verdicts()
    assert set(found.values()) == {"not provided"}

    def none(**arguments):
        raise NotImplementedError

    assert set(verdicts(**dict.fromkeys(FUNCTIONS, none)).values()) == {"not provided"}
    convention = {"whitening: population variance": "by its documentation"}
    found = verdicts(masked_whiten=whiten_by_the_sample_variance, CONVENTIONS=convention)
    assert found["whitening: population variance"] == "differs by convention"
    assert found["whitening: one token"] == "fail" and found["whitening: mean 0"] == "pass"
    # A convention that is not needed does not hide that the case passes.
    assert verdicts(**vars(reference), CONVENTIONS=convention)["whitening: population variance"] == "pass"
    with pytest.raises(ValueError, match="names no case: no such"):
        verdicts(CONVENTIONS={"no such": ""})


def test_a_function_that_raises_or_returns_another_shape_fails():
    def raises(**arguments):
        raise KeyError("mask")

    assert verdicts(gae=raises)["GAE: by hand"] == "fail"
    assert verdicts(gae=lambda **arguments: torch.zeros(2, 3))["GAE: by hand"] == "fail"
    assert verdicts(policy_loss=lambda *, logprobs, **_: logprobs)["policy loss: by hand"] == "fail"


def test_the_command(tmp_path, capsys):
    assert main(["hf_instructgpt.conformance.reference"]) == 0
    assert capsys.readouterr().out.endswith(f"{len(CASES)} pass\n")
    file = tmp_path / "mine.py"
    file.write_text("def gae(*, rewards, values, mask, gamma, lam):\n    return rewards, values\n")
    assert main([str(file)]) == 1
    out = capsys.readouterr().out
    assert "fail                  GAE: by hand\n    gamma and lambda 1/2" in out and "seen [[[1.0, 2.0, 0.0]" in out
    assert main([str(file), "--json"]) == 1
    (row,) = [row for row in json.loads(capsys.readouterr().out) if row["name"] == "GAE: NaN in the padding"]
    assert row["verdict"] == "fail" and "mutant 18b" in row["source"]
    for name in ("no_such_module", str(tmp_path / "none.py")):
        assert main([name]) == 2
        assert "cannot be imported" in capsys.readouterr().err


def test_the_kit_needs_torch_alone():
    """So that it runs where another library is installed, and transformers is not."""
    code = "import sys; import hf_instructgpt.conformance.__main__; print('transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "False\n"


@pytest.mark.parametrize(
    ("library", "file", "failed", "convention"),
    [
        (
            "torchtune.rlhf",
            "torchtune_functions",
            {
                "log-probs: bfloat16 logits",
                "GAE: padding",
                "GAE: NaN in the padding",
                "whitening: one token",
                "advantages: mean 0",
                "policy loss: a ratio past all bounds",
            },
            {"whitening: population variance"},
        ),
        (
            "trl.experimental.ppo.ppo_trainer",
            "trl_1_12_functions",
            {"whitening: one token"},
            {"whitening: population variance", "log-probs: bfloat16 logits"},
        ),
    ],
)
def test_the_verdicts_of_the_readme_where_the_library_is_installed(library, file, failed, convention, monkeypatch):
    pytest.importorskip(library, exc_type=ImportError)
    monkeypatch.syspath_prepend(ROOT / "recipes" / "conformance")
    found = {result["name"]: result["verdict"] for result in check(__import__(file))}
    assert {name for name, verdict in found.items() if verdict == "fail"} == failed
    assert {name for name, verdict in found.items() if verdict == "differs by convention"} == convention
