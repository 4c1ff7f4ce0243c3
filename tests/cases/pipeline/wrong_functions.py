"""`run` met a wrong reward function or judge when all was trained: before, by its signature; a judge by its name."""

from product import assert_refused, command, pipeline_file

FUNCS = """
def narrow(prompts, completions):
    return [0.0] * len(completions)

def mapping(completions, **columns):
    return {"score": 1.0}

class NoFunction:
    pass

no_function = NoFunction()
"""


def check(folder):
    (folder / "functions.py").write_text(FUNCS)
    out, rows = folder / "out", [{"answer": "x"}]
    out.mkdir()
    (out / "run.json").write_text("{}")
    for options, *words in (
        ({"ppo": {"reward_funcs": ["functions.narrow"]}}, "the reward function narrow cannot be called", "answer"),
        ({"judge": "functions.narrow"}, "the judge narrow cannot be called", "answer"),
        ({"judge": "functions.no_function"}, "`judge`", "not a function but NoFunction"),
    ):
        config = pipeline_file(folder, ppo_rows=rows, **options)
        assert_refused(command("run", "--config", config, "--overwrite_output_dir"), *words)
        assert [path.name for path in out.iterdir()] == ["run.json"] and (out / "run.json").read_text() == "{}"
    config = pipeline_file(folder, judge="functions.mapping")
    result = command("run", "--config", config, "--overwrite_output_dir")
    assert_refused(result, "the judge mapping must return a list of numbers")
