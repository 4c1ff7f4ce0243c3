"""The over-optimisation experiment: its numbers by hand and by brute force, the whole command, what it refuses."""

import json
import math
import pickle
import random
import shutil
from concurrent.futures import Executor, Future
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import ClassVar

import pytest
import torch
import yaml
from matplotlib.figure import Figure
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from hf_instructgpt.cli import main
from hf_instructgpt.data import load_sample_dataset
from hf_instructgpt.errors import InputError
from hf_instructgpt.evaluation.best_of_n import best_of_n, best_of_n_kl, pair_accuracy
from hf_instructgpt.experiments import jobs, overopt_jobs
from hf_instructgpt.experiments.experiment import findings
from hf_instructgpt.experiments.overopt import OverOpt, OverOptOptions
from hf_instructgpt.experiments.overopt_jobs import _ranking, sample_and_judge, train_policy
from hf_instructgpt.experiments.overopt_report import analyse, curve, draw_plot, suggest, turn

# ---- Best-of-n -----------------------------------------------------------------------------------------------------


def test_best_of_two_of_three_by_hand():
    """Subsets {1, 2}, {1, 5}, {2, 5} of the proxy's scores: the choices are 2, 5, 5; the judge gives 0, -6, -6."""
    proxy, judge = torch.tensor([[5.0, 1.0, 2.0]]), torch.tensor([[-6.0, 9.0, 0.0]])
    by_proxy, by_judge = best_of_n(proxy, judge, n=2)
    assert by_proxy.item() == pytest.approx(4) and by_judge.item() == pytest.approx(-4)
    assert [x.item() for x in best_of_n(proxy, judge, n=1)] == pytest.approx([8 / 3, 1])
    assert [x.item() for x in best_of_n(proxy, judge, n=3)] == pytest.approx([5, -6])


def test_of_equal_proxy_scores_each_is_chosen_as_often():
    """Subsets {3, 3'}, {3, 1} and {3', 1}: the judge's 2 or 4 with even chance, then 2, then 4."""
    by_proxy, by_judge = best_of_n(torch.tensor([[3.0, 3.0, 1.0]]), torch.tensor([[2.0, 4.0, 9.0]]), n=2)
    assert (by_proxy.item(), by_judge.item()) == pytest.approx((3, 3))


@pytest.mark.parametrize("num_values", [3, 1000])  # with ties, and without
@pytest.mark.parametrize("n", [1, 2, 4, 7])
def test_best_of_n_is_the_mean_over_all_subsets(n, num_values):
    generator = torch.Generator().manual_seed(n)
    proxy = torch.randint(num_values, (5, 7), generator=generator).float()
    judge = torch.randn(5, 7, generator=generator)
    by_proxy, by_judge = best_of_n(proxy, judge, n=n)
    for p in range(5):
        chosen = []
        for subset in combinations(range(7), n):
            best = max(proxy[p, i].item() for i in subset)
            chosen.append((best, fmean(judge[p, i].item() for i in subset if proxy[p, i] == best)))
        assert by_proxy[p].item() == pytest.approx(fmean(best for best, _ in chosen))
        assert by_judge[p].item() == pytest.approx(fmean(score for _, score in chosen))


def test_the_kl_of_best_of_n():
    assert best_of_n_kl(1) == 0
    assert best_of_n_kl(2) == pytest.approx(0.693147 - 0.5, abs=1e-6)
    assert best_of_n_kl(64) == pytest.approx(4.158883 - 0.984375, abs=1e-6)
    # The best of 2 of three responses that come with chance 1/3 each has chances 1/9, 3/9 and 5/9: below the bound.
    exact = sum(chance * math.log(3 * chance) for chance in (1 / 9, 3 / 9, 5 / 9))
    assert 0 < exact < best_of_n_kl(2)
    # Of 1000, nearly it.
    chances = [(2 * i + 1) / 1000**2 for i in range(1000)]
    assert sum(chance * math.log(1000 * chance) for chance in chances) == pytest.approx(best_of_n_kl(2), abs=1e-3)


def test_pair_accuracy_by_hand():
    """The judge tells 3 pairs of the first prompt apart and 2 of the second; the proxy has 2 and 1 of them right."""
    judge = torch.tensor([[1.0, 2.0, 3.0], [1.0, 1.0, 0.0]])
    proxy = torch.tensor([[0.0, 5.0, 4.0], [1.0, 0.0, 0.0]])
    assert pair_accuracy(proxy, judge) == pytest.approx(3 / 5)
    assert math.isnan(pair_accuracy(proxy, torch.zeros(2, 3)))


