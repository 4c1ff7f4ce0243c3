"""Who answers a prompt on the page of `compare`: a pair of models, drawn so that all pairs come up equally often."""

import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from threading import Lock
from uuid import uuid4

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import InputError
from ..language import say
from ..models.forward import context_length
from ..rankings.ranking_file import prompt_key
from ..rankings.vote_file import SIDES, VoteFile, as_shown
from ..sampling.generate import room_for_response
from ..stages.conversation import PROMPT_LENGTH, Speaker, score_answer
from ..text import as_completion, break_special_tokens

MAX_ROUNDS = 1000  # that are kept without a vote, the latest
SECONDS = 0.5  # after which a browser that waits for others is told so


@dataclass
class Question:
    """What a model is asked: a text behind earlier turns, of which the first `fixed` must be read."""

    text: str
    turns: list[dict] = field(default_factory=list)
    fixed: int = 0


@dataclass
class Round:
    """One question and the answers of two models, A's before B's."""

    annotator: str
    question: Question
    models: list[str]
    is_blind: bool
    temperature: float
    seed: int
    max_new_tokens: int
    id: str = field(default_factory=lambda: uuid4().hex)
    answers: list[str] = field(default_factory=lambda: ["", ""])
    notes: list[dict] = field(default_factory=lambda: [{}, {}])
    scores: list[float | None] = field(default_factory=lambda: [None, None])
    completed: float | None = None  # by `time.monotonic`


