"""The sample data sets: sizes, splits, limits, noise, and that files and cards are what the generator gives."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from itertools import combinations

import pytest
import yaml

from hf_instructgpt.char_gpt import CharGPTTokenizer
from hf_instructgpt.data import LABS, SAMPLE_DATASETS, gold_reward, judge, load_sample_dataset
from hf_instructgpt.data.loading import SAMPLES_DIR
from hf_instructgpt.errors import InputError
from hf_instructgpt.files import resource

SPLITS = ("train", "validation", "test")
STORED = ("sft", "ranking", "prompts")
GENERATOR = resource("recipes", "char_gpt", "make_data.py")


def load_generator():
    spec = importlib.util.spec_from_file_location("make_data", GENERATOR)
    module = sys.modules["make_data"] = importlib.util.module_from_spec(spec)  # dataclasses look it up
    spec.loader.exec_module(module)
    return module


make_data = load_generator()


def stored(name, config, split):
    path = SAMPLES_DIR / name / f"{config}-{split}.jsonl"
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.fixture(scope="module", params=LABS)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def rows(name):
    return {(config, split): stored(name, config, split) for config in STORED for split in SPLITS}


def answers_of(row):
    return row.get("responses", [row["answer"]] if "answer" in row else [])


def clean_grade(prompt, response):
    return round(3.5 * gold_reward(prompt, response))


# --- the generator -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "hash_seed"), [("lab", "1"), ("lab", "2"), ("lab-en", "1"), ("lab-en", "2")])
def test_generator_gives_the_stored_bytes_whatever_the_hash_seed(tmp_path, name, hash_seed):
    subprocess.run(
        [sys.executable, str(GENERATOR), "--name", name, "--output_dir", str(tmp_path)],
        check=True,
        env=os.environ | {"PYTHONHASHSEED": hash_seed},
    )
    made = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert made == {path.name: path.read_bytes() for path in (SAMPLES_DIR / name).glob("*.jsonl")}


def test_ranks_by_hand():
    assert make_data.ranks_of([0.2, 1.0, 0.2, -0.4]) == [2, 1, 2, 3]


# --- loading -----------------------------------------------------------------------------------------------------

SIZES = {
    ("document", "sft"): {"train": 5},
    ("document", "preference"): {"train": 4},
    ("document", "prompts"): {"train": 3},
    ("lab", "sft"): {"train": 3000, "validation": 200, "test": 200},
    ("lab", "preference"): {"train": 15685, "validation": 3456, "test": 3304},
    ("lab", "ranking"): {"train": 1000, "validation": 200, "test": 200},
    ("lab", "prompts"): {"train": 500, "validation": 200, "test": 300},
    ("lab-en", "sft"): {"train": 3000, "validation": 200, "test": 200},
    ("lab-en", "preference"): {"train": 16204, "validation": 3489, "test": 3282},
    ("lab-en", "ranking"): {"train": 1000, "validation": 200, "test": 200},
    ("lab-en", "prompts"): {"train": 500, "validation": 200, "test": 300},
}
COLUMNS = {
    "sft": ["prompt", "completion"],
    "preference": ["prompt", "chosen", "rejected"],
    "ranking": ["prompt", "responses", "ranks"],
    "prompts": ["prompt"],
}


def test_every_config_has_a_size():
    assert set(SIZES) == {(name, config) for name, configs in SAMPLE_DATASETS.items() for config in configs}


@pytest.mark.parametrize(("name", "config"), SIZES)
def test_sizes_and_columns(name, config):
    data = load_sample_dataset(name, config)
    assert {split: len(part) for split, part in data.items()} == SIZES[name, config]
    assert all(part.column_names == COLUMNS[config] for part in data.values())


def test_rows_are_conversational():
    assert load_sample_dataset("document", "sft")["train"][1] == {
        "prompt": [{"role": "user", "content": "1+1 等于几？"}],
        "completion": [{"role": "assistant", "content": "1+1 等于 2。"}],
    }
    assert load_sample_dataset("document", "preference")["train"][2] == {
        "prompt": [{"role": "user", "content": "写一句问候语"}],
        "chosen": [{"role": "assistant", "content": "你好！很高兴有机会与你交流。"}],
        "rejected": [{"role": "assistant", "content": "喂，你好。"}],
    }
    ranking = load_sample_dataset("lab", "ranking")["test"][0]
    raw = stored("lab", "ranking", "test")[0]
    assert ranking["prompt"] == [{"role": "user", "content": raw["prompt"]}]
    assert ranking["responses"] == [[{"role": "assistant", "content": text}] for text in raw["responses"]]
    assert ranking["ranks"] == raw["ranks"]


@pytest.mark.parametrize("split", SPLITS)
def test_preference_is_the_untied_pairs_of_ranking(split, name, rows):
    expected = []
    for row in rows["ranking", split]:
        for one, other in combinations(range(len(row["ranks"])), 2):
            if row["ranks"][one] != row["ranks"][other]:
                best, worst = sorted((one, other), key=row["ranks"].__getitem__)
                expected.append((row["prompt"], row["responses"][best], row["responses"][worst]))
    pairs = [
        tuple(row[column][0]["content"] for column in ("prompt", "chosen", "rejected"))
        for row in load_sample_dataset(name, "preference")[split]
    ]
    assert sorted(pairs) == sorted(expected)


@pytest.mark.parametrize(
    ("arguments", "listed"),
    [
        (("labs", "sft"), ["'labs'", "'document'", "'lab'", "'lab-en'"]),
        (("lab", None), ["'lab'", *map(repr, SAMPLE_DATASETS["lab"])]),
        (("lab",), ["'lab'", *map(repr, SAMPLE_DATASETS["lab"])]),
        (("lab", "pairs"), ["'pairs'", *map(repr, SAMPLE_DATASETS["lab"])]),
        (("document", "ranking"), ["'ranking'", *map(repr, SAMPLE_DATASETS["document"])]),
    ],
)
def test_unknown_names_list_what_there_is(arguments, listed):
    with pytest.raises(InputError) as error:
        load_sample_dataset(*arguments)
    assert all(name in str(error.value) for name in listed)


def test_import_is_light_and_loading_leaves_no_cache(tmp_path):
    code = (
        "import sys; from hf_instructgpt.data import judge, load_sample_dataset\n"
        "assert not {'torch', 'transformers', 'datasets'} & set(sys.modules)\n"
        "load_sample_dataset('lab', 'preference')"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"HF_HOME": str(tmp_path / "hf")})
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


# --- splits, limits, vocabulary ----------------------------------------------------------------------------------


def test_splits_share_no_prompt_over_all_configs(rows):
    prompts = {split: {row["prompt"] for config in STORED for row in rows[config, split]} for split in SPLITS}
    for one, other in combinations(SPLITS, 2):
        assert not prompts[one] & prompts[other]


def test_prompts_of_a_file_are_distinct_and_families_equal(name, rows):
    for part in rows.values():
        prompts = [row["prompt"] for row in part]
        assert len(set(prompts)) == len(prompts)
        names = [LABS[name].prompts[prompt].family.name for prompt in prompts]
        families = LABS[name].families
        assert {names.count(family.name) for family in families} == {len(part) // len(families)}


def test_no_prompt_is_asked_by_two_families(name):
    lab = LABS[name]
    assert len(lab.prompts) == sum(len(family.wordings) * len(family.facts) for family in lab.families)
    assert f"{sum(len(family.facts) for family in lab.families)} facts" in card_text(name)


def test_the_labs_have_as_many_facts_and_wordings_and_share_no_prompt():
    sizes = [[(f.name, len(f.wordings), len(f.facts)) for f in lab.families] for lab in LABS.values()]
    assert sizes[0] == sizes[1]
    assert not {*LABS["lab"].prompts} & {*LABS["lab-en"].prompts}


def test_ppo_train_prompts_have_no_demonstration_and_no_ranking(name, rows):
    prompts = {config: {row["prompt"] for row in rows[config, "train"]} for config in STORED}
    assert not prompts["prompts"] & (prompts["sft"] | prompts["ranking"])
    assert f"{len(prompts['sft'] & prompts['ranking'])} of the 1000 ranked prompts" in card_text(name)


@pytest.fixture(scope="module")
def tokenizer(name, rows):
    """The tokenizer that `sft` makes of the data."""
    texts = [text for config in STORED for row in rows[config, "train"] for text in (row["prompt"], *answers_of(row))]
    return CharGPTTokenizer.from_texts(texts, words=name == "lab-en")


def chat_form(tokenizer, prompt="", answer=""):
    turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    return tokenizer.apply_chat_template(turns, tokenize=False)


def test_length_limits(name, rows, tokenizer):
    longest = {"lab": 23, "lab-en": 25}[name]
    assert f"prompts take at most {longest} " in card_text(name)
    before, between, end = chat_form(tokenizer, "|", "|").split("|")
    for part in rows.values():
        for row in part:
            assert len(tokenizer.tokenize(before + row["prompt"] + between)) <= longest
            for answer in answers_of(row):
                assert answer.strip() and len(LABS[name].units(answer)) <= LABS[name].longest
                assert len(tokenizer.tokenize(before + row["prompt"] + between + answer + end)) <= 50


def test_vocabulary_is_closed(name, rows, tokenizer):
    texts = [chat_form(tokenizer).removesuffix("<eos>")] + [
        text for row in rows["sft", "train"] for text in row.values()
    ]
    known = {token for text in texts for token in tokenizer.tokenize(text)}
    kind = "characters" if name == "lab" else "tokens"
    assert f"{len(known)} different {kind}" in card_text(name) and 290 <= len(known) <= 360
    for part in rows.values():
        for row in part:
            assert {token for text in (row["prompt"], *answers_of(row)) for token in tokenizer.tokenize(text)} <= known
    for prompt, (family, subject, value) in LABS[name].prompts.items():
        right = family.answers[0].format(s=subject, v=value)
        texts = [prompt, right] if name == "lab" else [prompt, f"Sure, {right}", right[0].upper() + right[1:]]
        assert {token for text in texts for token in tokenizer.tokenize(text)} <= known


def test_a_lab_is_under_two_megabytes(name):
    assert sum(path.stat().st_size for path in (SAMPLES_DIR / name).glob("*.jsonl")) < 2_000_000


# --- mixture and noise -------------------------------------------------------------------------------------------


def test_demonstrations_follow_the_mixture(name, rows):
    judgements = [judge(row["prompt"], row["answer"]) for row in rows["sft", "train"]]

    def rate(part, value):
        return sum(getattr(judgement, part) == value for judgement in judgements) / len(judgements)

    measured = {
        "right": rate("content", 1),
        "polite": rate("politeness", 1),
        "rude": rate("politeness", -1),
        "end_mark": rate("end_mark", 1),
        "rambling": rate("length", -1),
    }
    for part, value in measured.items():
        assert value == pytest.approx(getattr(make_data.DEMONSTRATIONS, part), abs=0.03), part
    assert rate("content", -1) == 0
    shown = " | ".join(f"{100 * value:.1f} %" for value in measured.values())
    assert f"measured on `train` | {shown} |" in card_text(name)
    for kind, mixture in (("demonstrations", make_data.DEMONSTRATIONS), ("ranked responses", make_data.RANKED)):
        stated = " | ".join(f"{100 * value:.0f} %" for value in vars(mixture).values())
        assert f"| {kind} | {stated} |" in card_text(name)


def test_rankings_have_4_to_9_distinct_responses_and_a_preference(rows):
    for split in SPLITS:
        for row in rows["ranking", split]:
            assert 4 <= len(row["responses"]) <= 9
            assert len(set(row["responses"])) == len(row["responses"]) == len(row["ranks"])
            assert sorted(set(row["ranks"])) == list(range(1, max(row["ranks"]) + 1))
            assert max(row["ranks"]) > 1


def test_wrong_contents_are_common_and_diverse(rows):
    judged = [
        (judge(row["prompt"], text).content, text) for row in rows["ranking", "train"] for text in row["responses"]
    ]
    counts = {content: sum(found == content for found, _ in judged) / len(judged) for content in (1, 0, -1)}
    assert counts[1] > 0.45 and counts[0] > 0.25 and counts[-1] > 0.08
    assert len({text for content, text in judged if content == 0}) > 1000


@pytest.mark.parametrize("split", ["validation", "test"])
def test_held_out_rankings_are_free_of_noise(split, rows):
    for row in rows["ranking", split]:
        golds = [gold_reward(row["prompt"], response) for response in row["responses"]]
        for one, other in combinations(range(len(golds)), 2):
            by_gold = 0 if abs(golds[one] - golds[other]) < 1e-9 else (golds[one] > golds[other]) * 2 - 1
            by_rank = (row["ranks"][one] < row["ranks"][other]) - (row["ranks"][one] > row["ranks"][other])
            assert by_gold == by_rank


def test_training_noise_is_as_the_card_says(name, rows):
    total = clean = flipped = lost = made = 0
    for row in rows["ranking", "train"]:
        grades = [clean_grade(row["prompt"], response) for response in row["responses"]]
        for one, other in combinations(range(len(grades)), 2):
            better, ranked = grades[one] - grades[other], row["ranks"][other] - row["ranks"][one]
            total += 1
            clean += better != 0
            flipped += better * ranked < 0
            lost += better != 0 and ranked == 0
            made += better == 0 and ranked != 0
    pairs = clean - lost + made
    assert pairs == SIZES[name, "preference"]["train"]
    assert 0.095 <= flipped / clean <= 0.105
    card = card_text(name)
    assert f"and {100 * make_data.RANDOM_GRADE_RATE:.1f} % of the responses got a random grade" in card
    assert f"{100 * flipped / clean:.1f} % are flipped and {100 * lost / clean:.1f} % became ties" in card
    assert f"of all pairs {100 * (1 - pairs / total):.1f} % are tied" in card
    assert f"{100 * made / pairs:.1f} % of the `preference` pairs" in card


# --- the cards ---------------------------------------------------------------------------------------------------


def card_text(name):
    """The card on one line, so that a phrase is found wherever the line was broken."""
    return " ".join((SAMPLES_DIR / name / "README.md").read_text("utf-8").split())


@pytest.mark.parametrize("name", SAMPLE_DATASETS)
def test_card_front_matter_names_the_files_there_are(name):
    front = yaml.safe_load((SAMPLES_DIR / name / "README.md").read_text("utf-8").split("---\n")[1])
    assert (front["license"], front["language"]) == ("apache-2.0", ["en" if name == "lab-en" else "zh"])
    named = set()
    for config in front["configs"]:
        files = config["data_files"]
        found = {files} if isinstance(files, str) else {file["path"] for file in files}
        assert all(path.startswith(f"{config['config_name']}-") for path in found)
        named |= found
    assert named == {path.name for path in (SAMPLES_DIR / name).glob("*.jsonl")}


@pytest.mark.parametrize("name", SAMPLE_DATASETS)
def test_card_states_the_sizes(name):
    for config in SAMPLE_DATASETS[name]:
        line = next(line for line in card_lines(name) if line.startswith(f"| `{config}` |"))
        columns = ", ".join(re.findall(r"`(\w+)`", line)[1:])
        sizes = [int(cell) for cell in line.split("|") if cell.strip().isdigit()]
        assert (columns.split(", "), sizes) == (COLUMNS[config], list(SIZES[name, config].values()))


def card_lines(name):
    return (SAMPLES_DIR / name / "README.md").read_text("utf-8").splitlines()


@pytest.mark.parametrize("name", SAMPLE_DATASETS)
def test_card_code_runs(name):
    for block in re.findall(r"```python\n(.*?)```", (SAMPLES_DIR / name / "README.md").read_text("utf-8"), re.S):
        names = {}
        exec(block, names)
        for expression, value in re.findall(r"^(.*\S)  # (\S+)$", block, re.M):
            assert eval(expression, names) == float(value)
