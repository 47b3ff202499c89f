"""OpenTelemetry traces of the server: one span for each HTTP request, one within it for each model call.

A caller's W3C `traceparent` is continued. Names and attributes are those of OpenTelemetry's semantic
conventions for HTTP and for generative AI (the latter still have the status "development"; what is used
here: `gen_ai.operation.name`, `gen_ai.provider.name`, `gen_ai.request.*`, `gen_ai.response.finish_reasons`,
`gen_ai.usage.*`). The conventions' attributes with the content of messages are never set: a trace says how
long and how much, not what.

Spans go to an OTLP collector over HTTP, from a thread of their own; when the collector is away they are
dropped, and requests do not notice. Nothing is installed globally and nothing is sent unless an endpoint is
given.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from groundup.errors import MissingExtra, UserError

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import SpanProcessor
    from opentelemetry.trace import Span

PROVIDER = "groundup"
"""`gen_ai.provider.name`: who computes."""
OPERATIONS = {"completion": "text_completion", "embedding": "embeddings"}
"""Our words in the convention's, where they differ; what it has no word for (`classify`) keeps ours."""
_parent: ContextVar[Context | None] = ContextVar("groundup_span", default=None)
"""The span that a model call of this request belongs to."""


class Tracing:
    """Spans of one server.

    endpoint is a collector's OTLP/HTTP address, e.g. `http://localhost:4318/v1/traces`. share is how
    many of the traces that begin here are kept, in [0, 1]; one that a caller began is kept if the caller
    keeps it. `processor` replaces the exporter, for tests. Raises MissingExtra without the packages.
    """

    def __init__(
        self,
        endpoint: str = "",
        *,
        service: str = "groundup",
        share: float = 1.0,
        processor: SpanProcessor | None = None,
    ) -> None:
        try:
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError as error:
            raise MissingExtra("opentelemetry-sdk", "telemetry", needed_for="tracing") from error
        if processor is None:
            processor = BatchSpanProcessor(_exporter(endpoint))
        resource = Resource.create({"service.name": service})
        self._provider = TracerProvider(resource=resource, sampler=ParentBased(TraceIdRatioBased(share)))
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("groundup.serving")
        self._format = TraceContextTextMapPropagator()

    def http_span(self, method: str, path: str, headers: Mapping[str, str], request_id: str) -> Span:
        """The span of an HTTP request, a child of the caller's where `traceparent` names one.

        The names of headers are in lower case.
        """
        from opentelemetry.trace import SpanKind, set_span_in_context

        caller = self._format.extract(headers)
        attributes = {"http.request.method": method, "url.path": path, "groundup.request_id": request_id}
        span = self._tracer.start_span(method, context=caller, kind=SpanKind.SERVER, attributes=attributes)
        _parent.set(set_span_in_context(span, caller))
        return span

    def end_http_span(self, span: Span, *, method: str, route: str, status: int) -> None:
        """The response has ended. A status of 500 or more makes the span an error; a client's mistake does not."""
        from opentelemetry.trace import StatusCode

        span.update_name(f"{method} {route}")
        span.set_attributes({"http.route": route, "http.response.status_code": status})
        if status >= 500:
            span.set_attribute("error.type", str(status))
            span.set_status(StatusCode.ERROR)
        span.end()

    def model_span(self, operation: str, model: str, request_id: str, attributes: Mapping[str, Any]) -> Span:
        """The span of one model call within the current HTTP request.

        attributes are named without `gen_ai.request.` (temperature, top_p, max_tokens, seed, …); None is left out.
        """
        from opentelemetry.trace import SpanKind

        name = OPERATIONS.get(operation, operation)
        known = {
            "gen_ai.operation.name": name,
            "gen_ai.provider.name": PROVIDER,
            "gen_ai.request.model": model,
            "groundup.sequence_id": request_id,
        }
        known |= {f"gen_ai.request.{key}": value for key, value in attributes.items() if value is not None}
        return self._tracer.start_span(
            f"{name} {model}", context=_parent.get(), kind=SpanKind.INTERNAL, attributes=known
        )

    def end_model_span(
        self,
        span: Span,
        *,
        reason: str,
        input_tokens: int,
        output_tokens: int,
        cached_tokens: int,
        first_token_s: float | None,
        queue_s: float | None,
    ) -> None:
        """A model call has ended."""
        from opentelemetry.trace import StatusCode

        attributes: dict[str, Any] = {
            "gen_ai.response.finish_reasons": [reason],
            "gen_ai.usage.input_tokens": input_tokens,
            "gen_ai.usage.output_tokens": output_tokens,
            "gen_ai.usage.cache_read.input_tokens": cached_tokens,
        }
        if first_token_s is not None:
            attributes["groundup.time_to_first_token_s"] = first_token_s
        if queue_s is not None:
            attributes["groundup.queue_s"] = queue_s
        span.set_attributes(attributes)
        if reason == "error":
            span.set_status(StatusCode.ERROR)
        span.end()

    def close(self) -> None:
        """Send what is left and end the exporter's thread."""
        self._provider.shutdown()


def collector_port(endpoint: str) -> int:
    """The TCP port of a collector's address. Raises UserError for what is no such address."""
    try:
        address = urlsplit(endpoint)
        port = address.port or {"http": 80, "https": 443}[address.scheme]
    except (KeyError, ValueError) as error:
        raise UserError(
            f"{endpoint!r} is no address of a collector",
            where="--traces",
            fix="give its OTLP/HTTP address, e.g. http://localhost:4318/v1/traces",
        ) from error
    return port


def _exporter(endpoint: str) -> Any:
    collector_port(endpoint)
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError as error:
        raise MissingExtra("opentelemetry-exporter-otlp-proto-http", "telemetry", needed_for="tracing") from error
    return OTLPSpanExporter(endpoint=endpoint, timeout=5)
