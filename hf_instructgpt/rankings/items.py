"""What an annotator ranks next: a prompt, and answers sampled from a model, the same for everybody."""

import hashlib
import json
import math
import time
from collections.abc import Collection
from dataclasses import dataclass
from itertools import combinations, islice
from threading import Lock

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import InputError
from ..markdown import question
from ..sampling.generate import sample, seeded
from ..scoring.reward_models import score_texts
from ..text import as_completion
from .ranking_file import MODES, RankingFile, prompt_key

# Of this many prompts, the one comes next whose answers two reward models order most differently.
CANDIDATES = 8
# An annotator who has asked for nothing for so many seconds looks at nothing any more.
AWAY_AFTER = 3600
# Samples per answer that is wanted; if too few of them differ, fewer are shown.
TRIES = 4


@dataclass(frozen=True)
class Item:
    """A prompt, its answers, and the order in which an annotator sees them.

    Attributes:
        id: Of the ranking to be made of it; the same for the same annotator, prompt, answers and seed.
        was_skipped: Whether the annotator skipped it before.
    """

    prompt: str | list[dict]
    responses: list[str]
    shown_order: list[int]
    id: str
    was_skipped: bool = False

    @property
    def key(self) -> str:
        """The prompt as one string."""
        return prompt_key(self.prompt)

    @property
    def shown(self) -> list[str]:
        """The answers in the order in which they are shown."""
        return [self.responses[i] for i in self.shown_order]


@dataclass(frozen=True)
class Progress:
    """How far an annotator, and everybody, has come, in prompts.

    Attributes:
        mine: Ranked by the annotator.
        total: There are to rank: all but `alike`.
        everyone: Ranked by at least one annotator.
        skipped: Skipped by the annotator, and not ranked.
        alike: Known to have nothing to rank, because all their samples are alike.
    """

    mine: int
    total: int
    everyone: int
    skipped: int
    alike: int


