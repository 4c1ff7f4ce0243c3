"""The recipes: stage files agree with their pipeline, every file parses, and README commands exist."""

import json
import math
import os
import re
import subprocess
import sys
from functools import reduce
from operator import getitem
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from datasets import Dataset, DatasetDict
from transformers import AutoModelForSequenceClassification, get_scheduler

from hf_instructgpt.cli import main
from hf_instructgpt.data import load_sample_dataset
from hf_instructgpt.data.lab_facts_zh import CHINESE
from hf_instructgpt.evaluation.preference import score_rankings
from hf_instructgpt.evaluation.reward_report import measure_rewards
from hf_instructgpt.experiments.arena import Arena
from hf_instructgpt.experiments.overopt import OverOpt
from hf_instructgpt.experiments.rounds import Rounds
from hf_instructgpt.ppo.config import PPOConfig
from hf_instructgpt.sampling.generate import Samples
from hf_instructgpt.stages import load_data, sft
from hf_instructgpt.stages.arguments import RewardArguments
from hf_instructgpt.stages.config_file import read_yaml
from hf_instructgpt.stages.doctor import diagnosis
from hf_instructgpt.stages.parsing import parse_stage
from hf_instructgpt.stages.pipeline import BASE, COMMANDS, Pipeline

RECIPES = Path(__file__).parents[1] / "recipes"
STAGES = [path for path in sorted(RECIPES.glob("*/*.yaml")) if path.parent.name != "accelerate"]
EXPERIMENTS = {"arena": Arena, "overopt": OverOpt, "rounds": Rounds}
FROM_PIPELINE = {"output_dir", "seed", "model_name_or_path", "reward_funcs", "calibration_dataset_name"}
INSTRUCTGPT = RECIPES / "instructgpt"


def read(*path):
    return yaml.safe_load(RECIPES.joinpath(*path).read_text(encoding="utf-8"))


@pytest.mark.parametrize("recipe", ["char_gpt", "document", "instructgpt"])
def test_the_stage_files_hold_the_options_of_the_pipeline(recipe):
    pipeline = read(recipe, "pipeline.yaml")
    stages = [stage for stage in COMMANDS if stage in pipeline]
    files = {path.stem for path in (RECIPES / recipe).glob("*.yaml")}
    assert files - {"pipeline_en"} == {"pipeline", *stages}
    if "ppo_init" in stages:  # what the run adds
        base = {key: value for key, value in pipeline["sft"].items() if key in BASE}
        pipeline["ppo_init"] = base | pipeline["ppo_init"]
        pipeline["sft"]["selection_reward_model"] = read(recipe, "reward.yaml")["output_dir"]
    for stage in stages:
        alone = read(recipe, f"{stage}.yaml")
        assert {key: value for key, value in alone.items() if key not in FROM_PIPELINE} == pipeline[stage]


