"""`groundup predict`: every row of a file answered, and gone on with where it was stopped; and services of recipes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import groundup
from groundup.artifact import Store, open_artifact
from groundup.errors import ArtifactError, Interrupted, UserError
from groundup.recipe import load
from groundup.runner import run
from groundup.serving import offline
from groundup.serving.offline import predict
from groundup.serving.service import service

Make = Callable[..., Path]
CHAT = {"seed": 2, "context": 1024}
"""A model that has something to say."""


def written(path: Path, rows: list[Any]) -> Path:
    """Rows as JSON lines."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("task", ["text_classification", "token_tagging", "span_qa", "translation"])
def test_rows_of_every_task(make_model: Make, rows_of: Any, task: str) -> None:
    path, rows = make_model(task), rows_of(task, 12)
    source = written(Path("rows.jsonl"), [{"id": f"r{i}", **row} for i, row in enumerate(rows)])
    assert predict(path, source, Path("out.jsonl")) == {"rows": 12, "failed": 0}
    wanted = groundup.load(path, device="cpu").predict(rows)  # type: ignore[operator]
    for place, (found, expected) in enumerate(zip(lines(Path("out.jsonl")), wanted, strict=True)):
        assert found.pop("id") == f"r{place}"
        name = next(iter(expected))
        assert found[name] == expected[name]
    assert not list(Path().glob("out.jsonl.*"))


def test_texts_and_chats(make_model: Make) -> None:
    path = make_model("chat", **CHAT)
    model = groundup.load(path, device="cpu")  # type: ignore[operator]
    chat = [{"role": "user", "content": "where?"}]
    rows = ["the red train", {"prompt": "去", "max_tokens": 3}, {"id": 7, "messages": chat}, {"messages": []}, {"x": 1}]
    counts = predict(path, written(Path("rows.jsonl"), rows), Path("out.jsonl"), given={"max_tokens": 9})
    assert counts == {"rows": 5, "failed": 1}
    found = lines(Path("out.jsonl"))
    assert found[0]["text"] == model.generate("the red train", temperature=0, max_new_tokens=9)
    assert found[1]["text"] == model.generate("去", temperature=0, max_new_tokens=3)
    assert found[2]["id"] == 7 and found[2]["message"]["content"] == model.chat(chat, temperature=0, max_new_tokens=9)
    assert "error" in found[3]


def test_a_stopped_run_goes_on(make_model: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    path, target = make_model(), Path("out.jsonl")
    source = written(Path("rows.jsonl"), [f"the {i}" for i in range(200)])
    given = {"max_tokens": 2}
    predict(path, source, Path("whole.jsonl"), given=given)
    calls = iter(range(10_000))
    with monkeypatch.context() as patched, pytest.raises(Interrupted, match="of 200 rows"):
        patched.setattr(offline, "interrupt_requested", lambda: next(calls) >= 30)
        predict(path, source, target, given=given)
    part = Path("out.jsonl.part")
    before = part.read_text()
    assert 30 <= before.count("\n") < 200 and not target.exists()
    part.write_text(before + '{"text": "half a li')
    with pytest.raises(UserError, match="another given"):
        predict(path, source, target, given={"max_tokens": 3})
    assert predict(path, source, target, given=given)["rows"] == 200
    assert target.read_text() == Path("whole.jsonl").read_text()
    with pytest.raises(UserError, match="there already"):
        predict(path, source, target, given=given)
    assert predict(path, source, target, given=given, fresh=True)["rows"] == 200


def test_mistakes_are_told(make_model: Make) -> None:
    source = written(Path("rows.jsonl"), ["x"])
    with pytest.raises(UserError, match="temprature"):
        predict(make_model(), source, Path("out.jsonl"), given={"temprature": 1})
    with pytest.raises(UserError, match="no settings"):
        predict(make_model("text_classification"), source, Path("out.jsonl"), given={"temperature": 1})
    source.write_text('"x"\n[1]\n')
    with pytest.raises(UserError, match="not a list"):
        predict(make_model(), source, Path("other.jsonl"))


RECIPE = """groundup: 1
name: tiny
stages:
  service:
    serve: {{of: {model}, name: small, port: 0, max_queue: 7, limits: {{max_rows: 9}}}}
"""


def test_a_service_is_a_stage_of_a_recipe(make_model: Make) -> None:
    model = open_artifact(make_model())
    with Store().draft("model", "k" * 64) as draft:  # the same model, in this test's store
        for name in model.manifest["files"]:
            draft.path(name).write_bytes(model.file(name).read_bytes())
        draft.choices |= model.manifest["choices"]
    own = Store().find("k" * 64)
    assert own is not None
    Path("tiny.yaml").write_text(RECIPE.format(model=own.path))
    made = run("tiny.yaml")["service"]
    assert made.kind == "service" and made.json("service.json")["models"][0]["digest"] == own.digest
    assert run("tiny.yaml")["service"].digest == made.digest
    wanted = service(["runs/tiny/service"], changes={"max_queue": 8})
    assert wanted.models == {"small": str(own.path.resolve())}
    assert (wanted.settings.max_queue, wanted.settings.port, wanted.settings.limits.max_rows) == (8, 0, 9)
    two = service(["runs/tiny/service"], models=[f"other={own.path}"], adapters=["a@small=somewhere"])
    assert list(two.models) == ["small", "other"] and two.adapters["a"].model == "small"
    with pytest.raises(UserError, match="two models are named 'small'"):
        service(["runs/tiny/service"], models=[f"small={own.path}"])
    for file in own.path.iterdir():
        file.unlink() if file.is_file() else None
    with pytest.raises(ArtifactError, match="is gone"):
        service(["runs/tiny/service"])


def test_a_serve_stage_is_checked_with_its_recipe(make_model: Make) -> None:
    Path("tiny.yaml").write_text(RECIPE.format(model=make_model()).replace("max_queue: 7", "max_queu: 7"))
    with pytest.raises(UserError, match="did you mean 'max_queue'"):
        load("tiny.yaml")
