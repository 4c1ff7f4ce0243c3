"""The page of `hf-instructgpt rank`: people rank the answers to a prompt, see how far they agree, and publish."""

import json
from dataclasses import asdict
from typing import Annotated

import gradio as gr
from fastapi import Request
from huggingface_hub import HfApi
from markdown_it import MarkdownIt
from pydantic import BaseModel, ConfigDict, Field
from scipy.stats import rankdata
from starlette.middleware import Middleware

from ..hub.model_card import README_FILE
from ..hub.upload import create_repo, hub_errors, push_files
from ..markdown import render
from ..rankings.agreement import agreement, annotators
from ..rankings.items import Item, Items
from ..rankings.ranking_file import RankingFile, prompt_key
from ..text import break_special_tokens
from .web import NAME_LENGTH, Text, page_server, refused, who

ANSWER_LENGTH = 20_000  # characters
RANKINGS_FILE = "rankings.jsonl"


# ---- Requests ------------------------------------------------------------------------------------------------------


class Asked(BaseModel):
    """What every request says: who asks, unless a password tells that."""

    model_config = ConfigDict(strict=True, extra="forbid")

    annotator: Text = ""


class AskedNext(Asked):
    """Keys of the prompt that the page showed before it was loaded again, and of those that other tabs show."""

    wanted: Text | None = None
    avoid: list[Text] = []


class AskedItem(Asked):
    """An item that the page shows."""

    id: Text
    key: Text


class AskedSave(AskedItem):
    """Ranks in the order shown; `own` is an answer that the annotator wrote, or empty, and its rank 0 above all."""

    ranks: list[Annotated[int, Field(ge=1, le=10)]]
    own: Text = ""
    own_rank: Annotated[int, Field(ge=0, le=10)] = 0
    all_bad: bool = False
    seconds: Annotated[float, Field(ge=0, le=1e7, allow_inf_nan=False)]
    edit: bool = False


class AskedOpen(Asked):
    """A ranking of one's own."""

    id: Text


class AskedHTML(Asked):
    """Texts in Markdown."""

    texts: Annotated[list[Text], Field(max_length=50)]


# ---- Markdown ------------------------------------------------------------------------------------------------------


def _markdown() -> MarkdownIt:
    """A renderer whose HTML runs and loads nothing: no HTML of the text's own, no images, links to the web alone."""
    markdown = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"]).disable("image")
    markdown.validateLink = lambda url: url.lower().startswith(("http://", "https://"))
    open_link = markdown.renderer.rules.get("link_open", markdown.renderer.renderToken)

    def link(tokens, index, options, env):
        outside = {"target": "_blank", "rel": "noopener noreferrer nofollow"}
        tokens[index].attrs = tokens[index].attrs | outside if tokens[index].attrs["href"] else {}
        return open_link(tokens, index, options, env)

    def cell(tokens, index, options, env):
        tokens[index].attrs.clear()  # the policy allows no style
        return markdown.renderer.renderToken(tokens, index, options, env)

    markdown.renderer.rules |= {"link_open": link, "th_open": cell, "td_open": cell}
    return markdown


# ---- The page ------------------------------------------------------------------------------------------------------


