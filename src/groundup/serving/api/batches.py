"""Jobs over a file of requests, as OpenAI's `/v1/batches` has them: one request a line, one answer a line.

A job lives on disk: its state, and its answers, each line of which is written before it counts. A server that is
killed goes on where it stood when it starts again; a line that was being computed is computed again, none twice into
the result. Jobs come after everyone who waits for an answer, and what the engine has no room for they try again.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TextIO

from pydantic import ValidationError

from groundup.artifact import write_whole
from groundup.serving.api import errors, strict_json
from groundup.serving.api.calling import Api, Caller, now
from groundup.serving.api.errors import ApiError, bad
from groundup.serving.api.files import ID, Files, may_see, new_id
from groundup.serving.api.jsonl import mended
from groundup.serving.api.schemas import BatchRequest, Body
from groundup.serving.api.validation import explained

PRIORITY = 100
"""Of a job's requests: behind everyone who waits for an answer."""
MOST_ERRORS = 100
"""Mistakes of a file that are told at once."""
PATIENCE_S = 60.0
"""The longest wait after which a line is tried again; a key that has to wait longer has its line refused."""
RUNNING = ("validating", "in_progress", "finalizing", "cancelling")
log = logging.getLogger("groundup.batches")

Handler = Callable[[Api, Caller, Any], Awaitable[Mapping[str, Any]]]
Routes = Mapping[str, tuple[type[Body], Handler]]
"""What a line's request can be: by route, the form of its body and who answers it."""


@dataclass(frozen=True)
class Batch:
    """The state of a job, as it is kept on disk."""

    id: str
    owner: str
    endpoint: str
    input_file_id: str
    status: str
    created_at: int
    completion_window: str = "24h"
    metadata: Mapping[str, str] | None = None
    in_progress_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    output_file_id: str | None = None
    error_file_id: str | None = None
    errors: Mapping[str, Any] | None = None
    request_counts: Mapping[str, int] = field(default_factory=lambda: {"total": 0, "completed": 0, "failed": 0})

    def as_data(self) -> dict[str, Any]:
        """OpenAI's batch object."""
        data = asdict(self)
        del data["owner"]
        return {**data, "object": "batch", "expires_at": None, "expired_at": None}

    def at(self, status: str, **changes: Any) -> Batch:
        """The job in its next state, the time noted."""
        noted: dict[str, Any] = {f"{status}_at": now()}
        return replace(self, status=status, **noted, **changes)


