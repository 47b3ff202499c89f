"""Metrics, logs and traces: true figures under promised names, bounded labels, and no word of what was asked."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("prometheus_client", reason="pip install 'groundup[serve]'")
from prometheus_client.parser import text_string_to_metric_families

from groundup.errors import UserError
from groundup.serving import logs, telemetry
from groundup.serving.observed import Observed
from groundup.serving.telemetry import MOST_LABELS, OTHER, Telemetry

VLLM = {
    "num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "prefix_cache_queries_total",
    "prefix_cache_hits_total", "num_preemptions_total", "prompt_tokens_total", "generation_tokens_total",
    "request_success_total", "time_to_first_token_seconds_bucket", "inter_token_latency_seconds_bucket",
    "e2e_request_latency_seconds_bucket", "request_queue_time_seconds_bucket", "request_prefill_time_seconds_bucket",
    "request_decode_time_seconds_bucket", "request_prompt_tokens_bucket", "request_generation_tokens_bucket",
}  # fmt: skip
"""Of vLLM's docs/usage/metrics.md, what boards and autoscalers ask for."""


def samples(figures: Telemetry) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Every sample of /metrics by name and labels, buckets left out."""
    families = text_string_to_metric_families(figures.exposition()[0].decode())
    found = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }
    return {key: value for key, value in found.items() if "le" not in dict(key[1])}


def value(figures: Telemetry, name: str, **labels: str) -> float | None:
    return samples(figures).get((f"groundup:{name}", tuple(sorted(labels.items()))))


def run(figures: Telemetry, clock: Any, *, id: str = "1", model: str = "m", key: str = "k", tokens: int = 3) -> None:
    """A request: its first token after 0.5 s, each further one after 0.1 s."""
    figures.request_started(id, model=model, key=key, prompt_tokens=7)
    clock.now += 0.5
    for number in range(tokens):
        clock.now += 0.1 if number else 0.0
        figures.token(id)
    figures.request_finished(id, "stop", cached_tokens=4, queue_s=0.2, prefill_s=0.3, decode_s=0.2)


def test_the_names_are_those_that_vllm_has() -> None:
    assert {f"groundup:{name}" for name in VLLM} <= telemetry.names()
    assert {f"vllm:{name}" for name in VLLM} <= telemetry.names("vllm")


@pytest.mark.parametrize("prefix", ["groundup", "vllm"])
def test_every_name_that_is_promised_is_there_and_no_other(prefix: str, clock: Any) -> None:
    figures = Telemetry(prefix=prefix, clock=clock)
    everything(figures, clock)
    found = {name for family in families(figures) for name in family if not name.startswith("process_")}
    assert found == telemetry.names(prefix)


def families(figures: Telemetry) -> list[set[str]]:
    parsed = text_string_to_metric_families(figures.exposition()[0].decode())
    return [{sample.name for sample in family.samples} for family in parsed]


def everything(figures: Telemetry, clock: Any) -> None:
    """Call every method once."""
    figures.expect(models=["m"])
    run(figures, clock)
    figures.rejected("queue_full")
    figures.engine_stats({"m": {"running": 1, "waiting": 2, "waiting_tokens": 9, "kv_usage": 0.5, "prefix_queries": 3,
                                "prefix_hits": 1, "preemptions": 0, "batches": 2, "rows": 5}})  # fmt: skip
    figures.engine_memory(1e9)
    figures.engine_ready(True)
    figures.engine_restarted(cause="hang")
    figures.model_loaded("m", digest="d", task="chat")
    figures.model_load_failed("m", "integrity")
    figures.http_started()
    figures.http_finished("POST", "/v1/completions", 200, 0.1)
    figures.canary("m", weight=0.1, agreement=0.9)
    figures.canary_observed("candidate", True)
    figures.canary_decided("promoted", "evidence")


def test_a_request_is_counted_and_timed(clock: Any) -> None:
    figures = Telemetry(clock=clock)
    run(figures, clock)
    assert value(figures, "prompt_tokens_total", model_name="m") == 7
    assert value(figures, "generation_tokens_total", model_name="m") == 3
    assert value(figures, "time_to_first_token_seconds_sum", model_name="m") == pytest.approx(0.5)
    assert value(figures, "inter_token_latency_seconds_count", model_name="m") == 2
    assert value(figures, "inter_token_latency_seconds_sum", model_name="m") == pytest.approx(0.2)
    assert value(figures, "e2e_request_latency_seconds_sum", model_name="m") == pytest.approx(0.7)
    assert value(figures, "request_queue_time_seconds_sum", model_name="m") == pytest.approx(0.2)
    assert value(figures, "request_success_total", model_name="m", finished_reason="stop") == 1
    assert value(figures, "key_generation_tokens_total", key="k", model_name="m") == 3
    figures.request_finished("1", "stop")  # said again, or of one that never began: no difference
    figures.token("never")
    assert value(figures, "request_success_total", model_name="m", finished_reason="stop") == 1


def test_several_tokens_at_once_share_their_time(clock: Any) -> None:
    figures = Telemetry(clock=clock)
    figures.request_started("1", model="m")
    figures.first_token("1")
    figures.token("1")
    clock.now += 0.4
    figures.token("1", count=4)
    assert value(figures, "inter_token_latency_seconds_count", model_name="m") == 4
    assert value(figures, "inter_token_latency_seconds_sum", model_name="m") == pytest.approx(0.4)
    assert value(figures, "time_to_first_token_seconds_count", model_name="m") == 1
    figures.request_finished("1", "cancelled")
    assert value(figures, "request_success_total", model_name="m", finished_reason="abort") == 1


def test_an_engine_that_begins_again_at_zero_does_not_count_backwards() -> None:
    figures = Telemetry()
    for count in (10, 25):
        figures.engine_stats({"m": {"running": 3, "preemptions": count}})
    figures.engine_restarted()
    assert value(figures, "num_requests_running", model_name="m", engine="0") == 0
    figures.engine_stats({"m": {"running": 1, "preemptions": 4}})
    assert value(figures, "num_preemptions_total", model_name="m", engine="0") == 29
    figures.engine_stats({"m": {"preemptions": 2}}, engine="1")  # another engine counts for itself
    assert value(figures, "num_preemptions_total", model_name="m", engine="1") == 2
    assert value(figures, "engine_restarts_total", engine="0", cause="crash") == 1


def test_labels_are_bounded(clock: Any) -> None:
    figures = Telemetry(clock=clock)
    for number in range(3 * MOST_LABELS):
        run(figures, clock, id=str(number), key=f"key-{number}", tokens=1)
    by_key = {
        dict(labels)["key"]: count for (name, labels), count in samples(figures).items() if "key_requests" in name
    }
    assert len(by_key) == MOST_LABELS + 1 and by_key[OTHER] == 2 * MOST_LABELS
    assert not figures._live


def test_a_prefix_that_prometheus_does_not_allow_is_refused() -> None:
    for prefix in ("", "9lives", "a b", "groß", "a:b"):
        with pytest.raises(UserError, match="metrics-prefix"):
            Telemetry(prefix=prefix)


def test_an_unloaded_model_is_no_longer_announced() -> None:
    figures = Telemetry()
    figures.model_loaded("m", digest="d", task="chat")
    figures.model_unloaded("m")
    assert value(figures, "model_info", model_name="m", digest="d", task="chat") == 0


# ------------------------------------------------------------------------------ HTTP


class Route:
    path = "/v1/files/{id}"


def application(status: int = 200, *, fails: bool = False) -> Callable[..., Any]:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        if scope["path"].startswith("/v1/files"):
            scope["route"] = Route()
        if fails:
            raise RuntimeError("a secret prompt")
        logging.getLogger("groundup.test").warning("inside")
        await send({"type": "http.response.start", "status": status, "headers": [(b"x-request-id", b"inner")]})
        await send({"type": "http.response.body", "body": b"ok"})

    return app


def test_requests_are_counted_by_route_and_not_by_path(wire: Any) -> None:
    figures = Telemetry()
    app = Observed(application(), figures)
    for path in ("/v1/files/1", "/v1/files/2", "/wp-admin.php", "/.env"):
        assert wire.call(app, "GET", path).status == 200
    wire.call(app, "BREW", "/v1/files/1")
    assert value(figures, "http_requests_total", method="GET", route="/v1/files/{id}", status="200") == 2
    assert value(figures, "http_requests_total", method="GET", route=OTHER, status="200") == 2
    assert value(figures, "http_requests_total", method=OTHER, route="/v1/files/{id}", status="200") == 1
    assert value(figures, "http_requests_in_progress") == 0


def test_a_sane_request_id_is_kept_and_another_replaced(wire: Any) -> None:
    app = Observed(application(), Telemetry())
    assert wire.call(app, "GET", "/", [("x-request-id", "abc-1.2:3_4")])["x-request-id"] == "abc-1.2:3_4"
    for bad in ("", "a b", "x" * 65, "a\nb", "é"):
        found = wire.call(app, "GET", "/", [("x-request-id", bad)])["x-request-id"]
        assert found not in (bad, "inner") and len(found) == 32


def test_a_fault_counts_as_500_and_a_client_that_left_as_499(wire: Any) -> None:
    figures = Telemetry()
    with pytest.raises(RuntimeError):
        wire.call(Observed(application(fails=True), figures), "GET", "/v1/files/1")

    async def left(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    wire.call(Observed(left, figures), "GET", "/x")
    assert value(figures, "http_requests_total", method="GET", route="/v1/files/{id}", status="500") == 1
    assert value(figures, "http_requests_total", method="GET", route=OTHER, status="499") == 1
    assert value(figures, "http_requests_in_progress") == 0


# ------------------------------------------------------------------------------ logs


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def logging_to_stderr() -> Any:
    kept = {name: (log.level, log.handlers[:], log.propagate) for name in NAMES if (log := logging.getLogger(name))}
    yield logs.configure
    for name, (level, handlers, propagate) in kept.items():
        log = logging.getLogger(name)
        log.setLevel(level)
        log.handlers, log.propagate = handlers, propagate


NAMES = ("", "groundup", "uvicorn", "uvicorn.error", "uvicorn.access")


def test_each_line_is_json_with_the_request_id_and_without_the_query(
    wire: Any, capfd: pytest.CaptureFixture[str], logging_to_stderr: Any
) -> None:
    logging_to_stderr()
    app = Observed(application(), Telemetry())
    headers = [("x-request-id", "r-1"), ("authorization", "Bearer gu_secret")]
    wire.call(app, "POST", "/v1/chat/completions", headers, b'{"prompt": "tell nobody"}', query_string=b"q=private")
    wire.call(app, "GET", "/readyz")  # asked every few seconds: no line
    inside, access, probed = lines(capfd.readouterr().err)
    assert inside["message"] == probed["message"] == "inside"
    assert inside["request_id"] == "r-1" and inside["level"] == "warning"
    assert access["logger"] == "groundup.access" and access["status"] == 200 and access["request_id"] == "r-1"
    assert access["path"] == "/v1/chat/completions" and access["duration_ms"] >= 0
    whole = json.dumps([inside, access])
    assert not any(word in whole for word in ("tell nobody", "private", "gu_secret"))


def test_a_client_cannot_write_lines_of_its_own(
    wire: Any, capfd: pytest.CaptureFixture[str], logging_to_stderr: Any
) -> None:
    logging_to_stderr()
    wire.call(Observed(application(404), Telemetry()), "GET", '/a\n{"level": "error"}\ud800')
    (inside, access) = lines(capfd.readouterr().err)
    assert access["path"] == '/a\n{"level": "error"}\ud800'
    assert inside["message"] == "inside"


def test_long_values_are_cut_and_tracebacks_kept(capfd: pytest.CaptureFixture[str], logging_to_stderr: Any) -> None:
    logging_to_stderr()
    try:
        raise ValueError("x" * 50_000)
    except ValueError:
        logging.getLogger("groundup.test").exception("failed", extra={"note": "y" * 50_000, "number": 3})
    (line,) = lines(capfd.readouterr().err)
    assert line["error"].startswith("Traceback") and len(line["error"]) <= logs.MOST_CHARACTERS + 1
    assert len(line["note"]) <= logs.MOST_CHARACTERS + 1 and line["number"] == 3


# ------------------------------------------------------------------------------ traces


@pytest.fixture
def traced() -> Any:
    sdk = pytest.importorskip("opentelemetry.sdk.trace.export", reason="pip install 'groundup[telemetry]'")
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from groundup.serving.tracing import Tracing

    exporter = InMemorySpanExporter()
    tracing = Tracing(processor=sdk.SimpleSpanProcessor(exporter))
    yield Telemetry(tracing=tracing), exporter
    tracing.close()


def test_a_callers_trace_goes_on_through_the_model_call(wire: Any, traced: Any) -> None:
    figures, exporter = traced

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["route"] = Route()
        figures.request_started(
            "s-1", model="m", key="k", prompt_tokens=7, attributes={"temperature": 0.5, "seed": None}
        )
        figures.token("s-1")
        figures.token("s-1")
        figures.request_finished("s-1", "stop", cached_tokens=4, queue_s=0.1)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    wire.call(Observed(app, figures), "POST", "/v1/files/1", [("traceparent", parent), ("x-request-id", "r-1")])
    model, http = exporter.get_finished_spans()
    assert http.name == "POST /v1/files/{id}" and http.parent.span_id == 0xB7AD6B7169203331
    assert http.context.trace_id == model.context.trace_id == 0x0AF7651916CD43DD8448EB211C80319C
    assert model.parent.span_id == http.context.span_id and model.name == "chat m"
    assert dict(http.attributes) | {"http.response.status_code": 200, "groundup.request_id": "r-1"} == http.attributes
    said = dict(model.attributes)
    assert said["gen_ai.operation.name"] == "chat" and said["gen_ai.request.model"] == "m"
    assert said["gen_ai.request.temperature"] == 0.5 and "gen_ai.request.seed" not in said
    assert (said["gen_ai.usage.input_tokens"], said["gen_ai.usage.output_tokens"]) == (7, 2)
    assert said["gen_ai.response.finish_reasons"] == ("stop",) and said["groundup.queue_s"] == 0.1


def test_a_broken_traceparent_begins_a_trace_and_a_fault_marks_it(wire: Any, traced: Any) -> None:
    figures, exporter = traced
    with pytest.raises(RuntimeError):
        wire.call(Observed(application(fails=True), figures), "GET", "/", [("traceparent", "00-zz-1")])
    (span,) = exporter.get_finished_spans()
    assert span.parent is None and not span.status.is_ok
    assert "secret prompt" not in span.to_json()


def test_an_address_that_is_none_is_refused() -> None:
    pytest.importorskip("opentelemetry.sdk")
    from groundup.serving.tracing import Tracing

    with pytest.raises(UserError, match="collector"):
        Tracing("localhost:4318")
