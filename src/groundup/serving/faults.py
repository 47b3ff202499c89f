"""How a fault of ours is logged where requests are computed: where it happened, but not what was asked.

An error's own message may quote the text that caused it (a KeyError its key, a ValueError its value), and what
people ask does not belong in logs. Its kind and the lines of code are enough to find it.
"""

from __future__ import annotations

import logging
import traceback


def note(log: logging.Logger, what: str, error: BaseException) -> None:
    """Log that something failed, with the kind of error and where it was raised."""
    lines = "".join(traceback.format_tb(error.__traceback__)).rstrip()
    log.error("%s: %s\n%s", what, type(error).__name__, lines)
