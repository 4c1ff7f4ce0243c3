"""A template that writes something before the last answer alone: PPO scores what the reward model was trained on."""

from pathlib import Path

from product import assistant, tokenizer, user

from hf_instructgpt.text import encode_prompt, encode_text, scored_rows, whole_text

TEMPLATE = (
    "{% for m in messages %}{{ m.role + ':' }}{% if m.role == 'assistant' and loop.last %}[]{% endif %}"
    "{{ m.content.removeprefix('[]') + eos_token + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% if closed is defined %}[]{% endif %}{% endif %}"
)


def check(folder: Path) -> None:
    tok = tokenizer("chatml")
    tok.chat_template = TEMPLATE
    asked, end = [user("a")], [tok.eos_token_id]
    for prompt in (asked, [*asked, assistant("de")]):
        ids = encode_prompt(tok, prompt)
        responses = [tok(text)["input_ids"] + end for text in ("bc", "[]bc", "b<c")]
        rows = scored_rows(tok, [{"prompt": prompt}] * 3, [ids] * 3, responses)
        wanted = ["bc", "bc", "b<c"] if prompt == asked else ["bc", "[]bc", "b<c"]
        trained = [encode_text(tok, whole_text(prompt, text), ended=True) for text in wanted]
        assert rows == trained, [tok.decode(row) for row in rows]
    ids = encode_prompt(tok, asked)
    assert scored_rows(tok, [{"prompt": asked}], [ids], [responses[0][:-1]]) == [
        ids + responses[0][:-1]
    ]  # it was cut off
    options = {"closed": True}
    ids = encode_prompt(tok, asked, **options)
    rows = scored_rows(tok, [{"prompt": asked, "chat_template_kwargs": options}], [ids], [responses[0]])
    assert tok.decode(rows[0]) == "user:a<eos>\nassistant:[]bc<eos>\n"
