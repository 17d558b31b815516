"""What a reader raises when data are missing or not what they should be."""

from __future__ import annotations


class DataError(RuntimeError):
    """Data that are missing, damaged or not what they should be.

    The message stands on its own: which file, what is wrong with it, what was expected, and the
    exact command or place that puts it right. The command line prints it without a traceback.
    """


def brief(error: BaseException, most: int = 200) -> str:
    """An error's kind and what it says, without the pages of bytes that some quote."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= most else f"{text[: most - 3]}..."