# ---- Analysis ------------------------------------------------------------------------------------------------------


def test_a_judge_that_turns():
    """Each seed's fall is from where the others are best: point 1 for seeds 0 and 2, whose own best is 1 and 2."""
    found = turn([[0.0, 1.0, 0.9, 0.1], [0.0, 1.2, 0.8, 0.0], [0.0, 0.9, 1.0, 0.1]])
    assert found["fall"] == pytest.approx(fmean([1.0 - 0.1, 1.2 - 0.0, 0.9 - 0.1]))
    variance = ((0.9 - 29 / 30) ** 2 + (1.2 - 29 / 30) ** 2 + (0.8 - 29 / 30) ** 2) / 2
    half = 4.302653 * math.sqrt(variance / 3)
    assert found["fall_ci95"] == pytest.approx([29 / 30 - half, 29 / 30 + half])
    assert found["turns"]


def test_a_judge_that_rises_to_the_end_does_not_turn():
    found = turn([[0.0, 0.5, 1.0], [0.1, 0.6, 0.9], [0.0, 0.4, 1.1]])
    assert found == {"fall": 0, "fall_ci95": [0, 0], "turns": False}


def test_noise_is_rarely_called_a_turn():
    """The nominal rate is one in 40; the highest mean point against any later one is called a turn by one in two."""
    rng = random.Random(0)
    flat = [[[rng.gauss(0, 1) for _ in range(16)] for _ in range(3)] for _ in range(400)]
    assert sum(turn(judge)["turns"] for judge in flat) / 400 < 0.07


def point(step, kl, proxy, judge):
    return {"step": step, "kl": kl, "proxy": proxy, "judge": judge}


def test_a_curve_by_hand():
    runs = [[point(0, 0.0, 0.0, 0.0), point(8, 1.0, 2.0, 1.0)], [point(0, -0.1, 0.0, 0.0), point(8, 7.0, 4.0, 2.0)]]
    found = curve(runs)
    assert found["peak"] == 1
    assert found["points"][0] | {"kl": 0} == {
        "step": 0,
        "kl": 0,
        "sqrt_kl": 0,
        "proxy": 0,
        "proxy_ci95": [0, 0],
        "judge": 0,
        "judge_ci95": [0, 0],
    }
    last = found["points"][1]
    assert (last["step"], last["kl"], last["sqrt_kl"], last["proxy"], last["judge"]) == (8, 4.0, 2.0, 3.0, 1.5)
    assert last["judge_ci95"] == pytest.approx([1.5 - 12.706205 / 2, 1.5 + 12.706205 / 2])


def made_up(judge_at_end, policies=None):
    """Two seeds of a large and a small size; SFT's judge has mean 0.5 and deviation 2, the proxies mean 1 and 0.5."""
    samples = [{"judge_mean": 0.5, "judge_std": 2.0}] * 2
    best = [{"n": 1, "kl": 0.0, "proxy": 1.0, "judge": 0.5}, {"n": 2, "kl": 0.2, "proxy": 1.5, "judge": 2.5}]
    proxy = {"accuracy": 0.75, "proxy_mean": 1.0, "proxy_std": 0.5, "best_of_n": best}
    runs = {"points": [point(0, 0.0, 1.0, 0.5), point(4, 1.0, 2.0, 4.5), point(8, 4.0, 3.0, judge_at_end)]}
    other = {"points": [point(0, 0.0, 1.0, 0.5), point(4, 1.0, 2.0, 3.5), point(8, 4.0, 3.0, 3.4)]}
    runs["diverged"] = other["diverged"] = None
    policies = {
        (10, "", 0.1): [runs, runs],
        (10, "", 0.3): [other, other],
        (2, "", 0.1): [runs, runs],
        **(policies or {}),
    }
    return {**analyse(samples, {(2, ""): [proxy] * 2, (10, ""): [proxy] * 2}, policies), "seeds": [0, 1]}


