"""The recipes: stage files agree with their pipeline, every file parses, and README commands exist."""

from pathlib import Path

import pytest
import yaml

from hf_instructgpt.stages.arguments import parse_stage
from hf_instructgpt.stages.pipeline import Pipeline

RECIPES = Path(__file__).parents[1] / "recipes"
FROM_PIPELINE = {"output_dir", "seed", "model_name_or_path", "reward_funcs"}


@pytest.mark.parametrize("recipe", ["char_gpt", "document"])
def test_the_stage_files_hold_the_options_of_the_pipeline(recipe):
    pipeline = yaml.safe_load((RECIPES / recipe / "pipeline.yaml").read_text(encoding="utf-8"))
    for stage in ("sft", "reward", "ppo"):
        alone = yaml.safe_load((RECIPES / recipe / f"{stage}.yaml").read_text(encoding="utf-8"))
        assert {key: value for key, value in alone.items() if key not in FROM_PIPELINE} == pipeline[stage]


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*/*.yaml")), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_recipe_parses_and_says_how_to_run_it(path, monkeypatch):
    monkeypatch.chdir(RECIPES.parent)
    name = path.relative_to(RECIPES.parent)
    if path.stem == "pipeline":
        Pipeline(path)
        assert f"hf-instructgpt run --config {name}" in path.read_text(encoding="utf-8")
    else:
        parse_stage(path.stem, ["--config", str(path)])
        assert f"hf-instructgpt {path.stem} --config {name}" in path.read_text(encoding="utf-8")
