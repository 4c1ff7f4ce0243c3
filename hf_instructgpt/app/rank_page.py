"""The page of `hf-instructgpt rank`: rank the answers to a prompt by mouse or keyboard, in random order."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Lock

import gradio as gr
from scipy.stats import rankdata

from ..text import break_special_tokens
from .prompt_queue import Item, Items, shown_prompt
from .ranking_store import RankingFile, prompt_key

NAME_LENGTH, ANSWER_LENGTH = 100, 20_000  # characters

# Digits rank the marked answer and mark the next one; other keys press buttons. While a person writes, keys are text.
KEYS = """
<script>
let marked = 0;
const cards = () => [...document.querySelectorAll(".answer")].filter((card) => card.offsetParent !== null);
function mark(number) {
  marked = Math.max(0, Math.min(number, cards().length - 1));
  cards().forEach((card, i) => card.classList.toggle("marked", i === marked));
}
const press = (id) => document.querySelector(`#${id}`)?.click();
document.addEventListener("keydown", (event) => {
  const writes = event.target.matches("textarea:not([disabled]), input[type=text], input:not([type])");
  if (event.key === "Enter" && event.ctrlKey) return press("save");
  if (event.key === "Escape" && writes) return event.target.blur();
  if (writes || event.ctrlKey || event.metaKey || event.altKey || !document.querySelector("#save")) return;
  if (event.key === "Enter" && event.target.matches("button")) return;  // which it presses
  if (/^[1-9]$/.test(event.key)) {
    document.activeElement?.blur();  // Enter is for saving now
    const choices = cards()[marked]?.querySelectorAll("input[type=radio]") ?? [];
    choices[Number(event.key) - 1]?.click();
    mark(marked + 1);
  } else if (event.key === "ArrowDown") mark(marked + 1);
  else if (event.key === "ArrowUp") mark(marked - 1);
  else if (event.key === "Enter") { press("save"); mark(0); }
  else if (event.key === "x") press("skip");
  else if (event.key === "b") press("all-bad");
  else if (event.key === "w") document.querySelector("#own textarea")?.focus();
  else return;
  event.preventDefault();
});
</script>
"""
STYLE = ".answer { padding: .5rem; border-left: .3rem solid transparent; } .marked { border-left-color: #2f6fd0; }"
HELP = (
    "Keys: 1 to 9 rank the marked answer and mark the next; up and down move the mark; Enter saves; b: all are bad; "
    "x: skip; w: write your own answer (Ctrl+Enter saves, Escape leaves it). Equal ranks tie."
)


@dataclass
class Session:
    """What one tab shows, and who ranks there."""

    item: Item | None = None
    annotator: str = ""
    shown_at: float = field(default_factory=time.monotonic)


def save(
    file: RankingFile,
    session: Session,
    annotator: str,
    ranks: list[int | None],
    own: str = "",
    own_rank: int | None = None,
    *,
    all_bad: bool = False,
) -> str | None:
    """Put a ranking on disk; returns what is missing, or None.

    `ranks` are in the order shown; `own` is an answer that the annotator wrote, or empty.
    """
    item, own = session.item, own.strip()
    if len(own) > ANSWER_LENGTH:
        return f"Not saved: your own answer may have at most {ANSWER_LENGTH:,} characters."
    if None in ranks or (own and own_rank is None):
        return "Not saved: rank every answer."
    by_place = dict(zip(item.shown_order, ranks, strict=True))
    numbers = [by_place[place] for place in range(len(item.responses))]
    if own:
        numbers.append(own_rank)
    file.add(
        {
            "prompt": item.prompt,
            "responses": [*item.responses, own] if own else item.responses,
            "ranks": rankdata(numbers, method="dense").astype(int).tolist(),
            "all_bad": all_bad,
            "written": bool(own),
            "annotator": annotator,
            "seconds": round(time.monotonic() - session.shown_at, 1),
            "shown_order": item.shown_order,
            "id": item.id,
        }
    )
    return None


class RankPage:
    """The page. Every text of a model or of the data is in a text box, which shows it as text."""

    def __init__(self, items: Items, file: RankingFile):
        self.items, self.file, self.most = items, file, items.num_responses
        # By the ids of the items that some tab shows: who ranks there, and the prompt.
        self.open: dict[str, tuple[str, str]] = {}
        self.lock = Lock()

    def build(self) -> gr.Blocks:
        """The app, to be launched with `KEYS` and `STYLE`."""
        choices = list(range(1, self.most + 2))  # one more than there are: the annotator's own
        with gr.Blocks(title="Rank answers", analytics_enabled=False) as app:
            session = gr.State(None, delete_callback=self._close)  # when a tab is closed
            item_id = gr.Textbox(visible=False)  # of what the person sees
            with gr.Row():
                name = gr.Textbox(label="Your name", elem_id="annotator", max_length=NAME_LENGTH)
                start = gr.Button("Start", elem_id="start")
            status = gr.Textbox(label="Status", info=HELP, interactive=False, elem_id="status")
            with gr.Column(visible=False) as work:
                prompt = gr.Textbox(label="Prompt", interactive=False, elem_id="prompt")
                cards, texts, ranks = [], [], []
                for number in range(1, self.most + 1):
                    with gr.Column(elem_classes="answer") as card:
                        box = {"label": f"Answer {number}", "interactive": False, "elem_id": f"answer-{number}"}
                        texts.append(gr.Textbox(**box))
                        ranks.append(gr.Radio(choices, label="Rank (1 is best)", elem_id=f"rank-{number}"))
                    cards.append(card)
                with gr.Column(elem_classes="answer"):
                    own = gr.Textbox(label="A better answer of your own", elem_id="own", max_length=ANSWER_LENGTH)
                    own_rank = gr.Radio(choices, value=1, label="Its rank", elem_id="own-rank")
                with gr.Row():
                    buttons = {
                        gr.Button("Save", variant="primary", elem_id="save"): (self.save, "Saved."),
                        gr.Button("All bad", elem_id="all-bad"): (self.all_bad, "Saved: all bad."),
                        gr.Button("Skip", elem_id="skip"): (self.skip, "Skipped."),
                    }
            outputs = [session, status, item_id, work, prompt, *cards, *texts, *ranks, own, own_rank]
            self.num_outputs = len(outputs)
            for button, (action, said) in buttons.items():
                inputs = [session, item_id, name, own, own_rank, *ranks]
                event = {"api_name": action.__name__, "concurrency_limit": 1, "concurrency_id": "write"}
                button.click(self.action(action, said), inputs, outputs, **event)
            start.click(self.start, [session, name], outputs)
            name.submit(self.start, [session, name], outputs)
        return app

    def start(self, request: gr.Request, session: Session | None, annotator: str) -> list:
        """Show an annotator's first item."""
        annotator = _who(request, annotator)
        if not annotator or len(annotator) > NAME_LENGTH:
            return self._stay(session, f"Enter your name to start (at most {NAME_LENGTH} characters).")
        self._close(session)
        return self._next(annotator, f"Hi {annotator}:")

    def save(self, session: Session, annotator: str, own: str, own_rank: int | None, ranks: list) -> str | None:
        """Store a ranking."""
        text = break_special_tokens(self.items.tokenizer, own)
        return save(self.file, session, annotator, ranks, text, own_rank)

    def all_bad(self, session: Session, annotator: str, *_) -> str | None:
        """Store that no answer is any good: equal ranks, of which the trainer makes no pair."""
        return save(self.file, session, annotator, [1] * len(session.item.responses), all_bad=True)

    def skip(self, session: Session, annotator: str, *_) -> None:
        """Store that the annotator does not want this prompt."""
        self.file.skip(session.item.prompt, annotator)

    def action(self, store: Callable, said: str) -> Callable:
        """What a button does: `store`, and show the next item."""

        def act(request: gr.Request, session: Session | None, item_id: str, name: str, own: str, own_rank, *ranks):
            annotator = _who(request, name)
            if session is None or session.item is None or session.annotator != annotator:
                return self._stay(session, "Enter your name and press Start.")
            if session.item.id != item_id:  # pressed before the next item could be seen
                return self._stay(session, "Not saved: too early. Look at these answers first.")
            try:
                problem = store(session, annotator, own, own_rank, list(ranks[: len(session.item.responses)]))
            except OSError as error:
                problem = f"Not saved: {error}"
            if problem:
                return self._stay(session, problem)
            self._close(session)
            return self._next(annotator, said)

        return act

    def _close(self, session: Session | None) -> None:
        """A tab no longer shows its item."""
        if session is not None and session.item is not None:
            self.open.pop(session.item.id, None)

    def _next(self, annotator: str, message: str) -> list:
        """All components with an annotator's next item, which is not one that another tab of theirs shows."""
        with self.lock:
            elsewhere = {key for who, key in self.open.values() if who == annotator}
            item, rows = self.items.next(self.file.done(annotator) | elsewhere), self.file.rows()
            if item is not None:
                self.open[item.id] = (annotator, prompt_key(item.prompt))
        same, total = self.file.agreement()
        mine = sum(row["annotator"] == annotator for row in rows)
        message += f" {mine:,} of {len(self.items.prompts):,} ranked (everyone: {len(rows):,})."
        message += f" Annotators agree on {same:,} of {total:,} pairs ({same / total:.0%})." if total else ""
        message += " All done, thank you!" if item is None else ""
        shown = [] if item is None else item.shown
        return [
            Session(item, annotator),
            message,
            "" if item is None else item.id,
            gr.update(visible=item is not None),
            "" if item is None else shown_prompt(item.prompt),
            *(gr.update(visible=i < len(shown)) for i in range(self.most)),
            *shown,
            *[""] * (self.most - len(shown)),
            *[None] * self.most,
            "",
            1,
        ]

    def _stay(self, session: Session | None, message: str) -> list:
        return [session, message, *[gr.skip()] * (self.num_outputs - 2)]


def _who(request: gr.Request, annotator: str) -> str:
    """The name that was used to log in, else the one in the box."""
    return (request.username or annotator or "").strip()
