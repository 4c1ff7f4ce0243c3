"""Models that answer people: what they are asked, how much of a conversation they read, and their scored answers."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

import torch
from accelerate import PartialState
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TextIteratorStreamer

from ..errors import InputError
from ..hub.model_card import Made
from ..language import say
from ..layout import is_broken_off
from ..models.forward import context_length
from ..models.loading import load_policy, load_reward_model
from ..sampling.generate import Samples, room_for_response, sample, seeded
from ..scoring.reward_models import score_texts
from ..text import as_completion, break_special_tokens, encode_row
from .load_models import check_reward_model, load_tokenizer
from .samples import as_asked, asked_row, check_sampling, known_of, wanted_tokens

POLICIES = ("sft", "ppo")  # a run's, in this order
MODEL_FILES = ("config.json", "adapter_config.json")
COLDEST, HOTTEST = 0.01, 10.0
PROMPT_LENGTH = 20_000  # characters
# Answers are sampled one after the other: the random numbers are the process's.
SAMPLING = Lock()


@dataclass(frozen=True)
class Speaker:
    """A model that answers, and its name."""

    name: str
    policy: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    made: Made | None = None  # what its card says

    @classmethod
    def load(cls, name: str, path: str, *, trust_remote_code: bool) -> "Speaker":
        """A policy by its Hub id or path."""
        trust = {"trust_remote_code": trust_remote_code}
        tokenizer, made = load_tokenizer(path, **trust), known_of(path)
        if made is not None and made.stage == "reward":
            raise InputError(f"{path} is a reward model: it scores answers and gives none. Name a policy, SFT or PPO.")
        return cls(name, load_policy(path, tokenizer, **trust).to(PartialState().device).eval(), tokenizer, made)

    def prompt(self, text: str) -> str | list[dict]:
        """The prompt in the form that the model was trained on; special tokens that were typed become text."""
        return as_asked(break_special_tokens(self.tokenizer, text), self.tokenizer, self.made)

    def row(self, text: str, turns: list[dict] | None = None) -> dict:
        """The prompt, behind earlier turns, as a row with the arguments of the chat template."""
        prompt = self.prompt(text)
        return asked_row([*turns, *prompt] if turns else prompt, self.made)

    @property
    def reads_turns(self) -> bool:
        """Whether it is asked with the earlier turns: a CharGPT was trained on single questions."""
        return isinstance(self.prompt("?"), list) and self.policy.config.model_type != "char_gpt"

    def unknown(self, text: str) -> list[str]:
        """The characters that the tokenizer reads as its unknown token."""
        unknown, tokenizer = self.tokenizer.unk_token_id, self.tokenizer
        characters = [] if unknown is None else dict.fromkeys("".join(text.split()))
        return [c for c in characters if unknown in tokenizer(c, add_special_tokens=False)["input_ids"]]

    def stream(
        self, row: dict, *, max_new_tokens: int, temperature: float = 1.0, seed: int | None = None
    ) -> Iterator[str]:
        """Yield the answer so far whenever it grows, and return its `Samples`; temperature 0 is greedy.

        The model stops at its next token if the iterator is closed or interrupted.
        """
        streamer = _Streamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True)
        settings = {"max_new_tokens": max_new_tokens, "do_sample": temperature > 0}
        settings |= {"temperature": temperature} if temperature else {}

        def generate() -> Samples:
            try:
                with SAMPLING, nullcontext() if seed is None else seeded(seed, self.policy.device):
                    return sample(self.policy, self.tokenizer, [row], streamer=streamer, **settings)
            finally:
                streamer.end()  # also where it fails

        answer = ""
        with ThreadPoolExecutor(max_workers=1) as pool:
            done = pool.submit(generate)
            try:
                for piece in streamer:
                    answer += piece
                    yield answer
            finally:
                streamer.is_stopped = True
            return done.result()  # raises what was raised there


class _Streamer(TextIteratorStreamer):
    """Ends the generation at the next token once it `is_stopped`."""

    is_stopped = False

    def put(self, value: torch.Tensor) -> None:
        if self.is_stopped:
            raise InterruptedError
        super().put(value)


def score_answer(
    reward_model: tuple[PreTrainedModel, PreTrainedTokenizerBase],
    row: dict,
    text: str,
    answer: str,
    *,
    ended: bool = True,
) -> float:
    """A reward model's score of the answer to a row; a reward model without a chat template reads the bare `text`."""
    model, tokenizer = reward_model
    prompt = break_special_tokens(tokenizer, row["prompt"] if tokenizer.chat_template else text)
    rows = [{**row, "prompt": prompt}]
    return score_texts(model, tokenizer, rows, [as_completion(prompt, answer)], ended=[ended]).item()


