"""The reward of this recipe: short sentences."""

import re

TARGET = 8  # words per sentence


def short_sentences(completions: list, **_) -> list[float]:
    """Score 1 if an answer's sentences have eight words on average, and less the further they are from eight.

    The score is `min(w, 8) / max(w, 8)`, with w the number of words divided by the number of sentence ends (`.`, `!`
    or `?`, at least one). Completions are texts or messages.
    """
    texts = [completion if isinstance(completion, str) else completion[-1]["content"] for completion in completions]
    return [_score(text) for text in texts]


def _score(text: str) -> float:
    words = len(text.split())
    sentences = len(re.findall(r"[.!?]+(?=\s|$)", text))
    length = words / max(sentences, 1)
    return min(length, TARGET) / max(length, TARGET)
