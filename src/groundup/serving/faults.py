"""What goes wrong where requests are computed: a queue that is full, and faults of ours, which are logged.

The log says where a fault happened, but not what was asked: an error's own message may quote the text that caused it
(a KeyError its key, a ValueError its value), and what people ask does not belong in logs. Its kind and the lines of
code are enough to find it.
"""

from __future__ import annotations

import logging
import traceback

from groundup.errors import GroundupError


class Full(GroundupError):
    """The queue has no place for a request; one is likely there after `retry_after_s`."""

    def __init__(self, what: str, retry_after_s: float) -> None:
        super().__init__(what, fix="send it again a little later, or send less at once")
        self.retry_after_s = retry_after_s


def note(log: logging.Logger, what: str, error: BaseException) -> None:
    """Log that something failed, with the kind of error and where it was raised."""
    lines = "".join(traceback.format_tb(error.__traceback__)).rstrip()
    log.error("%s: %s\n%s", what, type(error).__name__, lines)
