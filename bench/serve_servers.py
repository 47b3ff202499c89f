"""The servers that are compared: how each is started, what a request to it looks like, and what it costs.

Each rival is run as its own documentation runs it. All get the same number of compute threads, are told not to stop
before the last token, and are asked by the same client for the same texts: groundup and transformers as text, llama.cpp
as token ids, since a GGUF file carries a copy of the tokenizer that may cut text in another way.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from harness import ROOT, BenchError
from serve_client import Connection, written

PYTHON = Path(sys.executable)
LLAMA_SERVER = ROOT / ".venv-llama" / "bin" / "llama-server"
START_S = 240.0
SLOTS = 32
"""Texts that a server may have at the same time: the most clients there are."""


@dataclass(frozen=True)
class Model:
    """A model in the forms that rivals read."""

    name: str
    folder: Path
    """A Hugging Face directory without an end-of-text token, so that transformers never stops early."""
    gguf: Path
    """The same weights, matrices rounded to 16 bits."""
    context: int
    parameters: int
    what: str


@dataclass(frozen=True)
class Prompt:
    """A text that is to be continued, and its ids."""

    text: str
    ids: tuple[int, ...]


class Server:
    """A running server: its processes, its address, and what it has used."""

    def __init__(self, command: Sequence[str], folder: Path, threads: int, *, url: str = "") -> None:
        environment = os.environ | {
            "OMP_NUM_THREADS": str(threads),
            "MKL_NUM_THREADS": str(threads),
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",
            "PYTHONUNBUFFERED": "1",
        }
        folder.mkdir(parents=True, exist_ok=True)
        self.command, self.log, self.began, self.url, self.key = [*command], folder / "log.txt", time.time(), url, None
        self.process = subprocess.Popen(
            self.command, cwd=folder, env=environment, stdout=subprocess.PIPE if not url else self.log.open("w"),
            stderr=self.log.open("a"), text=True,
        )  # fmt: skip
        self.start_s = 0.0

    def failed(self, what: str) -> BenchError:
        tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])
        return BenchError(f"{what}: {' '.join(self.command[:6])} …\n{tail}")

    def processes(self) -> list[psutil.Process]:
        """The process and all that it started, which are there now."""
        with suppress(psutil.Error):
            first = psutil.Process(self.process.pid)
            return [first, *first.children(recursive=True)]
        return []

    def peak_bytes(self) -> int:
        """The largest resident sets of its processes, added up."""
        found = 0
        for process in self.processes():
            status = Path(f"/proc/{process.pid}/status")
            with suppress(OSError, psutil.Error, StopIteration):
                if status.is_file():
                    line = next(one for one in status.read_text().splitlines() if one.startswith("VmHWM"))
                    found += int(line.split()[1]) << 10
                else:
                    found += process.memory_info().rss
        return found

    def cpu_s(self) -> float:
        """Processor time of all its processes so far."""
        found = 0.0
        for process in self.processes():
            with suppress(psutil.Error):
                times = process.cpu_times()
                found += times.user + times.system
        return found

    async def until_ready(self, path: str) -> None:
        """Wait until it answers 200 there. Raises BenchError if it ends or takes too long."""
        end = time.monotonic() + START_S
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise self.failed(f"the server ended with code {self.process.returncode}")
            with suppress(OSError):
                connection = await Connection.open(self.url)
                reply = await connection.ask(written(self.url, path), patience_s=5)
                connection.close()
                if reply.status == 200:
                    self.start_s = time.time() - self.began
                    return
            await asyncio.sleep(0.1)
        raise self.failed(f"the server was not ready within {START_S:g} s")

    def stop(self) -> int | None:
        """Ask it to end, see that it does, and give its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(30)
        for process in self.processes():
            with suppress(psutil.Error):
                process.kill()
        code = self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()
        return code


@dataclass(frozen=True)
class Rival(ABC):
    """A server program with its settings."""

    name: str
    flags: tuple[str, ...] = ()
    threads: int | None = None
    """Compute threads, where this rival is asked with another number than the rest."""
    is_exact: bool = True
    """Whether it computes in fp32, and must give groundup's own answers."""

    @abstractmethod
    def missing(self) -> str | None:
        """Why it cannot be started here; None if it can."""

    @abstractmethod
    async def start(self, model: Model, folder: Path, threads: int) -> Server:
        """The server, ready. Raises BenchError."""

    def body(self, model: Model, prompt: Prompt, tokens: int) -> dict[str, Any]:
        """A request for exactly so many tokens, the most likely ones, streamed."""
        given = {"model": model.name, "max_tokens": tokens, "temperature": 0, "stream": True}
        return given | {"stream_options": {"include_usage": True}}

    @abstractmethod
    def version(self) -> str:
        """Its name and release."""


