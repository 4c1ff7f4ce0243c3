"""What an annotator ranks next: a prompt, and answers sampled from a model, the same for everybody."""

import hashlib
import random
from dataclasses import dataclass, field
from itertools import combinations
from threading import Lock
from uuid import uuid4

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..sampling.generate import sample, seeded
from ..scoring.reward_models import score_texts
from ..text import as_completion, question
from .ranking_store import prompt_key

# Of this many prompts, the one comes next whose answers two reward models order most differently.
CANDIDATES = 8
# Samples per answer that is wanted; if too few of them differ, fewer are shown.
TRIES = 4


@dataclass
class Item:
    """A prompt, its answers, and the order in which they are shown."""

    prompt: str | list[dict]
    responses: list[str]
    shown_order: list[int]
    id: str = field(default_factory=lambda: uuid4().hex)

    @property
    def shown(self) -> list[str]:
        """The answers in the order in which they are shown."""
        return [self.responses[i] for i in self.shown_order]


class Items:
    """Chooses prompts, all different, and samples up to `num_responses` different answers to each from the policy.

    The answers follow from the seed and the prompt alone. Two reward models (with their tokenizers) may choose the
    prompt.
    """

    def __init__(
        self,
        policy: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        prompts: list,
        *,
        num_responses: int,
        max_new_tokens: int,
        reward_models: list[tuple[PreTrainedModel, PreTrainedTokenizerBase]] = (),
        seed: int = 0,
    ):
        self.policy, self.tokenizer = policy.eval(), tokenizer
        self.prompts = {prompt_key(prompt): prompt for prompt in prompts}
        self.num_responses, self.max_new_tokens = num_responses, max_new_tokens
        self.reward_models, self.seed, self.random = list(reward_models), seed, random.Random(seed)
        self.answers: dict[str, list[str]] = {}
        self.lock = Lock()  # one model, many annotators

    def next(self, done: set[str]) -> Item | None:
        """An item whose prompt is not `done`, or None if there is none left."""
        with self.lock:
            left = [key for key in self.prompts if key not in done]
            self.random.shuffle(left)
            found: list[tuple[float, str]] = []
            wanted = CANDIDATES if self.reward_models else 1
            for key in left:
                if len(found) == wanted:
                    break
                if len(self._answers(key)) > 1:  # else there is nothing to rank
                    found.append((self._disagreement(key) if self.reward_models else 0.0, key))
            if not found:
                return None
            key = max(found)[1]
            responses = self._answers(key)
            return Item(self.prompts[key], responses, self.random.sample(range(len(responses)), len(responses)))

    def _answers(self, key: str) -> list[str]:
        """Different answers that are not empty, sampled once."""
        if key not in self.answers:
            seed = int.from_bytes(hashlib.sha256(f"{self.seed} {key}".encode()).digest()[:8])
            with seeded(seed, self.policy.device):
                rows = [{"prompt": self.prompts[key]}] * (TRIES * self.num_responses)
                texts = sample(self.policy, self.tokenizer, rows, max_new_tokens=self.max_new_tokens).texts
            self.answers[key] = [text for text in dict.fromkeys(texts) if text.strip()][: self.num_responses]
        return self.answers[key]

    def _disagreement(self, key: str) -> float:
        """The share of the pairs of answers that the two reward models order differently."""
        prompt, texts = self.prompts[key], self._answers(key)
        rows, completions = [{"prompt": prompt}] * len(texts), [as_completion(prompt, text) for text in texts]
        scores = (score_texts(*scorer, rows, completions).tolist() for scorer in self.reward_models)
        pairs = list(combinations(zip(*scores, strict=True), 2))
        return sum((a[0] - b[0]) * (a[1] - b[1]) < 0 for a, b in pairs) / len(pairs)


def shown_prompt(prompt: str | list[dict]) -> str:
    """A prompt as text for a person: one message as it is, several with their roles."""
    if isinstance(prompt, str) or len(prompt) == 1:
        return question(prompt)
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in prompt)
