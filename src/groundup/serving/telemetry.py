"""What the server counts and times, for Prometheus.

Where a figure means what one of vLLM's means, it has vLLM's base name and labels, behind the prefix
`groundup:` instead of `vllm:`. A name says who counted: a board that shows a fleet of both keeps them
apart, and one made for vLLM is ported by replacing one word. `--metrics-prefix vllm` gives vLLM's very
names, so boards, autoscalers and benchmarks that know only those work unchanged. Same name means same
labels here: what is counted per API key has names of its own (`key_…`), so that a query written for vLLM
never finds more series than it expects.

No label takes a value that a client chooses: models are those loaded, keys those created (the hundred
first seen, the others together), routes those of the application.

The front process keeps all of this. The engine process reports cumulative counts with each `Pong`, which
begin at zero again when it is restarted; `engine_stats` adds what was added since the last report.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from groundup.errors import MissingExtra, UserError

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from groundup.serving.tracing import Tracing

PREFIX = "groundup"
LATENCIES = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 16, 32, 64, 128)
"""Seconds. Twice or so from bucket to bucket; from a small model's step to a long answer on a CPU."""
SIZES = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536)
"""Tokens."""
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
MOST_LABELS = 100
"""Different values of one label; the rest are counted together as `other`."""
OTHER = "other"
REASONS = {"cancelled": "abort"}
"""Why a request ended, in vLLM's words where it has one."""

# (name, kind, help, labels). A counter's name gets `_total` from the client library.
_MODEL = ("model_name",)
_ENGINE = ("model_name", "engine")
_METRICS: tuple[tuple[str, str, str, tuple[str, ...]], ...] = (
    # Reported by the engine processes. As in vLLM.
    ("num_requests_running", "gauge", "Requests the engine is computing.", _ENGINE),
    ("num_requests_waiting", "gauge", "Requests waiting for the engine.", _ENGINE),
    ("kv_cache_usage_perc", "gauge", "Share of the cache in use, from 0 to 1.", _ENGINE),
    ("prefix_cache_queries", "counter", "Prompt tokens looked for in the prefix cache.", _ENGINE),
    ("prefix_cache_hits", "counter", "Prompt tokens found in the prefix cache.", _ENGINE),
    ("num_preemptions", "counter", "Requests that lost their place in the cache and were computed again.", _ENGINE),
    ("engine_batches", "counter", "Batches of rows computed for tasks that do not generate. Ours.", _ENGINE),
    ("engine_rows", "counter", "Rows computed for tasks that do not generate. Ours.", _ENGINE),
    # Counted here, for each sequence of a request. As in vLLM.
    ("prompt_tokens", "counter", "Prompt tokens of finished requests.", _MODEL),
    ("generation_tokens", "counter", "Generated tokens.", _MODEL),
    ("request_success", "counter", "Finished requests, by what ended them.", ("model_name", "finished_reason")),
    ("time_to_first_token_seconds", "seconds", "From a request's arrival to its first token.", _MODEL),
    ("inter_token_latency_seconds", "seconds", "Between two tokens of a request.", _MODEL),
    ("e2e_request_latency_seconds", "seconds", "From a request's arrival to its end.", _MODEL),
    ("request_queue_time_seconds", "seconds", "Time a request waited in the engine.", _MODEL),
    ("request_prefill_time_seconds", "seconds", "Time the engine took for a prompt.", _MODEL),
    ("request_decode_time_seconds", "seconds", "Time the engine took from the first token to the last.", _MODEL),
    ("request_prompt_tokens", "tokens", "Prompt tokens of a request.", _MODEL),
    ("request_generation_tokens", "tokens", "Generated tokens of a request.", _MODEL),
    # Ours.
    ("key_requests", "counter", "Finished requests, by API key.", ("key", "model_name")),
    ("key_prompt_tokens", "counter", "Prompt tokens, by API key.", ("key", "model_name")),
    ("key_generation_tokens", "counter", "Generated tokens, by API key.", ("key", "model_name")),
    ("requests_rejected", "counter", "Requests refused before they ran, by reason.", ("reason",)),
    ("queue_tokens", "gauge", "Prompt tokens waiting for the engine.", _ENGINE),
    ("engine_memory_bytes", "gauge", "Resident memory of an engine process.", ("engine",)),
    ("engine_ready", "gauge", "1 while an engine's probe came back lately, else 0.", ("engine",)),
    ("engine_restarts", "counter", "Times an engine process was started again, by cause.", ("engine", "cause")),
    ("model_info", "gauge", "1 for each loaded model.", ("model_name", "digest", "task")),
    ("model_load_failures", "counter", "Models refused or failed at load, by cause.", ("model_name", "cause")),
    ("http_requests", "counter", "HTTP responses.", ("method", "route", "status")),
    ("http_request_duration_seconds", "seconds", "From a request's first byte to its last.", ("method", "route")),
    ("http_requests_in_progress", "gauge", "HTTP requests being answered.", ()),
    ("canary_weight", "gauge", "Share of the traffic that the candidate answers.", _MODEL),
    ("canary_agreement_ratio", "gauge", "Mean agreement of candidate and current model when shadowed.", _MODEL),
    ("canary_requests", "counter", "Requests answered during a canary, by arm and outcome.", ("arm", "outcome")),
    ("canary_decisions", "counter", "Ended canaries: promoted or rolled_back, and what decided.", ("state", "cause")),
)
_LABELS = {name: labels for name, _, _, labels in _METRICS}
_GAUGES_OF_STATS = {
    "running": "num_requests_running",
    "waiting": "num_requests_waiting",
    "kv_usage": "kv_cache_usage_perc",
    "waiting_tokens": "queue_tokens",
}
_COUNTERS_OF_STATS = {
    "prefix_queries": "prefix_cache_queries",
    "prefix_hits": "prefix_cache_hits",
    "preemptions": "num_preemptions",
    "batches": "engine_batches",
    "rows": "engine_rows",
}


