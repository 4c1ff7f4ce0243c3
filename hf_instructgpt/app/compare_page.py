"""The page of `hf-instructgpt compare`: two models answer a prompt side by side, and a person votes."""

import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Lock

import gradio as gr
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TextIteratorStreamer

from ..evaluation.comparison import log_ratios
from ..evaluation.intervals import wilson_interval
from ..hub.model_card import Made
from ..sampling.generate import Samples, room_for_response, sample
from ..scoring.reward_models import score_texts
from ..stages.samples import as_asked, asked_row
from ..text import as_completion, break_special_tokens, encode_row

LETTERS = ("A", "B")
PROMPT_LENGTH = 20_000  # characters


@dataclass(frozen=True)
class Contestant:
    """A model and its name on the page."""

    name: str
    policy: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    made: Made | None = None  # what its card says

    def prompt(self, text: str) -> str | list[dict]:
        """The prompt in the form that the model was trained on; special tokens that were typed become text."""
        return as_asked(break_special_tokens(self.tokenizer, text), self.tokenizer, self.made)

    def row(self, text: str) -> dict:
        """The prompt as a row, with the arguments of the chat template."""
        return asked_row(self.prompt(text), self.made)


@dataclass
class Round:
    """One prompt: which model is at which place, what was measured, and whether it was voted on."""

    order: list[int]
    measured: list[str] = field(default_factory=list)
    is_voted: bool = False


@dataclass
class Tally:
    """Votes in one tab, by model, and ties."""

    wins: dict[str, int]
    ties: int = 0

    def words(self) -> str:
        """The votes, and how often the second model won those that were no ties."""
        decided = sum(self.wins.values())
        text = ", ".join(f"{name} {count}" for name, count in self.wins.items()) + f", ties {self.ties}."
        if decided:
            name, count = list(self.wins.items())[-1]
            low, high = (100 * x for x in wilson_interval(count, decided))
            share = f"{count / decided:.0%}".replace("%", " %")
            text += f" {name} won {count} of {decided} decided votes ({share}, 95 % CI {low:.0f}–{high:.0f} %)."
        return text


