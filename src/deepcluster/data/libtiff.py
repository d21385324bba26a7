"""What libtiff has to say goes to a list of the thread that decodes, and not to the screen.

Pillow takes no notice of it: a damaged fax page is an error to libtiff, and a page of noise to Pillow.
"""

from __future__ import annotations

import ctypes
import re
import threading
from functools import cache

from PIL import _imaging

_heard = threading.local()


def listen() -> list[str]:
    """A list that receives the errors of libtiff in this thread, until the next call."""
    _handlers()
    errors: list[str] = []
    _heard.errors = errors
    return errors


@cache
def _handlers() -> tuple[object, ...]:
    """Sets libtiff's handlers, where Pillow's own libtiff can be reached, and keeps them alive.

    The words after the first % are left out: their values come as a C `va_list`, which is another thing on each system.
    """
    kind = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p)

    def tell(module: bytes | None, words: bytes | None, _: int | None) -> None:
        part = (module or b"").decode("ascii", "replace")
        said = re.sub(r"( (at|for))?( (scan)?line)?\W*$", "", (words or b"").decode("ascii", "replace").split("%")[0])
        if hasattr(_heard, "errors"):
            _heard.errors.append(said if not part or "." in part else f"{part}: {said}" if said else part)

    def warn(module: bytes | None, words: bytes | None, values: int | None) -> None:
        # The picture is not all there; lines of wrong length in a fax whose coding leaves no room for such.
        if b"remature E" in (words or b"") or module == b"Fax4Decode":
            tell(module, words, values)

    handlers = kind(tell), kind(warn)
    try:
        library = ctypes.CDLL(_imaging.__file__)
        library.TIFFSetErrorHandler(handlers[0])
        library.TIFFSetWarningHandler(handlers[1])
    except (AttributeError, OSError):  # linked in so that it cannot be reached: its words stay on the screen
        pass
    return handlers