def test_scores_count_from_sft_in_its_deviations_and_the_best_point_is_suggested():
    found = made_up(judge_at_end=-1.5)
    kinds = [(c["num_rankings"], c["method"], c["kl_coef"]) for c in found["curves"]]
    assert kinds == [
        (2, "ppo", 0.1),
        (2, "best_of_n", None),
        (10, "ppo", 0.1),
        (10, "ppo", 0.3),
        (10, "best_of_n", None),
    ]
    assert [point["judge"] for point in found["curves"][2]["points"]] == [0, 2, -1]
    assert [point["proxy"] for point in found["curves"][2]["points"]] == [0, 2, 4]
    assert [point["judge"] for point in found["curves"][1]["points"]] == [0, 1]
    assert [c["turns"] for c in found["curves"]] == [True, False, True, True, False]
    best = found["suggested"]
    assert (best["num_rankings"], best["kl_coef"], best["step"], best["judge"]) == (10, 0.1, 4, 2)
    assert suggest([c for c in found["curves"] if c["num_rankings"] == 2])["num_rankings"] == 2


def test_what_is_found_is_said_the_warning_first():
    found = made_up(judge_at_end=-1.5)
    found["suggested"]["policy"] = "ppo/x/checkpoint-4"
    first, *_, last = findings(OverOpt.report(found))
    assert first.startswith(
        "WARNING: over-optimised: PPO with KL coefficient 0.1, 2 rankings: the judge's score peaks"
    )
    assert "+2.00 at step 4 (√KL 1.00), then falls by 3.00 [3.00, 3.00] until the last point, step 8" in first
    assert "while the proxy's score rises from +2.00 to +4.00" in first
    assert "KL coefficient 0.1 and 4 optimizer steps" in last and "optimistic" in last
    text = OverOpt.report(found)
    assert "Best-of-n, 2 rankings: the judge's score does not turn in this run (its last point is the high" in text
    assert "agree with the judge on 75.0 %" in text
    assert "do not tell it from the SFT model" not in text
    found["suggested"]["judge_ci95"] = [-0.1, 4.1]
    last = findings(OverOpt.report(found))[-1]
    assert last.endswith("a little optimistic; these seeds do not tell it from the SFT model.")
    found["suggested"]["step"] = 0
    assert findings(OverOpt.report(found))[-1].startswith("Suggested: the SFT model, unchanged")


def test_variants_of_the_proxies_have_curves_of_their_own(tmp_path, monkeypatch):
    """By hand: (5 - 1) / 2 and (2 - 1) / 2 of the judge; (3 - 0) / 1 and (20 - 10) / 5 of the proxies."""
    samples = [{"judge_mean": 1.0, "judge_std": 2.0}] * 2
    best = [{"n": 1, "kl": 0.0, "proxy": 10.0, "judge": 1.0}]
    proxies = {
        (4, "plain"): [{"accuracy": 0.5, "proxy_mean": 0.0, "proxy_std": 1.0, "best_of_n": best}] * 2,
        (4, "noisy"): [{"accuracy": a, "proxy_mean": 10.0, "proxy_std": 5.0, "best_of_n": best} for a in (0.7, 0.9)],
    }
    lost, plain, noisy = (
        {"points": [point(0, 0.0, 0.0, 1.0), point(8, 4.0, *scores)], "diverged": None}
        for scores in ((9.0, 9.0), (3.0, 2.0), (20.0, 5.0))
    )
    lost |= {"diverged": "NaN"}
    policies = {(4, "plain", 0.1): [plain] * 2, (4, "noisy", 0.1): [noisy] * 2, (4, "noisy", 0.0): [noisy, lost]}
    found = {**analyse(samples, proxies, policies), "seeds": [0, 1]}
    assert [
        (c["variant"], c["method"], c["points"][-1]["proxy"], c["points"][-1]["judge"]) for c in found["curves"]
    ] == [
        ("plain", "ppo", 3, 0.5),
        ("plain", "best_of_n", 10, 0),
        ("noisy", "ppo", 2, 2),
        ("noisy", "best_of_n", 0, 0),
    ]
    assert [(p["num_rankings"], p["variant"], p["accuracy"]) for p in found["proxies"]] == [
        (4, "plain", 0.5),
        (4, "noisy", pytest.approx(0.8)),
    ]
    assert found["diverged"] == [{"num_rankings": 4, "variant": "noisy", "kl_coef": 0.0, "reasons": [None, "NaN"]}]
    assert (found["suggested"]["variant"], found["suggested"]["judge"]) == ("noisy", 2)
    found["suggested"]["policy"] = "ppo/x"
    text = OverOpt.report(found)
    first, *_, last = findings(text)
    assert "KL coefficient 0, 4 rankings, noisy: diverged with seed 1" in first
    assert "Suggested: proxy `noisy`, KL coefficient 0.1 and 8 optimizer steps" in last
    assert "- The proxies of 4 rankings (plain) agree with the judge on 50.0 %" in text
    header, line, *rows = (row for row in text.splitlines() if row.startswith("|"))
    assert {row.count("|") for row in (header, line, *rows)} == {10} and "| rankings | proxy | method |" in header
    assert [row.split(" | ")[1:3] for row in rows][2:] == [["noisy", "PPO, 0.1"], ["noisy", "best-of-n"]]
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *args, **kwargs: drawn.append(figure))
    draw_plot(found, tmp_path / "x.png")
    panels = {axes.get_title(): axes for axes in drawn[0].axes}
    assert list(panels) == ["PPO, plain", "PPO, noisy", "best-of-n, plain", "best-of-n, noisy"]
    assert [list(curve.get_ydata()) for curve in panels["PPO, noisy"].lines[:2]] == [[-2, 2], [0, 2]]


