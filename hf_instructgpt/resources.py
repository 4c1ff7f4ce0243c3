"""Recipes and card templates: in the installed package, or beside it in a checkout."""

from pathlib import Path

PACKAGE = Path(__file__).parent


def resource(*parts: str) -> Path:
    """Path of a file under `recipes/` or `model_cards/`.

    Raises:
        FileNotFoundError: It is in neither place.
    """
    for root in (PACKAGE, PACKAGE.parent):
        path = root.joinpath(*parts)
        if path.is_file():
            return path
    raise FileNotFoundError(f"{'/'.join(parts)} is neither in the installed package nor in a checkout around it.")