def names(prefix: str = PREFIX) -> frozenset[str]:
    """Every name a sample of `/metrics` may have, those of histograms' parts included."""
    found: set[str] = set()
    for name, kind, _, _ in _METRICS:
        endings = {"gauge": ("",), "counter": ("_total",)}.get(kind, ("_bucket", "_sum", "_count"))
        found |= {f"{prefix}:{name}{ending}" for ending in endings}
    return frozenset(found)


@dataclass(slots=True)
class _Live:
    """A request that has started and not finished."""

    model: str
    key: str
    prompt_tokens: int
    started: float
    span: Any
    first: float | None = None
    last: float | None = None
    tokens: int = 0


class Telemetry:
    """The figures of one server. Every method is cheap, none raises for what a client did.

    prefix is what every name begins with. tracing, where given, gets a span for each request. clock
    gives seconds and is for tests. Raises MissingExtra without prometheus-client, UserError for a prefix
    that Prometheus does not allow.
    """

    def __init__(
        self, *, prefix: str = PREFIX, tracing: Tracing | None = None, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        library = _prometheus()
        if not prefix.replace("_", "a").isalnum() or not prefix.isascii() or prefix[0].isdigit():
            raise UserError(
                f"{prefix!r} cannot begin the name of a metric",
                where="--metrics-prefix",
                fix="use letters, digits and underscores, e.g. groundup or vllm",
            )
        self.prefix, self.tracing, self.clock = prefix, tracing, clock
        self.registry: CollectorRegistry = library.CollectorRegistry()
        library.disable_created_metrics()  # a series per series that no query here asks for
        library.ProcessCollector(registry=self.registry)
        self._metrics = {name: self._made(library, name, kind, text, labels) for name, kind, text, labels in _METRICS}
        self._labels: dict[str, set[str]] = {}
        self._children: dict[tuple[str, ...], Any] = {}
        self._live: dict[str, _Live] = {}
        self._counted: dict[tuple[str, str, str], float] = {}

    def _made(self, library: Any, name: str, kind: str, text: str, labels: tuple[str, ...]) -> Any:
        name = f"{self.prefix}:{name}"
        if kind in ("seconds", "tokens"):
            buckets = LATENCIES if kind == "seconds" else SIZES
            return library.Histogram(name, text, labels, registry=self.registry, buckets=buckets)
        return {"gauge": library.Gauge, "counter": library.Counter}[kind](name, text, labels, registry=self.registry)

    def _metric(self, name: str, *values: str) -> Any:
        """The child of a metric for these label values, each bounded in number."""
        found = self._children.get((name, *values))
        if found is None:
            metric = self._metrics[name]
            bounded = [self._bounded(label, value) for label, value in zip(_LABELS[name], values, strict=True)]
            found = metric.labels(*bounded) if values else metric
            if bounded == list(values):  # strangers are not remembered: their number has no bound
                self._children[name, *values] = found
        return found

    def _bounded(self, label: str, value: str) -> str:
        seen = self._labels.setdefault(label, set())
        if value in seen:
            return value
        if len(seen) >= MOST_LABELS:
            return OTHER
        seen.add(value)
        return value

    def exposition(self) -> tuple[bytes, str]:
        """The body of `GET /metrics` and its content type: Prometheus' text format, whatever was asked for.

        In OpenMetrics' format prometheus-client 0.26 writes `_` for the colon of a sample's name, though not for
        that of its family: every query would find nothing.
        """
        return _prometheus().generate_latest(self.registry), CONTENT_TYPE

    # Requests, one for each sequence that a model computes.

    def request_started(
        self,
        request_id: str,
        *,
        model: str,
        key: str = "",
        operation: str = "chat",
        prompt_tokens: int = 0,
        attributes: Mapping[str, Any] | None = None,
    ) -> None:
        """A request for a model was accepted. `attributes` (temperature, …) go to its span, never a prompt."""
        span = None
        if self.tracing is not None:
            span = self.tracing.model_span(operation, model, request_id, dict(attributes or {}))
        self._live[request_id] = _Live(model, key, prompt_tokens, self.clock(), span)

    def first_token(self, request_id: str) -> None:
        """The first token is on its way to the client; `token` says so by itself."""
        live = self._live.get(request_id)
        if live is not None and live.first is None:
            live.first = self.clock()
            self._metric("time_to_first_token_seconds", live.model).observe(live.first - live.started)

    def token(self, request_id: str, count: int = 1) -> None:
        """So many tokens arrived together."""
        live = self._live.get(request_id)
        if live is None:
            return
        self.first_token(request_id)
        now = self.clock()
        if live.last is not None:
            latency = self._metric("inter_token_latency_seconds", live.model)
            for _ in range(count):
                latency.observe((now - live.last) / count)
        live.last = now
        live.tokens += count
        self._metric("generation_tokens", live.model).inc(count)

    def request_finished(
        self,
        request_id: str,
        reason: str,
        *,
        cached_tokens: int = 0,
        queue_s: float | None = None,
        prefill_s: float | None = None,
        decode_s: float | None = None,
        prompt_tokens: int | None = None,
        generated_tokens: int | None = None,
    ) -> None:
        """A request ended: stop, length, cancelled, deadline or error. Times are the engine's. Twice is once.

        The numbers of tokens are given where only the end tells them (an engine that is not ours).
        """
        live = self._live.pop(request_id, None)
        if live is None:
            return
        live.prompt_tokens = live.prompt_tokens if prompt_tokens is None else prompt_tokens
        if generated_tokens is not None:
            self._metric("generation_tokens", live.model).inc(max(0, generated_tokens - live.tokens))
            live.tokens = generated_tokens
        model, key, ended = live.model, live.key, self.clock()
        self._metric("request_success", model, REASONS.get(reason, reason)).inc()
        self._metric("prompt_tokens", model).inc(live.prompt_tokens)
        self._metric("request_prompt_tokens", model).observe(live.prompt_tokens)
        self._metric("request_generation_tokens", model).observe(live.tokens)
        self._metric("e2e_request_latency_seconds", model).observe(ended - live.started)
        times = {"queue": queue_s, "prefill": prefill_s, "decode": decode_s}
        for phase, seconds in times.items():
            if seconds is not None:
                self._metric(f"request_{phase}_time_seconds", model).observe(seconds)
        if key:
            self._metric("key_requests", key, model).inc()
            self._metric("key_prompt_tokens", key, model).inc(live.prompt_tokens)
            self._metric("key_generation_tokens", key, model).inc(live.tokens)
        if self.tracing is not None and live.span is not None:
            first = None if live.first is None else live.first - live.started
            self.tracing.end_model_span(
                live.span,
                reason=reason,
                input_tokens=live.prompt_tokens,
                output_tokens=live.tokens,
                cached_tokens=cached_tokens,
                first_token_s=first,
                queue_s=queue_s,
            )

    def rejected(self, reason: str) -> None:
        """A request was refused before it ran: queue_full, rate_limit, quota, too_large, unauthorized, …"""
        self._metric("requests_rejected", reason).inc()

    # Engines and models.

    def engine_stats(self, stats: Mapping[str, Mapping[str, float]], *, engine: str = "0") -> None:
        """What an engine process reports, for each of its models: running, waiting, kv_usage, … (see `wire.Pong`)."""
        for model, figures in stats.items():
            for key, name in _GAUGES_OF_STATS.items():
                if key in figures:
                    self._metric(name, model, engine).set(figures[key])
            for key, name in _COUNTERS_OF_STATS.items():
                if key in figures:
                    self._metric(name, model, engine).inc(self._added(engine, model, key, float(figures[key])))

    def _added(self, engine: str, model: str, key: str, count: float) -> float:
        before = self._counted.get((engine, model, key), 0.0)
        self._counted[engine, model, key] = count
        return count - before if count >= before else count

    def engine_memory(self, resident_bytes: float, *, engine: str = "0") -> None:
        """The resident memory of an engine process."""
        self._metric("engine_memory_bytes", engine).set(resident_bytes)

    def engine_ready(self, ready: bool, *, engine: str = "0") -> None:
        """Whether an engine's probe came back lately."""
        self._metric("engine_ready", engine).set(int(ready))

    def engine_restarted(self, *, engine: str = "0", cause: str = "crash") -> None:
        """An engine process is started again: nothing runs in it, and it counts from zero."""
        self._metric("engine_restarts", engine, cause).inc()
        self.engine_ready(False, engine=engine)
        models = {model for known, model, _ in self._counted if known == engine}
        for model in models:
            for name in _GAUGES_OF_STATS.values():
                self._metric(name, model, engine).set(0)
        self._counted = {known: count for known, count in self._counted.items() if known[0] != engine}

    def model_loaded(self, model: str, *, digest: str = "", task: str = "") -> None:
        """A model can be asked now."""
        self._metric("model_info", model, digest, task).set(1)

    def model_unloaded(self, model: str) -> None:
        """A model is gone."""
        for known, child in self._children.items():
            if known[:2] == ("model_info", model):
                child.set(0)

    def model_load_failed(self, model: str, cause: str) -> None:
        """A model was not loaded: `integrity` (its files are not as written), `signature`, `memory`, `error`."""
        self._metric("model_load_failures", model, cause).inc()

    # HTTP and canaries.

    def http_started(self) -> None:
        """A request's head was read."""
        self._metric("http_requests_in_progress").inc()

    def http_finished(self, method: str, route: str, status: int, seconds: float) -> None:
        """Its response ended. `route` is the pattern of the application (`/v1/files/{id}`), not the path."""
        self._metric("http_requests_in_progress").dec()
        self._metric("http_requests", method, route, str(status)).inc()
        self._metric("http_request_duration_seconds", method, route).observe(seconds)

    def canary(self, model: str, *, weight: float, agreement: float | None) -> None:
        """How a canary stands."""
        self._metric("canary_weight", model).set(weight)
        if agreement is not None:
            self._metric("canary_agreement_ratio", model).set(agreement)

    def canary_observed(self, arm: str, ok: bool) -> None:
        """A request was answered by one of the two models."""
        self._metric("canary_requests", arm, "ok" if ok else "error").inc()

    def canary_decided(self, state: str, cause: str) -> None:
        """A canary ended, `promoted` or `rolled_back`."""
        self._metric("canary_decisions", state, cause).inc()

    def expect(self, *, models: Iterable[str] = (), engines: Iterable[str] = ("0",)) -> None:
        """Let the series of these models and engines begin at zero, so that a first failure is seen as a rise."""
        for reason in ("queue_full", "rate_limit", "quota", "too_large", "unauthorized", "draining"):
            self._metric("requests_rejected", reason)
        for engine in engines:
            self.engine_ready(False, engine=engine)
            for cause in ("crash", "hang"):
                self._metric("engine_restarts", engine, cause)
        for model in models:
            for cause in ("integrity", "signature", "memory", "error"):
                self._metric("model_load_failures", model, cause)
            for engine in engines:
                for name in (*_GAUGES_OF_STATS.values(), *_COUNTERS_OF_STATS.values()):
                    self._metric(name, model, engine)


def _prometheus() -> Any:
    try:
        import prometheus_client
    except ImportError as error:
        raise MissingExtra("prometheus-client", "serve", needed_for="counting requests for /metrics") from error
    return prometheus_client
