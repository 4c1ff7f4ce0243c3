"""The reward of the recipe: answers in short sentences."""

import re

TARGET = 8  # words a sentence


def short_sentences(completions: list, **_) -> list[float]:
    """1 where an answer's sentences have eight words on average, less the further they are from it, down to 0.

    The mean length `w` is an answer's words by its full stops, question and exclamation marks (at least one); the
    score is `min(w, 8) / max(w, 8)`. Completions are texts or messages.
    """
    texts = [completion if isinstance(completion, str) else completion[-1]["content"] for completion in completions]
    return [_score(text) for text in texts]


def _score(text: str) -> float:
    words = len(text.split())
    sentences = len(re.findall(r"[.!?]+(?=\s|$)", text))
    length = words / max(sentences, 1)
    return min(length, TARGET) / max(length, TARGET)
