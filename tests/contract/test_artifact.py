"""Artefacts are whole or absent, and say so when somebody changes them."""

from __future__ import annotations

import errno
import multiprocessing
import os
from pathlib import Path

import pytest

from groundup.artifact import Store, digest_data, link, lock, open_artifact
from groundup.errors import ArtifactError, StageFailed, UserError

KEY = digest_data("a key")


def write(store: Store, text: str = "hello", key: str = KEY, log: str = "") -> None:
    with store.draft("corpus", key, stage="corpus") as out:
        out.path("train/0.txt").write_text(text, encoding="utf-8")
        out.path("log/time.txt").write_text(log, encoding="utf-8")
        out.metrics["documents"] = 1


def test_a_draft_becomes_an_artefact_that_its_key_finds() -> None:
    store = Store()
    assert store.find(KEY) is None
    write(store)
    artifact = store.find(KEY)
    assert artifact is not None
    artifact.verify(full=True)
    assert artifact.kind == "corpus"
    assert artifact.metrics == {"documents": 1}
    assert artifact.file("train/0.txt").read_text() == "hello"
    assert not store.state_folder(KEY).exists()
    assert not list((store.root / "drafts").iterdir())


def test_the_log_is_no_part_of_the_identity() -> None:
    store = Store()
    write(store, log="3 seconds")
    first = store.find(KEY)
    write(store, log="4 seconds", key=digest_data("other"))
    second = store.find(digest_data("other"))
    assert first is not None
    assert second is not None
    assert first.digest == second.digest


def test_a_failed_stage_leaves_no_artefact_but_keeps_its_state() -> None:
    store = Store()
    with pytest.raises(RuntimeError), store.draft("corpus", KEY) as out:
        out.path("half").write_text("half")
        (out.state / "reached").write_text("step 3")
        raise RuntimeError
    assert store.find(KEY) is None
    assert (store.state_folder(KEY) / "reached").read_text() == "step 3"
    assert not list((store.root / "drafts").iterdir())


def test_a_full_disk_is_a_clear_error() -> None:
    store = Store()
    with pytest.raises(StageFailed, match="disk is full"), store.draft("corpus", KEY):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("damage", ["edit", "delete", "add", "manifest"])
def test_damage_is_found_and_named(damage: str) -> None:
    store = Store()
    write(store)
    artifact = store.find(KEY)
    assert artifact is not None
    payload = artifact.path / "train/0.txt"
    match damage:
        case "edit":
            payload.write_text("hallo")
        case "delete":
            payload.unlink()
        case "add":
            (artifact.path / "more.txt").write_text("x")
        case "manifest":
            manifest = artifact.path / "manifest.json"
            manifest.write_text(manifest.read_text().replace('"documents": 1', '"documents": 2'))
    with pytest.raises(ArtifactError) as caught:
        open_artifact(artifact.path).verify()
    assert str(artifact.path) in caught.value.where
    assert caught.value.fix


def test_a_changed_byte_under_an_old_time_is_found_by_a_full_check() -> None:
    store = Store()
    write(store)
    artifact = store.find(KEY)
    assert artifact is not None
    payload = artifact.path / "train/0.txt"
    before = payload.stat()
    payload.write_text("hallo")
    os.utime(payload, ns=(before.st_atime_ns, before.st_mtime_ns))
    artifact.verify()
    with pytest.raises(ArtifactError, match="digest mismatch"):
        artifact.verify(full=True)


def test_a_link_can_be_followed_and_replaced(tmp_path: Path) -> None:
    store = Store()
    write(store)
    write(store, "bye", digest_data("2"))
    for key in (KEY, digest_data("2")):
        artifact = store.find(key)
        assert artifact is not None
        link(tmp_path / "runs/r/corpus", artifact)
        assert open_artifact(tmp_path / "runs/r/corpus").digest == artifact.digest


def test_where_links_are_not_allowed_a_line_of_text_stands_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store()
    write(store)
    artifact = store.find(KEY)
    assert artifact is not None

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "not allowed")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    link(tmp_path / "runs/r/corpus", artifact)
    assert (tmp_path / "runs/r/corpus").is_file()
    assert open_artifact(tmp_path / "runs/r/corpus").digest == artifact.digest


def test_no_artefact_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no artefact"):
        open_artifact(tmp_path)


def _hold(path: Path, held: object, done: object) -> None:
    with lock(path, what="the recipe"):
        held.set()  # type: ignore[attr-defined]
        done.wait(30)  # type: ignore[attr-defined]


def test_a_second_run_is_refused_with_the_first_ones_pid(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    held, done = context.Event(), context.Event()
    holder = context.Process(target=_hold, args=(tmp_path / "lock", held, done))
    holder.start()
    assert held.wait(30)
    with pytest.raises(UserError, match=f"process {holder.pid}"), lock(tmp_path / "lock", what="the recipe"):
        pass
    holder.kill()
    holder.join()
    with lock(tmp_path / "lock", what="the recipe"):
        assert (tmp_path / "lock").read_text().strip() == str(os.getpid())
