"""Whatever the description of the interface allows, and what it does not, never makes the server fail."""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

schemathesis = pytest.importorskip("schemathesis", reason="pip install 'groundup[dev]'")
pytest.importorskip("uvicorn", reason="pip install 'groundup[serve]'")
from hypothesis import HealthCheck, Phase, given, settings, strategies  # noqa: E402
from hypothesis.errors import Unsatisfiable  # noqa: E402
from schemathesis import GenerationMode  # noqa: E402

pytestmark = pytest.mark.slow
SPEC = importlib.util.spec_from_file_location("running", Path(__file__).with_name("running.py"))
assert SPEC is not None and SPEC.loader is not None
running = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(running)
Running: Any = running.Running
TASKS = {
    "chat": "chat",
    "classify": "text_classification",
    "tag": "token_tagging",
    "answer": "span_qa",
    "embed": "embedding",
}
MODELS = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "chat",
    "/v1/score": "chat",
    "/v1/embeddings": "embed",
    "/v1/rerank": "embed",
    "/v1/classify": "classify",
    "/v1/tag": "tag",
    "/v1/answer": "answer",
    "/v1/recommend": "films",
}
"""Whom a route asks; a name made at random would never be one."""
ENDING = {"/v1/admin/drain", "/v1/admin/restart"}
"""Routes that end what is tested: they are asked without a key."""
turns = itertools.count()


@pytest.fixture(scope="module")
def address(
    make_model: Callable[..., Path], trained_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, str]]:
    """The URL of a server with one model for each task, and its first key."""
    models = {name: make_model(task) for name, task in TASKS.items()}
    models |= {"pictures": trained_model("images"), "films": trained_model("histories")}
    named = [f"--model={name}={path}" for name, path in models.items()]
    server = Running(tmp_path_factory.mktemp("fuzzed"), *named, "--cache=16MiB")
    server.until_ready()
    yield server.url, server.key
    server.end_well()


@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(data=strategies.data())
def ask(operation: Any, mode: GenerationMode, address: tuple[str, str], *, data: Any) -> None:
    """Ask a route for what its description allows, or for what it does not."""
    case = data.draw(operation.as_strategy(generation_mode=mode))
    # One in five is left as it was made, so that unknown models are asked too.
    if isinstance(case.body, dict) and operation.path in MODELS and next(turns) % 5:
        case.body["model"] = "pictures" if "file" in case.body else MODELS[operation.path]
    headers = {} if operation.path in ENDING else {"authorization": f"Bearer {address[1]}"}
    reply = case.call(base_url=address[0], headers=headers, timeout=60)
    assert reply.status_code < 500, (reply.status_code, reply.text[:500])
    if reply.status_code >= 400:
        error = reply.json()["error"]
        assert error["message"] and error["code"], error


def test_nothing_that_is_described_makes_the_server_fail(address: tuple[str, str]) -> None:
    url, key = address
    described = schemathesis.openapi.from_url(f"{url}/openapi.json", headers={"authorization": f"Bearer {key}"})
    operations = [found.ok() for found in described.get_all_operations()]
    assert {operation.path for operation in operations} >= {*MODELS, *ENDING}
    for operation, mode in itertools.product(operations, GenerationMode):
        with contextlib.suppress(Unsatisfiable):  # a route that takes nothing cannot be asked wrongly
            ask(operation, mode, address)
