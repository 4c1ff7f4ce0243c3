"""The rules over PPO's logs: each by hand, at its threshold and just below; in runs made sick on purpose; the verb."""

import json
import logging
from pathlib import Path

import pytest
from datasets import Dataset
from test_docs import slugs
from test_ppo_trainer import PROMPTS, lengths, make, policy

from hf_instructgpt.cli import main
from hf_instructgpt.language import choose_language
from hf_instructgpt.ppo.doctor import MAX_ROWS, RULES, Doctor
from hf_instructgpt.stages.doctor import diagnosis

HEALTHY = {
    "score": 1.0,
    "score_std": 0.5,
    "kl": 2.0,
    "completion_length": 10.0,
    "eos_fraction": 1.0,
    "entropy": 0.5,
    "clip_fraction": 0.02,
    "explained_variance": 0.4,
    "return_std": 0.5,
    "dropped_samples": 0.0,
    "completions/num_distinct": 16.0,
}


def found(entries):
    """The rules that hold in logs of one step each, which are healthy in all that is not given, and their steps."""
    doctor = Doctor(HEALTHY | entry | {"step": step} for step, entry in enumerate(entries, start=1))
    return {name: finding.step for name, finding in doctor.found.items()}


def numbers(rule, entries):
    doctor = Doctor(HEALTHY | entry | {"step": step} for step, entry in enumerate(entries, start=1))
    return doctor.found[rule].numbers


# ---- Each rule by hand: the logs at which it holds, and such that are just not enough ------------------------------

GROWTH = [{"completion_length": x, "score": x / 10} for x in (10.0, 10.0, 10.0, 15.0, 15.0, 15.0)]
BY_HAND = {
    "unscored": ([{"dropped_samples": 0.5}], [{"dropped_samples": 0.49}] * 30),
    "equal_scores": ([{"score": -3.0, "score_std": 2.9e-6}], [{"score": -3.0, "score_std": 3.1e-6}] * 30),
    "endless": ([{"eos_fraction": 0.0}] * 2, [{"eos_fraction": 0.0}, {"eos_fraction": 0.01}]),
    "identical": ([{"completions/num_distinct": 1.0}] * 2, [{"completions/num_distinct": x} for x in (1.0, 2.0)]),
    # 1 nat per token, in the mean of three logs.
    "kl_explosion": ([{"kl": 9.0}, {"kl": 10.0}, {"kl": 11.1}], [{"kl": 9.0}, {"kl": 10.0}, {"kl": 11.0}]),
    "entropy_collapse": (
        [{"entropy": 0.5}] * 3 + [{"entropy": 0.049}] * 3,
        [{"entropy": 0.5}] * 3 + [{"entropy": 0.051}] * 3,
    ),
    "length_hacking": (
        GROWTH,
        [{**entry, "completion_length": min(entry["completion_length"], 14.9)} for entry in GROWTH],
    ),
    "useless_critic": (
        [{}] * 10 + [{"explained_variance": x} for x in (0.3, 0.3, 0.3, 0.3, 0.0, 0.0, -0.1, -0.1, -9.0, -9.0)],
        [{}] * 10 + [{"explained_variance": x} for x in (0.3, 0.3, 0.3, 0.3, 0.01, 0.0, -0.1, -0.1, -9.0, -9.0)],
    ),
    "large_steps": ([{"clip_fraction": x} for x in (0.1, 0.2, 0.31)], [{"clip_fraction": x} for x in (0.1, 0.2, 0.3)]),
    "no_movement": ([{"kl": 0.9e-3}] * 20, [{"kl": 0.9e-3}] * 19 + [{"kl": 3e-3}]),
    # By 0.51 and by 0.49, of first scores whose standard deviation is 0.5.
    "score_fell": ([{"score": 1.0}] * 10 + [{"score": 0.49}] * 10, [{"score": 1.0}] * 10 + [{"score": 0.51}] * 10),
}


def test_every_rule_is_tried():
    assert list(BY_HAND) == [rule.name for rule in RULES] == list(SICK)


@pytest.mark.parametrize("name", BY_HAND)
def test_a_rule_holds_from_its_threshold_on(name):
    sick, healthy = BY_HAND[name]
    assert found(sick) == {name: len(sick)}
    assert found(healthy) == {}
    assert found([{}] * 30) == {}


