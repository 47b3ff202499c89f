"""Logs of the server as JSON lines: what happened, when, to which request; never what was asked or answered.

One object a line with the same keys for uvicorn's lines and ours: `time` (UTC, ISO 8601), `level`,
`logger`, `message`, `request_id` inside a request, and whatever a line adds by `extra=`. A line break in a
value is escaped by JSON, so a client cannot write lines of its own.
"""

from __future__ import annotations

import json
import logging
import logging.config
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Literal

Format = Literal["json", "text"]
request_id: ContextVar[str] = ContextVar("groundup_request_id", default="")
"""The id of the request that is being answered here; set by `observed.Observed`."""
MOST_CHARACTERS = 8000
"""A message, a traceback or a value is cut after so many."""
_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}


class JsonFormatter(logging.Formatter):
    """Formats a record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _cut(record.getMessage()),
        }
        if found := request_id.get():
            line["request_id"] = found
        line |= {key: _cut(value) for key, value in vars(record).items() if key not in _OWN and key not in line}
        if record.exc_info and record.exc_info[0] is not None:
            line["error"] = _cut(self.formatException(record.exc_info))
        # Surrogates are escaped: what a client sent in a path must not stop a line from being written.
        return json.dumps(line, default=str)


def _cut(value: Any) -> Any:
    if isinstance(value, str) and len(value) > MOST_CHARACTERS:
        return value[:MOST_CHARACTERS] + "…"
    return value


def config(level: str = "info", form: Format = "json") -> dict[str, Any]:
    """The logging of a whole process, as `logging.config.dictConfig` and uvicorn's `log_config` take it.

    uvicorn's own access lines are off: `observed.Observed` writes one with the request's id, key and status.
    """
    formatter: dict[str, Any] = {"()": JsonFormatter}
    if form == "text":
        formatter = {"format": "%(asctime)s %(levelname)-7s %(name)s: %(message)s"}
    quiet = {"level": "WARNING", "handlers": [], "propagate": True}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": formatter},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line", "stream": "ext://sys.stderr"}},
        "root": {"level": "WARNING", "handlers": ["stderr"]},
        "loggers": {
            "groundup": {"level": level.upper(), "handlers": [], "propagate": True},
            "uvicorn": {"level": level.upper(), "handlers": [], "propagate": True},
            "uvicorn.error": {"level": level.upper(), "handlers": [], "propagate": True},
            "uvicorn.access": quiet,
        },
    }


def configure(level: str = "info", form: Format = "json") -> None:
    """Set up the logging of this process."""
    logging.config.dictConfig(config(level, form))
