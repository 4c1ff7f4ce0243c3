"""The page of `hf-instructgpt compare`: two models answer a prompt side by side, and a person votes."""

import json
import logging
from collections.abc import AsyncIterator, Iterator

import gradio as gr
from anyio import CancelScope, to_thread
from fastapi import HTTPException, Request
from pydantic import BaseModel
from starlette.concurrency import iterate_in_threadpool
from starlette.middleware import Middleware
from starlette.responses import StreamingResponse

from ..evaluation.bradley_terry import standings
from ..language import say
from ..rankings.ranking_file import prompt_key
from ..rankings.vote_file import VERDICTS, as_shown, verdict_of
from ..stages.conversation import PROMPT_LENGTH
from .compare_rounds import Arena, Question, Round
from .web import HEADERS, NAME_LENGTH, Text, page_server, refused, who

logger = logging.getLogger(__name__)
PREVIEW = 80  # characters of a prompt in the list of votes


class Asked(BaseModel):
    """A request of the page; which fields it has depends on what is asked."""

    annotator: Text = ""
    id: str = ""
    verdict: str = ""
    text: str = ""
    number: int | None = None  # of a prompt in the file, from 0
    after: str | None = None  # the vote that a conversation goes on behind
    sampled: bool = True
    blind: bool = True


class ComparePage:
    """The page of an arena: each public method answers the JSON request of its name."""

    def __init__(self, arena: Arena):
        self.arena, self.questions = arena, list(arena.prompts.items())
        self.tables: dict[str, dict] = {}  # the last one: a bootstrap takes a second

    def build(self, middleware: list[Middleware]) -> gr.Server:
        """The server of the page."""
        arena = self.arena
        settings = {"models": arena.names, "prompts": len(self.questions), "continues": arena.continues}
        settings |= {"single": [name for name in arena.names if name not in arena.readers], "maxLength": PROMPT_LENGTH}
        server = page_server("compare", settings, middleware=middleware)
        for answer in (self.state, self.next, self.ask, self.vote, self.undo, self.open, self.table):
            server.post(f"/api/{answer.__name__}")(answer)
        return server

    def state(self, asked: Asked, request: Request) -> dict:
        """The name that counts, and what this person has voted."""
        name = who(request, asked.annotator)
        mine = [row for row in self.arena.file.rows() if row["annotator"] == name]
        is_fixed = "annotator" in request.scope
        return {"annotator": name, "fixed": is_fixed, "votes": [_in_list(row) for row in mine[::-1]]}

    def next(self, asked: Asked, request: Request) -> dict:
        """The next prompt of the file, after a number, that this person has not voted on; then the first."""
        name = _name(asked, request)
        done = {prompt_key(row["prompt"]) for row in self.arena.file.rows() if row["annotator"] == name}
        left = [number for number, (key, _) in enumerate(self.questions) if key not in done]
        counts = {"done": len(self.questions) - len(left), "total": len(self.questions)}
        if not left:
            return {"number": None, **counts}
        here = -1 if asked.number is None else asked.number
        number = next((number for number in left if number > here), left[0])
        question = self.questions[number][1]
        return {"number": number, "text": question.text, "turns": question.turns, **counts}

    def ask(self, asked: Asked, request: Request) -> StreamingResponse:
        """Both answers as lines of JSON while they are written; nothing tells which model is where, if blind."""
        name = _name(asked, request)
        question = self._question(asked, name)
        begun = self.arena.begin(name, question, temperature=float(asked.sampled), is_blind=asked.blind)
        lines = _closed(_lines(self.arena, begun, len(question.turns)))
        return StreamingResponse(lines, media_type="application/jsonl", headers=HEADERS)

    def vote(self, asked: Asked, request: Request) -> dict:
        """Vote, or change a vote; it is on disk when this answers."""
        if asked.verdict not in VERDICTS:
            raise refused("malformed", f"verdict: {asked.verdict!r}")
        row = self.arena.vote(_name(asked, request), asked.id, asked.verdict)
        if row is None:
            en = "These answers are no longer known: the server was restarted. Ask again."
            raise refused("stale", say(en, "服务器已重启，这两个回答已失效，请重新提问。"))
        return self._voted(row)

    def undo(self, asked: Asked, request: Request) -> dict:
        """Take a vote back."""
        if not self.arena.undo(_name(asked, request), asked.id):
            raise _not_there()
        return {}

    def open(self, asked: Asked, request: Request) -> dict:
        """A vote with its answers."""
        if (row := self.arena.file.find(asked.id, _name(asked, request))) is None:
            raise _not_there()
        return self._voted(row)

    def table(self) -> dict:
        """The standings by all blind votes in the file, and apart from them by all others."""
        rows = self.arena.file.rows()
        key = json.dumps([[row["id"], verdict_of(row), row["blind"], row["changed"]] for row in rows])
        if key not in self.tables:
            is_blind = {row["id"]: row["blind"] and not row["changed"] for row in rows}
            self.tables = {
                key: {
                    kind: self._standings([row for row in rows if is_blind[row["id"]] is wanted])
                    for kind, wanted in (("blind", True), ("others", False))
                }
            }
        return self.tables[key]

    def _question(self, asked: Asked, name: str) -> Question:
        """What is asked: a prompt of the file, a turn behind a vote, or a text."""
        if asked.number is not None:
            if not 0 <= asked.number < len(self.questions):
                raise refused("stale", say("There is no such prompt.", "没有这个提示。"))
            return self.questions[asked.number][1]
        if asked.after is None:
            return Question(asked.text)
        if (row := self.arena.file.find(asked.after, name)) is None:
            raise _not_there()
        turns = self.arena.continued(row)
        return Question(asked.text, turns, int(turns[0]["role"] == "system"))

    def _standings(self, rows: list[dict]) -> dict:
        names = dict.fromkeys([*self.arena.names, *(name for row in rows for name in row["models"])])
        return {"count": len(rows), **standings(list(names), rows)}

    def _voted(self, row: dict) -> dict:
        """A vote, its prompt and answers, and what may be shown of them after it."""
        answers, names = as_shown(row)
        texts = [answer if isinstance(answer, str) else answer[0]["content"] for answer in answers]
        prompt = row["prompt"] if isinstance(row["prompt"], list) else [{"role": "user", "content": row["prompt"]}]
        round_ = self.arena.rounds.get(row["id"])
        shown = {"scores": round_.scores, "notes": round_.notes} if round_ else {"scores": [], "notes": [{}, {}]}
        return {**_in_list(row), "messages": prompt, "answers": texts, "names": names, **shown}


