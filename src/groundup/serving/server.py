"""The server: engines behind a supervisor, the application behind its guards, and uvicorn in front of both.

The order of a start: everything that can be wrong without a model is checked (files, memory, certificate, address),
then the engine is started and the models are loaded, and only then is the port opened. The order of an end: no new
work, running work within its grace time, then the engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from groundup.errors import MissingExtra, UserError, nearest
from groundup.machine import free_memory
from groundup.serving import fit, logs, models, tls
from groundup.serving.canary_client import CanaryClient, CanaryHeader, resumed
from groundup.serving.client import Client, EngineClient, EngineFault
from groundup.serving.connections import uvicorn_options
from groundup.serving.edge import is_loopback
from groundup.serving.health import Health
from groundup.serving.models import Facts, Options
from groundup.serving.observed import Observed
from groundup.serving.replicas import Replicas
from groundup.serving.security import Guards
from groundup.serving.service import Service
from groundup.serving.supervisor import Supervisor, Watch
from groundup.serving.telemetry import Telemetry
from groundup.serving.tracing import Tracing

if TYPE_CHECKING:
    import uvicorn

    from groundup.serving.api.calling import Api

FIGURES_EVERY_S = 2.0
"""How often the engine's figures are taken over."""
log = logging.getLogger("groundup.server")


@dataclass(frozen=True)
class Place:
    """Where and for whom a service runs: what is of this machine and no part of the service."""

    state: Path
    """Files, batch jobs and the use of keys."""
    keys: Path | None
    """The file of API keys; None lets everybody in."""
    public_key: Path | None = None
    """Only models signed with it are opened."""
    tls_cert: Path | None = None
    tls_key: Path | None = None
    traces: str = ""
    """An OTLP collector's address."""
    log_format: logs.Format = "text"
    candidates: Mapping[str, str] = field(default_factory=dict)
    """Models on trial: their paths, by the names of the models they may replace."""


def candidate_of(name: str) -> str:
    """The name under which the candidate for a model is served beside it."""
    return f"{name}@candidate"