def test_the_numbers_of_the_rules_by_hand():
    assert numbers("kl_explosion", [{"kl": 9.0}, {"kl": 10.0}, {"kl": 14.0}]) == pytest.approx(
        {"number": 1.1, "kl": 11.0}
    )
    collapse = [{"entropy": 0.5}] * 3 + [{"entropy": 0.02}] * 3
    assert numbers("entropy_collapse", collapse) == pytest.approx({"number": 0.04, "start": 0.5, "now": 0.02})
    assert numbers("length_hacking", GROWTH) == pytest.approx(
        {"number": 1.5, "start": 10.0, "now": 15.0, "r": 1.0, "score_start": 1.0, "score_now": 1.5}
    )
    fall = [{"score": 0.0}] * 5 + [{"score": 2.0}] * 10 + [{"score": 1.0}] * 10
    assert numbers("score_fell", fall)["best"] == 2.0
    assert numbers("score_fell", fall)["now"] == pytest.approx(1.4)  # at the sixth of the lower ones: a fall of 1.2 SD


def test_lengths_that_shrink_under_a_rising_score_are_found_and_those_under_a_falling_one_are_not():
    shrinking = [{"completion_length": x, "score": -x / 10} for x in (15.0, 15.0, 15.0, 10.0, 10.0, 10.0)]
    assert found(shrinking) == {"length_hacking": 6}
    assert found([{**entry, "score": -entry["score"]} for entry in shrinking]) == {}
    # Longer and better, but not hand in hand: a correlation of 0.79.
    scores = (1.0, 1.55, 1.0, 1.3, 1.3, 1.9)
    assert found([{**entry, "score": score} for entry, score in zip(GROWTH, scores, strict=True)]) == {}


def test_where_returns_are_equal_by_now_the_critic_has_nothing_to_explain():
    start = [{"explained_variance": 0.3}] * 3
    assert found([*start, *[{"explained_variance": -1.0, "return_std": 0.1}] * 20]) == {}
    assert found([*start, *[{"explained_variance": -1.0, "return_std": 0.11}] * 20]) == {"useless_critic": 20}


def test_a_log_without_what_a_rule_reads_is_skipped_and_the_rule_named():
    logs = [{"step": 1, "score": 1.0}, {"step": 2, "score": 1.0, "score_std": 0.0}, {"step": 3, "clip_fraction": 0.9}]
    doctor = Doctor(logs)
    assert {name: finding.step for name, finding in doctor.found.items()} == {"equal_scores": 2}
    read = ("equal_scores", "large_steps", "score_fell")
    assert doctor.unread == [rule.name for rule in RULES if rule.name not in read]


def test_while_only_the_critic_is_trained_the_policy_may_stand_still():
    still = [{"kl": 0.0, "critic_warmup": 1.0}] * 30
    assert found(still) == {}
    assert found([*still, *[{"kl": 0.0}] * 20]) == {"no_movement": 50}
    assert found([{"score_std": 0.0, "critic_warmup": 1.0}]) == {"equal_scores": 1}


def test_rewards_of_tokens_that_sum_to_the_same_are_not_equal_scores():
    assert found([{"score_std": 0.0, "token_score_std": 0.5}] * 30) == {}
    assert found([{"score_std": 0.0, "token_score_std": 0.0}]) == {"equal_scores": 1}


def test_what_is_not_a_number_is_no_finding():
    nan = float("nan")
    assert (
        found([{"kl": nan, "score": nan, "explained_variance": nan, "clip_fraction": nan, "entropy": nan}] * 30) == {}
    )


def test_what_was_found_is_said_once_and_whether_it_still_holds():
    doctor = Doctor()
    counts = [len(doctor.look(HEALTHY | {"step": step, "clip_fraction": 0.5})) for step in range(1, 8)]
    assert counts == [0, 0, 1, 0, 0, 0, 0]
    (finding,) = doctor.found.values()
    assert finding.step == 3 and doctor.holds_still(finding)
    for step in range(8, 11):
        doctor.look(HEALTHY | {"step": step})
    assert not doctor.holds_still(finding)


