"""Alert rules and the board: valid, tried by Prometheus itself, and about metrics that there are."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("prometheus_client", reason="pip install 'groundup[serve]'")
from groundup.deploy import grafana, kubernetes
from groundup.serving import telemetry
from groundup.serving.telemetry import Telemetry
from groundup.yaml import Yaml

HERE = Path(__file__).parent
STANDARD = frozenset({"up", "process_resident_memory_bytes"})
"""Names that Prometheus or its client library gives."""
_NAME = re.compile(r"[a-zA-Z_][\w:]*")


def needs(program: str) -> str:
    found = shutil.which(program)
    if found is None:
        pytest.skip(f"{program} is not installed (Debian's package `prometheus` has it)")
    return found


def rules() -> list[dict[str, Any]]:
    groups = Yaml.parse(kubernetes.alert_rules(), kubernetes.ALERTS).data["groups"]
    return [rule for group in groups for rule in group["rules"]]


def metrics_of(query: str) -> set[str]:
    """The names of metrics in a query: words that are no functions, labels or keywords."""
    bare = re.sub(r'"[^"]*"|\{[^}]*\}|\[[^\]]*\]|\b(by|without|on|ignoring)\s*\([^)]*\)', " ", query)
    words = set(_NAME.findall(re.sub(r"\b\w+\s*\(", "(", bare)))
    return {word for word in words if not re.fullmatch(r"and|or|unless|by|sum|max|min|count|e\d+", word)}


def test_every_query_names_metrics_that_there_are() -> None:
    known = telemetry.names() | STANDARD
    asked = [rule["expr"] for rule in rules()] + grafana.queries()
    assert len(asked) > 30
    for query in asked:
        names = metrics_of(query)
        assert names and names <= known, f"{query}: {names - known}"


def test_every_rule_says_what_to_do() -> None:
    for rule in rules():
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert set(rule["annotations"]) == {"summary", "fix"}


def test_another_prefix_is_meant_everywhere() -> None:
    assert "groundup:" not in kubernetes.alert_rules("vllm")
    assert all("groundup:" not in query and "vllm:" in query for query in grafana.queries("vllm") if ":" in query)


def test_the_board_is_whole() -> None:
    board = grafana.board()
    assert json.loads(json.dumps(board)) == board
    graphs = [panel for panel in board["panels"] if panel["type"] != "row"]
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    taken = set()
    for panel in board["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken and max(x for x, _ in cells) < grafana.WIDTH, panel["title"]
        taken |= cells
    assert all(panel["targets"] for panel in graphs)


@pytest.fixture
def rule_files(tmp_path: Path) -> Path:
    (tmp_path / "alerts.yaml").write_text(kubernetes.alert_rules())
    shutil.copy(HERE / "alerts_test.yaml", tmp_path)
    return tmp_path


def test_promtool_accepts_the_rules(rule_files: Path) -> None:
    command = [needs("promtool"), "check", "rules", "alerts.yaml"]
    done = subprocess.run(command, cwd=rule_files, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_fires_when_it_should_and_only_then(rule_files: Path) -> None:
    command = [needs("promtool"), "test", "rules", "alerts_test.yaml"]
    done = subprocess.run(command, cwd=rule_files, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    tested = (HERE / "alerts_test.yaml").read_text()
    assert [rule["alert"] for rule in rules() if rule["alert"] not in tested] == []


@pytest.fixture
def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


@pytest.fixture
def prometheus(tmp_path: Path, free_port: int) -> Iterator[tuple[str, Telemetry]]:
    """A Prometheus with our rules that scrapes a server's figures every fifth of a second."""
    program = needs("prometheus")
    figures = Telemetry()
    server = ThreadingHTTPServer(("127.0.0.1", 0), pages(figures))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    (tmp_path / "alerts.yaml").write_text(kubernetes.alert_rules())
    job = {"job_name": "groundup", "static_configs": [{"targets": [f"127.0.0.1:{server.server_port}"]}]}
    config = {"global": {"scrape_interval": "200ms", "evaluation_interval": "1s"}, "rule_files": ["alerts.yaml"]}
    (tmp_path / "prometheus.yml").write_text(
        json.dumps(config | {"scrape_configs": [job | {"scrape_timeout": "200ms"}]})
    )
    command = [program, "--config.file=prometheus.yml", f"--web.listen-address=127.0.0.1:{free_port}"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([*command, "--storage.tsdb.path=data"], cwd=tmp_path, stdout=log, stderr=log)
    try:
        yield f"http://127.0.0.1:{free_port}/api/v1", figures
    finally:
        process.terminate()
        process.wait(20)
        server.shutdown()
        server.server_close()
        thread.join()


def pages(figures: Telemetry) -> type[BaseHTTPRequestHandler]:
    """A server of /metrics as ours answers it, whatever format Prometheus prefers."""

    class Pages(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body, kind = figures.exposition()
            self.send_response(200)
            self.send_header("content-type", kind)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    return Pages


def ask(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return json.load(answer)["data"]


def test_the_board_and_the_rules_work_on_a_live_prometheus(prometheus: tuple[str, Telemetry]) -> None:
    address, figures = prometheus
    deadline = time.monotonic() + 30
    number, scraped = 0, False
    while time.monotonic() < deadline and not scraped:
        work(figures, number)
        number += 1
        time.sleep(0.2)
        try:
            asked = urllib.parse.urlencode({"query": "count_over_time(groundup:engine_ready[1m]) > 10"})
            scraped = bool(ask(f"{address}/query?{asked}")["result"])
        except (urllib.error.URLError, ConnectionError):
            continue
    assert scraped, "Prometheus did not come up"
    empty = []
    for query in grafana.queries():
        filled = query.replace("$__rate_interval", "10s").replace("$model", ".*")
        if not ask(f"{address}/query?{urllib.parse.urlencode({'query': filled})}")["result"]:
            empty.append(query)
    assert not empty
    for group in ask(f"{address}/rules")["groups"]:
        for rule in group["rules"]:
            assert rule["health"] in ("ok", "unknown") and not rule.get("lastError"), rule


def work(figures: Telemetry, number: int) -> None:
    """What a busy server would count in a moment, a little of everything."""
    figures.expect(models=["m"])
    figures.model_loaded("m", digest="d", task="chat")
    figures.model_load_failed("m", "error")
    figures.engine_ready(True)
    figures.engine_memory(1e9)
    stats = {"running": 2, "waiting": 1, "kv_usage": 0.5, "prefix_queries": 100 * number, "prefix_hits": 40 * number}
    figures.engine_stats({"m": stats | {"preemptions": number}})
    figures.request_started(str(number), model="m", key="k", prompt_tokens=10)
    figures.token(str(number))
    figures.token(str(number))
    figures.request_finished(str(number), "stop", queue_s=0.1, prefill_s=0.1, decode_s=0.1)
    figures.rejected("queue_full")
    figures.http_started()
    figures.http_finished("POST", "/v1/completions", 200, 0.1)
    figures.canary("m", weight=0.1, agreement=0.9)