def examine(service: Service, place: Place) -> dict[str, tuple[Facts, Options]]:
    """Every model by name with how it is opened: all fit into memory, each cache having its share.

    What was not touched since it was written is not read again here: the engine reads every byte before it opens it.

    Raises UserError for models that cannot be served or do not fit, ArtifactError for damaged and unsigned ones.
    """
    options = service.settings.options(public_key=place.public_key)
    public_key = options.public_key
    for name in place.candidates:
        if name not in service.models:
            what = f"there is no model {name!r} that a candidate could replace"
            raise UserError(what, where="--canary", fix=nearest(name, service.models))
    paths = {**service.models, **{candidate_of(name): path for name, path in place.candidates.items()}}
    found = {name: (models.describe(path, public_key=public_key, full=False), options) for name, path in paths.items()}
    return fit.settled(found, free_memory() // service.settings.replicas)


def plan(service: Service, place: Place) -> list[str]:
    """What `groundup serve --plan` prints: memory and speed to expect. Raises as `examine`."""
    found = examine(service, place)
    threads = service.settings.threads or fit.engine_threads(service.settings.replicas)
    return fit.report(found, fit.measure(threads))


def serve(service: Service, place: Place, *, ready: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT. `ready` is called with the server's address once it answers.

    Raises UserError and ArtifactError for what is wrong before the start, EngineFault for a model that does not load,
    and MissingExtra without fastapi and uvicorn.
    """
    try:
        import fastapi  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise MissingExtra(error.name or "fastapi", "serve", needed_for="a server") from error
    logs.configure(form=place.log_format)
    options = {name: options for name, (_, options) in examine(service, place).items()}
    certificate = certificate_of(place)
    with contextlib.closing(listening(service)) as opened:
        asyncio.run(_Server(service, place, options, certificate, opened, ready).run())


class _Server:
    """One run of a service."""

    def __init__(
        self,
        service: Service,
        place: Place,
        options: Mapping[str, Options],
        certificate: tls.Certificate | None,
        opened: socket.socket,
        ready: Callable[[str], None],
    ) -> None:
        self.service, self.place, self.certificate, self.socket, self.ready = service, place, certificate, opened, ready
        self.options = options
        tracing = Tracing(place.traces) if place.traces else None
        self.telemetry = Telemetry(prefix=service.settings.metrics_prefix, tracing=tracing)
        self.healths: dict[str, Health] = {}
        self.probes: dict[str, asyncio.Task[None]] = {}
        self.supervisors: dict[str, Supervisor] = {}
        self.trials: dict[str, CanaryClient] = {}

    async def run(self) -> None:
        """Start, serve, and end in order."""
        settings = self.service.settings
        self.telemetry.expect(models=self.service.models, engines=[str(n) for n in range(settings.replicas)])
        async with contextlib.AsyncExitStack() as stack:
            guards = stack.enter_context(contextlib.closing(guards_of(self.service, self.place, self.telemetry)))
            client = await stack.enter_async_context(self._engines())
            api = await self._load(client, guards)
            server = self._front(api, guards, client.rolling_restart)
            await stack.enter_async_context(_beside(self._keep_figures()))
            on_signals(partial(self._end, server))
            await server.serve(sockets=[self.socket])

    # ------------------------------------------------------------------------------ the engines

    @contextlib.asynccontextmanager
    async def _engines(self) -> AsyncIterator[Replicas]:
        """The engines, up, as one client."""
        replicas = Replicas(self._engine, self.service.settings.replicas)
        try:
            await replicas.start()
            yield replicas
        finally:
            for name in list(self.probes):
                self._forget(name)
            await replicas.stop()

    def _engine(self, name: str) -> Supervisor:
        """A new engine under a name, with its health watched; it replaces the one of that name."""
        for known, supervisor in list(self.supervisors.items()):
            if known == name or supervisor.state == "stopped":
                self._forget(known)
        settings = self.service.settings
        client = EngineClient()
        watch = Watch(
            threads=settings.threads or self._threads, grace_s=settings.grace, log_format=self.place.log_format
        )

        def restarted(cause: str, why: str) -> None:
            self.telemetry.engine_restarted(engine=name, cause=cause)
            for trial in self.trials.values():
                trial.engine_restarted()

        self.supervisors[name] = supervisor = Supervisor(client, watch, restarted=restarted)
        self.healths[name] = health = Health(client, optional=[candidate_of(one) for one in self.place.candidates])
        self.probes[name] = asyncio.create_task(health.run(), name=f"probes of engine {name}")
        return supervisor

    @property
    def _threads(self) -> int:
        """Compute threads of each replica."""
        return fit.engine_threads(self.service.settings.replicas)

    def _forget(self, name: str) -> None:
        self.healths.pop(name, None)
        self.supervisors.pop(name, None)
        if (task := self.probes.pop(name, None)) is not None:
            task.cancel()

    def _is_ready(self) -> bool:
        return any(health.is_ready for health in self.healths.values())

    async def _load(self, client: Replicas, guards: Guards) -> Api:
        from groundup.serving.api.calling import Api
        from groundup.serving.api.registry import Registry

        options = self.service.settings.options(public_key=self.place.public_key)
        registry = Registry(client, options=options, telemetry=self.telemetry)
        for name, path in self.service.models.items():
            await registry.load(name, path, self.options[name])
        for name, adapter in self.service.adapters.items():
            await registry.load_adapter(name, adapter.path, adapter.model)
        asked: Client = client
        for name, path in self.place.candidates.items():
            asked = self.trials[name] = await self._trial(asked, name, path, self.options[candidate_of(name)])
        return Api(asked, registry, self.service.settings.limits, self.telemetry, guards.meter_of)

    async def _trial(self, client: Client, name: str, path: str, options: Options) -> CanaryClient:
        """The client with a candidate for one of its models on trial."""
        candidate = candidate_of(name)
        await client.load(candidate, path, options)
        report = self.place.state / f"canary-{name.replace('/', '_')}.json"
        canary = resumed(report, self.service.settings.canary, client.models[name], client.models[candidate])
        return CanaryClient(client, canary, current=name, candidate=candidate, telemetry=self.telemetry, report=report)

    async def _keep_figures(self) -> None:
        """Take over what the engines say of themselves, over and over."""
        while True:
            for name, supervisor in list(self.supervisors.items()):
                with contextlib.suppress(EngineFault, TimeoutError):
                    async with asyncio.timeout(FIGURES_EVERY_S):
                        pong = await supervisor.client.ping()
                    self.telemetry.engine_stats(pong.stats, engine=name)
                health = self.healths.get(name)
                self.telemetry.engine_ready(health is not None and health.is_ready, engine=name)
                if supervisor.process is not None:
                    self.telemetry.engine_memory(_resident(supervisor.process.pid), engine=name)
            await asyncio.sleep(FIGURES_EVERY_S)

    # ------------------------------------------------------------------------------ the front

    def _front(self, api: Api, guards: Guards, restart: Callable[[], Awaitable[None]]) -> uvicorn.Server:
        from groundup.serving.api.app import create_app

        drained: list[uvicorn.Server] = []

        async def drain() -> None:
            self._end(drained[0])

        app = create_app(
            api,
            state=self.place.state,
            is_ready=self._is_ready,
            drain=drain,
            restart=restart,
            trials={name: (one.canary, one.promote, one.roll_back) for name, one in self.trials.items()},
        )
        app = CanaryHeader(app) if self.trials else app
        watched = Observed(guards.protect(app), self.telemetry)
        is_up = partial(self.ready, address_of(self.socket, self.certificate))
        server = web_server(watched, self.service, self.certificate, is_up)
        drained.append(server)
        return server

    def _end(self, server: uvicorn.Server) -> None:
        """Begin the end: no new work, and what runs has its grace time. Asked twice, it does not wait."""
        log.warning("ending: no new work is taken, what runs has %g s", self.service.settings.grace)
        server.force_exit = server.should_exit
        server.should_exit = True
        for supervisor in self.supervisors.values():
            supervisor.client.drain()


def guards_of(service: Service, place: Place, telemetry: Telemetry) -> Guards:
    """What stands in front of a service's application. Close it at the end."""
    return Guards(
        service.settings.security,
        keys=place.keys,
        usage=place.state / "usage.sqlite",
        bind=service.settings.host,
        rejected=telemetry.rejected,
        complain=log.warning,
    )


def web_server(
    app: Any, service: Service, certificate: tls.Certificate | None, is_up: Callable[[], None]
) -> uvicorn.Server:
    """uvicorn for an application; `is_up` is called once it answers."""
    import uvicorn

    class Server(uvicorn.Server):
        """uvicorn, which leaves signals to us (it would end with one again), and says when it answers."""

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                is_up()

    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="on",
        ws="none",
        timeout_graceful_shutdown=max(1, round(service.settings.grace)),
        **uvicorn_options(service.settings.security.connections),
    )
    config.load()
    if certificate is not None:
        config.ssl = certificate.context
    return Server(config)


def listening(service: Service) -> socket.socket:
    """The socket of the server, bound and not yet open. Raises UserError for an address that cannot be had."""
    settings = service.settings
    try:
        family, kind, _, _, address = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0]
        # The protocol by name: asyncio turns Nagle's algorithm off only where it stands, and an answer in two
        # writes, head and body, would otherwise wait 40 ms for the client to acknowledge the first.
        opened = socket.socket(family, kind, socket.IPPROTO_TCP)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(address)
    except OSError as error:
        what = f"the address {settings.host}:{settings.port} cannot be had: {error.strerror or error}"
        raise UserError(what, fix="choose another with --port (0 takes any free one) or --host") from error
    if not is_loopback(settings.host):
        log.warning("listening on %s: whoever reaches this machine reaches the server", settings.host)
    return opened


