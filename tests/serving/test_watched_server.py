"""A real server with two engines and a candidate on trial, seen from outside: figures, traces, log, restarts."""

from __future__ import annotations

import importlib.util
import json
import shutil
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("prometheus_client", reason="pip install 'groundup[serve]'")
pytest.importorskip("opentelemetry.exporter.otlp", reason="pip install 'groundup[telemetry]'")
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from prometheus_client.parser import text_string_to_metric_families

from groundup.deploy import grafana
from groundup.deploy.kubernetes import alert_rules
from groundup.serving import telemetry

pytestmark = pytest.mark.slow
SPEC = importlib.util.spec_from_file_location("running", Path(__file__).parent / "running.py")
assert SPEC is not None and SPEC.loader is not None
running = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(running)
Running: Any = running.Running
SECRET = "the treasure lies under the oak"
TRACE = "0af7651916cd43dd8448eb211c80319c"


class Collector:
    """An OTLP collector that keeps what it is sent."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        kept = self.spans

        class Pages(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    import gzip

                    body = gzip.decompress(body)
                sent = ExportTraceServiceRequest.FromString(body)
                kept.extend(s for r in sent.resource_spans for scope in r.scope_spans for s in scope.spans)
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Pages)
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1/traces"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


class Server(Running):  # type: ignore[misc]
    """`groundup serve` with two engines, and for the chat model another one on trial."""

    def __init__(self, folder: Path, model: Path, candidate: Path, collector: Collector) -> None:
        self.collector = collector
        arguments = ["--cache=16MiB", f"--model=chat={model}", f"--canary=chat={candidate}", "--replicas=2"]
        arguments += ["--log-format=json", "--set", "canary.steps=[0.5]", "--set", "canary.shadow=1.0"]
        super().__init__(folder, *arguments, f"--traces={collector.url}", OTEL_BSP_SCHEDULE_DELAY="200")

    def complete(self, prompt: str = "the red train", **headers: str) -> tuple[int, Any, Any]:
        data = {"model": "chat", "prompt": prompt, "max_tokens": 4, "temperature": 0}
        # Unless a test says otherwise nothing counts as evidence: the trial is one test's business.
        return self.ask("/v1/completions", data, **{"x_groundup_canary": "current"} | headers)

    def samples(self) -> dict[str, list[tuple[dict[str, str], float]]]:
        found: dict[str, list[tuple[dict[str, str], float]]] = {}
        for family in text_string_to_metric_families(self.ask("/metrics")[2]):
            for sample in family.samples:
                found.setdefault(sample.name, []).append((sample.labels, sample.value))
        return found


@pytest.fixture(scope="module")
def server(make_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    model = make_model("language_modeling", seed=1)
    candidate = make_model("language_modeling", seed=9)
    collector = Collector()
    started = Server(tmp_path_factory.mktemp("server"), model, candidate, collector)
    yield started
    started.end_well()
    collector.close()


def until(is_so: Callable[[], Any], seconds: float = 60) -> Any:
    end = time.monotonic() + seconds
    while not (found := is_so()):
        assert time.monotonic() < end, "it did not come to that in time"
        time.sleep(0.1)
    return found


def test_the_promised_names_are_on_a_live_metrics_page_and_no_others(server: Server) -> None:
    assert server.complete()[0] == 200
    # The first look is counted with the second; figures of engines are taken over every two seconds.
    wanted = {f"groundup:{name}" for name in (*LIVE, *LIVE_ENGINE)}
    until(lambda: wanted <= set(server.samples()))
    found = {name for name in server.samples() if not name.startswith("process_")}
    assert found <= telemetry.names()
    assert {labels["engine"] for labels, _ in server.samples()["groundup:engine_ready"]} == {"0", "1"}


LIVE = (
    "prompt_tokens_total", "generation_tokens_total", "request_success_total", "time_to_first_token_seconds_bucket",
    "inter_token_latency_seconds_bucket", "e2e_request_latency_seconds_bucket", "request_queue_time_seconds_bucket",
    "key_requests_total", "http_requests_total", "http_request_duration_seconds_bucket", "http_requests_in_progress",
    "requests_rejected_total", "model_info", "model_load_failures_total", "canary_weight",
)  # fmt: skip
LIVE_ENGINE = (
    "num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "prefix_cache_queries_total",
    "prefix_cache_hits_total", "num_preemptions_total", "engine_memory_bytes", "engine_ready", "engine_restarts_total",
)  # fmt: skip


def test_prometheus_scrapes_it_and_fills_the_board(server: Server, tmp_path: Path) -> None:
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("prometheus is not installed (Debian's package `prometheus`)")
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
    (tmp_path / "alerts.yaml").write_text(alert_rules())
    job = {"job_name": "groundup", "static_configs": [{"targets": [server.url.removeprefix("http://")]}]}
    job |= {"authorization": {"credentials": server.key}, "scrape_interval": "1s", "scrape_timeout": "1s"}
    (tmp_path / "prometheus.yml").write_text(json.dumps({"rule_files": ["alerts.yaml"], "scrape_configs": [job]}))
    command = [program, "--config.file=prometheus.yml", f"--web.listen-address=127.0.0.1:{port}"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([*command, "--storage.tsdb.path=data"], cwd=tmp_path, stdout=log, stderr=log)

    def result(query: str) -> list[Any]:
        filled = query.replace("$__rate_interval", "20s").replace("$model", ".*")
        address = f"http://127.0.0.1:{port}/api/v1/query?{urllib.parse.urlencode({'query': filled})}"
        with urllib.request.urlopen(address, timeout=10) as reply:
            found: list[Any] = json.load(reply)["data"]["result"]
            return found

    def is_full() -> bool:
        server.complete()
        try:
            return bool(result("count_over_time(groundup:num_requests_running[1m]) > 3"))
        except (urllib.error.URLError, ConnectionError):
            return False

    try:
        until(is_full)
        empty = [query for query in grafana.queries() if not result(query)]
        assert all("canary_agreement" in query for query in empty), empty  # there may have been no shadow yet
        firing = {one["metric"]["alertname"] for one in result('ALERTS{alertstate="firing"}')}
        assert not firing - {"GroundupCanaryRolledBack"}
    finally:
        process.terminate()
        process.wait(20)


def test_routes_are_patterns_and_refusals_have_reasons(server: Server) -> None:
    server.ask("/v1/models/chat")
    server.ask("/.git/config")
    server.ask("/v1/models", authorization="Bearer gu_wrong")
    found = server.samples()
    requests = {(labels["route"], labels["status"]) for labels, _ in found["groundup:http_requests_total"]}
    assert ("/v1/models/{model:path}", "200") in requests and ("other", "404") in requests
    assert any(status == "401" for _, status in requests)
    refused = {labels["reason"] for labels, count in found["groundup:requests_rejected_total"] if count}
    assert refused & {"invalid_api_key", "malformed_api_key"}, refused


def test_a_trace_goes_through_and_neither_it_nor_the_log_says_what_was_asked(server: Server) -> None:
    status, headers, _ = server.complete(
        SECRET, traceparent=f"00-{TRACE}-b7ad6b7169203331-01", x_request_id="find-me", x_groundup_canary="current"
    )
    assert status == 200 and headers["x-request-id"] == "find-me" and headers["x-groundup-canary"] == "current"
    ours = until(lambda: [s for s in server.collector.spans if s.trace_id.hex() == TRACE] or None)
    until(lambda: len([s for s in server.collector.spans if s.trace_id.hex() == TRACE]) >= 2)
    ours = {span.name: span for span in server.collector.spans if span.trace_id.hex() == TRACE}
    http, model = ours["POST /v1/completions"], ours["text_completion chat"]
    assert http.parent_span_id.hex() == "b7ad6b7169203331" and model.parent_span_id == http.span_id
    assert SECRET not in str(server.collector.spans)
    lines = [json.loads(line) for line in server.log.read_text().splitlines()]
    (line,) = [line for line in lines if line.get("request_id") == "find-me" and line["logger"] == "groundup.access"]
    assert line["status"] == 200 and SECRET not in server.log.read_text()


def test_a_candidate_that_answers_otherwise_is_rolled_back_while_users_are_served(server: Server) -> None:
    answers = {"current": set(), "candidate": set()}  # type: ignore[var-annotated]
    for arm in answers:
        status, headers, body = server.complete(x_groundup_canary=arm)
        assert status == 200 and headers["x-groundup-canary"] == arm
        answers[arm].add(json.loads(body)["choices"][0]["text"])
    assert answers["current"] != answers["candidate"]

    def state() -> Any:
        assert server.complete(x_groundup_canary="chance")[0] == 200
        found = json.loads(server.ask("/v1/admin/canary/chat")[2])
        return found if found["state"] != "running" else None

    found = until(state, 60)
    assert (found["state"], found["cause"]) == ("rolled_back", "agreement")
    for _ in range(5):
        assert server.complete(x_groundup_canary="candidate")[1]["x-groundup-canary"] == "current"
    (report,) = server.log.parent.rglob("canary-chat.json")
    assert json.loads(report.read_text())["state"] == "rolled_back"
    decided = server.samples()["groundup:canary_decisions_total"]
    assert ({"state": "rolled_back", "cause": "agreement"}, 1.0) in decided

    assert server.ask("/v1/admin/canary/other")[0] == 404
    assert server.ask("/v1/admin/canary/chat?to=done", method="POST")[0] == 400
    assert server.ask("/v1/admin/canary/chat?to=promoted", method="POST")[0] == 200  # the operator has the last word
    assert server.complete()[1]["x-groundup-canary"] == "candidate"


def test_engines_are_started_anew_without_losing_a_request(server: Server) -> None:
    def engines() -> set[int]:
        children = subprocess.run(["ps", "-o", "pid=,args=", "--ppid", str(server.process.pid)], capture_output=True)
        return {int(line.split()[0]) for line in children.stdout.decode().splitlines() if "worker" in line}

    before, statuses, over = engines(), [], threading.Event()
    assert len(before) == 2

    def keep_asking() -> None:
        while not over.is_set():
            statuses.append(server.complete()[0])

    threads = [threading.Thread(target=keep_asking) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        assert server.ask("/v1/admin/restart", {}, method="POST")[0] in (200, 202)
        until(lambda: len(engines()) == 2 and not engines() & before, 150)
        time.sleep(2)
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert len(statuses) > 5 and set(statuses) == {200}