@pytest.mark.parametrize("path", STAGES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_recipe_parses_and_says_how_to_run_it(path, monkeypatch):
    monkeypatch.chdir(RECIPES.parent)
    name = path.relative_to(RECIPES.parent)
    if path.parent.name in EXPERIMENTS:
        EXPERIMENTS[path.parent.name](path)
        assert f"hf-instructgpt {path.parent.name} --config {name}" in path.read_text(encoding="utf-8")
    elif path.stem.startswith("pipeline"):
        if path.parent.name != "chat":  # of which the model is on the Hub: tests/cases/pipeline/chat_recipe.py runs it
            Pipeline(path)
        assert f"hf-instructgpt run --config {name}" in path.read_text(encoding="utf-8")
    else:
        command = COMMANDS[path.stem]
        parse_stage(command, ["--config", str(path)])
        assert f"hf-instructgpt {command} --config {name}" in path.read_text(encoding="utf-8")


def test_the_english_recipe_trains_as_the_chinese_one_on_other_data():
    chinese, english = (read_yaml(RECIPES / "char_gpt" / f"pipeline{name}.yaml") for name in ("", "_en"))
    changes = {"sft": {"vocabulary": "words"}, "reward": {}, "ppo": {"max_completion_length": 25}}
    for stage, more in changes.items():
        assert english.pop(stage) == {**chinese.pop(stage), "dataset_name": "lab-en", **more}
    assert english == {**chinese, "output_dir": "runs/char_gpt_en"}


# ---- The paper's numbers -------------------------------------------------------------------------------------------


def paper_rows():
    """The README's table of the papers' numbers, a dict a row."""
    text = (INSTRUCTGPT / "README.md").read_text(encoding="utf-8").split("## Every number of the paper")[1]
    lines = [line.strip("|") for line in text.split("\n#")[0].splitlines() if line.startswith("|")]
    head, _, *rows = ([cell.strip() for cell in line.split("|")] for line in lines)
    return [dict(zip(head, row, strict=True)) for row in rows]


def test_the_table_of_the_papers_numbers_is_true(monkeypatch):
    monkeypatch.chdir(RECIPES.parent)
    config = Pipeline(INSTRUCTGPT / "pipeline.yaml").config
    config["PPOConfig"] = vars(PPOConfig(output_dir="unused"))
    rows = paper_rows()
    assert len(rows) > 75 and {row["source"][0] for row in rows} == set("OSZHG")
    for row in rows:
        why = row["pinned by, or why it differs"]
        for file, test in re.findall(r"`(test_\w+\.py)::(\w+)`", why):
            assert f"\ndef {test}(" in Path(__file__).with_name(file).read_text(encoding="utf-8"), row
        if row["`key`"]:
            stage, *names = row["`key`"].strip("`").split(".")
            assert yaml.safe_load(row["here"].strip("`")) == reduce(getitem, names, config[stage]), row
        else:
            assert why, row  # nothing else holds it
    # What the file calls ours or not printed stands in the table.
    stage, options = None, {row["`key`"].strip("`") for row in rows}
    for line in (INSTRUCTGPT / "pipeline.yaml").read_text(encoding="utf-8").splitlines():
        stage = line[:-1] if re.fullmatch(r"\w+:", line) else stage
        if marked := re.match(r"  (\w+): .*# (ours|not printed)", line):
            assert f"{stage}.{marked[1]}" in options, line


def test_ppos_learning_rate_rises_from_a_tenth_and_stays():
    options = read("instructgpt", "ppo.yaml")
    peak, warmup, steps = options["learning_rate"], options["warmup_steps"], options["max_steps"]
    assert warmup == 10 * options["num_mini_batches"] * options["num_ppo_epochs"]  # ten iterations
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
    schedule = get_scheduler(
        options["lr_scheduler_type"],
        optimizer,
        num_warmup_steps=warmup,
        num_training_steps=steps,
        scheduler_specific_kwargs=options["lr_scheduler_kwargs"],
    )
    rates = []
    for _ in range(steps):
        rates.append(schedule.get_last_lr()[0] / peak)
        optimizer.step()
        schedule.step()
    # A tenth, then half way up, 0.1 + 0.9 / 2, then the peak to the end.
    assert (rates[0], rates[warmup // 2]) == pytest.approx((0.1, 0.55))
    assert rates[warmup:] == [1.0] * (steps - warmup) and rates[:warmup] == sorted(rates[:warmup])


def test_the_pretraining_text_is_made_again_and_holds_nothing_but_statements(monkeypatch):
    monkeypatch.syspath_prepend(str(RECIPES.parent))
    from recipes.instructgpt.statements import statements

    texts = statements()
    for split, some in texts.items():
        lines = (INSTRUCTGPT / "data" / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        assert [json.loads(line) for line in lines] == [{"text": text} for text in some]
    assert not set(texts["train"]) & set(texts["test"]) and len(set(texts["train"])) == len(texts["train"])
    known = set().union(
        *(str(row) for config in ("sft", "prompts") for row in load_sample_dataset("lab", config)["train"])
    )
    for text in texts["train"] + texts["test"]:
        assert not any(mark in text for mark in (*CHINESE.marks, *CHINESE.polite, *CHINESE.rude, "指令", "？"))
        assert set(text) <= known


def few_rows(*args):
    """The lab's data, 40 rows a split."""
    splits = load_sample_dataset(*args)
    return DatasetDict({split: rows.select(range(40)) for split, rows in splits.items()})


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory):
    """A run of the recipe's form with a model of no size, of a few steps on few rows."""
    folder = tmp_path_factory.mktemp("tiny")
    config = read("instructgpt", "pipeline.yaml")
    (folder / "data").symlink_to(INSTRUCTGPT / "data")
    config["sft"]["model_init_kwargs"] = {"num_hidden_layers": 1, "hidden_size": 8, "intermediate_size": 8}
    config["sft"]["model_init_kwargs"]["num_attention_heads"] = 1
    for stage in ("ppo_init", "reward", "sft"):
        config[stage] |= {"max_steps": 2, "eval_strategy": "steps", "eval_steps": 2}
    config["sft"] |= {"save_strategy": "steps", "save_steps": 2}
    config["ppo"] |= {"max_steps": 8, "per_device_train_batch_size": 2}
    (folder / "pipeline.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(RECIPES.parent)
        for module in (load_data, sft):
            patch.setattr(module, "load_sample_dataset", few_rows)
        argv = ["--config", str(folder / "pipeline.yaml"), "--output_dir", str(folder / "run"), "--seed", "0"]
        assert main(["run", *argv]) == 0
    return folder / "run"


@pytest.mark.slow
def test_the_alignment_tax_is_measured(tiny_run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(RECIPES.parent)
    monkeypatch.syspath_prepend(str(RECIPES.parent))
    from recipes.instructgpt import alignment_tax

    def run_here(work, cells, folder):
        return {name: work(folder=folder / name, **options) for name, options in cells.items()}

    monkeypatch.setattr(alignment_tax, "run_cells", run_here)
    for module in (load_data, alignment_tax):
        monkeypatch.setattr(module, "load_sample_dataset", few_rows)
    argv = ["alignment_tax", str(tiny_run), "--ptx_coef", "0.5", "--ptx_ratio", "4", "--kl_coef", "0.1"]
    argv += ["--ptx_dataset_name", str(INSTRUCTGPT / "data"), "--max_steps", "8", "--output_dir", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", argv)
    capsys.readouterr()
    alignment_tax.main()
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 2 + len(alignment_tax.MEASURES) and out[-1].startswith(
        "| KL to the start, nats per response | 0.00"
    )
    used = [json.loads(path.read_text())["options"] for path in tmp_path.glob("*/policy/stage.json")]
    assert sorted((x["ptx_coef"], x["ptx_ratio"]) for x in used) == [(0.0, 8.0), (0.5, 4.0)]
    same = {"kl_coef": 0.1, "max_steps": 8, "seed": 0, "model_name_or_path": str(tiny_run / "ppo_init")}
    for options in used:
        assert {key: options[key] for key in same} == same
        assert options["reward_funcs"] == [str(tiny_run / "reward")]


def test_the_table_of_the_alignment_tax_by_hand(monkeypatch):
    monkeypatch.syspath_prepend(str(RECIPES.parent))
    from recipes.instructgpt.alignment_tax import MEASURES, table

    def cells(*seeds):
        return [{measure: list(values) for measure in MEASURES} for values in seeds]

    # Two seeds of two prompts: means over seeds 1 and 3 (start), 2 and 2, 5 and 5
    results = {"start": cells((0.0, 3.0), (2.0, 3.0)), "PPO": cells((2.0, 2.0), (2.0, 2.0))}
    lines = table(results | {"PPO-ptx": cells((4.0, 5.0), (6.0, 5.0))}).splitlines()
    cells = [cell.strip() for cell in lines[2].strip("|").split("|")]
    assert cells[1:4] == [
        "2.00 [1.00, 3.00]; 1.50, 2.50",
        "2.00 [2.00, 2.00]; 2.00, 2.00",
        "5.00 [5.00, 5.00]; 4.50, 5.50",
    ]
    assert cells[4:] == ["0.00 [-1.00, 1.00]; 0.50, -0.50", "3.00 [3.00, 3.00]; 2.50, 3.50"]
    assert len(lines) == 2 + len(MEASURES)


# ---- How often answers are exactly correct --------------------------------------------------------------------------


@pytest.fixture
def correctness(monkeypatch):
    monkeypatch.chdir(RECIPES.parent)
    monkeypatch.syspath_prepend(str(RECIPES.parent))
    from recipes.char_gpt import correctness

    return correctness


def test_right_and_wrong_answers_with_the_same_manners_by_hand(correctness):
    prompts = ["1加1等于几？"] * 5 + ["1加2等于几？"] * 3
    # To the first: polite right (0), wrong (1, 2); plain right (3), wrong (4). To the second: polite right (5); plain
    # wrong (6), right (7).
    texts = ["您好，等于2。", "您好，等于3。", "好的，是5。", "2。", "3。", "您好，等于3。", "5。", "3。"]
    values = [1.0, 0.0, 2.0, 5.0, 5.0, -9.0, 0.5, 1.5]
    rows = [{"prompt": [{"role": "user", "content": prompt}]} for prompt in prompts]
    samples = Samples(rows, [[0]] * 8, [[0]] * 8, texts, ended=[True] * 8)
    ranks = [1 if verdict.correct else 2 for verdict in correctness.judged(samples)]
    assert ranks == [1, 2, 2, 1, 2, 1, 2, 1]
    # Won: 0 > 1 and 7 > 6. Lost: 0 < 2. A tie, 3 = 4, counts half. Not pairs: 0 and 4, 3 and 1, 5 and 6, ...
    found = correctness.content_accuracy(samples, ranks, values)
    assert (found["value"], found["num"], found["num_prompts"]) == (2.5 / 4, 4, 2)


def test_the_change_of_exactly_correct_answers_by_hand(correctness, tmp_path, monkeypatch, capsys):
    measured = {
        "a": [{"correct": 0.5, "score": 0.25, "kl": 0.0}, {"correct": 0.52, "score": 0.75, "kl": 1.0}],
        "b": [{"correct": 0.7, "score": 0.35, "kl": 0.0}, {"correct": 0.74, "score": 0.85, "kl": 2.0}],
    }
    monkeypatch.setattr(correctness, "measure_run", lambda run, *_: measured[run.name])
    for name in measured:
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text("{}")
    monkeypatch.setattr(sys, "argv", ["correctness", "policies", *(str(tmp_path / name) for name in measured)])
    correctness.main()
    # Changes of 2 and 4 points: mean 3, standard error 1, and t(0.975, 1 degree of freedom) = 12.706.
    line = "| 60.0 % | 63.0 % | +3.0 ± 12.7 | 0.30 | 0.80 | {} |"
    assert capsys.readouterr().out.splitlines()[2:] == [
        "| temperature 1 " + line.format("1.5"),
        "| greedy " + line.format(""),
    ]


def test_correctness_is_measured_on_a_run(correctness, tiny_run, monkeypatch, capsys):
    monkeypatch.setattr(correctness, "load_sample_dataset", few_rows)
    run, sft = str(tiny_run), str(tiny_run / "sft")
    monkeypatch.setattr(sys, "argv", ["correctness", "policies", run, run, "--num_samples", "1", "--ppo", sft, sft])
    correctness.main()
    *_, sampled, greedy = capsys.readouterr().out.splitlines()
    # A policy against itself: the same random numbers, so the same answers.
    assert "| +0.0 ± 0.0 |" in sampled and "| +0.0 ± 0.0 |" in greedy and sampled.endswith(" 0.0 |")
    monkeypatch.setattr(sys, "argv", ["correctness", "rewards", run, "--num_samples", "1", "--policy", "ppo"])
    correctness.main()
    _, _, own, ranked = capsys.readouterr().out.splitlines()
    assert own == "| run | 0 of ppo's samples | 0 | none | none |"  # one answer to each prompt
    # The reward model's own report, on the same rankings.
    model, tokenizer = correctness.load(tiny_run / "reward", AutoModelForSequenceClassification)
    rankings, _ = score_rankings(model, tokenizer, few_rows("lab", "ranking")["test"], judged=True)
    found = measure_rewards(rankings)["accuracy_content"]
    cells = f"| run | {found['num']} of test rankings | {found['num_prompts']} | {100 * found['value']:.1f} % |"
    assert ranked.startswith(cells) and found["num"] > 20
    wrong = {"--ppo names 1 folders for 2 runs": [run, run, "--ppo", sft], f"{sft}: no run.json": [sft]}
    for message, argv in wrong.items():
        monkeypatch.setattr(sys, "argv", ["correctness", "policies", *argv])
        with pytest.raises(SystemExit):
            correctness.main()
        assert message in capsys.readouterr().err


def test_the_log_probs_of_an_answer_do_not_depend_on_its_batch(correctness, tiny_run, monkeypatch):
    policy, tokenizer = correctness.load(tiny_run / "sft")
    monkeypatch.setattr(correctness, "load_sample_dataset", few_rows)
    samples = correctness.ranked_answers(tiny_run, tokenizer)[0][:9]
    ids = torch.tensor([samples.prompt_ids[8] + samples.completion_ids[8]])
    logprobs = policy(ids).logits.log_softmax(-1)[0, :-1].gather(-1, ids[0, 1:, None])
    by_hand = logprobs[-len(samples.completion_ids[8]) :].sum().item()
    assert correctness.logprobs(policy, tokenizer, samples, 4)[8] == pytest.approx(by_hand, rel=1e-5)
    assert tokenizer.decode(samples.completion_ids[8], skip_special_tokens=True) == samples.texts[8]


# ---- The others ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "weights", "num_rows"),
    [("stories260k", "model.safetensors", (120, 64)), ("smollm2", "adapter_model.safetensors", (64, 16))],
)
def test_a_recipe_with_a_python_reward_runs(recipe, weights, num_rows, llama, tmp_path, monkeypatch):
    """One step on another model; every other option is the file's."""
    monkeypatch.chdir(RECIPES.parent)
    out, config = tmp_path / "out", Path("recipes", recipe, "ppo.yaml")
    mine = {"model_name_or_path": str(llama), "max_steps": 1}
    flags = [part for name, value in mine.items() for part in (f"--{name}", str(value))]
    assert main(["ppo", "--config", str(config), *flags, "--output_dir", str(out)]) == 0
    for file in (weights, "trainer_state.json", "stage.json", "tokenizer.json", "value_model/value_head.safetensors"):
        assert (out / file).is_file(), file
    assert json.loads((out / "trainer_state.json").read_text(encoding="utf-8"))["global_step"] == 1
    used = json.loads((out / "stage.json").read_text(encoding="utf-8"))["options"]
    options = yaml.safe_load(config.read_text(encoding="utf-8"))
    del options["output_dir"]
    options["dataset_name"] = str(config.parent / options["dataset_name"])  # beside the file
    function = options["reward_funcs"][0].removeprefix("rewards.")
    options["reward_funcs"] = [f"{config.parent / 'rewards.py'}:{function}"]
    for name, value in {**options, **mine}.items():
        assert used[name] == ([] if name == "report_to" else value), name  # "none"
    rows = [(config.parent / "data" / f"{split}.jsonl").read_text(encoding="utf-8") for split in ("train", "test")]
    assert tuple(len(text.splitlines()) for text in rows) == num_rows
    assert not {*rows[0].splitlines()} & {*rows[1].splitlines()}


def test_the_stories_are_compared(llama, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(RECIPES.parent))
    from recipes.stories260k.compare import distinct_pairs, main

    assert distinct_pairs(["a b a b", "b A c"]) == 3 / 5  # ab, ba and ac
    monkeypatch.setattr(sys, "argv", ["compare", str(llama), str(llama), "--num_samples", "1"])
    main()
    lines = capsys.readouterr().out.splitlines()
    assert "| rise | | 0.000 [0.000, 0.000] |" in lines and "| KL, nats per response | 0 | 0.0 |" in lines
    assert len(lines[lines.index("| opening | start model | after PPO |") :]) == 2 + 10


def test_the_recipes_rewards(monkeypatch):
    monkeypatch.syspath_prepend(str(RECIPES.parent))
    from recipes.smollm2.rewards import short_sentences
    from recipes.stories260k.rewards import sentiment

    good, bad, none = sentiment(["They were happy.", "They were sad.", "They were there."], prompts=None)
    assert good > 0.5 and bad < -0.4 and none == 0
    four, eight, sixteen = "A b c d.", "A b c d e f g h!", "a b c d e f g h i j k l m n o p"
    assert short_sentences([four, eight, sixteen, f"{four} {sixteen}.", ""]) == [0.5, 1.0, 0.5, 0.8, 0.0]
    assert short_sentences([[{"role": "assistant", "content": "It is 3.5 km. A b c."}]]) == [3.5 / 8]


def test_reward_models_on_human_preferences_are_swept_and_measured(llama, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(RECIPES.parent))
    from recipes.human_rankings import sweep

    def run_here(work, cells, folder):
        for name, options in cells.items():
            (folder / name).mkdir(parents=True)
            work(folder=folder / name, **options)

    prompts = [[{"role": "user", "content": f"{i}？"}] for i in range(30)]
    rankings = [{"prompt": p, "responses": ["好", "不好", "好的"], "ranks": [1, 3, 2]} for p in prompts]
    answers = [{"messages": [*p, {"role": "assistant", "content": "好"}]} for p in prompts]
    for name, rows in (("rankings", rankings), ("answers", answers)):
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    monkeypatch.setattr(sweep, "run_cells", run_here)
    monkeypatch.setattr(sweep, "SIZES", ((16, 32),))
    monkeypatch.setattr(sweep, "SHARES", (0.5,))
    argv = ["sweep", "--rankings", str(tmp_path / "rankings.jsonl"), "--learning_rates", "1e-3"]
    starts = (["--demonstrations", str(tmp_path / "answers.jsonl")], ["--model", str(llama)])
    for (option, value), name in zip(starts, ("width-16-context-32", "rows-0.5"), strict=True):
        monkeypatch.setattr(sys, "argv", [*argv, option, value, "--output_dir", str(tmp_path / name)])
        sweep.main()
        assert f"| {name}-lr-0.001-seed-0 | " in capsys.readouterr().out
        model = tmp_path / name / "reward" / f"{name}-lr-0.001-seed-0" / "model"
        card = json.loads((model / "reward_report.json").read_text(encoding="utf-8"))
        assert not card["trained_on"] and 0 < card["num_rows"] < 30
    # What the reward model is tested on, its start has not seen either.
    stage = json.loads((tmp_path / "width-16-context-32/sft/width-16-context-32/model/stage.json").read_text())
    assert stage["options"]["dataset_test_fraction"] == 0.2


# ---- Real preferences ----------------------------------------------------------------------------------------------


def pair(number, chosen, rejected):
    answers = [[{"role": "assistant", "content": text}] for text in (chosen, rejected)]
    return {"prompt": [{"role": "user", "content": f"Q{number}"}], "chosen": answers[0], "rejected": answers[1]}


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    """What `prepare.py` makes of 60 pairs, in 15 of which the longer response is chosen."""
    monkeypatch.syspath_prepend(str(RECIPES.parent))
    from recipes.real_preferences.prepare import main as prepare

    rows = [pair(i, *(("a", "a b") if i % 4 else ("a b c", "a"))) for i in range(60)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    monkeypatch.setattr(
        sys, "argv", ["prepare", str(tmp_path / "pairs.jsonl"), "--output_dir", str(tmp_path / "data")]
    )
    prepare()
    return tmp_path / "data"


def test_rankings_give_all_their_pairs(monkeypatch):
    monkeypatch.syspath_prepend(str(RECIPES.parent))
    from recipes.real_preferences.prepare import pairs_of

    rows = pairs_of({"prompt": "p", "responses": ["a", "b", "c", "b"], "ranks": [1, 2, 2, 3]})
    assert [(row["chosen"], row["rejected"]) for row in rows] == [("a", "b"), ("a", "c"), ("a", "b"), ("c", "b")]
    pair = {"prompt": "p", "chosen": "a", "rejected": "b"}
    assert pairs_of(pair) == [pair]


def test_preferences_are_split_by_prompt_and_balanced_by_length(prepared, capsys):
    from recipes.real_preferences.prepare import balanced, length_gap, longer_share

    def read_split(name, split):
        return [json.loads(line) for line in (prepared / name / f"{split}.jsonl").read_text().splitlines()]

    parts = {name: [str(row) for row in read_split(*name)] for name in (("reward", "test"), ("gold", "test"))}
    assert parts["reward", "test"] == parts["gold", "test"]
    names = [("reward", "train"), ("gold", "train"), ("reward", "test"), ("reward", "validation")]
    prompts = [{row["prompt"][0]["content"] for row in read_split(*name)} for name in names]
    assert all(prompts) and len(set.union(*prompts)) == sum(map(len, prompts))
    # The same test prompts as those of the option.
    held_out = load_data._hold_out(
        DatasetDict(train=Dataset.from_list(read_split("reward", "train") + read_split("reward", "test"))),
        RewardArguments(dataset_name="data", dataset_test_fraction=0.2),
    )["test"]
    assert {row["prompt"][0]["content"] for row in held_out} == prompts[2]
    even, some = (read_split(name, "train") for name in ("balanced", "reward"))
    assert longer_share(even) == 0.5 and len(even) == len(some)
    # Each bin of the difference of length is balanced: 1 of 3 short ones, and 1 of 2 long ones, is longer.
    rows = [pair(0, "ab", "a"), pair(1, "a", "ab"), pair(2, "a", "ab"), pair(3, "a", "a")]
    rows += [pair(4, "a" * 9, "a"), pair(5, "a", "a" * 9), pair(6, "a", "a" * 9), pair(7, "a" * 9, "a")]
    assert longer_share(rows) == (3 + 0.5) / 8
    monkeypatched = balanced(rows, seed=0, num_bins=2)
    assert sorted(map(length_gap, monkeypatched)) == [-8, -8, -1, 0, 1, 8, 8]


def test_reward_models_are_compared_by_hand():
    from recipes.real_preferences.compare_rewards import length_rule, table

    rows = [pair(i, "a", "ab") for i in range(6)] + [pair(i, "ab", "a") for i in range(6, 8)]
    assert length_rule(rows) == -1
    right, wrong = [1.0, 0.0], [0.0, 2.0]
    one, other = [right] * 6 + [right, wrong], [wrong] * 2 + [right] * 6
    lines = table(rows, {"one": [one], "both": [one, other]}, rule=-1)
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[2][2].startswith("0.750 [")  # the shorter wins in 6 of 8
    assert cells[3][1:3] == ["0.875", "0.875 [0.625, 1.000]"] and cells[3][3].startswith("+0.125 [+0.000, ")
    assert cells[4][1] == "0.875 0.750" and cells[4][2].startswith("0.812 [") and cells[4][4].startswith("-0.062 [")
    # Of the mean of scores three pairs are wrong: there one model's -2 outweighs the other's 1.
    assert cells[4][5] == "0.625" and (cells[3][6], cells[4][6]) == ("12.5%", "31.2%")


def test_a_linear_head_is_fitted_by_hand():
    from recipes.real_preferences.linear_head import fit

    # One feature, +1 for the chosen and -1 for the rejected response: its deviation is 1, and the difference 2.
    features = np.array([[[1.0], [-1.0]]] * 5)
    (w,) = fit(features, l2=0.5)
    assert 0.5 * w == pytest.approx(2 / (1 + math.exp(2 * w)), abs=1e-4)  # the gradient is 0


def test_real_preferences_from_the_linear_head_to_the_policies(prepared, llama, tmp_path, monkeypatch, capsys):
    from recipes.real_preferences import compare_policies, compare_rewards, linear_head

    def run(module, *argv):
        monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, argv)])
        module.main()
        return capsys.readouterr().out

    data, heads, reward = prepared / "reward", tmp_path / "linear", tmp_path / "plain"
    options = ["--layers", 1, "--max_length", 40, "--model", llama]
    assert "mean, test: accuracy" in run(linear_head, "--data", data, "--output_dir", heads, *options)
    # `last` is an ordinary reward model, with the scores that were written.
    kept = (heads / "last" / "pair_scores_test.json").read_bytes()
    (heads / "last" / "pair_scores_test.json").unlink()
    scores = compare_rewards.pair_scores(heads / "last", data, "test", max_length=40)
    assert torch.tensor(scores) == pytest.approx(torch.tensor(json.loads(kept)), rel=0.05)
    yaml_file = str(RECIPES / "real_preferences" / "reward.yaml")
    argv = ["--model_name_or_path", heads / "last", "--dataset_name", data, "--output_dir", reward, "--max_steps", 1]
    argv += ["--lora_target_modules", "q_proj", "--max_length", 40]
    main(["reward", "--config", yaml_file, *map(str, argv)])
    capsys.readouterr()
    out = run(compare_rewards, "--data", data, f"mean={heads / 'mean'}", f"plain={reward}")
    assert [line.split(" | ")[0] for line in out.splitlines()[2:]] == ['| "the shorter wins"', "| mean", "| plain"]
    models = ["--reward", reward, "--gold", heads / "mean", "--data", data]
    short = ["--num_prompts", 3, "--max_completion_length", 4]
    lines = run(compare_policies, llama, llama, *models, *short).splitlines()
    figures = [line for line in lines if "difference" not in line and line.startswith("| ") and "+0.000" in line]
    assert len(figures) == 5 and all("+0.000 [+0.000, +0.000]" in line for line in figures)
    assert lines[0] == "3 held-out prompts, 2 responses to each." and len(lines) == 12 + 3


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("recipe", ["pipeline", "pipeline_en"])
def test_the_main_job_shows_what_the_readme_promises(recipe, seed, tmp_path):
    metrics = Pipeline(RECIPES / "char_gpt" / f"{recipe}.yaml", output_dir=str(tmp_path / "run"), seed=seed).run()
    losses = metrics["sft"]["train_loss"]
    assert len(losses) >= 3
    assert losses == sorted(losses, reverse=True)
    validation = metrics["sft"]["eval_loss"]
    assert validation[-1] > min(validation) - 1e-9 and min(validation) > 0.95 * validation[-1]  # it no longer falls
    assert metrics["reward"]["eval_accuracy"] >= 0.84
    assert metrics["reward"]["eval_accuracy_clear"] >= 0.92
    for name, win_rate in (("comparison", 0.70), ("comparison_greedy", 0.80)):
        result = metrics[name]
        assert result["num_prompts"] >= 300
        assert result["score_ppo"] - result["score_sft"] >= result["score_sft_std"]
        assert result["gold_win_rate"] >= win_rate
        assert result["gold_win_rate_ci95"][0] > 0.5
        assert result["gold_ppo"] > max(result["gold_sft"], result["gold_more_sft"])
        assert result["correct_ppo"] >= result["correct_sft"] - 0.13
    assert metrics["comparison"]["kl"] < 8
    health = diagnosis(tmp_path / "run")
    assert health["logs"] == 64 and health["findings"] == health["not_checked"] == []


@pytest.mark.slow
def test_a_reward_model_can_be_optimised_against_too_far(tmp_path):
    found = OverOpt(RECIPES / "overopt" / "experiment.yaml", output_dir=str(tmp_path / "run")).run()
    small, large = found["proxies"]
    assert small["accuracy_ci95"][1] < large["accuracy_ci95"][0]
    for size in (small["num_rankings"], large["num_rankings"]):
        free, held, _ = (curve for curve in found["curves"] if curve["num_rankings"] == size)
        assert free["fall"] > 0.3 and free["points"][-1]["proxy"] > free["points"][free["peak"]]["proxy"]
        assert not held["turns"] and held["points"][-1]["judge_ci95"][0] > 0
    assert found["suggested"]["judge_ci95"][0] > 0


@pytest.mark.slow
def test_the_document_keeps_its_promises_on_nine_of_ten_seeds(tmp_path):
    kept = []
    for seed in range(10):
        path = RECIPES / "document" / "pipeline.yaml"
        metrics = Pipeline(path, output_dir=str(tmp_path / f"run{seed}"), seed=seed).run()
        sft, reward, comparison = metrics["sft"], metrics["reward"], metrics["comparison"]
        assert sft["train_loss"] == sorted(sft["train_loss"], reverse=True)
        assert reward["train_loss"] == sorted(reward["train_loss"], reverse=True)
        assert reward["eval_accuracy"] == 1.0  # its own four pairs
        kept.append(comparison["score_ppo"] > comparison["score_sft"])
    assert sum(kept) >= 9


@pytest.mark.slow
def test_the_document_s_stages_run_alone_one_after_the_other(tmp_path):
    for stage, more in (
        ("sft", []),
        ("reward", ["--model_name_or_path", str(tmp_path / "sft")]),
        ("ppo", ["--model_name_or_path", str(tmp_path / "sft"), "--reward_funcs", str(tmp_path / "reward")]),
    ):
        config = str(RECIPES / "document" / f"{stage}.yaml")
        assert main([stage, "--config", config, *more, "--output_dir", str(tmp_path / stage)]) == 0
    assert main(["generate", str(tmp_path / "ppo"), "--prompt", "什么是 AI？", "--max_new_tokens", "15"]) == 0


@pytest.mark.slow
def test_a_run_and_a_stage_work_on_two_processes(tmp_path):
    # Not `--cpu --num_processes 2`: that starts one process.
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0"]
    launch += ["--config_file", str(RECIPES / "accelerate" / "ddp.yaml"), "-m", "hf_instructgpt.cli"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = ["run", "--config", str(RECIPES / "document" / "pipeline.yaml"), "--output_dir", str(tmp_path / "run")]
    subprocess.run([*launch, *run], check=True, env=environment, timeout=600)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["reward"]["eval_accuracy"] == 1.0
    ppo = ["ppo", "--config", str(RECIPES / "document" / "ppo.yaml"), "--output_dir", str(tmp_path / "ppo")]
    models = [
        "--model_name_or_path",
        str(tmp_path / "run" / "sft"),
        "--reward_funcs",
        str(tmp_path / "run" / "reward"),
    ]
    subprocess.run([*launch, *ppo, *models], check=True, env=environment, timeout=600)
    assert (tmp_path / "ppo" / "model.safetensors").is_file()
    assert not list(tmp_path.glob(".*"))
