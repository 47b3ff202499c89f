"""A `groundup serve` as its users start it: a process, a port, a key, a log."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import psutil


class Running:
    """A running server, with a key that may do everything (None where it lets everybody in)."""

    def __init__(self, folder: Path, *arguments: str, **environment: str) -> None:
        """Start it in a folder and wait for its address; `arguments` are those of `groundup serve`."""
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "groundup", "serve", "--port=0", "--json", "--threads=1", *arguments]
        self.folder, self.log = folder, folder / "log.txt"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command,
                cwd=folder,
                env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the server did not start: {self.end()}"
        self.url, self.key = (json.loads(line)[name] for name in ("url", "key"))

    def ask(
        self, path: str, data: Any = None, *, method: str | None = None, key: str | None = "", **headers: str
    ) -> tuple[int, Any, str]:
        """Status, headers and body of an answer; `key` None sends none, "" the server's own."""
        given = {"content-type": "application/json"}
        given |= {} if key is None else {"authorization": f"Bearer {key or self.key}"}
        given |= {name.replace("_", "-"): value for name, value in headers.items()}
        body = None if data is None else json.dumps(data).encode()
        try:
            with urllib.request.urlopen(
                urllib.request.Request(self.url + path, body, given, method=method), timeout=60
            ) as reply:
                return reply.status, reply.headers, reply.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.headers, error.read().decode()

    def until_ready(self, seconds: float = 60) -> None:
        """Wait until every model made progress."""
        end = time.monotonic() + seconds
        while self.ask("/readyz", key=None)[0] != 200:
            assert time.monotonic() < end, f"not ready: {self.end()}"
            time.sleep(0.05)

    @property
    def engine(self) -> psutil.Process:
        """The engine process, where there is one."""
        (found,) = [c for c in psutil.Process(self.process.pid).children() if "worker" in " ".join(c.cmdline())]
        return found

    def end(self, number: int = signal.SIGTERM) -> str:
        """Ask it to end, and give its log."""
        if self.process.poll() is None:
            self.process.send_signal(number)
            self.process.wait(60)
        if self.process.stdout is not None:
            self.process.stdout.close()
        return self.log.read_text()

    def end_well(self) -> None:
        """Ask it to end, and hold it to having met no fault of its own."""
        log = self.end()
        assert self.process.returncode == 0 and "Traceback" not in log, log