class RankPage:
    """The page, whose script shows every text as text unless a person asks for Markdown.

    Args:
        guidelines (`str`): What annotators should look at, in Markdown.
        push_to (`str`, *optional*): The repository on the Hub that the page may fill; none can be named by a request.
    """

    def __init__(self, items: Items, file: RankingFile, *, guidelines: str = "", push_to: str | None = None):
        self.items, self.file, self.push_to = items, file, push_to
        self.markdown = _markdown()
        self.guidelines = self.markdown.render(guidelines) if guidelines else ""

    def build(self, middleware: list[Middleware]) -> gr.Server:
        """The server, to be launched."""
        settings = {"guidelines": self.guidelines, "push_to": self.push_to}
        settings |= {"name_length": NAME_LENGTH, "answer_length": ANSWER_LENGTH}
        server = page_server("rank", settings, middleware=middleware)
        actions = (self.who, self.next, self.save, self.skip, self.undo, self.mine, self.open, self.agreement)
        for action in (*actions, self.html, self.export, *([self.push] if self.push_to else [])):
            server.post(f"/api/{action.__name__}")(action)
        return server

    # ---- What is ranked --------------------------------------------------------------------------------------------

    def who(self, request: Request) -> dict:
        """The name that a person logged in with; empty if no password is needed."""
        return {"annotator": who(request, "")}

    def next(self, request: Request, asked: AskedNext) -> dict:
        """What an annotator ranks next: the prompt that is wanted, if it is still to do."""
        name = self._name(request, asked)
        item = self.items.next(self.file, name, wanted=asked.wanted, avoid=asked.avoid)
        shown = None if item is None else self._shown(item, self._mode(item))
        return {"annotator": name, "item": shown, "progress": self._progress(name)}

    def save(self, request: Request, asked: AskedSave) -> dict:
        """Put a ranking on disk, or in place of an earlier one; the same request again changes nothing."""
        name = self._name(request, asked)
        if asked.edit:
            old = self._mine(name, asked.id)
            if not self.file.replace(self._row(name, _item_of(old), asked, mode=_mode_of(old))):
                raise refused("gone", "This ranking is no longer there.")
            return {"saved": True}
        item = self._item(name, asked)
        row = self._row(name, item, asked, mode=self._mode(item))
        if not self.file.add(row):
            known = self._mine(name, item.id)
            if any(known[part] != row[part] for part in ("responses", "ranks", "all_bad")):
                raise refused("done", "You have ranked this prompt already, in another tab.")
        return {"saved": True}

    def skip(self, request: Request, asked: AskedItem) -> dict:
        """Keep a prompt for the end."""
        name = self._name(request, asked)
        item = self._item(name, asked)
        if any(row["id"] == item.id for row in self.file.mine(name)):
            raise refused("done", "You have ranked this prompt already, in another tab.")
        self.file.skip(item.prompt, name)
        return {"skipped": True}

    def undo(self, request: Request, asked: Asked) -> dict:
        """Take back what an annotator ranked or skipped last, and show it again."""
        name = self._name(request, asked)
        row = self.file.last(name)
        if row is None:
            return {"item": None}
        item = self.items.item(name, prompt_key(row["prompt"]))
        if "ranks" in row and (item is None or item.id != row["id"]):
            # Made with another model or seed: it could not be saved again, but it can be changed.
            return {"item": self._again(row) | {"edit": True}, "progress": self._progress(name)}
        self.file.undo(name)
        shown = self._again(row) if "ranks" in row else item and self._shown(item, self._mode(item))
        return {"item": shown, "progress": self._progress(name)}

    def mine(self, request: Request, asked: Asked) -> dict:
        """What an annotator has ranked, the newest first."""
        return {"rows": [_listed(row) for row in self.file.mine(self._name(request, asked))]}

    def open(self, request: Request, asked: AskedOpen) -> dict:
        """Show a ranking of one's own again, to be changed."""
        return {"item": self._again(self._mine(self._name(request, asked), asked.id)) | {"edit": True}}

    # ---- What belongs to all rankings ------------------------------------------------------------------------------

    def agreement(self, request: Request, asked: Asked) -> dict:
        """How far annotators agree, and each of them beside the others."""
        self._name(request, asked)
        rows = self.file.rows()
        return asdict(agreement(rows)) | {"annotators": [asdict(one) for one in annotators(rows)]}

    def export(self, request: Request, asked: Asked) -> dict:
        """All rankings, as the file holds them."""
        self._name(request, asked)
        return {"name": self.file.path.name, "text": _json_lines(self.file.rows())}

    def push(self, request: Request, asked: Asked) -> dict:
        """Put all rankings on the Hub; a repository that this creates is private."""
        self._name(request, asked)
        rows, repo = self.file.rows(), self.push_to
        with hub_errors(f"{repo} could not be looked up"):
            is_there = HfApi().repo_exists(repo, repo_type="dataset")
        repo = create_repo(repo, repo_type="dataset", private=None if is_there else True)
        names = sorted({row["annotator"] for row in rows})
        card = render("rankings.md", name=repo, file=RANKINGS_FILE, number=len(rows), annotators=names)
        files = {README_FILE: card, RANKINGS_FILE: _json_lines(rows)}
        push_files(self.file.path, files, repo, repo_type="dataset")
        return {"url": f"{HfApi().endpoint}/datasets/{repo}"}

    def html(self, request: Request, asked: AskedHTML) -> dict:
        """Texts in Markdown as HTML."""
        return {"html": [self.markdown.render(text) for text in asked.texts]}

    # ---- Inside ----------------------------------------------------------------------------------------------------

    def _name(self, request: Request, asked: Asked) -> str:
        name = who(request, asked.annotator)
        if not name or len(name) > NAME_LENGTH:
            raise refused("name", f"A name of 1 to {NAME_LENGTH} characters is needed.")
        return name

    def _item(self, name: str, asked: AskedItem) -> Item:
        """The item that the page shows, unless it is another one by now."""
        item = self.items.item(name, asked.key)
        if item is None or item.id != asked.id:
            raise refused("stale", "These are not the answers that are ranked now.")
        return item

    def _mine(self, name: str, id_: str) -> dict:
        """A ranking of one's own."""
        row = next((row for row in self.file.mine(name) if row["id"] == id_), None)
        if row is None:
            raise refused("gone", "This ranking is no longer there.")
        return row

    def _progress(self, name: str) -> dict:
        return asdict(self.items.progress(self.file, name))

    def _mode(self, item: Item) -> str:
        return "pairs" if len(item.responses) == 2 else self.items.mode

    @staticmethod
    def _shown(item: Item, mode: str) -> dict:
        """An item as the page's script reads it."""
        shown = {"id": item.id, "key": item.key, "prompt": item.prompt, "responses": item.shown}
        return shown | {"mode": mode, "was_skipped": item.was_skipped, "edit": False}

    def _again(self, row: dict) -> dict:
        """A ranking as its annotator saw it."""
        item, mode, all_bad = _item_of(row), _mode_of(row), row.get("all_bad", False)
        ranks = row["ranks"][: len(item.responses)]
        if mode != "ranking":  # an own answer is above all
            ranks = rankdata(ranks, method="dense").astype(int).tolist()
        shown = [None if all_bad else ranks[place] for place in item.shown_order]
        own = {"own": row["responses"][-1], "own_rank": row["ranks"][-1]} if row["written"] else {}
        return self._shown(item, mode) | {"ranks": shown, "all_bad": all_bad, **own}

    def _row(self, name: str, item: Item, asked: AskedSave, *, mode: str) -> dict:
        """A ranking as the file holds it."""
        own = break_special_tokens(self.items.tokenizer, asked.own.strip())
        if len(own) > ANSWER_LENGTH:
            raise refused("long", f"Your own answer may have at most {ANSWER_LENGTH:,} characters.")
        if len(asked.ranks) != len(item.responses):
            raise refused("ranks", "Every answer needs a rank.")
        own = "" if asked.all_bad else own
        by_place = dict(zip(item.shown_order, asked.ranks, strict=True))
        numbers = [1 if asked.all_bad else by_place[place] for place in range(len(item.responses))]
        numbers += [asked.own_rank] if own else []
        return {
            "prompt": item.prompt,
            "responses": [*item.responses, own] if own else item.responses,
            "ranks": rankdata(numbers, method="dense").astype(int).tolist(),
            "all_bad": asked.all_bad,
            "written": bool(own),
            "mode": mode,
            "annotator": name,
            "seconds": round(asked.seconds, 1),
            "shown_order": item.shown_order,
            "id": item.id,
        }


def _item_of(row: dict) -> Item:
    """What an annotator saw, from the ranking."""
    sampled = row["responses"][: len(row["responses"]) - row["written"]]
    order = row.get("shown_order") or list(range(len(sampled)))
    return Item(row["prompt"], sampled, order, row["id"])


def _mode_of(row: dict) -> str:
    return "pairs" if len(row["responses"]) - row["written"] == 2 else row.get("mode", "ranking")


def _listed(row: dict) -> dict:
    """A ranking in the list of one's own."""
    best = row["responses"][min(range(len(row["ranks"])), key=row["ranks"].__getitem__)]
    kept = {part: row.get(part) for part in ("id", "prompt", "all_bad", "seconds", "saved_at")}
    return kept | {"best": best}


def _json_lines(rows: list[dict]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
