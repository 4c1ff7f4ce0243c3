"""Explorable PPO: all of PPO's numbers follow from the token log, and the page computes them as Python does."""

import json
import math
from pathlib import Path

import pytest
import torch
from test_ppo_trainer import PROMPTS, make, policy

from hf_instructgpt import PPOConfig
from hf_instructgpt.functional import policy_loss, token_rewards
from hf_instructgpt.ppo.advantages import advantages_and_returns
from hf_instructgpt.report.explore import explorable
from hf_instructgpt.report.page import Run, report_page


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def recomputed(row, **settings):
    """What PPO's own functions make of a row of the token log, in float64; with other settings than the run's."""
    options = row["options"] | settings
    column = {
        name: torch.tensor([[t[name] for t in row["tokens"]]], dtype=torch.float64)
        for name in row["tokens"][0]
        if name != "token"
    }
    mask, score = (
        torch.ones_like(column["kl"], dtype=torch.bool),
        torch.tensor([row["rewarded_score"]], dtype=torch.float64),
    )
    score = column.get("score", score)  # logs of earlier versions have none
    rewards = token_rewards(score, kl=column["kl_penalty"], mask=mask, kl_coef=options["kl_coef"])
    if options["reward_whitening"]:
        mean, scale = options["reward_whitening"]
        rewards = (rewards - mean) * scale + mean
    args = PPOConfig(
        output_dir="x",
        gamma=options["gamma"],
        lam=options["lam"],
        critic_lam=options.get("critic_lam"),
        advantage_estimator=options["advantage_estimator"],
        num_generations=2,
        use_cpu=True,
    )
    if args.has_critic:
        advantages, returns = advantages_and_returns(
            rewards,
            values=column["value"],
            mask=mask,
            kept=torch.ones(1, dtype=torch.bool),
            num_generations=1,
            args=args,
        )
    else:  # less the mean of the prompt's responses, as logged, and with GRPO over their deviation
        scale = options["group_scale"]
        baseline = column["reward"].sum() - column["advantage"][0, 0] / scale
        advantages = returns = torch.where(mask, (rewards.sum() - baseline) * scale, 0)
    whitened = advantages
    if options["advantage_whitening"]:
        mean, scale = options["advantage_whitening"]
        whitened = (advantages - mean) * scale
    clips = {name: options[name] for name in ("cliprange", "cliprange_high", "dual_clip")}
    loss, clipped = policy_loss(column["new_logprob"], old_logprobs=column["logprob"], advantages=whitened, **clips)
    found = {"reward": rewards, "advantage": advantages, "return": returns, "whitened": whitened, "objective": -loss}
    return {name: x[0].tolist() for name, x in found.items()} | {"clipped": clipped[0].tolist()}


def waves(completion_ids, **_):
    """Rewards of tokens, of both signs."""
    return [[math.sin(3 * t + token) for t, token in enumerate(ids)] for ids in completion_ids]