def test_a_long_run_keeps_its_first_logs_and_the_newest():
    doctor = Doctor(HEALTHY | {"step": step} for step in range(3 * MAX_ROWS))
    steps = [row["step"] for row in doctor.rows["score_fell"]]
    assert steps == [0, 1, 2, *range(2 * MAX_ROWS + 3, 3 * MAX_ROWS)]


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_message_has_its_number_and_every_link_leads_to_a_section(language):
    choose_language(language)
    try:
        for name, (sick, _) in BY_HAND.items():
            doctor = Doctor(HEALTHY | entry | {"step": step} for step, entry in enumerate(sick))
            finding = doctor.found[name]
            assert (
                "{" not in finding.message and "\n" not in finding.message and any(map(str.isdigit, finding.message))
            )
            page, anchor = finding.guide.split("#")
            assert f"docs/{language}/" in page and anchor in slugs(page), finding.guide
    finally:
        choose_language(None)


# ---- Runs that are made sick on purpose ----------------------------------------------------------------------------


def count_of_a(completions, **_):
    return [float(text.count("a")) for text in completions]


def constant(completions, **_):
    return [1.5] * len(completions)


def none_for_most(completions, **_):
    return [None if i % 4 else float(i) for i in range(len(completions))]


def by_prompt(prompts, completions, **_):
    """The prompt's length, which a critic can foresee, plus the share of letters from the alphabet's first half."""
    shares = [sum(letter in "abcdefghijklm" for letter in text) / max(len(text), 1) for text in completions]
    return [len(prompt) + share for prompt, share in zip(prompts, shares, strict=True)]


class Failing:
    """Longer is better; from the twelfth rollout on every score is 60 lower."""

    __name__ = "failing"
    calls = 0

    def __call__(self, completion_ids, **_):
        self.calls += 1
        return [len(ids) - 60.0 * (self.calls > 11) for ids in completion_ids]


# Of each rule: a reward, options, and of the policy the bias towards the end. Each rollout has two steps and one log.
SICK = {
    "unscored": (none_for_most, {"max_steps": 2}, 3.0),
    "equal_scores": (constant, {"max_steps": 2}, 3.0),
    "endless": (lengths, {"max_steps": 4}, -30.0),
    "identical": (lengths, {"max_steps": 4}, 90.0),  # each response is the end-of-text token alone
    "kl_explosion": (count_of_a, {"learning_rate": 0.1, "kl_coef": 0.0}, 3.0),
    "entropy_collapse": (count_of_a, {"learning_rate": 0.1, "kl_coef": 0.0}, 3.0),
    "length_hacking": (lengths, {"learning_rate": 3e-2, "kl_coef": 0.0, "max_completion_length": 12}, 3.0),
    "useless_critic": (lengths, {"critic_learning_rate": 0.0, "max_steps": 40}, 3.0),
    "large_steps": (lengths, {"learning_rate": 0.3}, 3.0),
    "no_movement": (lengths, {"learning_rate": 1e-9, "max_steps": 40}, 3.0),
    "score_fell": (Failing(), {"max_steps": 44, "learning_rate": 1e-4}, 3.0),
}
OPTIONS = {"per_device_train_batch_size": 16, "logging_steps": 2, "max_steps": 24, "learning_rate": 1e-3}
MANY = Dataset.from_list(list(PROMPTS) * 16)


