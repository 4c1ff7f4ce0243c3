"""`rank --reward` and `compare --reward` refuse a model that gives no score, before a page comes up."""

from pathlib import Path
from unittest.mock import patch

from product import assert_refused, command, policy, rank_page, saved, tokenizer, write_rows


def check(folder: Path) -> None:
    with rank_page(folder):
        pass  # is Gradio there?
    tok = tokenizer()
    model, rows = saved(folder / "model", policy(tok), tok), write_rows(folder / "p.jsonl", [{"prompt": "ab"}])
    rank = ["rank", "--model", model, "--prompts", rows, "--output", folder / "r.jsonl", "--reward", model, model]
    with patch("gradio.Blocks.launch", side_effect=AssertionError("the page came up")):
        for argv in (rank, ["compare", "--models", f"a={model}", f"b={model}", "--reward", model]):
            assert_refused(command(*argv), "`--reward`", "num_labels = 2")
