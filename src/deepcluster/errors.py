"""Errors that are meant to be read: each is one sentence that says what is wrong, where, and what to do."""

from __future__ import annotations

import re
import warnings

LONG = re.compile(r"(\S{240})\S{100,}(\S{160})")
"""A word that no reader wants whole: a name or a number out of a damaged file."""


class DeepClusterError(ValueError):
    """A mistake the user can correct: one sentence that says what is wrong, where, and what to do.

    The command line prints the sentence and ends with exit status 2, without a traceback.
    """

    def __str__(self) -> str:
        return LONG.sub(r"\1...\2", " ".join(super().__str__().splitlines()))


class ProcessLost(DeepClusterError):
    """Another process of this run, or one that decodes images for it, was killed; every one that is left says so."""


class DeepClusterWarning(UserWarning):
    """What to know of a result that stands: one sentence that says what is doubtful, where, and what to do.

    The command line prints it as one line to stderr, without file and line number.
    """


def warn(sentence: str) -> None:
    """Gives a DeepClusterWarning, on behalf of the caller's caller."""
    warnings.warn(sentence, DeepClusterWarning, stacklevel=3)


class BadImage(Exception):
    """One image that cannot be decoded; `str(error)` is the reason, written to `bad_images.csv`."""


class Interrupted(Exception):
    """Ctrl-C or SIGTERM was noticed between two batches; whoever holds state saves it and passes this on."""


KILLED = ("DataLoader worker", "exited unexpectedly")
LOST = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer")
OTHER_ENDED = "Another process of this run has ended, so this one cannot go on: see what it said."
OTHER_SILENT = (
    "Another machine of this run does not answer, so this one cannot go on: see whether it is up and connected."
)
FEW_HANDLES = "Too few files may be open at once: raise the limit (ulimit -n 1024) and try again."
MEMORY = ("out of memory", "allocate memory", "DefaultCPUAllocator")


def explained(error: Exception) -> DeepClusterError | None:
    """A sentence for an error of a library that means killed processes, too few handles or too little memory."""
    text = f"{type(error).__name__} {error}"
    if any(word in text for word in KILLED):
        return ProcessLost(
            "A process that decodes images was killed, mostly because memory ran out: free some, or ask for fewer"
            " (--data.workers 1)."
        )
    if any(word in text for word in LOST):
        return ProcessLost(OTHER_ENDED)
    if "Too many open files" in text or "received 0 items of ancdata" in text:
        return DeepClusterError(FEW_HANDLES)
    if isinstance(error, MemoryError) or any(word in text for word in MEMORY):
        return DeepClusterError(
            "There is not enough memory: free some, or ask for less (--batch-size, --image-size, --data.workers 1)."
        )
    return None


def first_line(error: BaseException) -> str:
    """What an error of a library says, in one line without its full stop; of torch's "Error(s) in loading" the next."""
    lines = [line.strip() for line in str(error).strip().splitlines() if not line.startswith("Error(s)")]
    return (lines or [type(error).__name__])[0].rstrip(".: ")[:200]


def counted(items: int, noun: str) -> str:
    """So many things: 1 image, 2,000 images, 0 classes, 3 queries."""
    if items == 1:
        return f"1 {noun}"
    if noun.endswith("y"):
        return f"{items:,} {noun[:-1]}ies"
    return f"{items:,} {noun}{'es' if noun.endswith(('s', 'x', 'tch', 'sh')) else 's'}"


def did_you_mean(word: str, choices: list[str]) -> str:
    """` Did you mean X?` for the choice nearest to `word`, or nothing."""
    import difflib

    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
    return f" Did you mean {close[0]}?" if close else ""
