"""A service on a local Ray: load rises, replicas rise; load falls, replicas fall; nothing is lost on the way."""

from __future__ import annotations

import json
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from groundup.deploy.ray import Scaling, app, application
from groundup.errors import UserError
from groundup.serving.keys import first_key

ray = pytest.importorskip("ray", reason="pip install 'groundup[cluster]'")
serve = pytest.importorskip("ray.serve", reason="pip install 'groundup[cluster]'")
# Ray warns of what it will change in itself, and leaves sockets to the end of the process.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
SCALING = {"min_replicas": 1, "max_replicas": 2, "target": 2, "upscale_delay": "1s", "downscale_delay": "3s"}


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """The port of a local Ray's proxy."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        free = int(listening.getsockname()[1])
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, object_store_memory=80 << 20)
    serve.start(http_options={"host": "127.0.0.1", "port": free})
    yield free
    serve.shutdown()
    ray.shutdown()


def replicas() -> int:
    """How many run now."""
    (deployment,) = serve.status().applications["tiny"].deployments.values()
    return int(deployment.replica_states.get("RUNNING", 0))


def until(is_so: Callable[[], Any], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, "it did not come to that in time"
        time.sleep(0.2)


def test_replicas_follow_the_load_and_nothing_is_lost(port: int, make_model: Any, tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    key = first_key(keys)
    assert key is not None
    arguments = ["serve", f"--model=m={make_model('language_modeling')}", "--threads=1", "--cache=16MiB"]
    arguments += [f"--state={tmp_path / 'state'}"]
    args = {"name": "tiny", "arguments": arguments, "scaling": SCALING | {"interval": "1s"}, "cpus": 1, "grace_s": 10}
    serve.run(app(args | {"environment": {"GROUNDUP_KEYS": str(keys)}}), name="tiny", route_prefix="/")
    assert replicas() == 1

    def ask(secret: str = key) -> int:
        body = json.dumps({"model": "m", "prompt": "the red train", "max_tokens": 16}).encode()
        headers = {"authorization": f"Bearer {secret}", "content-type": "application/json"}
        request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/completions", body, headers)
        try:
            with urllib.request.urlopen(request, timeout=120) as reply:
                assert json.load(reply)["choices"]
                return int(reply.status)
        except urllib.error.HTTPError as error:
            return error.code

    assert ask() == 200 and ask("gu_nobody") == 401  # the keys are the server's own
    statuses, over = [], threading.Event()

    def keep_asking() -> None:
        while not over.is_set():
            statuses.append(ask())

    threads = [threading.Thread(target=keep_asking) for _ in range(8)]
    for thread in threads:
        thread.start()
    try:
        until(lambda: replicas() == 2, 180)
        time.sleep(3)
    finally:
        over.set()
        for thread in threads:
            thread.join()
    before = len(statuses)
    quiet = threading.Thread(target=lambda: [statuses.append(ask()) or time.sleep(0.5) for _ in range(40)])
    quiet.start()  # one client stays while a replica goes
    until(lambda: replicas() == 1, 120)
    quiet.join()
    assert before > 20 and set(statuses) == {200}


def test_more_at_least_than_at_most_is_refused() -> None:
    with pytest.raises(UserError, match="3 replicas at least and 2 at most"):
        application(["serve"], Scaling(min_replicas=3, max_replicas=2))
