"""The page of `hf-instructgpt rank`: a prompt, answers in hidden order, a rank for each, by mouse or keyboard."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Lock

import gradio as gr

from ..text import break_special_tokens
from .prompt_queue import Item, Items, shown_prompt
from .ranking_store import RankingFile, dense_ranks, prompt_key

NAME_LENGTH, ANSWER_LENGTH = 100, 20_000  # characters

# Digits rank the answer that is marked and mark the next one; other keys press buttons; none of it while one writes.
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
    "Keys: 1 to 9 rank the marked answer and mark the next, up and down mark, Enter saves, b says that all are bad, "
    "x skips, w writes an answer of your own (Ctrl+Enter saves from there, Escape leaves it). Equal numbers tie."
)


@dataclass
class Session:
    """What one tab has before it, and who ranks there."""

    item: Item | None = None
    annotator: str = ""
    shown_at: float = field(default_factory=time.monotonic)


def save(
    file: RankingFile, session: Session, annotator: str, ranks: list[int | None], own: str, own_rank: int | None
) -> str | None:
    """Put an item's ranking on disk. Returns what is missing, None once it is there.

    `ranks` are in the order shown; `own` is an answer that the annotator wrote, empty if none.
    """
    item, own = session.item, own.strip()
    if len(own) > ANSWER_LENGTH:
        return f"Not saved: an answer of your own may have {ANSWER_LENGTH} characters."
    if any(rank is None for rank in ranks) or (own and own_rank is None):
        return "Not saved: every answer needs a rank."
    numbers: list[int] = [0] * len(item.responses)
    for place, rank in zip(item.shown_order, ranks, strict=True):
        numbers[place] = rank
    _store(file, session, annotator, [*numbers, own_rank] if own else numbers, own=own, all_bad=False)
    return None


def save_all_bad(file: RankingFile, session: Session, annotator: str) -> None:
    """Put on disk that no answer is any good: equal ranks, of which the trainer makes no pair."""
    _store(file, session, annotator, [1] * len(session.item.responses), own="", all_bad=True)


def _store(
    file: RankingFile, session: Session, annotator: str, numbers: list[int], *, own: str, all_bad: bool
) -> None:
    item = session.item
    file.add(
        {
            "prompt": item.prompt,
            "responses": [*item.responses, own] if own else item.responses,
            "ranks": dense_ranks(numbers),
            "all_bad": all_bad,
            "written": bool(own),
            "annotator": annotator,
            "seconds": round(time.monotonic() - session.shown_at, 1),
            "shown_order": item.shown_order,
            "id": item.id,
        }
    )


class RankPage:
    """The page. Every text of a model or of data stands in a text box, which shows it as text.

    Args:
        items ([`Items`]): What is shown. file ([`RankingFile`]): Where the rankings go.
    """

    def __init__(self, items: Items, file: RankingFile):
        self.items, self.file, self.most = items, file, items.num_responses
        # By the ids of the items that some tab has before it: who ranks there, and the prompt.
        self.open: dict[str, tuple[str, str]] = {}
        self.lock = Lock()

    def build(self) -> gr.Blocks:
        """The app, to be launched with `KEYS` and `STYLE`."""
        choices = list(range(1, self.most + 2))  # one more than there are: the annotator's own
        with gr.Blocks(title="Rank answers", analytics_enabled=False) as app:
            session = gr.State(None, delete_callback=self._close)  # when a tab is closed
            item_id = gr.Textbox(visible=False)  # of what the person sees
            with gr.Row():
                name = gr.Textbox(label="Who ranks", elem_id="annotator", max_length=NAME_LENGTH)
                start = gr.Button("Start", elem_id="start")
            status = gr.Textbox(label="Status", info=HELP, interactive=False, elem_id="status")
            with gr.Column(visible=False) as work:
                prompt = gr.Textbox(label="Prompt", interactive=False, elem_id="prompt")
                cards, texts, ranks = [], [], []
                for number in range(1, self.most + 1):
                    with gr.Column(elem_classes="answer") as card:
                        texts.append(
                            gr.Textbox(label=f"Answer {number}", interactive=False, elem_id=f"answer-{number}")
                        )
                        ranks.append(gr.Radio(choices, label="Rank, 1 is best", elem_id=f"rank-{number}"))
                    cards.append(card)
                with gr.Column(elem_classes="answer"):
                    own = gr.Textbox(label="A better one of your own", elem_id="own", max_length=ANSWER_LENGTH)
                    own_rank = gr.Radio(choices, value=1, label="Its rank", elem_id="own-rank")
                with gr.Row():
                    buttons = {
                        gr.Button("Save", variant="primary", elem_id="save"): self.save,
                        gr.Button("All bad", elem_id="all-bad"): self.all_bad,
                        gr.Button("Skip", elem_id="skip"): self.skip,
                    }
            outputs = [session, status, item_id, work, prompt, *cards, *texts, *ranks, own, own_rank]
            self.num_outputs = len(outputs)
            for button, action in buttons.items():
                inputs = [session, item_id, name, own, own_rank, *ranks]
                button.click(action, inputs, outputs, concurrency_limit=1, concurrency_id="write")
            start.click(self.start, [session, name], outputs)
            name.submit(self.start, [session, name], outputs)
        return app

    def start(self, request: gr.Request, session: Session | None, annotator: str) -> list:
        """The first item of an annotator."""
        annotator = _who(request, annotator)
        if not annotator or len(annotator) > NAME_LENGTH:
            return self._stay(session, f"Say who ranks first, in at most {NAME_LENGTH} characters.")
        self._close(session)
        return self._next(annotator, f"{annotator} ranks.")

    def save(
        self, request: gr.Request, session: Session | None, item_id: str, annotator: str, own: str, own_rank, *ranks
    ) -> list:
        """Store a ranking and go on."""

        def do(who: str) -> str | None:
            text = break_special_tokens(self.items.tokenizer, own)
            return save(self.file, session, who, list(ranks[: len(session.item.responses)]), text, own_rank)

        return self._act(do, "Saved.", session, item_id, _who(request, annotator))

    def all_bad(self, request: gr.Request, session: Session | None, item_id: str, annotator: str, *_) -> list:
        """Store that no answer is any good, and go on."""
        do = lambda who: save_all_bad(self.file, session, who)  # noqa: E731
        return self._act(do, "Saved: all bad.", session, item_id, _who(request, annotator))

    def skip(self, request: gr.Request, session: Session | None, item_id: str, annotator: str, *_) -> list:
        """Go on without a ranking."""
        do = lambda who: self.file.skip(session.item.prompt, who)  # noqa: E731
        return self._act(do, "Skipped.", session, item_id, _who(request, annotator))

    def _act(
        self, do: Callable[[str], str | None], said: str, session: Session | None, item_id: str, annotator: str
    ) -> list:
        if session is None or session.item is None or session.annotator != annotator:
            return self._stay(session, "Say who ranks first, and press Start.")
        if session.item.id != item_id:  # pressed before the next item was there to be seen
            return self._stay(session, "Not saved: too early. Look at these answers first.")
        try:
            problem = do(annotator)
        except OSError as error:
            problem = f"Not saved: {error}"
        if problem:
            return self._stay(session, problem)
        self._close(session)
        return self._next(annotator, said)

    def _close(self, session: Session | None) -> None:
        """A tab no longer has its item before it."""
        if session is not None and session.item is not None:
            self.open.pop(session.item.id, None)

    def _next(self, annotator: str, message: str) -> list:
        """The next item for an annotator, on all components; none that another tab of theirs has before it."""
        with self.lock:
            elsewhere = {key for who, key in self.open.values() if who == annotator}
            item, rows = self.items.next(self.file.done(annotator) | elsewhere), self.file.rows()
            if item is not None:
                self.open[item.id] = (annotator, prompt_key(item.prompt))
        same, total = self.file.agreement()
        mine = sum(row["annotator"] == annotator for row in rows)
        message += f" {mine} of yours, {len(rows)} in all."
        message += f" Annotators agree in {same} of {total} pairs ({same / total:.0%})." if total else ""
        message += " No prompt is left." if item is None else ""
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
    """The name that was logged in with, else the one in the box."""
    return (request.username or annotator or "").strip()
