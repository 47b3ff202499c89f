"""Every row of a file answered without a server: the same engine, tokenizers and tasks, and the same answers.

The answers of a run that was stopped are kept beside the target as `TARGET.part`, one whole line for each row in the
order of the rows, and `TARGET.part.json` says what they are answers to. The same run goes on after the last whole
line; another one is refused.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from groundup.artifact import digest_file, write_whole
from groundup.errors import DataError, GroundupError, Interrupted, MissingExtra, UserError, nearest
from groundup.progress import Reporter, interrupt_requested, interruptible
from groundup.serving import wire
from groundup.serving.api import media, openai_chat, openai_completions
from groundup.serving.api.calling import Api, Caller
from groundup.serving.api.jsonl import mended
from groundup.serving.api.registry import Registry, Served
from groundup.serving.api.schemas import Body, ChatRequest, CompletionRequest
from groundup.serving.api.settings import Settings
from groundup.serving.api.validation import explained
from groundup.serving.local import LocalClient

DEFAULTS: Mapping[str, Any] = {"temperature": 0, "max_tokens": 256}
"""How texts are continued unless the caller or the row says otherwise: as the model finds likeliest."""
AT_ONCE = {"generate": 64, "answer": 8, "embed": 8}
"""Calls to the engine that are under way together, by kind of model."""
ROWS = 64
"""Rows of one call, for models that answer rows together."""
WITH_FILES, WITH_FILES_AT_ONCE = 8, 4
"""The same, and calls under way together, where rows have files in them: these are held in memory."""
WEEK_S = 7 * 86400.0
NAME = "model"
Answer = Callable[[list[Any]], Awaitable[list[dict[str, Any]]]]


def predict(
    model: Path,
    source: Path,
    target: Path,
    *,
    given: Mapping[str, Any] = {},
    adapter: Path | None = None,
    fresh: bool = False,
    reporter: Reporter | None = None,
) -> dict[str, int]:
    """Answer every row of the JSON lines in `source`, one line a row in `target`; how many, and how many failed.

    A row is a text, or a mapping with the columns of the model's task, where files are base64 or paths that begin at
    the folder of `source`; for a model that continues texts, with `prompt` or `messages` and whatever else a request
    may say. `given` is said for every row that does not say otherwise. A row's `id` is carried over. A row that fails
    has an `error` in its place. Raises UserError for a target that is there, or half there of another run;
    Interrupted, with what was answered kept.
    """
    if not source.is_file():
        raise UserError(f"there is no file {str(source)!r}", where="--in", fix="give JSON lines, one row each")
    part = target.with_name(f"{target.name}.part")
    described = part.with_name(f"{part.name}.json")
    if fresh:
        for path in (target, part, described):
            path.unlink(missing_ok=True)
    if target.exists():
        raise UserError(f"{str(target)!r} is there already", where="--out", fix="choose another, or say --fresh")
    with interruptible():
        counts = asyncio.run(_predict(model, source, part, dict(given), adapter, reporter or Reporter()))
    os.replace(part, target)
    described.unlink(missing_ok=True)
    return counts


async def _predict(
    model: Path, source: Path, part: Path, given: dict[str, Any], adapter: Path | None, reporter: Reporter
) -> dict[str, int]:
    async with LocalClient() as client:
        registry = Registry(client)
        served = await registry.load(NAME, str(model))
        if adapter is not None:
            served = await registry.load_adapter("adapter", str(adapter), NAME)
        api = Api(client, registry, Settings(max_time=WEEK_S, max_new_tokens=1 << 20, max_rows=1 << 20))
        answer = _answerer(api, served, given, source.parent)
        done = _begun(part, {"model": served.digest, "input": digest_file(source), "given": given})
        failed = sum("error" in entry for entry in done)
        total = sum(1 for _ in _lines(source))
        written = len(done)
        at_once = WITH_FILES_AT_ONCE if served.facts.media else AT_ONCE[served.facts.kind]
        size = 1 if served.facts.kind == "generate" else WITH_FILES if served.facts.media else ROWS
        rest = _grouped(islice(_rows(source), written, None), size)
        with part.open("a", encoding="utf-8") as file:
            async for answers in _in_order(rest, answer, at_once):
                for one in answers:
                    file.write(json.dumps(one, ensure_ascii=False) + "\n")
                file.flush()
                written += len(answers)
                failed += sum("error" in one for one in answers)
                reporter.advance("answering", written, total)
                if interrupt_requested():
                    raise Interrupted(f"stopped after {written} of {total} rows", fix="run again to go on")
            os.fsync(file.fileno())
        return {"rows": written, "failed": failed}


def _begun(part: Path, described: dict[str, Any]) -> list[dict[str, Any]]:
    """The answers that an earlier run left. Raises UserError if they are answers to something else."""
    place = part.with_name(f"{part.name}.json")
    if part.is_file() and part.stat().st_size and place.is_file():
        before = json.loads(place.read_text(encoding="utf-8"))
        changed = [name for name, value in described.items() if before.get(name) != value]
        if changed:
            what = f"{str(part)!r} was begun with another {' and another '.join(changed)}"
            raise UserError(what, where="--out", fix="choose another target, or begin again with --fresh")
        return mended(part)
    part.parent.mkdir(parents=True, exist_ok=True)
    part.unlink(missing_ok=True)
    write_whole(place, json.dumps(described))
    return []


def _answerer(api: Api, served: Served, given: Mapping[str, Any], beside: Path) -> Answer:
    """What answers a group of rows; files are named from the folder `beside` them on.

    Raises UserError for settings that a request does not know.
    """
    if served.facts.kind == "generate":
        known = {*ChatRequest.model_fields, *CompletionRequest.model_fields}
        for name in given:
            if name not in known:
                raise UserError(f"there is no setting {name!r}", where="--set", fix=nearest(name, known))
        return lambda rows: _continued(api, served, rows, given)
    if given:
        raise UserError("this model answers rows, and has no settings", where="--set", fix="leave them out")
    return lambda rows: _answered(api, served, rows, beside)


async def _continued(api: Api, served: Served, rows: list[Any], given: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [await _text(api, served, row, given) for row in rows]


async def _text(api: Api, served: Served, row: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """The answer to one row of a model that continues texts."""
    said = {"prompt": row} if isinstance(row, str) else dict(row)
    if "messages" not in said and "prompt" not in said and isinstance(said.get("text"), str):
        said["prompt"] = said["text"]
    is_chat = "messages" in said
    form: type[Body] = ChatRequest if is_chat else CompletionRequest
    body = {name: value for name, value in {**DEFAULTS, **given, **said}.items() if name in form.model_fields}
    try:
        asked: Any = form.model_validate({**body, "model": served.name, "stream": False})
        caller = Caller("row")
        if is_chat:
            choices = (await openai_chat.chat(api, caller, asked))["choices"]
        else:
            choices = (await openai_completions.complete(api, caller, asked))["choices"]
    except ValidationError as error:
        return _carried(row) | _error(explained(form, error))
    except MissingExtra:
        raise
    except GroundupError as error:
        return _carried(row) | _error(error)
    kept = ("text", "message", "finish_reason", "logprobs")
    shown = [{name: one[name] for name in kept if one.get(name) is not None} for one in choices]
    return _carried(row) | (shown[0] if len(shown) == 1 else {"choices": shown})


async def _answered(api: Api, served: Served, rows: list[Any], beside: Path) -> list[dict[str, Any]]:
    """The answers to rows of a labelled task, or their vectors."""
    column = next(iter(served.facts.columns.values()), "text")
    asked = [{column: row} if isinstance(row, str) else row for row in rows]
    if served.facts.media:
        return await _with_files(api, served, asked, beside)
    found = await api.client.answer(wire.Answer(served.model, asked))
    return [_carried(row) | dict(answer) for row, answer in zip(rows, found.answers, strict=True)]


async def _with_files(api: Api, served: Served, rows: list[Any], beside: Path) -> list[dict[str, Any]]:
    """The answers to rows that name files by their paths, or hold them in base64; a bad file fails alone."""
    most_bytes = api.settings.max_media
    answers: list[dict[str, Any]] = []
    readable: list[dict[str, Any]] = []
    for row in rows:
        answers.append(_carried(row))
        try:
            readable += media.opened(served.facts, [row], most_bytes=most_bytes, beside=beside)
        except GroundupError as error:
            answers[-1] |= _error(error)
    found = await api.client.answer(wire.Answer(served.model, readable)) if readable else wire.Answered(0, [])
    given = iter(found.answers)
    return [one if "error" in one else one | dict(next(given)) for one in answers]


def _carried(row: Any) -> dict[str, Any]:
    return {"id": row["id"]} if isinstance(row, Mapping) and "id" in row else {}


def _error(error: GroundupError) -> dict[str, Any]:
    code = getattr(error, "code", "bad_request")
    return {"error": {"code": code, "message": error.what, "fix": error.fix}}


async def _in_order(
    groups: Iterable[list[Any]], answer: Answer, at_once: int
) -> AsyncGenerator[list[dict[str, Any]], None]:
    """The answers to groups of rows in their order, several groups under way together."""
    running: deque[asyncio.Task[list[dict[str, Any]]]] = deque()
    try:
        for group in groups:
            running.append(asyncio.ensure_future(answer(group)))
            if len(running) >= at_once:
                yield await running.popleft()
        while running:
            yield await running.popleft()
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


def _rows(source: Path) -> Iterator[Any]:
    """The rows of a file. Raises DataError, naming the line, for one that is no row."""
    for number, line in _lines(source):
        try:
            row = json.loads(line)
        except ValueError as error:
            what = f"not valid JSON: {error}"
            raise DataError(what, where=f"{source}:{number}", fix="repair or remove the line") from error
        if not isinstance(row, str | dict):
            what = f"a row is a text or an object, not a {type(row).__name__}"
            raise DataError(what, where=f"{source}:{number}", fix="repair or remove the line")
        yield row


def _lines(source: Path) -> Iterator[tuple[int, bytes]]:
    with source.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, line


def _grouped(rows: Iterator[Any], size: int) -> Iterator[list[Any]]:
    while group := list(islice(rows, size)):
        yield group