class Warnings(logging.Handler):
    """The lines that were warned of."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())


@pytest.fixture
def warnings():
    handler, logger = Warnings(), logging.getLogger("hf_instructgpt.ppo.logs")
    logger.addHandler(handler)
    yield handler.lines
    logger.removeHandler(handler)


@pytest.mark.parametrize("name", SICK)
def test_a_run_made_sick_on_purpose_is_found_out_and_warned_of_once(tmp_path, warnings, name):
    reward, options, eos_bias = SICK[name]
    trainer = make(tmp_path, policy(eos_bias=eos_bias), reward, MANY, **(OPTIONS | options))
    trainer.train()
    trainer.save_state()
    finding = trainer._doctor.found[name]
    assert warnings.count(finding.message) == 1 and len(warnings) == len(trainer._doctor.found)
    again = {some["rule"]: some for some in diagnosis(tmp_path)["findings"]}
    assert again.keys() == trainer._doctor.found.keys()
    assert again[name]["step"] == finding.step and again[name]["numbers"] == pytest.approx(finding.numbers)


def test_a_healthy_run_is_not_warned_of(tmp_path, warnings, capsys):
    options = OPTIONS | {"max_steps": 44, "critic_learning_rate": 1e-2, "cliprange_value": 10.0}
    trainer = make(tmp_path, policy(), by_prompt, MANY, **options)
    trainer.train()
    trainer.save_state()
    assert warnings == [] and trainer._doctor.unread == []
    capsys.readouterr()
    assert main(["doctor", str(tmp_path), "--lang", "en"]) == 0
    out = capsys.readouterr().out
    assert "22 logs up to step 44, 11 rules" in out and "Nothing found" in out and "Not checked" not in out


def test_a_resumed_run_does_not_warn_again(tmp_path, warnings):
    options = OPTIONS | {"max_steps": 6, "save_strategy": "steps", "save_steps": 2}
    make(tmp_path, policy(), constant, MANY, **options).train()
    assert len(warnings) == 1
    trainer = make(tmp_path, policy(), constant, MANY, **options)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert len(warnings) == 1 and list(trainer._doctor.found) == ["equal_scores"]


# ---- The verb ------------------------------------------------------------------------------------------------------


def write_log(folder: Path, entries) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    logs = [HEALTHY | {"loss": 0.1, "step": 4 * i} | entry for i, entry in enumerate(entries, start=1)]
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": logs}))


def test_the_verb_names_step_number_threshold_and_guide(tmp_path, capsys):
    write_log(tmp_path, [{}] * 4 + [{"clip_fraction": 0.5}] * 3 + [{}] * 3)
    assert main(["doctor", str(tmp_path), "--lang", "en"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{tmp_path}: 10 logs up to step 40, 11 rules"
    assert lines[1].startswith(
        "! from step 24 (no longer so at step 40), large_steps: 34 % of the tokens were clipped"
    )
    assert "above 20 %" in lines[1] and "`learning_rate`" in lines[1]
    assert lines[2] == "  More: recipes/docs/en/guides/reward-does-not-rise.md#it-rose-and-then-fell"
    assert len(lines) == 3
    assert main(["doctor", str(tmp_path), "--lang", "zh"]) == 0
    out = capsys.readouterr().out
    assert "从第 24 步起" in out and "docs/zh/guides" in out
    assert main(["doctor", str(tmp_path), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    (finding,) = content["findings"]
    assert (finding["rule"], finding["step"], finding["threshold"], finding["still"]) == (
        "large_steps",
        24,
        0.2,
        False,
    )
    assert finding["numbers"]["number"] == pytest.approx(0.34)


def test_a_log_of_an_earlier_version_is_read_as_far_as_it_goes(tmp_path, capsys):
    write_log(tmp_path, [{}] * 10)
    state = json.loads((tmp_path / "trainer_state.json").read_text())
    for entry in state["log_history"]:
        del entry["explained_variance"]
    (tmp_path / "checkpoint-40").mkdir()
    (tmp_path / "trainer_state.json").unlink()
    (tmp_path / "checkpoint-40" / "trainer_state.json").write_text(json.dumps(state))  # as while it trains
    assert main(["doctor", str(tmp_path), "--lang", "en"]) == 0
    assert "the log lacks the numbers: useless_critic" in capsys.readouterr().out


def test_of_a_complete_run_its_ppo_is_read_and_its_own_warnings_are_repeated(document_run, capsys):
    found = diagnosis(document_run)
    assert (found["folder"], found["logs"], found["findings"]) == (str(document_run / "ppo"), 12, [])
    assert found["not_checked"] == ["useless_critic"]  # it has none
    (weak,) = found["run"]
    assert "does not clearly beat this baseline" in weak
    assert main(["doctor", str(document_run), "--lang", "en"]) == 0
    out = capsys.readouterr().out
    assert f"! {weak}" in out and "Nothing found" not in out


def test_what_holds_no_log_of_ppo_is_refused(tmp_path, capsys):
    assert main(["doctor", str(tmp_path / "nowhere")]) == 2
    assert main(["doctor", str(tmp_path)]) == 2
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": [{"step": 1, "loss": 0.5}]}))
    assert main(["doctor", str(tmp_path)]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert "there is no folder" in errors[0] and "no checkpoint" in errors[1] and "not one of PPO" in errors[2]