class Batches:
    """The jobs under a folder; `start` goes on with those that were not finished."""

    def __init__(self, api: Api, files: Files, folder: Path, routes: Routes) -> None:
        self.api, self.files, self.folder, self.routes = api, files, folder, routes
        folder.mkdir(parents=True, exist_ok=True)
        self._room = asyncio.Semaphore(api.settings.batch_concurrency)
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def start(self) -> None:
        """Go on with every job that was not finished."""
        for batch in self._all():
            if batch.status in RUNNING and batch.id not in self._tasks:
                self._begin(batch)

    async def stop(self) -> None:
        """Leave the jobs as they stand; the next start goes on with them."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def create(self, caller: Caller, body: BatchRequest) -> Batch:
        """Order a job. Raises ApiError for a file that is not there and a route that takes no jobs."""
        if body.endpoint not in self.routes:
            fix = f"one of: {', '.join(self.routes)}"
            raise bad(f"there are no batch jobs for {body.endpoint[:128]!r}", "endpoint", fix=fix)
        file = self.files.get(caller, body.input_file_id)
        batch = Batch(new_id("batch"), caller.key, body.endpoint, file.id, "validating", now(), metadata=body.metadata)
        self._save(batch)
        self._begin(batch)
        return batch

    def get(self, caller: Caller, batch_id: str) -> Batch:
        """The state of a job. Raises ApiError (404) where there is none that the caller may see."""
        path = self.folder / f"{batch_id}.json"
        if ID.fullmatch(batch_id) and path.is_file():
            found = _read(path)
            if may_see(caller, found.owner):
                return found
        raise ApiError(404, "batch_not_found", f"there is no batch job {batch_id[:64]!r}", param="batch_id")

    def listed(self, caller: Caller) -> list[Batch]:
        """The jobs that the caller may see, newest first."""
        found = [batch for batch in self._all() if may_see(caller, batch.owner)]
        return sorted(found, key=lambda batch: (-batch.created_at, batch.id))

    def needs(self, file_id: str) -> bool:
        """Whether a job that has not ended reads a file."""
        return any(batch.input_file_id == file_id and batch.status in RUNNING for batch in self._all())

    def cancel(self, caller: Caller, batch_id: str) -> Batch:
        """End a job early; the answers that it has are kept. Raises ApiError as `get`, (409) for one that has ended."""
        batch = self.get(caller, batch_id)
        if batch.status not in RUNNING:
            raise ApiError(409, "batch_over", f"the job is {batch.status} already", param="batch_id")
        batch = batch.at("cancelling")
        self._save(batch)
        task = self._tasks.get(batch.id)
        if task is not None:
            task.cancel()
        else:
            self._begin(batch)
        return batch

    # ------------------------------------------------------------------------------ the work

    def _begin(self, batch: Batch) -> None:
        task = asyncio.create_task(self._run(batch), name=batch.id)
        self._tasks[batch.id] = task
        task.add_done_callback(lambda _: self._tasks.pop(batch.id, None))

    async def _run(self, batch: Batch) -> None:
        try:
            await self._work(batch)
        except asyncio.CancelledError:
            if _read(self.folder / f"{batch.id}.json").status != "cancelling":
                raise  # the server is stopping, and the next one goes on
            self._finish(batch.id, "cancelled")
        except Exception as error:
            log.exception("the batch job %s failed", batch.id)
            told = {"object": "list", "data": [{"code": "internal", "message": errors.of(error).what, "line": None}]}
            self._save(_read(self.folder / f"{batch.id}.json").at("failed", errors=told))

    async def _work(self, batch: Batch) -> None:
        if batch.status == "cancelling":
            self._finish(batch.id, "cancelled")
            return
        source = self.folder.parent / "files" / f"{batch.input_file_id}.jsonl"
        if batch.status == "validating":
            total, mistakes = await asyncio.to_thread(self._validate, source, batch.endpoint)
            if mistakes:
                self._save(batch.at("failed", errors={"object": "list", "data": mistakes}))
                return
            batch = batch.at("in_progress", request_counts={"total": total, "completed": 0, "failed": 0})
            self._save(batch)
        done, failed = mended(self._out(batch.id)), mended(self._out(batch.id, failed=True))
        seen = {str(entry["custom_id"]) for entry in (*done, *failed)}
        counts = {**batch.request_counts, "completed": len(done), "failed": len(failed)}
        with self._out(batch.id).open("a") as good, self._out(batch.id, failed=True).open("a") as poor:
            writer = _Writer(good, poor, counts)
            await self._lines(batch, source, seen, writer)
        self._save(batch.at("finalizing", request_counts=writer.counts))
        self._finish(batch.id, "completed")

    async def _lines(self, batch: Batch, source: Path, seen: set[str], writer: _Writer) -> None:
        """Answer every line that has no answer yet, several at a time."""
        caller = Caller(batch.id, key=batch.owner, scopes=frozenset({"infer"}), priority=PRIORITY)
        async with asyncio.TaskGroup() as group:
            for number, line in enumerate(_lines_of(source)):
                entry = strict_json.parse(line)
                if entry["custom_id"] in seen:
                    continue
                await self._room.acquire()
                own = replace(caller, request_id=f"{batch.id}-{number}", meter=self._meter(batch.owner), scope={})
                task = group.create_task(self._line(batch, own, entry, writer))
                # Not in the task: one that is cancelled before it began runs none of its code.
                task.add_done_callback(lambda _: self._room.release())

    async def _line(self, batch: Batch, caller: Caller, entry: Mapping[str, Any], writer: _Writer) -> None:
        try:
            status, body = await self._answer(batch, caller, entry)
        finally:
            if caller.meter is not None:
                caller.meter.close()
        writer.write(entry["custom_id"], caller.request_id, status, body)
        if sum(writer.counts.values()) % 64 == 0:
            self._save(replace(_read(self.folder / f"{batch.id}.json"), request_counts=writer.counts))

    async def _answer(self, batch: Batch, caller: Caller, entry: Mapping[str, Any]) -> tuple[int, Mapping[str, Any]]:
        """The status and body of one line's answer; where the engine has no room, or is gone, it is asked again."""
        form, handler = self.routes[batch.endpoint]
        while True:
            try:
                return 200, await handler(self.api, caller, _validated(form, entry["body"]))
            except Exception as error:
                told = errors.of(error)
                wait_s = float(told.headers.get("retry-after", 0))
                if told.status not in (408, 429, 503) or not 0 < wait_s <= PATIENCE_S:
                    if told.status >= 500:
                        log.exception("a line of the batch job %s failed", batch.id)
                    return told.status, told.as_data()
                await asyncio.sleep(wait_s)

    def _meter(self, owner: str) -> Any:
        return self.api.meter_of(owner) if self.api.meter_of is not None else None

    def _finish(self, batch_id: str, status: str) -> None:
        """Turn what was answered into files, and the job into its last state."""
        batch = _read(self.folder / f"{batch_id}.json")
        found: dict[str, str | None] = {}
        for name, failed in (("output_file_id", False), ("error_file_id", True)):
            path = self._out(batch_id, failed=failed)
            mended(path)
            if path.is_file() and path.stat().st_size:
                kind = "errors" if failed else "output"
                found[name] = self.files.adopt(path, batch.owner, f"{batch_id}_{kind}.jsonl", f"batch_{kind}").id
            else:
                path.unlink(missing_ok=True)
        self._save(batch.at(status, **found))

    def _validate(self, source: Path, endpoint: str) -> tuple[int, list[dict[str, Any]]]:
        """The number of lines, and what is wrong with them."""
        mistakes: list[dict[str, Any]] = []
        seen: set[str] = set()
        total = 0
        for total, line in enumerate(_lines_of(source), start=1):
            try:
                _require_line(strict_json.parse(line), endpoint, seen, self.routes[endpoint][0])
            except ApiError as error:
                mistakes.append(
                    {"code": error.code, "message": error.what, "param": error.param or None, "line": total}
                )
            if len(mistakes) >= MOST_ERRORS:
                break
        if not total:
            mistakes.append({"code": "empty_file", "message": "the file has no lines", "param": None, "line": None})
        return total, mistakes

    def _out(self, batch_id: str, *, failed: bool = False) -> Path:
        return self.folder / f"{batch_id}.{'errors' if failed else 'output'}.jsonl"

    def _save(self, batch: Batch) -> None:
        write_whole(self.folder / f"{batch.id}.json", json.dumps(asdict(batch)))

    def _all(self) -> Iterator[Batch]:
        for path in sorted(self.folder.glob("batch-*.json")):
            with contextlib.suppress(OSError):
                yield _read(path)