class Items:
    """Chooses prompts, all different, and samples up to `num_responses` different answers to each from the policy.

    The answers, and the order in which they are shown, follow from the seed, the prompt and the annotator alone.
    Threads may call all methods at once.

    Args:
        num_responses: Maximum number of answers per prompt; 2 in the mode `pairs`.
        reward_models: None, or two with their tokenizers: the prompts on which they disagree come first.
        overlap: Share of the prompts, 0 to 1, that everybody gets first, to measure agreement.
        mode: `ranking`, `best-worst` or `pairs`.
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
        overlap: float = 0.0,
        mode: str = "ranking",
    ):
        if not 0 <= overlap <= 1:
            raise InputError(f"`--overlap` must be 0 to 1, not {overlap}.")
        if mode not in MODES:
            raise InputError(f"`--mode` must be one of {', '.join(MODES)}, not {mode}.")
        self.policy, self.tokenizer, self.mode, self.seed = policy.eval(), tokenizer, mode, seed
        self.prompts = {prompt_key(prompt): prompt for prompt in prompts}
        self.num_responses, self.max_new_tokens = 2 if mode == "pairs" else num_responses, max_new_tokens
        self.reward_models = list(reward_models)
        num_shared = math.ceil(round(overlap * len(self.prompts), 6))
        self.shared = sorted(self.prompts, key=lambda key: self._draw("shared", key))[:num_shared]
        self._answers: dict[str, list[str]] = {}
        self._disagreements: dict[str, float] = {}
        self._open: dict[str, tuple[float, set[str]]] = {}  # who looks at which prompts, and since when
        self._lock = Lock()  # one model, many annotators

    def next(
        self,
        file: RankingFile,
        annotator: str,
        *,
        wanted: str | None = None,
        avoid: Collection[str] = (),
    ) -> Item | None:
        """What an annotator ranks next, or None if nothing is left.

        First the prompts that everybody gets; then those that nobody has ranked and nobody else looks at; then the
        rest; at last what the annotator skipped, the least recently skipped first.

        Args:
            wanted: Key of a prompt that comes first, unless the annotator has ranked it.
            avoid: Keys of the prompts that other tabs of the annotator show: they are not given again.
        """
        ranked, skipped = file.ranked(), file.skipped(annotator)
        left = self.prompts.keys() - ranked.get(annotator, set()) - set(avoid)
        new, taken = left - set(skipped), set().union(*ranked.values(), self._open_to_others(annotator))
        order = sorted(new.difference(self.shared), key=lambda key: self._draw(annotator, key))
        tiers = [
            [wanted] if wanted in left else [],
            [key for key in self.shared if key in new],
            [key for key in order if key not in taken],
            [key for key in order if key in taken],
            *([key] for key in skipped if key in left),
        ]
        key = next(filter(None, map(self._most_disputed, tiers)), None)
        self._open[annotator] = time.monotonic(), {*avoid, key}
        return None if key is None else self._item(annotator, key, was_skipped=key in skipped)

    def _open_to_others(self, annotator: str) -> set[str]:
        """The keys of the prompts at which other annotators look now, as far as this process knows."""
        since = time.monotonic() - AWAY_AFTER
        opened = list(self._open.items())
        return {key for name, (at, keys) in opened if name != annotator and at > since for key in keys}

    def item(self, annotator: str, key: str) -> Item | None:
        """An annotator's item of a prompt; None if there is no such prompt, or nothing to rank."""
        if key not in self.prompts or len(self._answers_to(key)) < 2:
            return None
        return self._item(annotator, key)

    def answers_to(self, prompt: str | list[dict]) -> list[str]:
        """Different answers to one of the prompts, sampled once; with fewer than two there is nothing to rank."""
        return self._answers_to(prompt_key(prompt))

    def _answers_to(self, key: str) -> list[str]:
        """The answers to a prompt; only who needs new ones waits for those that are being sampled."""
        if key not in self._answers:
            with self._lock:
                if key not in self._answers:
                    self._answers[key] = self._sampled(key)
        return self._answers[key]

    def progress(self, file: RankingFile, annotator: str) -> Progress:
        """How many prompts are ranked and skipped."""
        ranked, prompts = file.ranked(), self.prompts.keys()
        mine = ranked.get(annotator, set()) & prompts
        alike = {key for key, answers in list(self._answers.items()) if len(answers) < 2} - mine
        return Progress(
            mine=len(mine),
            total=len(prompts) - len(alike),
            everyone=len(prompts & set().union(*ranked.values())),
            skipped=len((prompts & set(file.skipped(annotator))) - alike),
            alike=len(alike),
        )

    def _item(self, annotator: str, key: str, *, was_skipped: bool = False) -> Item:
        responses = self._answers_to(key)
        id_ = self._draw("item", annotator, key, responses)[:32]
        order = sorted(range(len(responses)), key=lambda i: self._draw(id_, i))
        return Item(self.prompts[key], responses, order, id_, was_skipped)

    def _draw(self, *parts: object) -> str:
        """A random number as hexadecimal digits, which follows from the seed and `parts`."""
        return hashlib.sha256(json.dumps([self.seed, *parts]).encode()).hexdigest()

    def _most_disputed(self, tier: list[str]) -> str | None:
        """The first key of a tier with something to rank; with reward models the most disputed of the first ones."""
        found = (key for key in tier if len(self._answers_to(key)) > 1)
        if not self.reward_models:
            return next(found, None)
        return max(islice(found, CANDIDATES), key=self._disagreement, default=None)

    def _sampled(self, key: str) -> list[str]:
        """Different answers that are not empty; they follow from the seed and the prompt alone."""
        seed = int.from_bytes(hashlib.sha256(f"{self.seed} {key}".encode()).digest()[:8])
        with seeded(seed, self.policy.device):
            rows = [{"prompt": self.prompts[key]}] * (TRIES * self.num_responses)
            texts = sample(self.policy, self.tokenizer, rows, max_new_tokens=self.max_new_tokens).texts
        return [text for text in dict.fromkeys(texts) if text.strip()][: self.num_responses]

    def _disagreement(self, key: str) -> float:
        """The share of the pairs of answers that the two reward models order differently."""
        if key not in self._disagreements:
            prompt, texts = self.prompts[key], self._answers_to(key)
            rows, completions = [{"prompt": prompt}] * len(texts), [as_completion(prompt, text) for text in texts]
            with self._lock:
                scores = [score_texts(*scorer, rows, completions).tolist() for scorer in self.reward_models]
            pairs = list(combinations(zip(*scores, strict=True), 2))
            self._disagreements[key] = sum((a[0] - b[0]) * (a[1] - b[1]) < 0 for a, b in pairs) / len(pairs)
        return self._disagreements[key]


def shown_prompt(prompt: str | list[dict]) -> str:
    """A prompt as text for a person: one message as it is, several with their roles."""
    if isinstance(prompt, str) or len(prompt) == 1:
        return question(prompt)
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in prompt)