def _name(asked: Asked, request: Request) -> str:
    name = who(request, asked.annotator)
    if not name or len(name) > NAME_LENGTH:
        en = f"Enter your name, at most {NAME_LENGTH} characters."
        raise refused("nameless", say(en, f"请输入姓名，最多 {NAME_LENGTH} 个字符。"))
    return name


def _not_there() -> HTTPException:
    return refused("stale", say("That vote is not in the file.", "文件中没有这一票。"))


def _lines(arena: Arena, begun: tuple[Round, list[str]], num_turns: int) -> Iterator[str]:
    """What is sent of two answers; model and side together only if the names are shown."""
    round_, unknown = begun
    dropped = num_turns - len(round_.question.turns)
    first = {"kind": "begin", "id": round_.id, "dropped": dropped // 2, "unknown": unknown}
    yield _line(first | ({} if round_.is_blind else {"names": round_.models}))
    try:
        for piece in arena.answer(round_):
            yield _line({"kind": "wait"} if piece is None else {"kind": "text", "side": piece[0], "text": piece[1]})
    except Exception:  # the status is sent already
        logger.exception("an answer failed")
        yield _line({"kind": "failed"})
        return
    yield _line({"kind": "end", "answers": round_.answers, "notes": round_.notes})


def _line(content: dict) -> str:
    return json.dumps(content, ensure_ascii=False) + "\n"


async def _closed(lines: Iterator[str]) -> AsyncIterator[str]:
    """The lines; the models stop when the browser has gone away."""
    try:
        async for line in iterate_in_threadpool(lines):
            yield line
    finally:
        with CancelScope(shield=True):
            await to_thread.run_sync(lines.close)


def _in_list(row: dict) -> dict:
    """A vote as it is listed."""
    prompt = row["prompt"] if isinstance(row["prompt"], str) else row["prompt"][-1]["content"]
    found = {"id": row["id"], "verdict": verdict_of(row), "models": as_shown(row)[1], "prompt": prompt[:PREVIEW]}
    return found | {"blind": row["blind"], "changed": row["changed"]}