class _Writer:
    """Writes answers as whole lines, and counts them."""

    def __init__(self, good: TextIO, poor: TextIO, counts: Mapping[str, int]) -> None:
        self._good, self._poor, self.counts = good, poor, dict(counts)

    def write(self, custom_id: str, request_id: str, status: int, body: Mapping[str, Any]) -> None:
        answer = {"status_code": status, "request_id": request_id, "body": body}
        entry = {"id": f"batch_req_{request_id}", "custom_id": custom_id, "response": answer, "error": None}
        file, counted = (self._good, "completed") if status == 200 else (self._poor, "failed")
        file.write(json.dumps(entry) + "\n")
        file.flush()
        self.counts[counted] += 1


def _require_line(entry: Any, endpoint: str, seen: set[str], form: type[Body]) -> None:
    """Raise ApiError for a line that is no request of this job."""
    if not isinstance(entry, Mapping):
        raise bad("a line is an object with custom_id, method, url and body")
    custom_id = entry.get("custom_id")
    if not isinstance(custom_id, str) or not custom_id or custom_id in seen:
        raise bad(f"custom_id {str(custom_id)[:64]!r} is missing or not the only one", "custom_id")
    seen.add(custom_id)
    if entry.get("method", "POST") != "POST":
        raise bad("the method of a line is POST", "method")
    if entry.get("url") != endpoint:
        raise bad(f"url is {str(entry.get('url'))[:64]!r} and the job is for {endpoint}", "url")
    if _validated(form, entry.get("body")).model_dump().get("stream"):
        raise bad("the answers of a job are not streamed", "stream")


def _validated(form: type[Body], body: Any) -> Body:
    try:
        return form.model_validate(body)
    except ValidationError as error:
        raise explained(form, error) from error


def _lines_of(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        for line in file:
            if line.strip():
                yield line


def _read(path: Path) -> Batch:
    return Batch(**json.loads(path.read_text(encoding="utf-8")))
