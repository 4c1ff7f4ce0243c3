"""A canvas of Pillow for the report's pictures, with fonts that have every character of what is written.

Pillow comes with matplotlib, and matplotlib knows where fonts are.
"""

import unicodedata
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image, ImageFont

BACK, CARD, LINE, INK, SOFT = "#0f1626", "#1a2438", "#33415c", "#f2f5fa", "#9fb0c8"
BLUE, GREEN, RED, AMBER = "#5aa2ff", "#4cc38a", "#ff6b6b", "#f5b84a"
# Drawn larger, then made smaller: lines get smooth edges.
SCALE = 2
# Preferred in this order. Chinese fonts have good Latin letters too.
FAMILIES = (
    *("Noto Sans CJK SC", "Noto Sans SC", "Source Han Sans SC", "Source Han Sans CN", "PingFang SC"),
    *("Hiragino Sans GB", "Microsoft YaHei", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "SimHei", "Heiti SC"),
    *("Noto Sans CJK JP", "Noto Sans CJK TC", "Arial Unicode MS", "DejaVu Sans"),
)
ALWAYS = "0123456789+−…→.%·"
# Of a size and whether it is bold.
Fonts = Callable[[int, bool], "ImageFont.FreeTypeFont"]


class MissingGlyphsError(Exception):
    """No installed font draws these characters."""


def fonts_for(text: str) -> Fonts:
    """The fonts of the first installed family that has every character of a text."""
    from matplotlib.font_manager import fontManager

    text = cleaned(text)
    if shaped := sorted({c for c in text if unicodedata.bidirectional(c) in ("R", "AL")}):
        raise MissingGlyphsError("".join(shaped)[:10])
    needed = {ord(c) for c in text + ALWAYS}
    # "Last Resort" has a box for every character.
    entries = [e for e in fontManager.ttflist if e.style == "normal" and "Last Resort" not in e.name]
    rank = {name: i for i, name in enumerate(FAMILIES)}
    missing = needed
    for family in sorted({e.name for e in entries}, key=lambda name: (rank.get(name, len(rank)), name)):
        faces = sorted((e for e in entries if e.name == family), key=lambda e: e.fname)
        regular, bold = (min(faces, key=lambda e: abs(int(e.weight) - weight)) for weight in (400, 700))
        lacking = needed - (_characters(regular.fname) & _characters(bold.fname))
        if not lacking:
            return lambda size, is_bold: _font(bold if is_bold else regular, size)
        missing = min(missing, lacking, key=len)
    raise MissingGlyphsError("".join(map(chr, sorted(missing)))[:10])


@lru_cache
def _characters(path: str) -> frozenset[int]:
    from matplotlib.ft2font import FT2Font

    return frozenset(FT2Font(path).get_charmap())


@lru_cache
def _font(entry, size: int) -> "ImageFont.FreeTypeFont":
    from PIL import ImageFont

    # Matplotlib before 3.11 knows only the first font of a collection. The basic layout is there on every machine.
    return ImageFont.truetype(
        entry.fname, size, index=getattr(entry, "index", 0), layout_engine=ImageFont.Layout.BASIC
    )


def cleaned(text: str) -> str:
    """A text in one line, without what has no shape of its own."""
    return "".join(c for c in " ".join(text.split()) if unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Co", "Cn"))


class Picture:
    """An image of `size` pixels."""

    def __init__(self, size: tuple[int, int], fonts: Fonts):
        from PIL import Image, ImageDraw

        self.fonts = fonts
        self.image = Image.new("RGB", (size[0] * SCALE, size[1] * SCALE), BACK)
        self.draw = ImageDraw.Draw(self.image)

    def length(self, text: str, size: int, *, bold: bool = False) -> float:
        """The width of a text."""
        return self.fonts(size * SCALE, bold).getlength(cleaned(text)) / SCALE

    def text(self, x, y, text, size, colour=INK, *, bold=False, anchor="la", width=None) -> None:
        """One line; what is wider than `width` is cut off."""
        text = cleaned(text)
        if width is not None and self.length(text, size, bold=bold) > width:
            while text and self.length(text + "…", size, bold=bold) > width:
                text = text[: -max(1, len(text) // 20)]
            text += "…"
        self.draw.text((x * SCALE, y * SCALE), text, colour, self.fonts(size * SCALE, bold), anchor)

    def two_lines(self, x, y, text, size, *, width, small, **style) -> None:
        """A text in one line or, if it is wider than `width`, in two of `small` letters around the same height."""
        text, bold = cleaned(text), style.get("bold", False)
        if self.length(text, size, bold=bold) <= width:
            return self.text(x, y, text, size, **style)
        if self.length(text, small, bold=bold) <= width:
            return self.text(x, y + (size - small) * 0.8, text, small, **style)
        end = next(i for i in range(len(text), 0, -1) if i == 1 or self.length(text[:i], small, bold=bold) <= width)
        end = max(text.rfind(" ", end - 20, end + 1), 0) or end
        middle = y + 0.7 * size
        self.text(x, middle, text[:end], small, anchor="ls", **style)
        self.text(x, middle + 1.25 * small, text[end:], small, anchor="ls", width=width, **style)

    def box(self, x0, y0, x1, y1, colour, radius=16) -> None:
        """A box with round corners."""
        self.draw.rounded_rectangle([z * SCALE for z in (x0, y0, x1, y1)], radius * SCALE, colour)

    def line(self, points, colour, width) -> None:
        """A line through points."""
        self.draw.line([(x * SCALE, y * SCALE) for x, y in points], colour, width * SCALE, joint="curve")

    def curve(self, points, area, *, mark: int = -1) -> None:
        """A line of data in an area, with a dot on one of its points."""
        if len(points) < 2:
            return
        (x0, y0, x1, y1), (xs, ys) = area, zip(*points, strict=True)
        wide, high = max(xs) - min(xs) or 1, max(ys) - min(ys) or 1
        found = [(x0 + (x1 - x0) * (x - min(xs)) / wide, y1 - (y1 - y0) * (y - min(ys)) / high) for x, y in points]
        self.line([(x0, y1 + 6), (x1, y1 + 6)], LINE, 1)
        self.line(found, BLUE, 3)
        x, y = found[mark]
        self.draw.ellipse([z * SCALE for z in (x - 6, y - 6, x + 6, y + 6)], AMBER)

    def finished(self) -> "Image.Image":
        """The picture in its own size."""
        return self.image.reduce(SCALE)
