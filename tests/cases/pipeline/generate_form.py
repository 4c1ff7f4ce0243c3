"""A CharGPT trained on plain text answers `generate` with nothing: it was asked in messages; its card knows better."""

from product import assert_done, command, write_rows

from hf_instructgpt.stages.load_models import load_tokenizer
from hf_instructgpt.stages.samples import as_asked, known_of

ROWS = {"什么是医生？": "治病的人。", "什么是老师？": "教书的人。"}


def check(folder):
    rows = write_rows(folder / "rows.jsonl", [{"prompt": p, "completion": c} for p, c in ROWS.items()] * 2)
    sizes = '{"num_hidden_layers": 1, "hidden_size": 64, "intermediate_size": 64, "dropout": 0.0}'
    options = ["--max_steps", 60, "--learning_rate", 1e-2, "--report_to", "none", "--save_strategy", "no"]
    options += ["--use_cpu", "--model_init_kwargs", sizes, "--output_dir", folder / "plain"]
    assert_done(command("sft", "--dataset_name", rows, *options))
    for prompt, answer in ROWS.items():
        result = command("generate", folder / "plain", "--prompt", prompt)
        assert (result.code, result.out) == (0, f"{answer}\n"), result
    place = str(folder / "plain")
    tokenizer = load_tokenizer(place)
    assert tokenizer.chat_template
    assert as_asked("x", tokenizer, known_of(place)) == "x"  # by `generate` and `compare` alike