class Arena:
    """Two or more models, the file of the votes on their answers, and optionally a reward model and prompts.

    `max_new_tokens` limits an answer, as does the context; `seed` fixes pairs, sides and answers.
    """

    def __init__(
        self,
        speakers: list[Speaker],
        output: str | Path,
        *,
        reward_model: tuple[PreTrainedModel, PreTrainedTokenizerBase] | None,
        max_new_tokens: int,
        prompts: list[str | list[dict]],
        seed: int | None = None,
    ):
        self.speakers = {speaker.name: speaker for speaker in speakers}
        self.readers = [speaker.name for speaker in speakers if speaker.reads_turns]
        self.in_messages = any(isinstance(speaker.prompt("?"), list) for speaker in speakers)
        self.file = VoteFile(output, in_messages=self.in_messages)
        self.reward_model, self.max_new_tokens = reward_model, max_new_tokens
        self.random, self.rounds = random.Random(seed), {}
        self.models_lock, self.rounds_lock = Lock(), Lock()
        found = [self._question_of(prompt, number) for number, prompt in enumerate(prompts, start=1)]
        self.prompts = {prompt_key(self.prompt(question)): question for question in found}

    @property
    def names(self) -> list[str]:
        """Of the models, in the order in which they were given."""
        return list(self.speakers)

    def prompt(self, question: Question) -> str | list[dict]:
        """A question in the form of the file of votes."""
        asked = {"role": "user", "content": question.text}
        return [*question.turns, asked] if self.in_messages else question.text

    def continued(self, row: dict) -> list[dict]:
        """The turns behind which a conversation goes on after a vote: with the preferred answer, or else A."""
        if not self.continues:
            raise InputError(say("these models read no earlier turns.", "这些模型不读取之前的对话。"))
        return [*row["prompt"], *row["chosen"]]

    @property
    def continues(self) -> bool:
        """Whether two models read earlier turns."""
        return len(self.readers) > 1

    def begin(
        self, annotator: str, question: Question, *, temperature: float, is_blind: bool
    ) -> tuple[Round, list[str]]:
        """A round whose question fits both models, and the characters that one of them does not know."""
        text = self._clean(question.text)
        if not text.strip() or len(text) > PROMPT_LENGTH or any("\ud800" <= c <= "\udfff" for c in text):
            en = f"Enter a prompt of 1 to {PROMPT_LENGTH:,} characters, without half a character (a lone surrogate)."
            raise InputError(say(en, f"请输入 1 到 {PROMPT_LENGTH:,} 个字符，不能含半个字符（孤立的代理项）。"))
        with self.rounds_lock:
            models = self._draw(self.readers if question.turns else self.names)
            seed = self.random.randrange(2**31)
        question, room = self._fit(models, Question(text, question.turns, question.fixed))
        unknown = [c for name in models for c in self.speakers[name].unknown(text)]
        round_ = Round(annotator, question, models, is_blind, temperature, seed, room)
        with self.rounds_lock:
            self.rounds[round_.id] = round_
            for id in list(self.rounds)[:-MAX_ROUNDS]:
                del self.rounds[id]
        return round_, list(dict.fromkeys(unknown))

    def _draw(self, names: list[str]) -> list[str]:
        """A pair that was compared least often, by votes or in rounds without a vote yet, on random sides."""
        pairs = {id: round_.models for id, round_ in self.rounds.items()}
        pairs |= {row["id"]: row["models"] for row in self.file.rows()}
        compared = Counter(map(frozenset, pairs.values()))
        least = min(compared[frozenset(pair)] for pair in combinations(names, 2))
        pair = self.random.choice([p for p in combinations(names, 2) if compared[frozenset(p)] == least])
        return self.random.sample(pair, 2)

    def _fit(self, models: list[str], question: Question) -> tuple[Question, int]:
        """The question with as many of its latest turns as leave both models room, and that room in tokens."""
        speakers, wanted, turns = [self.speakers[name] for name in models], self.max_new_tokens, question.turns
        contexts = [context for speaker in speakers if (context := context_length(speaker.policy)) is not None]
        enough = min([wanted, *(context // 4 for context in contexts)])
        while True:
            room = min(
                room_for_response(s.policy, s.tokenizer, [s.row(question.text, turns)], wanted=wanted)
                for s in speakers
            )
            if room >= enough or len(turns) < question.fixed + 2:
                break
            turns = [*turns[: question.fixed], *turns[question.fixed + 2 :]]
        if room < 1:  # not which of them: that could tell who is where
            raise InputError(
                say("the prompt is too long for a model's context. Shorten it.", "提示超出模型的上下文，请缩短。")
            )
        return Question(question.text, turns, question.fixed), room

    def answer(self, round_: Round) -> Iterator[tuple[int, str] | None]:
        """Yield (side, new text) as both models answer, one after the other; None while others are being answered."""
        while not self.models_lock.acquire(timeout=SECONDS):
            yield None
        try:
            for side, name in enumerate(round_.models):
                yield from self._answer(round_, side, self.speakers[name])
        finally:
            self.models_lock.release()
        round_.completed = time.monotonic()

    def _answer(self, round_: Round, side: int, speaker: Speaker) -> Iterator[tuple[int, str]]:
        question, shown = round_.question, ""
        row, room = speaker.row(question.text, question.turns), round_.max_new_tokens
        # Two models with one seed would draw the same random numbers.
        stream = speaker.stream(row, max_new_tokens=room, temperature=round_.temperature, seed=round_.seed + side)
        while True:
            try:
                text = next(stream)
            except StopIteration as end:
                samples = end.value
                break
            yield side, text[len(shown) :]
            shown = text
        text = round_.answers[side] = samples.texts[0]
        if not text.strip():
            round_.notes[side]["empty"] = len(text)
        elif not samples.ended[0]:
            round_.notes[side]["cut"] = len(samples.completion_ids[0])
        if self.reward_model is not None and text.strip():
            try:
                score = score_answer(self.reward_model, row, question.text, text, ended=samples.ended[0])
                round_.scores[side] = score
            except (InputError, ValueError):  # its context is shorter than the policy's
                round_.notes[side]["unscored"] = True

    def vote(self, annotator: str, id: str, verdict: str) -> dict | None:
        """Put a vote on disk, or change it, and return its row; None if neither it nor its round is known any more."""
        row = self.file.find(id, annotator)
        round_ = self.rounds.get(id)
        if row is None and round_ is not None and round_.annotator == annotator and round_.completed is not None:
            row = self._row(round_)
            row["blind"] = round_.is_blind and not self._has_seen(annotator, row)
        if row is not None and row["chosen"] == row["rejected"] and verdict in SIDES:
            raise InputError(say("both answers are the same: none is better.", "两个回答相同，分不出好坏。"))
        return None if row is None else self.file.vote(row, verdict)

    def undo(self, annotator: str, id: str) -> bool:
        """Take a vote back; the next one on its answers, whose names were shown, is not blind."""
        row = self.file.remove(id, annotator)
        if row is None:
            return False
        with self.rounds_lock:
            if id not in self.rounds:  # before a restart
                self.rounds[id] = _round_of(row)
            self.rounds[id].is_blind = False
        return True

    def _row(self, round_: Round) -> dict:
        prompt = self.prompt(round_.question)
        chosen, rejected = (as_completion(prompt, self._clean(text)) for text in round_.answers)
        row = {"prompt": prompt, "chosen": chosen, "rejected": rejected, "tie": False, "both_bad": False}
        row |= {"models": round_.models, "chosen_side": SIDES[0], "blind": round_.is_blind, "changed": False}
        row |= {"annotator": round_.annotator, "seconds": round(time.monotonic() - round_.completed, 1)}
        row |= {"temperature": round_.temperature, "seed": round_.seed, "max_new_tokens": round_.max_new_tokens}
        return {**row, "id": round_.id}

    def _has_seen(self, annotator: str, row: dict) -> bool:
        """Whether one of the answers was shown before, with its model's name: greedy ones come again."""
        rows = [known for known in self.file.rows() if known["annotator"] == annotator]
        mine = [round_ for round_ in self.rounds.values() if round_.annotator == annotator and not round_.is_blind]
        rows += [self._row(round_) for round_ in mine if round_.completed is not None]
        return any(_named(row) & _named(known) for known in rows)

    def _question_of(self, prompt: str | list[dict], number: int) -> Question:
        """A prompt of a file, whose last message must be a person's."""
        if isinstance(prompt, str):
            return Question(self._clean(prompt))
        *turns, last = prompt
        if last["role"] != "user" or not isinstance(last.get("content"), str):
            raise InputError(f"`--prompts`, prompt {number}: it must end with a message of the user, a text.")
        if turns and len(self.readers) < len(self.speakers):
            name = next(name for name in self.names if name not in self.readers)
            raise InputError(f"`--prompts`, prompt {number}: it has several messages, but {name} reads only one.")
        return Question(self._clean(last["content"]), turns, len(turns))

    def _clean(self, text: str) -> str:
        """A text in which no model finds a special token: all read the same."""
        for speaker in self.speakers.values():
            text = break_special_tokens(speaker.tokenizer, text)
        return text


def _named(row: dict) -> set[tuple]:
    """The prompt with each answer and its model."""
    pairs = zip((row["chosen"], row["rejected"]), row["models"], strict=True)
    return {(prompt_key(row["prompt"]), prompt_key(answer), name) for answer, name in pairs}


def _round_of(row: dict) -> Round:
    """The round of a vote that was taken back, as far as its row tells."""
    answers, models = as_shown(row)
    prompt = row["prompt"]
    question = Question(prompt) if isinstance(prompt, str) else Question(prompt[-1]["content"], prompt[:-1])
    settings = [row.get(name, 0) for name in ("temperature", "seed", "max_new_tokens")]
    texts = [answer if isinstance(answer, str) else answer[0]["content"] for answer in answers]
    round_ = Round(row["annotator"], question, models, False, *settings, id=row["id"], answers=texts)
    round_.completed = time.monotonic()
    return round_