OPTIONS = {
    "plain": {},
    "lambdas": {"lam": 0.5, "critic_lam": 0.75, "length_adaptive_lam": 0.5},
    "k3, clipped": {"kl_estimator": "k3", "score_clip": 2.5, "gamma": 0.9, "lam": 0.5, "cliprange": 0.05},
    "scaled, whitened rewards": {"scale_scores": True, "whiten_rewards": True, "num_generations": 2},
    "not whitened, adaptive": {"whiten_advantages": False, "kl_target": 0.01, "kl_horizon": 20},
    "cut off": {"missing_eos_penalty": 3.0, "max_completion_length": 2},
    "tokens": {"reward_funcs": waves, "normalize_rewards": True, "scale_scores": True, "score_clip": 1.0, "lam": 0.5},
    "tokens, whitened": {"reward_funcs": waves, "missing_eos_penalty": 1.0, "whiten_rewards": True},
    "in the loss": {"kl_penalty_in": "loss", "kl_estimator": "k3"},
    "group": {"advantage_estimator": "reward", "num_generations": 2, "subtract_group_mean": True},
    "rloo": {"advantage_estimator": "rloo", "num_generations": 2},
    "grpo": {"advantage_estimator": "grpo", "num_generations": 2},
    "clips": {"cliprange": 0.05, "cliprange_high": 0.15, "dual_clip": 1.02},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_all_that_is_logged_follows_from_the_logged_options(tmp_path, name):
    options = {"log_tokens": 2, "max_steps": 6, "kl_coef": 0.2, "learning_rate": 0.03, **OPTIONS[name]}
    make(tmp_path, ref_model=policy(seed=3), eval_dataset=PROMPTS.select([2, 1, 0]), **options).train()
    rows = read(tmp_path / "tokens.jsonl")
    assert len(rows) == 12
    for row in rows:
        assert row["options"]["loss_aggregation"] == "token" and row["options"]["max_completion_length"] in (2, 6)
        found = recomputed(row)
        scores = [token["score"] for token in row["tokens"]]
        assert row["rewarded_score"] == pytest.approx(sum(scores), abs=1e-5)
        assert ("token_scores" in explorable(row)) == any(scores[:-1])
        scale = (row["options"]["advantage_whitening"] or [0, 1])[1] * (row["options"]["reward_whitening"] or [0, 1])[
            1
        ]
        for ours, logged in {"reward": "reward", "return": "return", "whitened": "advantage"}.items():
            theirs = [token[logged] for token in row["tokens"]]
            assert found[ours] == pytest.approx(theirs, abs=2e-5 * max(scale, 1)), (name, ours, row["step"])
        assert found["clipped"] == [token["clipped"] for token in row["tokens"]]
    assert any(token["score"] for row in rows for token in row["tokens"][:-1]) == ("tokens" in name)
    assert len({row["options"]["kl_coef"] for row in rows}) > 1 if "kl_target" in options else True


# ---- The page ------------------------------------------------------------------------------------------------------


def example(scores=(0.0, 0.0, 2.0), **options):
    """A row by hand: three tokens, a score of 2 on the last one."""
    numbers = {
        "logprob": (-1.0, -2.0, -0.5),
        "new_logprob": (-0.5, -2.1, -0.9),
        "ref_logprob": (-1.2, -1.5, -0.5),
        "kl": (0.2, -0.5, 0.0),
        "kl_penalty": (0.2, -0.5, 0.0),
        "value": (0.3, 0.4, 0.9),
        "score": scores,
        "reward": (-0.02, 0.05, 2.0),
        "advantage": (0.0, 0.0, 0.0),
        "return": (0.0, 0.0, 0.0),
        "clipped": (True, False, False),
    }
    tokens = [{"token": t} | {name: column[i] for name, column in numbers.items()} for i, t in enumerate("a\n ")]
    options = {"kl_coef": 0.1, "gamma": 1.0, "lam": 0.5, "cliprange": 0.2, "advantage_estimator": "gae"} | options
    options = {"cliprange_high": None, "dual_clip": None, "group_scale": 1.0} | options
    options = {"reward_whitening": None, "advantage_whitening": None} | options
    row = {
        "step": 8,
        "prompt": "p",
        "score": 2.0,
        "kl": -0.3,
        "rewarded_score": 2.0,
        "options": options,
        "tokens": tokens,
    }
    found = recomputed(row)
    for i, token in enumerate(tokens):
        token |= {"advantage": found["whitened"][i], "return": found["return"][i], "clipped": found["clipped"][i]}
    return row


def test_the_example_by_hand():
    found = recomputed(example())
    # deltas: -0.02 + 0.4 - 0.3 = 0.08, 0.05 + 0.9 - 0.4 = 0.55, 2 - 0.9 = 1.1; advantages backwards with lam 0.5
    assert found["advantage"] == pytest.approx([0.08 + 0.5 * (0.55 + 0.5 * 1.1), 0.55 + 0.5 * 1.1, 1.1])
    assert found["return"] == pytest.approx([0.63 + 0.3, 1.1 + 0.4, 1.1 + 0.9])
    # ratios exp(0.5) above 1.2, exp(-0.1), exp(-0.4), all with a positive advantage
    assert found["objective"] == pytest.approx([1.2 * 0.63, 0.904837 * 1.1, 0.670320 * 1.1], abs=1e-5)
    assert found["clipped"] == [True, False, False]


def test_what_the_page_reads_of_a_row():
    row = example(advantage_whitening=[0.5, 2.0])
    assert explorable(row) == {"options": row["options"], "rewarded_score": 2.0}
    assert explorable(example(critic_lam=1.0))["options"]["critic_lam"] == 1.0
    assert explorable(example(scores=(0.5, 0.0, 1.5)))["token_scores"] == [0.5, 0.0, 1.5]
    row["tokens"][0]["kl_penalty"] = 0.25
    assert explorable(row)["kl_penalty"] == [0.25, -0.5, 0.0]
    assert explorable({"step": 1, "tokens": []}) == {}  # of an earlier version
    older = {
        name: x for name, x in row["options"].items() if name not in ("cliprange_high", "dual_clip", "group_scale")
    }
    assert explorable(row | {"options": older})["options"] == older
    for broken in (
        {"gamma": "1"},
        {"advantage_whitening": 3},
        {"reward_whitening": [1.0]},
        {"dual_clip": "3"},
    ):
        with pytest.raises((TypeError, ValueError)):
            explorable(row | {"options": row["options"] | broken})


def page_of(rows, path):
    path.write_text(report_page([Run("run", stages=[], tokens=rows)]), encoding="utf-8")
    return path


def table_of(tab):
    """What the cells hold, by column, and whether each token is marked as clipped."""
    names = ["reward", "value", "advantage", "return", "whitened", "objective"]
    read_cells = "(cells) => cells.map((cell) => Number(cell.dataset.value))"
    columns = {name: tab.locator(f"#explore tbody td.of-{name}").evaluate_all(read_cells) for name in names}
    marks = tab.locator("#explore tbody button").evaluate_all(
        "(all) => all.map((x) => x.classList.contains('clipped'))"
    )
    return columns | {"clipped": marks}


def move(tab, name, value):
    """Bring a slider to a value with the arrow keys, as a person without a mouse does."""
    slider = tab.locator(f"#explore-{name}")
    slider.focus()
    choices = tab.evaluate("(id) => document.getElementById(id).choices", f"explore-{name}")
    steps = min(range(len(choices)), key=lambda i: abs(choices[i] - value)) - int(slider.input_value())
    for _ in range(abs(steps)):
        tab.keyboard.press("ArrowRight" if steps > 0 else "ArrowLeft")
    assert float(tab.locator(f"output[for=explore-{name}]").inner_text()) == pytest.approx(value, abs=1e-9)


SETTINGS = [
    {},
    {"cliprange": 0.1, "lam": 0.4, "gamma": 0.9, "kl_coef": 0.25},
    {"lam": 1.0, "gamma": 0.0, "kl_coef": 0.0},
]


@pytest.mark.parametrize(
    "name",
    [
        *("plain", "grpo"),
        *(
            pytest.param(name, marks=[pytest.mark.slow, pytest.mark.xdist_group("explore")])
            for name in ("whitened", "group", "critic", "clips", "tokens")
        ),
    ],
)
def test_the_page_computes_what_python_computes(tmp_path, open_page, name):
    row = example(
        **{
            "plain": {},
            "whitened": {"reward_whitening": [0.3, 1.5], "advantage_whitening": [0.5, 2.0], "gamma": 0.997},
            "group": {"advantage_estimator": "reward"},
            "critic": {"critic_lam": 1.0},
            "grpo": {"advantage_estimator": "grpo", "group_scale": 0.4},
            # Â is negative at the first token, whose ratio is 1.65, and positive at the last one, of 1.3.
            "clips": {"cliprange_high": 0.28, "dual_clip": 1.5, "advantage_whitening": [0.7, 2.0]},
            "tokens": {"scores": (0.5, -0.25, 1.75), "lam": 0.9},
        }[name]
    )
    if name == "clips":
        row["tokens"][2]["new_logprob"] = -0.5 + math.log(1.3)
        for token, is_clipped in zip(row["tokens"], recomputed(row)["clipped"], strict=True):
            token["clipped"] = is_clipped
        assert recomputed(row)["clipped"] == [True, False, True]
    elif name != "plain":
        for token, penalty in zip(row["tokens"], (0.01, 0.2, 0.03), strict=True):
            token["kl_penalty"] = penalty
        for token, *numbers in zip(
            row["tokens"], *(recomputed(row)[x] for x in ("reward", "whitened", "return")), strict=True
        ):
            token |= dict(zip(("reward", "advantage", "return"), numbers, strict=True))
    tab = open_page(page_of([row], tmp_path / "report.html"), locale="en-GB")
    moved = {}
    for settings in SETTINGS:
        no_critic = name in ("group", "grpo")
        settings = {k: v for k, v in settings.items() if not no_critic or k not in ("lam", "gamma")}
        for slider, value in settings.items():
            move(tab, slider, value)
        moved |= settings
        found, expected = table_of(tab), recomputed(row, **moved)
        for column, numbers in expected.items():
            if found[column]:  # a column may have no place: values without a critic
                assert found[column] == pytest.approx(numbers, abs=1e-6), (settings, column)
        assert found["reward"] and found["advantage"] and found["objective"]
        assert ("equal the logged ones" in tab.inner_text("#explore-state")) == (not settings)
    tab.click("#explore-reset")
    assert table_of(tab)["objective"] == pytest.approx(recomputed(row)["objective"], abs=1e-6)
    assert "equal the logged ones (largest difference 0)" in tab.inner_text("#explore-state")


def test_the_log_of_a_trainer_is_explored_on_a_phone_in_chinese(tmp_path, open_page):
    make(tmp_path, log_tokens=2, max_steps=3, ref_model=policy(seed=3), kl_coef=0.07, learning_rate=0.03).train()
    rows = read(tmp_path / "tokens.jsonl")
    path = page_of(rows, tmp_path / "report.html")
    tab = open_page(path, viewport={"width": 390, "height": 844}, locale="zh-CN", color_scheme="dark")
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    assert tab.evaluate("document.querySelector('#explore table').getBoundingClientRect().right") <= 390
    assert "动手调 PPO" in tab.inner_text("#explore h2") and "与日志一致" in tab.inner_text("#explore-state")
    prompts = list(dict.fromkeys(row["prompt"] for row in rows))
    for i, prompt in enumerate(prompts):
        tab.select_option("#explore-prompt", str(i))
        tab.locator("#explore-step").focus()
        tab.keyboard.press("End")
        last = [row for row in rows if row["prompt"] == prompt][-1]
        found = table_of(tab)
        for column, numbers in recomputed(last).items():
            assert found[column] == pytest.approx(numbers, abs=1e-6)
        assert found["whitened"] == pytest.approx([t["advantage"] for t in last["tokens"]], abs=1e-4)
        assert tab.locator("output[for=explore-kl_coef]").inner_text() == "0.07"
    tab.locator("#explore-step").focus()
    tab.keyboard.press("Home")
    first = next(row for row in rows if row["prompt"] == prompts[-1])
    assert table_of(tab)["reward"] == pytest.approx(recomputed(first)["reward"], abs=1e-6)


def test_a_token_is_chosen_by_arrow_keys_and_its_numbers_stand_in_the_formulas(tmp_path, open_page):
    tab = open_page(page_of([example()], tmp_path / "report.html"), locale="en-GB")
    assert tab.locator("#explore tbody button[tabindex='0']").count() == 1
    assert "= −0.1 × 0.000 + 2.000 = 2.000" in tab.inner_text("#explore-formulas")
    tab.locator("#explore tbody button[tabindex='0']").focus()
    tab.keyboard.press("ArrowUp")
    assert tab.locator("#explore tbody button[aria-pressed=true]").inner_text() == "↵"
    text = tab.inner_text("#explore-formulas")
    assert "= −0.1 × (−0.500) = 0.050" in text and "= 0.550 + 1 × 0.5 × 1.100 = 1.100" in text
    assert tab.locator("#explore math").count() == 6
    tab.get_by_role("button", name="λ = 1").click()
    assert "= 0.550 + 1 × 1 × 1.100 = 1.650" in tab.inner_text("#explore-formulas")
    assert "reward" in tab.inner_text("#explore-lesson")


def test_the_formulas_show_the_clips_and_the_group_s_deviation(tmp_path, open_page):
    clips = {"cliprange_high": 0.28, "dual_clip": 1.5, "advantage_whitening": [0.7, 2.0]}
    tab = open_page(page_of([example(**clips)], tmp_path / "report.html"), locale="en-GB")
    tab.locator("#explore tbody button").first.click()
    # A ratio of exp(.5) = 1.649 is above 1.5: Â = (0.63 - 0.7) * 2 = -0.14, bounded below by 1.5 times this.
    text = tab.inner_text("#explore-formulas")
    assert "= max(min(1.649 × (−0.140), 1.280 × (−0.140)), 1.5 × (−0.140)) = −0.210" in text
    notes = tab.inner_text("#explore .results")
    assert "cliprange_high" in notes and "dual_clip" in notes
    row = example(advantage_estimator="grpo", group_scale=0.4)
    tab = open_page(page_of([row], tmp_path / "report.html"), locale="en-GB")
    assert "/ 2.500 = 0.000" in tab.inner_text("#explore-formulas") and "σ" in tab.inner_text("#explore .results")


def test_a_log_of_an_earlier_version_is_still_reported(tmp_path, open_page):
    row = example()
    del row["options"], row["rewarded_score"]
    for token in row["tokens"]:
        del token["kl_penalty"], token["return"]
    tab = open_page(page_of([row], Path(tmp_path) / "report.html"), locale="en-GB")
    assert tab.locator("#explore").count() == 0 and "Train again to explore PPO" in tab.inner_text("main")
    assert tab.locator(".step .token").count() == 3
