"""Rows of labelled tasks, put to the engine together; the same way for every task."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from groundup.errors import GroundupError
from groundup.serving import wire
from groundup.serving.api.calling import Api, Caller
from groundup.serving.api.errors import STATUS, ApiError, bad
from groundup.serving.api.metering import Metered
from groundup.serving.api.registry import Served
from groundup.serving.inputs import cost_of


async def answered(
    api: Api, caller: Caller, served: Served, rows: Sequence[Mapping[str, Any]], timeout: float | None
) -> tuple[list[Mapping[str, Any]], Metered]:
    """The answers to rows, in order, and what they were billed at. All of them, or none.

    Raises ApiError for too many rows and, naming the row, for one that fails; and EngineFault.
    """
    if not 1 <= len(rows) <= api.settings.max_rows:
        fix = f"send 1 to {api.settings.max_rows} at once; more as a batch job"
        raise bad(f"{len(rows)} rows in one request", "input", fix=fix)
    with Metered(caller, _estimate(served, rows)) as meter, _observed(api, caller, served) as ended:
        meter.prompt_tokens = 0  # what is not computed is not billed
        asked = wire.Answer(served.model, rows, key=caller.key, deadline_s=caller.deadline_s(api, timeout))
        found = await api.client.answer(asked)
        meter.prompt_tokens = sum(found.tokens)
        ended(meter.prompt_tokens)
        for place, one in enumerate(found.answers):
            if "error" in one:
                raise _failed(one["error"], place)
    return list(found.answers), meter


@contextmanager
def _observed(api: Api, caller: Caller, served: Served) -> Iterator[Callable[[int], None]]:
    """Tell the figures of the server of one request; what comes out is called with its tokens when it is answered."""
    telemetry, name = api.telemetry, f"{caller.request_id}-{id(caller):x}-rows"
    if telemetry is None:
        yield lambda tokens: None
        return
    operation = "embedding" if served.facts.kind == "embed" else served.facts.task
    telemetry.request_started(name, model=served.name, key=caller.key, operation=operation)
    try:
        yield lambda tokens: telemetry.request_finished(name, "stop", prompt_tokens=tokens)
    except GroundupError:
        telemetry.request_finished(name, "error")  # the first that is said of an end counts
        raise
    finally:
        telemetry.request_finished(name, "cancelled")


def _estimate(served: Served, rows: Sequence[Mapping[str, Any]]) -> int:
    """Tokens that rows may come to, before they are cut into any: a generous guess, settled afterwards.

    Of rows that are arrays of one shape it is no guess.
    """
    if served.facts.row_numbers:
        return len(rows) * cost_of(served.facts.row_numbers)
    return sum(1 + len(str(value)) // 2 for row in rows for value in row.values())


def _failed(error: Mapping[str, Any], place: int) -> ApiError:
    code: Any = error.get("code")
    status = STATUS.get(code, 500)
    return ApiError(status, code, str(error["message"]), param=f"input[{place}]", fix=str(error.get("fix") or ""))
