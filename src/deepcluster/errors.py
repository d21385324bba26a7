"""Errors that are meant to be read: each is one sentence that says what is wrong, where, and what to do."""

from __future__ import annotations


class DeepClusterError(ValueError):
    """A mistake the user can correct: one sentence that says what is wrong, where, and what to do.

    The command line prints the sentence and ends with exit status 2, without a traceback.
    """


class DeepClusterWarning(UserWarning):
    """What to know of a result that stands: one sentence that says what is doubtful, where, and what to do.

    The command line prints it as one line to stderr, without file and line number.
    """


class BadImage(Exception):
    """One image that cannot be decoded; `str(error)` is the reason, written to `bad_images.csv`."""


class Interrupted(Exception):
    """Ctrl-C or SIGTERM was noticed between two batches; whoever holds state saves it and passes this on."""


def did_you_mean(word: str, choices: list[str]) -> str:
    """` Did you mean X?` for the choice nearest to `word`, or nothing."""
    import difflib

    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
    return f" Did you mean {close[0]}?" if close else ""
