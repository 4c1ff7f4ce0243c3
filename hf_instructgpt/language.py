"""How the program speaks to people: in English or Chinese, and without control characters."""

import os
import re

LANGUAGES = ("en", "zh")
_chosen: list[str] = []


def choose_language(language: str | None) -> None:
    """Speak `language` from now on; None: the locale's."""
    _chosen[:] = [] if language is None else [language]


def chosen_language() -> str | None:
    """What [`choose_language`] chose, if anything."""
    return _chosen[0] if _chosen else None


def language() -> str:
    """`"zh"` if it was chosen or the locale is Chinese, otherwise `"en"`."""
    if _chosen:
        return _chosen[0]
    names = (os.environ.get(name) for name in ("LC_ALL", "LC_MESSAGES", "LANG"))
    return "zh" if next(filter(None, names), "").startswith("zh") else "en"


def say(en: str, zh: str) -> str:
    """The one of two texts that is in the program's language."""
    return zh if language() == "zh" else en


def visible(text: str) -> str:
    """A text with its control characters, except tab and newline, escaped: it cannot move the cursor."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", lambda match: f"\\x{ord(match[0]):02x}", text)
