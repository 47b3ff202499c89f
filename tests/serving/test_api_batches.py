"""Files and batch jobs: kept on disk, gone on with after a restart, each key's its own."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from groundup.serving.keys import KeyLimits, Principal

Runs = Callable[[Coroutine[Any, Any, None]], None]
Make = Callable[..., Path]
JSON = [("content-type", "application/json")]


def line(number: int, **body: Any) -> dict[str, Any]:
    """A request of a job."""
    asked = {"model": "plain", "prompt": f"the {number}", "max_tokens": 4, "temperature": 0} | body
    return {"custom_id": f"row-{number}", "method": "POST", "url": "/v1/completions", "body": asked}


class Jobs:
    """Talks to the routes of files and jobs as one key."""

    def __init__(self, wire: Any, app: Any, key: str = "k1", scopes: tuple[str, ...] = ("infer",)) -> None:
        principal = Principal(key, key, frozenset(scopes), KeyLimits())
        self.wire, self.app, self.more = wire, app, {"groundup.key": principal}

    async def ask(self, method: str, path: str, body: Any = None, headers: Any = JSON) -> Any:
        data = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        return await self.wire.ask(self.app, method, path, headers, data, **self.more)

    async def upload(self, content: bytes, purpose: str = "batch") -> Any:
        """Send a file as a form."""
        parts = [
            b'--xx\r\nContent-Disposition: form-data; name="purpose"\r\n\r\n' + purpose.encode() + b"\r\n",
            b'--xx\r\nContent-Disposition: form-data; name="file"; filename="../../rows.jsonl"\r\n'
            b"Content-Type: application/jsonl\r\n\r\n" + content + b"\r\n--xx--\r\n",
        ]
        return await self.ask(
            "POST", "/v1/files", b"".join(parts), [("content-type", "multipart/form-data; boundary=xx")]
        )

    async def order(self, lines: list[Any], endpoint: str = "/v1/completions") -> dict[str, Any]:
        """A job over these lines."""
        content = "".join(json.dumps(one) + "\n" for one in lines).encode()
        file = json.loads((await self.upload(content)).body)
        reply = await self.ask("POST", "/v1/batches", {"input_file_id": file["id"], "endpoint": endpoint})
        assert reply.status == 200, reply.body
        return dict(json.loads(reply.body))

    async def until(self, job: dict[str, Any], *states: str) -> dict[str, Any]:
        """The job when it has come to one of these states."""
        for _ in range(1000):
            found = json.loads((await self.ask("GET", f"/v1/batches/{job['id']}")).body)
            if found["status"] in states:
                return dict(found)
            await asyncio.sleep(0.02)
        raise AssertionError(f"the job is still {found['status']}")

    async def content(self, file_id: str) -> list[dict[str, Any]]:
        reply = await self.ask("GET", f"/v1/files/{file_id}/content")
        assert reply.status == 200
        return [json.loads(text) for text in reply.body.decode().splitlines()]


@pytest.fixture
def served(serve_api: Any, make_model: Make) -> Callable[..., Any]:
    """A function to the context of an application with the model `plain`."""
    return lambda **settings: serve_api({"plain": make_model()}, **settings)


def test_a_job_answers_every_line(served: Any, wire: Any, runs: Runs) -> None:
    async def test() -> None:
        async with served() as app:
            jobs = Jobs(wire, app)
            lines = [*(line(i) for i in range(40)), line(99, model="nobody")]
            done = await jobs.until(await jobs.order(lines), "completed", "failed")
            assert done["status"] == "completed", done
            assert done["request_counts"] == {"total": 41, "completed": 40, "failed": 1}
            found = {one["custom_id"]: one["response"] for one in await jobs.content(done["output_file_id"])}
            assert set(found) == {f"row-{i}" for i in range(40)}
            direct = await jobs.ask("POST", "/v1/completions", line(3)["body"])
            assert found["row-3"]["body"]["choices"] == json.loads(direct.body)["choices"]
            (failed,) = await jobs.content(done["error_file_id"])
            assert failed["custom_id"] == "row-99" and failed["response"]["status_code"] == 404

    runs(test())


def test_a_job_goes_on_after_a_restart(served: Any, wire: Any, runs: Runs, tmp_path: Path) -> None:
    async def test() -> None:
        lines = [line(i, max_tokens=40, ignore_eos=True) for i in range(60)]
        async with served(batch_concurrency=2) as app:
            job = await Jobs(wire, app).order(lines)
            output = tmp_path / "state" / "batches" / f"{job['id']}.output.jsonl"
            while not output.is_file() or output.read_bytes().count(b"\n") < 5:
                await asyncio.sleep(0.01)
        before = output.read_text().splitlines()
        assert 5 <= len(before) < 60
        with output.open("a") as file:
            file.write('{"custom_id": "row-5')  # what a kill leaves behind
        async with served() as app:
            jobs = Jobs(wire, app)
            done = await jobs.until(job, "completed", "failed")
            found = await jobs.content(done["output_file_id"])
            assert sorted(one["custom_id"] for one in found) == sorted(one["custom_id"] for one in lines)
            assert [json.loads(text) for text in before] == found[: len(before)]
            assert done["request_counts"]["completed"] == 60

    runs(test())


def test_a_job_is_cancelled_and_keeps_what_it_has(served: Any, wire: Any, runs: Runs) -> None:
    async def test() -> None:
        async with served(batch_concurrency=1) as app:
            jobs = Jobs(wire, app)
            job = await jobs.order([line(i, max_tokens=60, ignore_eos=True) for i in range(80)])
            await jobs.until(job, "in_progress")
            assert (await jobs.ask("DELETE", f"/v1/files/{job['input_file_id']}")).status == 409
            await asyncio.sleep(0.3)
            assert (await jobs.ask("POST", f"/v1/batches/{job['id']}/cancel")).status == 200
            done = await jobs.until(job, "cancelled", "completed")
            assert done["status"] == "cancelled"
            assert (await jobs.ask("POST", f"/v1/batches/{job['id']}/cancel")).status == 409
            assert (await jobs.ask("DELETE", f"/v1/files/{job['input_file_id']}")).status == 200
            assert (await jobs.ask("GET", f"/v1/files/{job['input_file_id']}")).status == 404

    runs(test())


def test_mistakes_in_a_file_are_told_by_line(served: Any, wire: Any, runs: Runs) -> None:
    async def test() -> None:
        async with served() as app:
            jobs = Jobs(wire, app)
            lines = [
                line(1),
                line(1),
                line(2) | {"url": "/v1/embeddings"},
                line(3, stream=True),
                line(4, temprature=1),
                7,
            ]
            done = await jobs.until(await jobs.order(lines), "failed")
            assert [one["line"] for one in done["errors"]["data"]] == [2, 3, 4, 5, 6]
            empty = await jobs.until(await jobs.order([]), "failed")
            assert empty["errors"]["data"][0]["code"] == "empty_file"
            assert (await jobs.upload(b"{}", purpose="fine-tune")).status == 400
            nothing = {"input_file_id": "file-" + "0" * 24, "endpoint": "/v1/completions"}
            assert (await jobs.ask("POST", "/v1/batches", nothing)).status == 404
            for path in ("..%2f..%2fetc%2fpasswd", "file-x", "%00", "file-" + "0" * 24):
                assert (await jobs.ask("GET", f"/v1/files/{path}")).status == 404
            big = b"x" * 3000
            async with served(max_file=2000) as small:
                assert (await Jobs(wire, small).upload(big)).status == 413

    runs(test())


def test_a_key_sees_its_own_and_nothing_else(served: Any, wire: Any, runs: Runs) -> None:
    async def test() -> None:
        async with served() as app:
            mine, other, admin = Jobs(wire, app), Jobs(wire, app, "k2"), Jobs(wire, app, "k3", ("admin",))
            job = await mine.until(await mine.order([line(1)]), "completed")
            for path in (f"/v1/batches/{job['id']}", f"/v1/files/{job['input_file_id']}",
                         f"/v1/files/{job['output_file_id']}/content"):  # fmt: skip
                assert (await mine.ask("GET", path)).status == 200
                assert (await other.ask("GET", path)).status == 404
                assert (await admin.ask("GET", path)).status == 200
            assert json.loads((await other.ask("GET", "/v1/files")).body)["data"] == []
            assert json.loads((await other.ask("GET", "/v1/batches")).body)["data"] == []
            assert [one["id"] for one in json.loads((await mine.ask("GET", "/v1/batches")).body)["data"]] == [job["id"]]

    runs(test())