def load_scorer(
    name: str, *, trust_remote_code: bool, option: str = "--reward"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A reward model, named by `option`, and its tokenizer."""
    trust = {"trust_remote_code": trust_remote_code}
    check_reward_model(name, option=option, **trust)
    tokenizer = load_tokenizer(name, **trust)
    return load_reward_model(name, tokenizer=tokenizer, **trust).to(PartialState().device).eval(), tokenizer


@dataclass
class Answer:
    """An answer, complete once it has been streamed: only then has it a score and notes."""

    speaker: Speaker
    text: str = ""
    score: float | None = None
    notes: list[str] = field(default_factory=list)


@dataclass
class Chat:
    """Models that can be asked, the model that scores their answers, and the maximum length of an answer."""

    speakers: list[Speaker]
    reward_model: tuple[PreTrainedModel, PreTrainedTokenizerBase] | None = None
    max_new_tokens: int | None = None  # None: each model's own

    @classmethod
    def load(
        cls, folder: str, *, answers: str, reward: str | None, max_new_tokens: int | None, trust_remote_code: bool
    ) -> "Chat":
        """The finished policies of a run, both or one of them, and its reward model; or one model."""
        paths, scorer = {Path(folder).name or folder: folder}, None
        if _is_run(Path(folder)):
            found = [name for name in POLICIES if _has_model(Path(folder, name))]
            names = found if answers == "both" else [answers]
            paths = {name: str(Path(folder, name)) for name in names}
            scorer = str(Path(folder, "reward")) if _has_model(Path(folder, "reward")) else None
        elif answers != "both":
            raise InputError(f"`--answers` chooses from a run's models, and {folder} is no run: leave it out.")
        trust = {"trust_remote_code": trust_remote_code}
        speakers = [Speaker.load(name, path, **trust) for name, path in paths.items()]
        scorer = reward or scorer
        return cls(speakers, scorer and load_scorer(scorer, **trust), max_new_tokens)

    @property
    def example(self) -> str | None:
        """A question as the models were trained on, from the last model's card."""
        samples = [made.samples for speaker in self.speakers if (made := speaker.made) is not None and made.samples]
        return samples[-1][0].get("prompt") if samples else None

    @property
    def explanations(self) -> list[str]:
        """What a person should know before the first answer."""
        lines = []
        if self.reward_model is not None:
            lines.append(say("Scores are the reward model's: higher is better.", "分数由奖励模型给出，越高越好。"))
        if not any(speaker.reads_turns for speaker in self.speakers):
            lines.append(say("Each question is answered on its own.", "每个问题单独作答，不读取之前的对话。"))
        return lines

    def check(self, text: str) -> None:
        """Refuse a prompt that no model can be asked."""
        if not text.strip():
            raise InputError(say("the prompt is empty.", "提示为空。"))
        if len(text) > PROMPT_LENGTH:
            raise InputError(
                say(f"the prompt has more than {PROMPT_LENGTH:,} characters.", f"提示超过 {PROMPT_LENGTH:,} 个字符。")
            )
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(say("the prompt is not UTF-8 text.", "提示不是 UTF-8 文本。")) from error

    def answer(
        self, speaker: Speaker, text: str, turns: list[dict], *, temperature: float, seed: int
    ) -> Iterator[Answer]:
        """Yield a model's answer as it grows, in the end with its score; then add both to the model's `turns`."""
        check_settings(temperature, seed)
        self.check(text)
        row, room, notes = self._fit(speaker, text, turns)
        answer = Answer(speaker)
        stream = speaker.stream(row, max_new_tokens=room, temperature=temperature, seed=seed)
        while True:
            try:
                answer.text = next(stream)
            except StopIteration as end:
                samples = end.value
                break
            yield answer
        answer.text, answer.notes = samples.texts[0], [*notes, *_notes(samples)]
        if self.reward_model is not None and answer.text:
            try:
                answer.score = score_answer(self.reward_model, row, text, answer.text, ended=samples.ended[0])
            except (InputError, ValueError):  # its context is shorter than the policy's
                answer.notes.append(say("Too long for the reward model: no score.", "超出奖励模型的长度，没有分数。"))
        if speaker.reads_turns:
            reply = {"role": "assistant", "content": break_special_tokens(speaker.tokenizer, answer.text)}
            turns += [*speaker.prompt(text), reply]
        yield answer

    def _fit(self, speaker: Speaker, text: str, turns: list[dict]) -> tuple[dict, int, list[str]]:
        """The row with as many of the latest turns as leave room for an answer, that room in tokens, and notes."""
        policy, tokenizer = speaker.policy, speaker.tokenizer
        wanted = wanted_tokens(policy, speaker.made, self.max_new_tokens)
        context = context_length(policy)
        enough = wanted if context is None else min(wanted, context // 4)
        kept = turns if speaker.reads_turns else []
        while True:
            row = speaker.row(text, kept)
            room = room_for_response(policy, tokenizer, [row], wanted=wanted)
            if not kept or room >= enough:
                break
            kept = kept[2:]
        if room < 1:
            length = len(encode_row(tokenizer, row))
            raise InputError(
                say(
                    f"the prompt has {length} tokens; the context of {speaker.name} is {context}. Shorten it.",
                    f"提示有 {length} 个词元，而 {speaker.name} 的上下文只有 {context} 个。请缩短提示。",
                )
            )
        notes = []
        if unknown := speaker.unknown(text):
            shown = " ".join(unknown[:10]) + " …" * (len(unknown) > 10)
            notes.append(
                say(
                    f"Unknown characters, all read as the same token: {shown}",
                    f"模型不认识这些字符，一律按同一个未知词元处理：{shown}",
                )
            )
        if dropped := len(turns if speaker.reads_turns else []) - len(kept):
            count = dropped // 2
            notes.append(
                say(
                    f"The conversation no longer fits the context of {context} tokens: the first {count} of "
                    f"{len(turns) // 2} earlier turns are not read.",
                    f"对话超出了 {context} 个词元的上下文：之前的 {len(turns) // 2} 轮中，最早的 {count} 轮不再读入。",
                )
            )
        return row, room, notes


def _notes(samples: Samples) -> list[str]:
    """What a person should know about an answer that is empty or was cut."""
    text = samples.texts[0]
    if not text:
        return [say("The answer is empty: the model ended it at once.", "回答为空：模型立即结束了回答。")]
    if not text.strip():
        return [say(f"The answer is {len(text)} blank characters.", f"回答只有 {len(text)} 个空白字符。")]
    if not samples.ended[0]:
        length = len(samples.completion_ids[0])
        return [say(f"Cut after {length} tokens.", f"回答在 {length} 个词元处被截断。")]
    return []


def check_settings(temperature: float, seed: int) -> None:
    """Refuse a temperature or a seed that cannot be used."""
    if not (temperature == 0 or COLDEST <= temperature <= HOTTEST):
        raise InputError(
            say(
                f"the temperature must be 0 (greedy) or {COLDEST} to {HOTTEST:g}, not {temperature:g}.",
                f"温度必须是 0（贪心解码）或 {COLDEST} 到 {HOTTEST:g}，不能是 {temperature:g}。",
            )
        )
    check_sampling(seed=seed)


def _has_model(folder: Path) -> bool:
    return any((folder / file).is_file() for file in MODEL_FILES) and not is_broken_off(folder)


def _is_run(folder: Path) -> bool:
    """Whether a folder holds no model itself, but a policy of a run."""
    return not _has_model(folder) and any(_has_model(folder / name) for name in POLICIES)