def test_a_judge_that_never_rises_only_falls():
    runs = [[point(0, 0.0, 0.0, 0.0), point(8, 1.0, 2.0, -1.0 - seed / 10)] for seed in range(3)]
    found = {**made_up(judge_at_end=4.5), "seeds": [0, 1, 2]}
    found["curves"] = [{"num_rankings": 10, "variant": "", "method": "ppo", "kl_coef": 0.1, **curve(runs)}]
    found["suggested"]["policy"] = "ppo/x"
    first = findings(OverOpt.report(found))[0]
    assert first.startswith("WARNING: over-optimised: PPO with KL coefficient 0.1, 10 rankings: the judge's score ")
    assert "score only falls, by 1.10 [0.85, 1.35] until the last point, step 8" in first and "peaks" not in first
    assert "| only falls |" in OverOpt.report(found)


def test_a_run_that_diverged_has_no_curve_and_is_named():
    lost = [{"points": [], "diverged": None}, {"points": [], "diverged": "NaN"}]
    found = made_up(4.5, {(10, "", 0.1): lost})
    assert [c["kl_coef"] for c in found["curves"] if c["num_rankings"] == 10] == [0.3, None]
    assert found["suggested"]["kl_coef"] == 0.3
    found |= {"seeds": [7, 9]}
    found["suggested"]["policy"] = "ppo/x"
    assert findings(OverOpt.report(found))[0] == (
        "WARNING: PPO with KL coefficient 0.1, 10 rankings: diverged with seed 9 (NaN); it has no curve."
    )
    with pytest.raises(InputError, match="diverged against the proxies of 10 rankings with every KL coefficient"):
        made_up(4.5, {(10, "", 0.1): lost, (10, "", 0.3): lost})


# ---- The command ---------------------------------------------------------------------------------------------------


def distinct(completions, **_):
    """A judge that tells even a random model's responses apart: their distinct characters."""
    return [len(set(completion[-1]["content"])) for completion in completions]


def constant(completions, **_):
    return [1.0] * len(completions)


def first(completions, **_):
    return [1.0]


def silent(completions, **_):
    return [None] * len(completions)


STAGE = {"dataset_name": "data", "save_strategy": "no", "report_to": "none"}
CONFIG = {
    "output_dir": "out",
    "judge": f"{__name__}.distinct",
    "seeds": [3, 5],
    "num_rankings": [2, 5],
    "responses_per_ranking": 3,
    "kl_coefs": [0.1],
    "best_of_n": 4,
    "sft": {
        **STAGE,
        "max_steps": 2,
        "gradient_checkpointing": False,
        "model_init_kwargs": {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1},
    },
    "reward": {**STAGE, "max_steps": 2, "gradient_checkpointing": False, "learning_rate": 1e-2},
    "ppo": {
        **{key: value for key, value in STAGE.items() if key != "save_strategy"},
        "max_steps": 4,
        "num_ppo_epochs": 2,
        "per_device_train_batch_size": 4,
        "max_completion_length": 6,
        "learning_rate": 1e-2,
    },
}


def options(folder, **changes):
    """What the jobs get, with the data that [`write`] puts into a folder."""
    config = {**CONFIG, **changes}
    config |= {stage: {**config[stage], "dataset_name": str(folder / "data")} for stage in ("sft", "reward", "ppo")}
    return OverOptOptions.parse(config, source="test")


