"""The engine process: it owns torch, the models and their caches, and does what frames ask of it.

One loop in one thread takes the frames that have come, lets every engine compute one step and every batcher one
batch, and sends what came of it, so that nothing is ever computed behind its back and an answered Ping is a proof
of progress. Only opening a model, which may take a while, happens in a thread beside it.

A request that raises is `Failed`, and only that one. SIGTERM and Ctrl-C are for the supervisor to act on; the
process ends by a Stop frame, or when the other end of its socket is gone.
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import queue
import selectors
import socket
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import closing, suppress

import torch

from groundup.errors import GroundupError, UserError, nearest
from groundup.serving import faults, logs, process, wire
from groundup.serving.batcher import Full
from groundup.serving.engine import QueueFull
from groundup.serving.generating import Generating, Unknown
from groundup.serving.models import Options
from groundup.serving.opening import Opened, open_model
from groundup.serving.unpacking import Unpacker
from groundup.serving.wire import Failed, Frame

log = logging.getLogger(__name__)

READ = 1 << 18
"""Bytes that are taken from the socket at once."""
READS = 4
"""How often in a row, before there is a step again: a flood of requests holds up nobody who is being served."""


class Link:
    """The socket to the front: whole frames in, frames out. `wake` may be called from any thread."""

    def __init__(self, joined: socket.socket) -> None:
        self._socket = joined
        self._frames = wire.Frames()
        self._woken, self._waker = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        self._selector.register(joined, selectors.EVENT_READ)
        self._selector.register(self._woken, selectors.EVENT_READ)

    def receive(self, timeout_s: float | None) -> list[Frame]:
        """What has come, waiting at most so long for the first (None: until something comes).

        Raises EOFError when the front is gone, and WireError for what is no frame.
        """
        found: list[Frame] = []
        for _ in range(READS):
            ready = {key.fileobj for key, _ in self._selector.select(timeout_s)}
            if self._woken in ready:
                self._woken.recv(READ)
            if self._socket not in ready:
                break
            data = self._socket.recv(READ)
            if not data:
                raise EOFError
            found += self._frames.feed(data)
            timeout_s = 0
        return found

    def send(self, frames: Sequence[Frame]) -> None:
        """Send frames in order. It waits while the front does not read. Raises OSError when that is gone."""
        if frames:
            self._socket.sendall(b"".join(map(wire.encode, frames)))

    def wake(self) -> None:
        """End the wait of `receive`."""
        self._waker.send(b"!")

    def close(self) -> None:
        """Close both ends of everything."""
        self._selector.close()
        for one in (self._socket, self._woken, self._waker):
            one.close()


class Worker:
    """The loop and what it serves."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.models: dict[str, Opened] = {}
        self.steps = 0
        self._owners: dict[int, Opened] = {}
        """Which model a request that is under way belongs to."""
        self._to_open: deque[wire.Load] = deque()
        """Models that are to be opened, one after the other; the first is being opened."""
        self._given_up: set[int] = set()
        """Of these, the numbers of those that nobody waits for any more."""
        self._opened: queue.SimpleQueue[Callable[[], Frame]] = queue.SimpleQueue()
        """What threads have prepared, to be put in place by the loop."""
        self._unpacker = Unpacker(link.wake)
        self._is_stopping = False

    def run(self) -> None:
        """Serve until Stop, or until the front is gone."""
        with closing(self._unpacker), suppress(EOFError, BrokenPipeError, ConnectionResetError):
            self.link.send([wire.Ready(os.getpid(), torch.get_num_threads())])
            while not self._is_stopping:
                frames = [answer for frame in self.link.receive(self._patience()) for answer in self._take(frame)]
                while not self._opened.empty():
                    frames.append(self._opened.get()())
                self.link.send(self._ended([*frames, *self._compute()]))

    def _patience(self) -> float | None:
        """Seconds for which there is nothing to do unless a frame comes; None for ever."""
        waits = [model.work.due_in(is_idle=True) for model in self.models.values()]
        return min((wait for wait in waits if wait is not None), default=None)

    def _compute(self) -> list[Frame]:
        """One step of every engine with work, and one batch of every batcher that has one due."""
        frames: list[Frame] = []
        is_idle = True
        # Texts first: while there are any, rows wait a little for company.
        for model in sorted(self.models.values(), key=lambda model: model.facts.kind != "generate"):
            if model.work.has_work:
                frames += model.work.step(is_idle=is_idle)
                is_idle = is_idle and model.facts.kind != "generate"
                self.steps += 1
        return frames

    def _ended(self, frames: list[Frame]) -> list[Frame]:
        """The frames, after the requests that they end were crossed off."""
        for frame in frames:
            if isinstance(frame, wire.Finished | wire.Answered | wire.Scored | Failed) and frame.id is not None:
                self._owners.pop(frame.id, None)
        return frames

    # ------------------------------------------------------------------------------ frames

    def _take(self, frame: Frame) -> list[Frame]:
        """Do what a frame asks; what is to be sent at once. A frame that fails harms no other."""
        number = getattr(frame, "id", None)
        try:
            return self._do(frame)
        except (Full, QueueFull) as error:
            return [Failed(number, "queue_full", error.what, error.fix, error.retry_after_s)]
        except Unknown as error:
            return [Failed(number, error.code, error.what, error.fix)]
        except GroundupError as error:
            return [Failed(number, "bad_request", error.what, error.fix)]
        except Exception as error:
            faults.note(log, f"a {frame.kind} could not be done", error)
            return [Failed(number, "internal", f"{type(error).__name__} in the engine", "see the server's log")]

    def _do(self, frame: Frame) -> list[Frame]:
        match frame:
            case wire.Generate() | wire.Score() | wire.Answer():
                return self._start(frame)
            case wire.Cancel():
                owner = self._owners.pop(frame.id, None)
                if owner is not None:
                    owner.work.cancel(frame.id)
                self._given_up |= {frame.id} & {load.id for load in self._to_open}
                return []
            case wire.Ping():
                return [wire.Pong(frame.number, self.steps, {name: m.work.stats() for name, m in self.models.items()})]
            case wire.Load():
                return self._load(frame)
            case wire.Unload():
                model = self._model(frame.model)
                del self.models[frame.model]
                gone = model.work.clear()
                del model
                gc.collect()
                return [*gone, wire.Done(frame.id)]
            case wire.LoadAdapter():
                facts = self._generating(frame.model).load_adapter(frame.adapter, frame.path)
                return [wire.Loaded(frame.id, frame.model, facts)]
            case wire.UnloadAdapter():
                self._generating(frame.model).unload_adapter(frame.adapter)
                return [wire.Done(frame.id)]
            case wire.Stop():
                self._is_stopping = True
                return []
        raise GroundupError(f"a {frame.kind} is nothing that an engine can do")

    def _start(self, frame: wire.Generate | wire.Score | wire.Answer) -> list[Frame]:
        model = self._model(frame.model)
        work = model.work
        if isinstance(frame, wire.Answer) == isinstance(work, Generating):
            can = {"generate": "continues texts", "answer": "answers rows", "embed": "gives vectors of texts"}
            what = f"the model {frame.model!r} {can[model.facts.kind]}; it cannot be asked for anything else"
            raise GroundupError(what, fix="see GET /v1/models for what each model can do")
        frames = work.take(frame)  # type: ignore[arg-type]
        if not frames:
            self._owners[frame.id] = model
        return frames

    def _load(self, frame: wire.Load) -> list[Frame]:
        """Open a model in a thread beside the loop, when its turn comes; what comes of it is sent then."""
        if frame.model in self.models or any(frame.model == other.model for other in self._to_open):
            raise UserError(f"a model {frame.model!r} is loaded already", fix="unload it first, or take another name")
        Options.of_data(frame.options)
        self._to_open.append(frame)
        if len(self._to_open) == 1:
            self._open_next()
        return []

    def _open_next(self) -> None:
        """Begin to open the next model. One at a time: each must know what memory the others leave."""
        frame = self._to_open[0]
        promised = sum(m.work.promised_bytes for m in self.models.values() if isinstance(m.work, Generating))

        def work() -> None:
            try:
                options = Options.of_data(frame.options)
                opened: Opened | Exception = open_model(
                    frame.model, frame.path, options, promised_bytes=promised, unpacker=self._unpacker
                )
            except Exception as error:
                opened = error
            self._opened.put(lambda: self._place(frame, opened))
            self.link.wake()

        threading.Thread(target=work, name=f"opening {frame.model}", daemon=True).start()

    def _place(self, frame: wire.Load, opened: Opened | Exception) -> Frame:
        """Serve a model that was opened, or say why it was not."""
        self._to_open.popleft()
        is_wanted = frame.id not in self._given_up
        self._given_up.discard(frame.id)
        if isinstance(opened, Opened) and is_wanted:
            self.models[frame.model] = opened
        if self._to_open:
            self._open_next()
        if not is_wanted:
            return wire.Done(frame.id)
        if isinstance(opened, Opened):
            return wire.Loaded(frame.id, frame.model, opened.facts.as_data())
        if isinstance(opened, GroundupError):
            return Failed(frame.id, "bad_request", _placed(opened), opened.fix)
        log.error("the model %r could not be opened", frame.model, exc_info=opened)
        what = f"the model could not be opened ({type(opened).__name__}: {opened})"
        return Failed(frame.id, "internal", what, "see the server's log")

    def _model(self, name: str) -> Opened:
        if name not in self.models:
            raise Unknown("unknown_model", f"no model {name!r} is loaded", fix=nearest(name, self.models))
        return self.models[name]

    def _generating(self, name: str) -> Generating:
        work = self._model(name).work
        if not isinstance(work, Generating):
            raise UserError(f"the model {name!r} takes no adapters", fix="only models that continue texts do")
        return work


def _placed(error: GroundupError) -> str:
    return f"{error.where}: {error.what}" if error.where else error.what


def serve(joined: socket.socket) -> None:
    """Serve whoever is at the other end of a socket, until it is gone: in a process of its own, or in a thread."""
    link = Link(joined)
    try:
        Worker(link).run()
    finally:
        link.close()


def main() -> None:
    """The engine process: `python -m groundup.serving.worker --socket NUMBER --threads N`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--socket", type=int, help="number of the inherited socket; on Windows it comes by stdin")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--log-format", choices=["json", "text"], default="text")
    given = parser.parse_args()
    process.settle()
    logs.configure(form=given.log_format)
    joined = _from_stdin() if given.socket is None else socket.socket(fileno=given.socket)
    torch.set_num_threads(given.threads)
    serve(joined)
    # A thread that is still opening a model would be waited for.
    sys.stderr.flush()
    os._exit(0)


def _from_stdin() -> socket.socket:
    if sys.platform != "win32":
        raise OSError("elsewhere the socket is inherited: give --socket")
    return socket.fromshare(sys.stdin.buffer.read())


if __name__ == "__main__":
    main()
