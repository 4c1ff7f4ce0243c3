"""The page of `hf-instructgpt chat --web`: one or two models answer side by side, with the reward model's scores."""

import copy
import html
from collections.abc import Iterator
from dataclasses import dataclass, field

import gradio as gr

from ..errors import InputError
from ..language import say
from ..stages.chat import label
from ..stages.conversation import PROMPT_LENGTH, Answer, Chat, check_settings

STYLE = """
#title h1 { font-size: 1.3rem; margin: 0; }
@media (max-width: 640px) { #conversations { flex-direction: row !important; flex-wrap: nowrap; gap: 6px; }
  #conversations > * { min-width: 0 !important; } }
"""


@dataclass
class Talk:
    """The conversation of one tab: by model, the messages that are shown and the turns that the model reads."""

    shown: dict[str, list[dict]] = field(default_factory=dict)
    turns: dict[str, list[dict]] = field(default_factory=dict)


class ChatPage:
    """The page: the models of a chat, and the settings that it begins with."""

    def __init__(self, chat: Chat, *, temperature: float, seed: int):
        self.chat, self.temperature, self.seed = chat, temperature, seed
        self.names = [speaker.name for speaker in chat.speakers]

    def build(self) -> gr.Blocks:
        """The app. Markdown and HTML in what a person or a model writes are shown as text."""
        title, both = " & ".join(map(label, self.chat.speakers)), len(self.names) > 1
        with gr.Blocks(title=say("Chat", "对话"), analytics_enabled=False, fill_height=True) as app:
            talk = gr.State(None)
            heading = say(f"# Chat with {title}", f"# 与 {title} 对话")
            gr.Markdown("\n\n".join([heading, " ".join(self.chat.explanations)]), elem_id="title")
            with gr.Row(elem_id="conversations", scale=1):
                boxes = [
                    gr.Chatbot(
                        label=label(speaker),
                        elem_id=f"chat-{speaker.name}",
                        render_markdown=False,
                        latex_delimiters=[],
                        buttons=[],
                        feedback_options=None,
                        height="45vh",
                        min_width=150,
                        show_label=True,
                    )
                    for speaker in self.chat.speakers
                ]
            status = gr.Textbox(show_label=False, interactive=False, visible=False, elem_id="status", max_lines=6)
            prompt = gr.Textbox(
                label=say("Prompt", "提示"),
                placeholder=say("Ask something; Enter sends", "输入问题，按 Enter 发送"),
                elem_id="prompt",
                max_length=PROMPT_LENGTH,
                autofocus=True,
            )
            with gr.Row():
                send = gr.Button(say("Send", "发送"), variant="primary", elem_id="send", min_width=80)
                stop = gr.Button(say("Stop", "停止"), elem_id="stop", min_width=80)
                reset = gr.Button(say("New conversation", "新对话"), elem_id="reset", min_width=80)
            if self.chat.example:
                gr.Examples([[self.chat.example]], prompt, label=say("Try", "试试"))
            with gr.Accordion(say("Settings", "设置"), open=False, elem_id="settings"):
                choices = [(say("Both", "两者"), "both"), *((label(s), s.name) for s in self.chat.speakers)]
                who = gr.Radio(
                    choices, value="both", label=say("Who answers", "由谁作答"), visible=both, elem_id="who"
                )
                temperature = gr.Number(
                    self.temperature,
                    label=say("Temperature (0: greedy decoding)", "温度（0 为贪心解码）"),
                    step=0.1,
                    elem_id="temperature",
                )
                seed = gr.Number(
                    self.seed,
                    label=say("Seed (same seed, same answer)", "种子（种子相同，回答相同）"),
                    precision=0,
                    elem_id="seed",
                )
            asked = [[prompt, who, temperature, seed, talk], [prompt, talk, status, *boxes]]
            one_at_a_time = {"concurrency_limit": 1, "concurrency_id": "models", "show_progress": "hidden"}
            running = [trigger(self.answer, *asked, **one_at_a_time) for trigger in (prompt.submit, send.click)]
            stop.click(self.stopped, talk, [talk, status, *boxes], cancels=running)
            for trigger in (reset.click, *(box.clear for box in boxes)):
                trigger(self.emptied, None, [talk, status, *boxes], cancels=running)
            who.change(lambda who: [gr.update(visible=who in ("both", name)) for name in self.names], who, boxes)
        return app

    def answer(
        self, text: str, who: str, temperature: float | None, seed: float | None, talk: Talk | None
    ) -> Iterator[list]:
        """Stream the answers of the chosen models; what was asked stays in its box if it cannot be answered."""
        old = talk or Talk()
        talk = copy.deepcopy(old)
        chosen = [speaker for speaker in self.chat.speakers if who in ("both", speaker.name)]
        turns = {speaker.name: [*talk.turns.get(speaker.name, [])] for speaker in chosen}
        notes: list[str] = []
        try:
            self.chat.check(text)
            check_settings(temperature or 0.0, int(seed or 0))
            yield self._outputs("", talk, "")
            for speaker in chosen:
                shown, reads = talk.shown.setdefault(speaker.name, []), turns[speaker.name]
                shown += [
                    {"role": "user", "content": html.escape(text, quote=False)},
                    {"role": "assistant", "content": "…"},
                ]
                settings = {"temperature": temperature or 0.0, "seed": int(seed or 0)}
                for answer in self.chat.answer(speaker, text, reads, **settings):
                    shown[-1] = {"role": "assistant", "content": as_shown(answer)}
                    yield self._outputs(gr.skip(), talk, "")
                notes += [note for note in answer.notes if note not in notes]
        except InputError as error:
            yield self._outputs(text, old, str(error))
            return
        talk.turns |= turns  # only if nobody stopped them
        yield self._outputs(gr.skip(), talk, "\n".join(notes))

    def stopped(self, talk: Talk | None) -> list:
        """After a stopped answer: what there is of it is shown, and the models do not read it again."""
        note = say("Stopped; this turn is not kept.", "已停止；这一轮不计入对话。")
        return self._outputs("", talk or Talk(), note)[1:]

    def emptied(self) -> list:
        """A conversation that begins."""
        return self._outputs("", Talk(), "")[1:]

    def _outputs(self, prompt: str | dict, talk: Talk, note: str) -> list:
        status = gr.update(value=note, visible=bool(note))
        return [prompt, talk, status, *(talk.shown.get(name, []) for name in self.names)]


def as_shown(answer: Answer) -> str:
    """An answer with its score below it; the chat box renders HTML even without Markdown, so it is escaped."""
    text = html.escape(answer.text, quote=False) or "…"
    return text if answer.score is None else f"{text}\n{say('score', '分数')} {answer.score:+.2f}"