class Inline(Executor):
    """Runs what it is given at once, in this process: workers of their own would import torch anew."""

    done: ClassVar[list[str]] = []

    def __init__(self, *args, **kwargs):
        pass

    def submit(self, fn, *args):
        future = Future()
        args = pickle.loads(pickle.dumps(args))
        try:
            future.set_result(fn(*args))
            self.done.append("/".join(args[-1].parts[-2:]))
        except BaseException as error:
            future.set_exception(error)
        return future


@pytest.fixture(scope="module", autouse=True)
def inline():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jobs, "ProcessPoolExecutor", Inline)
        yield


@pytest.fixture
def ran():
    """The cells that were run in this test."""
    Inline.done.clear()
    return Inline.done


def write(folder, **changes):
    """A config file, and prompts of `lab` with demonstrations, nine to train on and three held out."""
    config = {key: value for key, value in {**CONFIG, **changes}.items() if value is not None}
    (folder / "experiment.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    (folder / "data").mkdir(exist_ok=True)
    rows = [json.dumps(row, ensure_ascii=False) for row in load_sample_dataset("lab", "sft")["test"].select(range(12))]
    for split, some in (("train", rows[:9]), ("test", rows[9:])):
        (folder / "data" / f"{split}.jsonl").write_text("\n".join(some), encoding="utf-8")
    return str(folder / "experiment.yaml")


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A whole run, broken off once before the last cell, and the cells that it took."""
    folder = tmp_path_factory.mktemp("overopt")
    Inline.done.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        config = write(folder)
        with patch.context() as broken:
            broken.setattr(OverOpt, "draw_plot", lambda *args: 1 / 0)
            assert main(["overopt", "--config", config]) == 1
        assert not (folder / "out" / "overopt.json").exists()
        cells_run = list(Inline.done)
        assert main(["overopt", "--config", config, "--resume"]) == 0
        assert cells_run == Inline.done
    return folder, cells_run


def test_what_a_run_leaves(done):
    folder, cells_run = done
    out = folder / "out"
    pairs = [f"rankings-{size}_seed-{seed}" for size in (2, 5) for seed in (3, 5)]
    runs = [f"ppo/{pair.replace('_', '_kl-0.1_')}" for pair in pairs]
    assert cells_run == ["out/sft", "samples/seed-3", "samples/seed-5", *(f"proxies/{pair}" for pair in pairs), *runs]
    files = {"run.json", "sft", "samples", "proxies", "ppo", "overopt.png", "overopt.md", "overopt.json"}
    assert {path.name for path in out.iterdir()} == files
    results = json.loads((out / "overopt.json").read_text(encoding="utf-8"))
    assert set(results) == {"judge", "seeds", "sft", "proxies", "curves", "diverged", "suggested"}
    assert [[point.get("step", point.get("n")) for point in c["points"]] for c in results["curves"]] == [
        *([0, 2, 4], [1, 2, 4]) * 2
    ]
    assert results["curves"][0]["points"][0]["kl"] == pytest.approx(0, abs=1e-6)
    checkpoints = [str(path.relative_to(out)) for path in out.glob("ppo/*/*") if path.is_dir()]
    best = results["suggested"]
    if best["step"] == 0:
        assert (best["policy"], checkpoints) == ("sft/model", [])
    else:
        assert [best["policy"]] == checkpoints == [f"{runs[2]}/checkpoint-{best['step']}"]
    assert AutoModelForCausalLM.from_pretrained(out / best["policy"])


def test_the_rankings_can_be_looked_at_and_are_the_judge_s(done):
    folder, _ = done
    files = [folder / "out" / "proxies" / f"rankings-{size}_seed-3" / "rankings.jsonl" for size in (2, 5)]
    small, large = ([json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] for file in files)
    assert (len(small), len(large)) == (2, 5) and large[:2] == small
    for row in large:
        scores = distinct(row["responses"])
        assert row["scores"] == scores
        assert row["ranks"] == [1 + len({y for y in scores if y > x}) for x in scores]
    assert (
        AutoModelForSequenceClassification.from_pretrained(
            folder / "out" / "proxies" / "rankings-2_seed-3" / "proxy"
        ).config.num_labels
        == 1
    )


def test_only_a_cell_that_is_missing_is_run_again(done, ran, monkeypatch):
    folder, _ = done
    monkeypatch.chdir(folder)
    before = (folder / "out" / "overopt.json").read_text(encoding="utf-8")
    assert main(["overopt", "--config", "experiment.yaml", "--resume"]) == 0
    assert ran == []
    (folder / "out" / "overopt.json").unlink()
    missing = "proxies/rankings-2_seed-5"
    shutil.rmtree(folder / "out" / missing)
    assert main(["overopt", "--config", "experiment.yaml", "--resume"]) == 0
    assert ran == [missing]
    assert (folder / "out" / "overopt.json").read_text(encoding="utf-8") == before


def test_variants_of_the_proxies_learn_from_the_same_rankings(done, ran, tmp_path, monkeypatch):
    """Their options reach the reward stage; a variant's missing job is the only one that is run again."""
    monkeypatch.chdir(tmp_path)
    variants = {"noisy": {"label_noise": 0.2, "max_steps": 1}, "plain": {}}
    sft = {"sft": None, "model_name_or_path": str(done[0] / "out" / "sft" / "model")}
    config = write(tmp_path, num_rankings=[2], proxies=variants, **sft)
    assert main(["overopt", "--config", config]) == 0
    out = tmp_path / "out"
    folders = [f"{name}_rankings-2_seed-{seed}" for name in variants for seed in (3, 5)]
    policies = [f"ppo/{folder.replace('_seed', '_kl-0.1_seed')}" for folder in folders]
    assert ran == ["samples/seed-3", "samples/seed-5", *(f"proxies/{folder}" for folder in folders), *policies]
    proxies = [out / "proxies" / folder for folder in folders]
    options = [json.loads((proxy / "proxy" / "stage.json").read_text())["options"] for proxy in proxies]
    assert [(x.get("label_noise", 0), x["max_steps"]) for x in options] == [(0.2, 1), (0.2, 1), (0, 2), (0, 2)]
    rankings = [(proxy / "rankings.jsonl").read_text(encoding="utf-8") for proxy in proxies]
    assert rankings[0] == rankings[2] != rankings[1] == rankings[3]
    results = json.loads((out / "overopt.json").read_text(encoding="utf-8"))
    assert [c["variant"] for c in results["curves"]] == ["noisy", "noisy", "plain", "plain"]
    assert AutoModelForCausalLM.from_pretrained(
        path if Path(path := results["suggested"]["policy"]).is_absolute() else out / path
    )
    (out / "overopt.json").unlink()
    shutil.rmtree(out / policies[3])
    ran.clear()
    assert main(["overopt", "--config", config, "--resume"]) == 0
    assert ran == [policies[3]]
    assert json.loads((out / "overopt.json").read_text(encoding="utf-8")) == results


def test_results_of_another_form_are_refused(done, capsys, monkeypatch):
    folder, _ = done
    monkeypatch.chdir(folder)
    path = folder / "out" / "overopt.json"
    before = path.read_text(encoding="utf-8")
    for damaged in ("{}", before.replace('"curves"', '"curve"')):
        path.write_text(damaged, encoding="utf-8")
        assert main(["overopt", "--config", "experiment.yaml", "--resume"]) == 2
        assert "overopt.json is not what this version writes" in capsys.readouterr().err
    path.write_text(before, encoding="utf-8")


def test_another_run_in_the_folder_is_refused(done, capsys, monkeypatch):
    folder, _ = done
    monkeypatch.chdir(folder)
    assert main(["overopt", "--config", "experiment.yaml"]) == 2
    assert "holds another run" in capsys.readouterr().err
    for changes, key in (({"seeds": [3, 4]}, "seeds"), ({"ppo": {**CONFIG["ppo"], "max_steps": 8}}, "ppo.max_steps")):
        other = folder / "other.yaml"
        other.write_text(yaml.safe_dump({**CONFIG, **changes}), encoding="utf-8")
        assert main(["overopt", "--config", str(other), "--resume"]) == 2
        assert f"`{key}` differs" in capsys.readouterr().err


def test_the_policy_never_sees_the_judge(done, tmp_path):
    """With another judge, all else is the same, number by number."""
    folder, _ = done
    result = train_policy(
        tmp_path,
        sft=str(folder / "out/sft/model"),
        options=options(folder, judge=f"{__name__}.constant"),
        proxy=str(folder / "out/proxies/rankings-2_seed-3/proxy"),
        kl_coef=0.1,
        seed=3,
        keep_checkpoints=False,
    )
    judged = json.loads((folder / "out/ppo/rankings-2_kl-0.1_seed-3/result.json").read_text())["points"]
    assert [point.pop("judge") for point in result["points"]] == [1.0] * 3 != [point.pop("judge") for point in judged]
    assert result["points"] == judged
    assert list(tmp_path.iterdir()) == []  # no model that nobody asked for


def test_a_judge_that_tells_no_samples_apart_is_refused(done, tmp_path):
    folder, _ = done
    given = {"sft": str(folder / "out/sft/model"), "seed": 0}
    judge = {"judge": f"{__name__}.constant", "responses_per_ranking": 2, "best_of_n": 2}
    with pytest.raises(
        InputError, match="only 0 of 9 prompts got two responses that are not empty and that the judge"
    ):
        sample_and_judge(tmp_path, options=options(folder, num_rankings=[1], **judge), **given)
    no_rankings = options(folder, **judge).model_copy(update={"num_rankings": [0]})
    with pytest.raises(InputError, match="all samples of each held-out prompt the same score"):
        sample_and_judge(tmp_path, options=no_rankings, **given)


def test_a_prompt_that_gives_no_ranking_is_replaced(done, tmp_path, monkeypatch):
    """Of nine prompts in random order three tie: five rankings are found, and seven are not."""
    folder, _ = done
    drawn = []

    def sample(policy, tokenizer, rows, judge, **_):
        drawn.extend(row["prompt"] for row in rows)
        scores = [[1.0, 1.0] if len(drawn) - len(rows) + i in (0, 3, 4) else [0.0, 1.0] for i in range(len(rows))]
        return [
            {"prompt": row["prompt"], "responses": ["a", "b"], "scores": x, "ids": [[1], [1]]}
            for row, x in zip(rows, scores, strict=True)
        ]

    monkeypatch.setattr(overopt_jobs, "_sample", sample)
    given = {"sft": str(folder / "out/sft/model"), "seed": 0}
    sample_and_judge(tmp_path, options=options(folder, num_rankings=[5]), **given)
    ranked = [json.loads(line)["prompt"] for line in (tmp_path / "rankings.jsonl").read_text().splitlines()]
    assert ranked == [drawn[i] for i in (1, 2, 5, 6, 7)]
    drawn.clear()
    with pytest.raises(InputError, match="only 6 of 9 prompts got two responses"):
        sample_and_judge(tmp_path, options=options(folder, num_rankings=[7]), **given)


def test_a_policy_that_diverges_is_a_result(done, tmp_path):
    folder, _ = done
    found = train_policy(
        tmp_path,
        sft=str(folder / "out/sft/model"),
        options=options(folder, ppo={**CONFIG["ppo"], "learning_rate": 1e30}),
        proxy=str(folder / "out/proxies/rankings-2_seed-3/proxy"),
        kl_coef=0.1,
        seed=3,
        keep_checkpoints=True,
    )
    assert found["points"] == [] and found["diverged"] and list(tmp_path.iterdir()) == []


def test_a_cell_that_fails_is_named_with_its_log(tmp_path):
    with pytest.raises(RuntimeError, match=r"cells, bad failed; .*/bad/log\.txt"):
        jobs.run_cells(boom, {"bad": {}}, tmp_path / "cells")


def boom(folder):
    raise ValueError("boom")


def test_an_empty_response_is_not_ranked_and_equal_scores_tie():
    sample = {"prompt": "p", "responses": ["a", " ", "b", "c"], "scores": [0.5, 9.0, 1.0, 0.5], "ids": [[1]] * 4}
    assert _ranking(sample) == {
        "prompt": "p",
        "responses": ["a", "b", "c"],
        "ranks": [2, 1, 2],
        "scores": [0.5, 1.0, 0.5],
    }


def nested(stage, **options):
    return {stage: {**CONFIG[stage], **options}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": [1, 2]}, "unknown key `seed`; did you mean `seeds`?"),
        ({"seeds": 1}, "`seeds`: input should be a valid list, not 1"),
        ({"seeds": [1, 2.5]}, "`seeds.1`: input should be a valid integer, not 2.5"),
        ({"kl_coefs": ["high"]}, "`kl_coefs.0`: input should be a valid number, not 'high'"),
        ({"seeds": [1]}, "`seeds`: needs 2 or more different values, not [1]"),
        ({"seeds": [1, 1, 2]}, "`seeds`: needs 2 or more different values, not [1, 1, 2]"),
        ({"seeds": [-1, 2]}, "`seeds.0`: input should be greater than or equal to 0, not -1"),
        ({"seeds": [1, 2**32]}, "`seeds.1`: input should be less than 4294967296"),
        (nested("ppo", ptx_coef=1.0), "PPO-ptx needs both"),
        ({"num_rankings": []}, "`num_rankings`: needs 1 or more"),
        ({"num_rankings": [0]}, "`num_rankings.0`: input should be greater than 0, not 0"),
        ({"num_rankings": [10]}, "`num_rankings`: 10 prompts are to be ranked; the data of `reward` has 9"),
        ({"kl_coefs": [0.1, float("nan")]}, "`kl_coefs.1`: input should be a finite number, not nan"),
        ({"kl_coefs": [float("inf")]}, "`kl_coefs.0`: input should be a finite number, not inf"),
        (
            {"judge": f"{__name__}.first"},
            "row 1, responses cannot be scored: the judge first returned",
        ),
        (nested("ppo", kl_target=3.0), "`ppo.kl_target` is set by the run itself"),
        (nested("ppo", dataset_test_split="train"), "(train), row 1: the prompt is also among those of `reward`"),
        (
            {"num_rankings": [2], **nested("reward", dataset_train_split="test")},
            "(test), row 1: the prompt is also among those of `reward`",
        ),
        ({"kl_coefs": [-0.1]}, "`kl_coefs.0`: input should be greater than or equal to 0, not -0.1"),
        ({"best_of_n": 1}, "`best_of_n`: input should be greater than or equal to 2, not 1"),
        ({"judge": None}, "`judge` is missing"),
        ({"ppo": None}, "`ppo` is missing"),
        ({"judge": "no_such.judge"}, "no_such.judge cannot be imported"),
        ({"judge": f"{__name__}.silent"}, "every response needs a score"),
        (
            {"judge": "builtins.len"},
            "row 1, responses cannot be scored: the judge len raised TypeError",
        ),
        ({"model_name_or_path": "./none"}, "either `model_name_or_path`, an SFT model, or the mapping `sft`"),
        ({"model_name_or_path": "./none", "sft": None}, "there is no model at ./none"),
        ({"sft": None}, "either `model_name_or_path`, an SFT model, or the mapping `sft`"),
        (nested("ppo", kl_coef=1), "`ppo.kl_coef` is set by the run itself"),
        (
            nested("ppo", learning_rat=1),
            "experiment.yaml, ppo: unknown key `learning_rat`. Did you mean `learning_rate`",
        ),
        (nested("ppo", dataset_test_split="none"), "has no split `none`"),
        (nested("ppo", max_completion_length=45), "column 'prompt'"),
        (nested("reward", dataset_name="none.jsonl"), "the file none.jsonl does not exist"),
        (
            {
                "judge": "hf_instructgpt.data.gold_rewards",
                "num_rankings": [1],
                **nested("reward", dataset_name="document"),
            },
            "document, row 1, responses cannot be scored: the judge gold_rewards raised InputError",
        ),
        (nested("sft", use_peft=True), "sft: `use_peft`"),
        (
            {"proxies": {"plain": {}, "noisy": {"label_nois": 0.1}}},
            "experiment.yaml, proxies, noisy: unknown key `label_nois`. Did you mean `label_noise`",
        ),
        ({"proxies": {"noisy": {"source": 1}}}, "experiment.yaml, proxies, noisy: unknown key `source`"),
        ({"proxies": {"noisy": {"label_noise": 0.7}}}, "experiment.yaml, proxies, noisy: `label_noise`"),
        ({"proxies": {"lora": {"use_peft": True}}}, "experiment.yaml, proxies, lora: `use_peft`"),
        ({"proxies": {"a": {"seed": 1}}}, "`proxies.a.seed` is the same for all proxies; leave it out"),
        ({"proxies": {"a": {"dataset_name": "x"}}}, "`proxies.a.dataset_name` is the same for all proxies"),
        ({"proxies": {"a/b": {}}}, "string should match pattern"),
        ({"proxies": {"a": None}}, "`proxies.a`: input should be a valid dictionary, not None"),
        ({"proxies": {}}, "`proxies`: dictionary should have at least 1 item"),
    ],
)
def test_what_does_not_fit_is_found_before_anything_is_trained(changes, message, tmp_path, ran, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["overopt", "--config", write(tmp_path, **changes)]) == 2
    assert message in capsys.readouterr().err
    assert ran == [] and not (tmp_path / "out").exists()