@dataclass(frozen=True)
class Groundup(Rival):
    """`groundup serve`, with keys and all its guards."""

    def missing(self) -> str | None:
        import torch

        if "precision=bf16" in self.flags and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return "this processor does not multiply bf16"
        return _needs("fastapi", "uvicorn", "llguidance")

    async def start(self, model: Model, folder: Path, threads: int) -> Server:
        return await groundup_server([f"--model={model.name}={model.folder}", *self.flags], folder, threads)

    def body(self, model: Model, prompt: Prompt, tokens: int) -> dict[str, Any]:
        return super().body(model, prompt, tokens) | {"prompt": prompt.text, "ignore_eos": True}

    def version(self) -> str:
        from groundup import __version__

        return f"groundup {__version__}"


async def groundup_server(arguments: Sequence[str], folder: Path, threads: int) -> Server:
    """A running `groundup serve` with a key of its own. Raises BenchError."""
    command = [str(PYTHON), "-m", "groundup", "serve", "--port", "0", "--json", "--threads", str(threads)]
    command += ["--keys", str(folder / "keys.json"), "--state", str(folder / "state"), *arguments]
    server = Server(command, folder, threads)
    assert server.process.stdout is not None
    line = await asyncio.to_thread(server.process.stdout.readline)
    if not line:
        server.stop()
        raise server.failed("the server did not start")
    ready = json.loads(line)
    server.url, server.key = ready["url"], ready["key"]
    await server.until_ready("/readyz")
    return server


@dataclass(frozen=True)
class Transformers(Rival):
    """`transformers serve`."""

    def missing(self) -> str | None:
        return _needs("transformers", "fastapi", "uvicorn", "openai")

    async def start(self, model: Model, folder: Path, threads: int) -> Server:
        port = free_port()
        program = PYTHON.parent / "transformers"
        command = [str(program), "serve", str(model.folder), "--port", str(port), "--device", "cpu", *self.flags]
        server = Server(command, folder, threads, url=f"http://localhost:{port}")
        await server.until_ready("/health")
        return server

    def body(self, model: Model, prompt: Prompt, tokens: int) -> dict[str, Any]:
        return super().body(model, prompt, tokens) | {"model": str(model.folder), "prompt": prompt.text}

    def version(self) -> str:
        from importlib.metadata import version

        return f"transformers {version('transformers')}, torch {version('torch')}"


@dataclass(frozen=True)
class Llama(Rival):
    """llama.cpp's own server."""

    def missing(self) -> str | None:
        return None if LLAMA_SERVER.is_file() else f"{LLAMA_SERVER.relative_to(ROOT)} does not exist (see README.md)"

    async def start(self, model: Model, folder: Path, threads: int) -> Server:
        port = free_port()
        command = [str(LLAMA_SERVER), "-m", str(model.gguf), "--port", str(port), "--host", "127.0.0.1"]
        command += ["-t", str(threads), "-tb", str(threads), "-np", str(SLOTS), "-c", str(SLOTS * model.context)]
        server = Server([*command, *self.flags], folder, threads, url=f"http://127.0.0.1:{port}")
        await server.until_ready("/health")
        return server

    def body(self, model: Model, prompt: Prompt, tokens: int) -> dict[str, Any]:
        return super().body(model, prompt, tokens) | {"prompt": list(prompt.ids), "ignore_eos": True}

    def version(self) -> str:
        told = subprocess.run([LLAMA_SERVER, "--version"], capture_output=True, text=True, check=False)
        lines = [line for line in (told.stderr + told.stdout).splitlines() if line.startswith("version")]
        return f"llama.cpp {lines[0].partition(':')[2].strip()}" if lines else "llama.cpp"


RIVALS: tuple[Rival, ...] = (
    Groundup("groundup"),
    Groundup("groundup, bf16", ("--set", "precision=bf16"), is_exact=False),
    Transformers("transformers serve, defaults"),
    # Of itself it takes 60 % of the machine's memory for its cache at once, whatever the load needs.
    Transformers(
        "transformers serve, continuous batching", ("--continuous-batching", "--cb-max-memory-percent", "0.1")
    ),
    Transformers("transformers serve, compiled", ("--compile",)),
    Llama("llama.cpp F16", is_exact=False),
)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return int(opened.getsockname()[1])


def _needs(*packages: str) -> str | None:
    from importlib.util import find_spec

    missing = [name for name in packages if find_spec(name) is None]
    return f"not installed: {', '.join(missing)}" if missing else None


def fresh(folder: Path, name: str) -> Path:
    """A new folder for one run of a server."""
    return folder / f"{name.replace(' ', '-').replace('/', '-').replace(',', '')}-{secrets.token_hex(3)}"
