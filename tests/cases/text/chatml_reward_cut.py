"""A response that was cut off has no end of its own, and a reward model reads none behind it."""

from pathlib import Path

from product import tokenizer

from hf_instructgpt.text import encode_prompt, scored_rows


def check(folder: Path) -> None:
    tok = tokenizer("chatml")
    prompt = [{"role": "user", "content": "a"}]
    ids, response = encode_prompt(tok, prompt), tok("bc")["input_ids"]
    rows = scored_rows(tok, [{"prompt": prompt}] * 3, [ids] * 3, [response, [*response, tok.eos_token_id], []])
    assert [tok.decode(row) for row in rows] == [
        "user:a<eos>\nassistant:bc",
        "user:a<eos>\nassistant:bc<eos>\n",
        "user:a<eos>\nassistant:",
    ]
    text_rows = scored_rows(tok, [{"prompt": "a"}], [tok("a")["input_ids"]], [[*response, tok.eos_token_id]])
    assert tok.decode(text_rows[0]) == "abc<eos>"
