"""A special token that somebody typed is text in all that a message holds, its tool calls and thoughts too."""

from pathlib import Path

from product import tokenizer

from hf_instructgpt.text import break_special_tokens


def check(folder: Path) -> None:
    message = {
        "role": "assistant",
        "content": "a<eos>",
        "reasoning_content": "b<eos>",
        "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"name": ["c<eos>", 1]}}}],
    }
    broken = break_special_tokens(tokenizer("chatml"), [message])[0]
    assert broken["content"] == "a< eos>" and broken["reasoning_content"] == "b< eos>"
    assert broken["tool_calls"][0]["function"] == {"name": "f", "arguments": {"name": ["c< eos>", 1]}}
    assert broken["role"] == "assistant"