def address_of(opened: socket.socket, certificate: tls.Certificate | None) -> str:
    """The address of a socket, as clients write it."""
    host, port = opened.getsockname()[:2]
    scheme = "https" if certificate is not None else "http"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"


def certificate_of(place: Place) -> tls.Certificate | None:
    """The certificate that was asked for, tried. Raises UserError for one that is of no use."""
    if place.tls_cert is None and place.tls_key is None:
        return None
    if place.tls_cert is None or place.tls_key is None:
        raise UserError("TLS needs a certificate and its key", fix="give both --tls-cert and --tls-key")
    found = tls.load(place.tls_cert, place.tls_key)
    if (warning := found.warning(time.time())) is not None:
        log.warning("%s", warning)
    return found


@contextlib.asynccontextmanager
async def _beside(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Something that goes on beside the block, and ends with it."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def on_signals(end: Callable[[], None]) -> None:
    """Call `end` in the running loop at SIGINT and SIGTERM."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        try:
            loop.add_signal_handler(number, end)
        except NotImplementedError:  # Windows
            signal.signal(number, lambda *_: loop.call_soon_threadsafe(end))


def _resident(pid: int) -> float:
    import psutil

    with contextlib.suppress(psutil.Error):
        return float(psutil.Process(pid).memory_info().rss)
    return 0.0
