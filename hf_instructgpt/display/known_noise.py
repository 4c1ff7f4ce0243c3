"""What libraries say although a user can do nothing about it: hidden here, each kind at its place, with the reason."""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

# The libraries whose warnings become lines on the screen, so that they do not run into the bar.
LIBRARIES = ("hf_instructgpt", "transformers", "trl", "datasets", "accelerate", "peft")


def hide_bars() -> None:
    """Hide the libraries' bars of loading weights and of mapping data sets, from their import on.

    They take less than a second, or belong to a heading that says what is done. The Hub's bars of downloads are not
    affected: they set `disable` themselves.
    """
    os.environ |= {"TQDM_DISABLE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}


def hide_notes_of_imports() -> None:
    """Hide what optional libraries say of the machine when they are imported.

    Where DeepSpeed is installed, importing transformers or TRL imports it: whoever has no GPU knows. Where
    bitsandbytes is, importing peft imports it, and on some CPUs it looks for a kernel of 4-bit models.
    """
    for name in ("DeepSpeed", "bitsandbytes.backends.cpu.ops"):
        logging.getLogger(name).addFilter(_is_not_about_the_cpu)


def _is_not_about_the_cpu(record: logging.LogRecord) -> bool:
    text = record.getMessage()
    return "Setting accelerator to CPU" not in text and "Failed to load CPU gemm_4bit_forward" not in text


@contextmanager
def noise_hidden(handler: logging.Handler) -> Iterator[None]:
    """Give the libraries' warnings to `handler`, without those that a user can do nothing about."""
    loggers = [logging.getLogger(name) for name in LIBRARIES]
    kept = [logger.handlers for logger in loggers]
    for logger in loggers:
        logger.handlers = [handler]
    try:
        with warnings.catch_warnings():
            yield
    finally:
        for logger, handlers in zip(loggers, kept, strict=True):
            logger.handlers = handlers