class ComparePage:
    """The page: two contestants, and optionally a reward model and its tokenizer, which score the answers.

    `max_new_tokens` limits an answer, as does the context; `seed` decides which model is at which place.
    """

    def __init__(
        self,
        contestants: list[Contestant],
        *,
        reward_model: tuple[PreTrainedModel, PreTrainedTokenizerBase] | None,
        max_new_tokens: int,
        seed: int = 0,
    ):
        self.contestants, self.reward_model, self.max_new_tokens = contestants, reward_model, max_new_tokens
        self.random, self.lock = random.Random(seed), Lock()

    def build(self) -> gr.Blocks:
        """The app. Every text of a person or a model is in a text box, which shows it as text."""
        with gr.Blocks(title="Compare", analytics_enabled=False) as app:
            round_, tally = gr.State(None), gr.State(None)
            prompt = gr.Textbox(label="Prompt", elem_id="prompt", max_length=PROMPT_LENGTH, autofocus=True)
            with gr.Row():
                sampled = gr.Checkbox(True, label="Sample (temperature 1)", elem_id="sampled")
                blind = gr.Checkbox(True, label="Hide model names until I vote", elem_id="blind")
                ask = gr.Button("Ask both", variant="primary", elem_id="ask")
            with gr.Row():
                boxes = [
                    gr.Textbox(label=f"Answer {letter}", lines=4, interactive=False, elem_id=f"answer-{letter}")
                    for letter in LETTERS
                ]
            with gr.Row():
                votes = [gr.Button(f"{letter} is better", elem_id=f"vote-{letter}") for letter in LETTERS]
                tie = gr.Button("No difference", elem_id="tie")
            status = gr.Textbox(label="Status", interactive=False, elem_id="status", lines=3)
            asked = [[prompt, sampled, blind], [round_, *boxes, status]]
            for trigger in (ask.click, prompt.submit):
                trigger(self.answer, *asked, concurrency_limit=1, concurrency_id="models")
            for place, button in enumerate([*votes, tie]):
                voter = self.voter(place if place < len(votes) else None)
                button.click(voter, [round_, tally], [round_, tally, status])
        return app

    def answer(self, text: str, sampled: bool, blind: bool) -> Iterator[list]:
        """Stream both answers; then show what was measured, unless names are hidden."""
        if not text.strip() or len(text) > PROMPT_LENGTH:
            problem = f"The prompt has more than {PROMPT_LENGTH:,} characters." if text.strip() else "Enter a prompt."
            yield [None, "", "", problem]
            return
        order = self.random.sample(range(2), 2) if blind else [0, 1]
        round_, shown = Round(order), ["", ""]
        with self.lock:
            for place, number in enumerate(order):
                contestant = self.contestants[number]
                rows = [contestant.row(text)]
                room = room_for_response(contestant.policy, contestant.tokenizer, rows, wanted=self.max_new_tokens)
                if room < 1:
                    yield [None, *shown, f"The prompt is too long for the context of {contestant.name}."]
                    return
                for shown[place] in self._stream(contestant, text, room, sampled=sampled):
                    yield [None, *shown, "..."]
                measured = self._measure(contestant, text, shown[place])
                round_.measured.append(f"{LETTERS[place]} is {contestant.name}{measured}")
        yield [round_, *shown, "Which is better?" if blind else "\n".join(round_.measured)]

    def voter(self, place: int | None) -> Callable:
        """What a button does: count one vote for the model at a place (None: a tie), and show the names."""

        def vote(round_: Round | None, tally: Tally | None) -> list:
            if round_ is None:
                return [round_, tally, "Enter a prompt."]
            tally = tally or Tally({contestant.name: 0 for contestant in self.contestants})
            if not round_.is_voted and place is None:
                tally.ties += 1
            elif not round_.is_voted:
                tally.wins[self.contestants[round_.order[place]].name] += 1
            round_.is_voted = True
            return [round_, tally, "\n".join([*round_.measured, tally.words()])]

        return vote

    def _stream(self, contestant: Contestant, text: str, room: int, *, sampled: bool) -> Iterator[str]:
        """Yield the answer so far whenever it grows."""
        policy, tokenizer = contestant.policy, contestant.tokenizer
        streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)

        def generate() -> None:
            try:
                rows = [contestant.row(text)]
                sample(policy, tokenizer, rows, max_new_tokens=room, do_sample=sampled, streamer=streamer)
            finally:
                streamer.end()  # also where it fails

        answer = ""
        with ThreadPoolExecutor(max_workers=1) as pool:
            done = pool.submit(generate)
            for piece in streamer:
                answer += piece
                yield answer
            done.result()  # raises what was raised there
        yield answer

    def _measure(self, contestant: Contestant, text: str, answer: str) -> str:
        """Describe an answer by its score and its KL."""
        words = ""
        if self.reward_model is not None and answer.strip():
            model, tokenizer = self.reward_model
            prompt = break_special_tokens(tokenizer, contestant.prompt(text) if tokenizer.chat_template else text)
            scores = score_texts(model, tokenizer, [{"prompt": prompt}], [as_completion(prompt, answer)])
            words += f", score {scores.item():.2f}"
        first = self.contestants[0]
        if contestant is not first and answer and contestant.tokenizer.get_vocab() == first.tokenizer.get_vocab():
            words += f", KL from {first.name} {self._kl(contestant, text, answer):.2f} nats"
        return f"{words}."

    def _kl(self, contestant: Contestant, text: str, answer: str) -> float:
        """The log-ratio of an answer to the first model, summed over its tokens, in nats."""
        tokenizer, row = contestant.tokenizer, contestant.row(text)
        prompt, ids = encode_row(tokenizer, row), tokenizer(answer, add_special_tokens=False)["input_ids"]
        samples = Samples([row], [prompt], [ids], [answer], [True])
        return log_ratios(contestant.policy, self.contestants[0].policy, samples)[0]
