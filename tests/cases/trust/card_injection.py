"""Cards show what models said, and what data sets are called, letter by letter: nothing in it becomes markup."""

import unittest
from html.parser import HTMLParser
from pathlib import Path

NASTY = [
    "a|b",
    "x\ny\r\nz",
    "<img src=x onerror=alert(1)> <script>alert(1)</script>",
    "![t](https://evil.example/track.png) [x](javascript:alert(1)) <https://evil.example>",
    "https://evil.example www.evil.example a@evil.example @someone #1",
    "`code` ``two`` ``` | \\| \\` \\",
    "# heading\n---\n- list\n\n```\nfence",
    "*a* _b_ ~~c~~ &lt; &#60; $x$ {{ 7 * 7 }} {% raw %}",
    " padded ",
    "|",
    "`",
    "",
]
STAGES = {"sft": ("before", "after"), "ppo": ("before", "after"), "reward": ("best", "worst")}


class Page(HTMLParser):
    """Cells of tables, as text, and the elements that are there."""

    def __init__(self, html: str):
        super().__init__()
        self.rows, self.tags, self.in_cell = [], set(), False
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
            self.in_cell = True
        elif tag == "br":
            self.rows[-1][-1] += "\n"

    def handle_endtag(self, tag):
        self.in_cell = self.in_cell and tag not in ("td", "th")

    def handle_data(self, data):
        if self.in_cell:
            self.rows[-1][-1] += data


def check(folder: Path) -> None:
    try:
        from markdown_it import MarkdownIt
    except ModuleNotFoundError as error:
        raise unittest.SkipTest("markdown-it-py is not installed") from error
    from hf_instructgpt.hub.model_card import Made, Source, make_card

    render = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render
    for stage, columns in STAGES.items():
        made = Made(stage=stage, hyperparameters={"learning_rate": 0.1}, datasets={"training": Source("mine")})
        harmless = Page(render(make_card(folder, made, name="n", state={"log_history": []}).text))
        for text in NASTY:
            scores = {"best_score": 1.0, "worst_score": -1.0}
            made.samples = [{"prompt": text, columns[0]: text, columns[1]: text, **scores}]
            made.datasets = {"training": Source(f"mine {text}", config=text, split=text)}
            made.hyperparameters = {"learning_rate": 0.1, "optim": text, text: 1}
            page = Page(render(make_card(folder, made, name="n", state={"log_history": []}).text))
            assert page.tags - harmless.tags <= {"br"}, (text, page.tags - harmless.tags)
            said = "\n".join(text.splitlines())
            (row,) = (row for row in page.rows if len(row) == (5 if stage == "reward" else 3) and row[0] == said)
            assert row[:3:2] == [said, "+1.00"] if stage == "reward" else row == [said] * 3, row
            assert ["optim", said] in page.rows and ["learning_rate", "0.1"] in page.rows
            shown = ", ".join(filter(None, (f"mine {said}", said, said)))
            assert ["training", shown] in page.rows, page.rows
