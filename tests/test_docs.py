"""The documents are run: the READMEs and the pages in recipes/docs, their Python, YAML, commands and links.

The site itself is built by `.ci/run`, where every warning is an error.
"""

import argparse
import ast
import importlib
import json
import re
import shlex
import shutil
import tomllib
from pathlib import Path

import pytest
import torch
import yaml
from datasets import Dataset
from transformers import GPT2Config, GPT2LMHeadModel

from hf_instructgpt import CharGPTConfig, CharGPTForSequenceClassification, CharGPTTokenizer
from hf_instructgpt.cli import VERBS, main
from hf_instructgpt.language import choose_language
from hf_instructgpt.report.printed_summary import summary
from hf_instructgpt.stages.parsing import parse_stage
from hf_instructgpt.stages.pipeline import PipelineFile

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "recipes" / "docs"
READMES = ["README.md", "README.zh.md"]
PAGES = [*READMES, *sorted(str(path.relative_to(ROOT)) for path in DOCS.rglob("*.md"))]
RECIPES = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "recipes").glob("*/README.md"))
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
GONE = "trl.experimental.ppo"  # what the guide from TRL shows as the old code


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(name: str, language: str) -> list[str]:
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```$", read(name), flags=re.DOTALL | re.MULTILINE)
    return ["\n".join(line.removeprefix(indent) for line in text.splitlines()) for indent, text in found]


def commands(name: str) -> list[str]:
    return [line.strip() for block in blocks(name, "bash") for line in block.splitlines() if line.strip()]


def with_blocks(language: str, pages=PAGES) -> list[str]:
    return [name for name in pages if blocks(name, language)]


# ---- The two languages ---------------------------------------------------------------------------------------------


def pairs() -> list[tuple[str, str]]:
    chinese = [path for path in PAGES if path.startswith("recipes/docs/zh/")]
    return [tuple(READMES), *((name.replace("/zh/", "/en/"), name) for name in chinese)]


def code_of(text: str) -> str:
    """Python without its comments and docstrings, which are in the page's language."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return ast.dump(tree)


def test_every_english_page_is_there_in_chinese():
    def names(language):
        return {str(path.relative_to(DOCS / language)) for path in (DOCS / language).rglob("*.md")}

    only_english = names("en") - names("zh")
    # The recipes' own pages, which are in English, and what stands at the top of the repository.
    assert all("{% include-markdown" in read(f"recipes/docs/en/{name}") for name in only_english)
    assert names("zh") - names("en") == set()
    assert len(names("zh")) >= 18


@pytest.mark.parametrize(("english", "chinese"), pairs())
def test_both_languages_show_the_same(english, chinese):
    if "{% include-markdown" in read(english):
        return
    assert commands(english) == [line.replace("--lang zh", "--lang en") for line in commands(chinese)]
    assert [code_of(x) for x in blocks(english, "python")] == [code_of(x) for x in blocks(chinese, "python")]
    assert [yaml.safe_load(x) for x in blocks(english, "yaml")] == [yaml.safe_load(x) for x in blocks(chinese, "yaml")]
    tables = [
        [line.count("|") for line in read(name).splitlines() if line.startswith("|")] for name in (english, chinese)
    ]
    assert tables[0] == tables[1]
    headings = [re.findall(r"^#+ ", read(name), flags=re.MULTILINE) for name in (english, chinese)]
    assert headings[0] == headings[1]


def test_the_expected_results_are_the_same_in_both_languages():
    names = [f"recipes/docs/{language}/recipes/char_gpt.md" for language in ("en", "zh")]
    results = [re.split("<!-- (?:end of )?results -->", read(name))[1] for name in names]
    numbers = [re.findall(r"\d+\.\d+", text) for text in results]
    assert len(numbers[0]) > 30
    assert numbers[0] == numbers[1]


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_pictures_and_the_printed_run_are_current(language, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "recipes/docs")
    pictures = importlib.import_module("pictures")
    made = json.loads((pictures.IMAGES / "pictures.json").read_text(encoding="utf-8"))
    assert made.pop("sources") == pictures.digest(*pictures.sources()), "run recipes/docs/pictures.py again"
    assert made == {path.name: pictures.digest(path) for path in pictures.IMAGES.glob("*.png")}
    assert all((pictures.IMAGES / name).stat().st_size < pictures.MAX_BYTES for name in made)
    metrics = json.loads((pictures.IMAGES / f"run.{language}.json").read_text(encoding="utf-8"))
    shown = read(pictures.RUNS[language][1]).split("<!-- printed -->")[1]
    choose_language(language)
    try:
        lines = [f"{mark} {text}" for mark, text in summary(metrics)]
    finally:
        choose_language(None)
    assert len(lines) > 4 and all(line in shown for line in lines)


@pytest.mark.parametrize("name", READMES)
def test_the_readme_is_short(name):
    assert read(name).count("\n") <= 130


# ---- Links ---------------------------------------------------------------------------------------------------------


def slugs(name: str) -> set[str]:
    """The anchors of a page's headings, on GitHub and on the site."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^ *```.*?^ *```$", "", read(name), flags=re.M | re.S), flags=re.M)
    return {re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", heading.lower().strip())) for heading in headings}


@pytest.mark.parametrize("name", [*PAGES, *RECIPES])
def test_every_link_leads_somewhere(name):
    here = (ROOT / name).parent
    for url in re.findall(r"\]\(([^)\s]+)\)|include-markdown \"([^\"]+)\"", read(name)):
        path, _, anchor = "".join(url).partition("#")
        if re.match(r"[a-z]+:", path):
            continue
        target = (here / path).resolve() if path else ROOT / name
        assert target.exists(), f"{name}: {path}"
        if anchor and not anchor.startswith("hf_instructgpt."):  # a name in the API reference: the strict build looks
            assert anchor in slugs(str(target.relative_to(ROOT))), f"{name}: {path}#{anchor}"


# ---- Commands ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", with_blocks("bash", [*PAGES, *RECIPES]))
def test_every_command_is_one_that_exists(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    for line in commands(name):
        for command in line.split(" && "):
            check_command(shlex.split(command, comments=True))


def check_command(words: list[str]) -> None:
    """Our own commands are parsed; of the others, the files and extras that they name are there."""
    if "hf_instructgpt.cli" in words:  # after `accelerate launch ... -m`
        check_command(["hf-instructgpt", *words[words.index("hf_instructgpt.cli") + 1 :]])
        words = words[: words.index("-m")]
    if words[:1] == ["hf-instructgpt"]:
        verb, options = words[1], words[2:]
        if verb in ("sft", "reward", "ppo"):
            parse_stage(verb, options)
        elif verb == "plan":
            parse_stage("ppo", ["--model_name_or_path", "x", *VERBS[verb].parse_known_args(options)[1]])
        else:
            VERBS[verb].parse_args(options)
    for word in words:
        if re.match(r"(recipes|tests|hf_instructgpt)/", word):
            assert (ROOT / word).exists(), word
    for extra in re.findall(r"\[(\w+)\]", " ".join(words)):
        assert extra in EXTRAS or words == ["pip", "install", "trl[vllm]"], words


def test_every_verb_is_in_the_documents():
    said = {words[1] for name in PAGES for line in commands(name) if (words := line.split())[0] == "hf-instructgpt"}
    assert said == set(VERBS)


def test_the_site_shows_the_help_of_every_command():
    for language in ("en", "zh"):
        assert "<!-- the help of every command -->" in read(f"recipes/docs/{language}/reference/command-line.md")
    assert all(isinstance(verb, argparse.ArgumentParser) for verb in VERBS.values())


@pytest.mark.parametrize("name", with_blocks("yaml"))
def test_every_config_file_parses(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("my_rewards.py").write_text("def length(completions, **_):\n    return [0.0 for _ in completions]\n")
    Path("my_prompts.jsonl").write_text('{"prompt": "Hello"}\n')
    for block in blocks(name, "yaml"):
        title, options = block.splitlines()[0], yaml.safe_load(block)
        if title == "# part of pipeline.yaml":
            assert options.keys() <= PipelineFile.model_fields.keys()
            continue
        assert title in ("# ppo.yaml", "# part of ppo.yaml"), f"{name}: which file is this?\n{block}"
        rest = {"model_name_or_path": "sft", "reward_funcs": ["my_rewards.length"], "dataset_name": "my_prompts.jsonl"}
        whole = options if title == "# ppo.yaml" else rest | options
        Path("ppo.yaml").write_text(yaml.safe_dump(whole))
        parse_stage("ppo", ["--config", "ppo.yaml"])


# ---- Python --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", with_blocks("python"))
def test_every_python_block_compiles_and_its_imports_exist(name):
    for block in blocks(name, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module != GONE:
                module = importlib.import_module(node.module)
                assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)


@pytest.fixture
def stand_ins(tmp_path, monkeypatch):
    """A folder in which what the documents load from the Hub, or from the reader's disk, is there, and tiny."""
    monkeypatch.chdir(tmp_path)
    tokenizer = CharGPTTokenizer.from_texts(["hello"])
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=128, eos_token_id=None)
    for folder in ("my-sft", "HuggingFaceTB/SmolLM2-135M-Instruct"):
        GPT2LMHeadModel(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    small = {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 8,
        "num_labels": 1,
    }
    CharGPTForSequenceClassification(
        CharGPTConfig(vocab_size=len(tokenizer), max_position_embeddings=128, **small)
    ).save_pretrained("my-reward-model")
    tokenizer.save_pretrained("my-reward-model")
    rows = {"prompt": ["he", "lo"], "responses": [["h", "e"], ["l", "lo", "oh"]], "ranks": [[1, 2], [2, 1, 3]]}

    def load(*names, data_files="", **_):
        columns = rows if "ranking" in data_files else {"prompt": rows["prompt"]}
        return Dataset.from_dict(columns)

    monkeypatch.setattr("datasets.load_dataset", load)
    return tmp_path


def run_block(block: str, name: str) -> None:
    """Run a block as it stands, but for a few steps instead of many and no accelerator."""
    block = re.sub(r"max_steps=\d+", "max_steps=4", block)
    if "max_steps" not in block:
        block = re.sub(r"(PPOConfig\()", r"\1max_steps=4, ", block)
    block = re.sub(r"RewardConfig\(", "RewardConfig(max_steps=2, bf16=False, report_to='none', ", block)
    exec(compile(block, name, "exec"), {"__name__": "example"})


@pytest.mark.parametrize("name", READMES)
def test_the_readme_runs(name, stand_ins):
    ppo, reward = blocks(name, "python")
    run_block(ppo, name)
    assert (stand_ins / "ppo-smollm" / "value_model").is_dir()
    run_block(reward, name)
    assert (stand_ins / "reward" / "config.json").is_file()
    assert len([line for line in ppo.splitlines() if line]) <= 12
    assert len([line for line in reward.splitlines() if line]) <= 8


ENGLISH = [name for name in with_blocks("python") if "/en/" in name or name in RECIPES]


@pytest.mark.slow
@pytest.mark.parametrize("name", [*ENGLISH, "recipes/ppo/README.md"])
def test_the_python_of_a_page_runs(name, stand_ins):
    for block in blocks(name, "python"):
        if GONE in block:
            continue
        if '"ppo/value_model"' in block:  # what the page's reader has trained
            run_block(blocks("recipes/ppo/README.md", "python")[1], name)
        run_block(block, name)


QUICK = ("report", "generate", "evaluate", "data")


@pytest.mark.slow
def test_quick_commands_run(document_run, tmp_path, monkeypatch, capsys):
    """On a run of the recipe `document` in the place of the default one."""
    shutil.copytree(document_run, tmp_path / "runs" / "char_gpt")
    shutil.copytree(document_run / "sft", tmp_path / "sft")
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    row = {"prompt": "你好", "responses": ["你好。", "再见"], "ranks": [1, 2]}
    (tmp_path / "my_rankings.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    lines = {line for name in PAGES for line in commands(name) if line.split()[:1] == ["hf-instructgpt"]}
    local = [line for line in sorted(lines) if line.split()[1] in QUICK and "my-name/" not in line]
    local = [line for line in local if "evaluate policy" not in line]  # its own tests run it: models and servers
    assert {line.split()[1] for line in local} == set(QUICK)
    for line in local:
        words = shlex.split(line)[1:]
        words += ["--split", "train"] if words[0] == "evaluate" else []  # `document` has no other
        assert main(words) == 0, (line, capsys.readouterr())
