"""What the pages of the documentation need beyond mkdocs: links to files of the repository, and the commands' help."""

import os
import re
import sys
from functools import cache
from pathlib import Path
from urllib.parse import unquote

from mkdocs.plugins import event_priority

DOCS = Path(__file__).parent
ROOT = DOCS.parents[1]
LINK = re.compile(r"(?<!!)\[(?P<text>(?:[^\[\]]|\[[^\]]*\])*)\]\((?P<url>[^)\s]+)\)")
INCLUDE = re.compile(r'{% include-markdown "([^"]+)" %}')
CHINESE = r"[\u3001-\u303f\u4e00-\u9fff\uff00-\uffef]"
HELP = "<!-- the help of every command -->"


def on_config(config):
    sys.path.insert(0, str(ROOT))  # the commands' help needs none of the package's dependencies
    os.environ["COLUMNS"] = "100"  # its width
    return config


@event_priority(-100)  # after the includes
def on_page_markdown(markdown, page, config, files):
    """Pages that stand elsewhere in the repository are linked where the site has them; other files are named."""
    here = DOCS / page.file.src_uri
    markdown = markdown.replace(HELP, command_help()) if HELP in markdown else markdown
    markdown = re.sub(f"(?<={CHINESE})\\n *(?={CHINESE})", "", markdown)  # a browser would show a space there
    return LINK.sub(lambda link: resolved(link, here), markdown)


def resolved(link, here):
    """A link of the page `here` (a path in the sources), as the site can follow it."""
    path, _, anchor = link["url"].partition("#")
    if not path or re.match(r"[a-z]+:", path):
        return link[0]
    target = (here.parent / unquote(path)).resolve()
    if target.is_relative_to(DOCS):
        return link[0]
    if not target.exists():
        raise FileNotFoundError(f"{here}: there is no {link['url']}")
    page = included().get(target / "README.md" if target.is_dir() else target)
    if page is None:
        name = target.relative_to(ROOT).as_posix()
        return link["text"] if name in link["text"] else f"{link['text']} (`{name}`)"
    url = os.path.relpath(DOCS / here.relative_to(DOCS).parts[0] / page, here.parent)
    return f"[{link['text']}]({url}{'#' + anchor if anchor else ''})"


@cache
def included():
    """The files of the repository that are pages of the site: file, and page below the folder of a language."""
    pages = {}
    for page in sorted((DOCS / "en").rglob("*.md")):
        if found := INCLUDE.fullmatch(page.read_text(encoding="utf-8").strip()):
            pages[(page.parent / found[1]).resolve()] = page.relative_to(DOCS / "en")
    return {**pages, ROOT / "README.md": Path("index.md"), ROOT / "README.zh.md": Path("index.md")}


@cache
def command_help():
    from hf_instructgpt.cli import STAGES, VERBS
    from hf_instructgpt.stages.options_help import help_parser

    parsers = {name: help_parser(name, verb.epilog) if name in STAGES else verb for name, verb in VERBS.items()}
    return "\n\n".join(
        f"## `{name}`\n\n```text\n{parser.format_help().rstrip()}\n```" for name, parser in parsers.items()
    )
