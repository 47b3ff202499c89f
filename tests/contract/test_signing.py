"""A signature vouches for every byte of an artefact, and for nothing else."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundup import signing
from groundup.artifact import SIGNATURE, Artifact, Store, digest_data
from groundup.errors import ArtifactError, UserError
from groundup.signing import new_keys, require_signed, sign

pytest.importorskip("cryptography", reason="signs: pip install 'groundup[trust]'")
MINE, THEIRS = Path("mine.pem"), Path("theirs.pem")
MINE_PUBLIC, THEIRS_PUBLIC = Path("mine.pub.pem"), Path("theirs.pub.pem")


@pytest.fixture
def artifact() -> Artifact:
    new_keys(MINE)
    new_keys(THEIRS)
    store = Store()
    with store.draft("model", digest_data("a"), stage="base") as out:
        out.path("config.json").write_text("{}")
        out.path("log/time.txt").write_text("3 s")
    found = store.find(digest_data("a"))
    assert found is not None
    return found


@pytest.mark.smoke
def test_a_signed_artefact_is_known_by_the_public_key(artifact: Artifact) -> None:
    with pytest.raises(ArtifactError, match="not signed"):
        require_signed(artifact, MINE_PUBLIC)
    key_id = sign(artifact, MINE)
    found = require_signed(artifact, MINE_PUBLIC)
    assert found.key_id == key_id
    assert found.files == 3
    artifact.verify(full=True)
    with pytest.raises(ArtifactError, match="no signature by the key"):
        require_signed(artifact, THEIRS_PUBLIC)


def test_several_may_sign_and_each_only_once(artifact: Artifact) -> None:
    for key in (MINE, THEIRS, MINE):
        sign(artifact, key)
    require_signed(artifact, MINE_PUBLIC)
    require_signed(artifact, THEIRS_PUBLIC)
    assert len(json.loads((artifact.path / SIGNATURE).read_text())["signatures"]) == 2


def forge_manifest(artifact: Artifact) -> None:
    """Another payload with a manifest that fits it, as whoever can write the folder can make."""
    store = Store()
    with store.draft("model", digest_data("b"), stage="base") as out:
        out.path("config.json").write_text('{"evil": true}')
    other = store.find(digest_data("b"))
    assert other is not None
    for name in ("manifest.json", "config.json"):
        shutil.copy(other.path / name, artifact.path / name)
    shutil.rmtree(artifact.path / "log")


CHANGES: dict[str, Callable[[Artifact], Any]] = {
    "a file": lambda a: (a.path / "config.json").write_text("{ }"),
    "a log": lambda a: (a.path / "log/time.txt").write_text("4 s"),
    "a new file": lambda a: (a.path / "extra.py").write_text(""),
    "a missing file": lambda a: (a.path / "config.json").unlink(),
    "the manifest": lambda a: (a.path / "manifest.json").write_bytes((a.path / "manifest.json").read_bytes() + b"\n"),
    "everything, consistently": forge_manifest,
}


@pytest.mark.parametrize("what", CHANGES)
def test_any_change_is_noticed(what: str, artifact: Artifact) -> None:
    sign(artifact, MINE)
    CHANGES[what](artifact)
    with pytest.raises(ArtifactError):
        require_signed(Artifact(artifact.path), MINE_PUBLIC)


def test_without_the_comparison_a_consistent_forgery_would_pass(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    sign(artifact, MINE)
    forge_manifest(artifact)
    monkeypatch.setattr(signing, "_contents", lambda artifact: signing._subjects(payload_of(artifact)))
    require_signed(Artifact(artifact.path), MINE_PUBLIC)


def test_without_the_check_of_the_signature_anybodys_would_pass(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    sign(artifact, THEIRS)
    monkeypatch.setattr(signing, "_is_good", lambda *_: True)
    require_signed(artifact, MINE_PUBLIC)


def payload_of(artifact: Artifact) -> bytes:
    return base64.b64decode(json.loads((artifact.path / SIGNATURE).read_text())["payload"])


def test_a_signature_moved_to_another_artefact_is_none(artifact: Artifact) -> None:
    sign(artifact, MINE)
    store = Store()
    with store.draft("model", digest_data("b"), stage="base") as out:
        out.path("config.json").write_text("[]")
    other = store.find(digest_data("b"))
    assert other is not None
    shutil.copy(artifact.path / SIGNATURE, other.path / SIGNATURE)
    with pytest.raises(ArtifactError, match="of other files"):
        require_signed(other, MINE_PUBLIC)


def test_what_is_signed_is_read_by_others_tools(artifact: Artifact) -> None:
    """DSSE and in-toto as published, and the signature as OpenSSL checks it."""
    sign(artifact, MINE)
    envelope = json.loads((artifact.path / SIGNATURE).read_text())
    statement = json.loads(payload_of(artifact))
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert {subject["name"] for subject in statement["subject"]} == {"manifest.json", "config.json", "log/time.txt"}
    kind, payload = b"application/vnd.in-toto+json", payload_of(artifact)
    framed = b"DSSEv1 " + b" ".join([str(len(kind)).encode(), kind, str(len(payload)).encode(), payload])
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    Path("framed").write_bytes(framed)
    Path("sig").write_bytes(base64.b64decode(envelope["signatures"][0]["sig"]))
    command = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", str(MINE_PUBLIC), "-rawin", "-in", "framed"]
    done = subprocess.run([*command, "-sigfile", "sig"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + done.stdout


@given(st.data())
def test_no_signature_file_raises_anything_but_an_artefact_error(data: st.DataObject) -> None:
    folder = Path("fuzzed")
    if not folder.exists():
        new_keys(MINE)
        store = Store()
        with store.draft("model", digest_data("f")) as out:
            out.path("config.json").write_text("{}")
        found = store.find(digest_data("f"))
        assert found is not None
        sign(found, MINE)
        shutil.copytree(found.path, folder)
        shutil.copy(folder / SIGNATURE, "good")
    good = Path("good").read_bytes()
    place = data.draw(st.integers(0, len(good) - 1))
    change = data.draw(st.binary(max_size=6))
    (folder / SIGNATURE).write_bytes(good[:place] + change + good[place + data.draw(st.integers(0, 8)) :])
    try:
        require_signed(Artifact(folder), MINE_PUBLIC)
    except ArtifactError:
        return
    changed = json.loads((folder / SIGNATURE).read_text())
    assert changed["payload"] == json.loads(good)["payload"], "only what is not signed may differ"


@pytest.mark.parametrize("text", ["[" * 100_000, "{}", '{"signatures": 3}', '{"signatures": [3]}', "", "\0"])
def test_a_broken_signature_is_a_clear_error(text: str, artifact: Artifact) -> None:
    (artifact.path / SIGNATURE).write_text(text)
    with pytest.raises(ArtifactError, match="cannot be read"):
        require_signed(artifact, MINE_PUBLIC)


def test_keys_are_never_overwritten_and_private() -> None:
    public = new_keys(MINE)
    assert public == MINE_PUBLIC
    if os.name != "nt":
        assert MINE.stat().st_mode & 0o777 == 0o600
    with pytest.raises(UserError, match="a key already"):
        new_keys(MINE)


def test_keys_that_are_something_else_are_refused(artifact: Artifact) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    other = ec.generate_private_key(ec.SECP256R1())
    pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    Path("ec.pem").write_bytes(other.private_bytes(pem, form, serialization.NoEncryption()))
    hidden = serialization.BestAvailableEncryption(b"secret")
    Path("hidden.pem").write_bytes(other.private_bytes(pem, form, hidden))
    Path("text.pem").write_text("no key")
    for name in ("ec.pem", "hidden.pem", "text.pem"):
        Path(name).chmod(0o600)
    for private, expected in (
        ("ec.pem", "no Ed25519 key"), ("hidden.pem", "encrypted"), ("text.pem", "no private key"),
        (str(MINE_PUBLIC), "key"), ("none.pem", "cannot be read"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=expected):
            sign(artifact, Path(private))
    with pytest.raises(UserError, match="no public key"):
        sign(artifact, MINE)
        require_signed(artifact, MINE)


@pytest.mark.skipif(os.name == "nt", reason="files have no modes here")
def test_a_private_key_that_others_may_read_is_refused(artifact: Artifact) -> None:
    MINE.chmod(0o644)
    with pytest.raises(UserError, match="others may read"):
        sign(artifact, MINE)


def test_a_damaged_artefact_is_not_signed(artifact: Artifact) -> None:
    (artifact.path / "config.json").write_text("changed")
    with pytest.raises(ArtifactError, match="damaged"):
        sign(artifact, MINE)


def test_the_command_line(artifact: Artifact) -> None:
    def groundup(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "groundup", *arguments]
        return subprocess.run(command, capture_output=True, text=True)

    place = str(artifact.path)
    made = groundup("sign", "--new-key", "cli.pem")
    assert made.returncode == 0, made.stderr
    assert groundup("verify", place).returncode == 0
    unsigned = groundup("verify", place, "--public-key", "cli.pub.pem")
    assert unsigned.returncode == 1
    assert "is not signed" in unsigned.stderr
    assert groundup("sign", place, "--key", "cli.pem").returncode == 0
    signed = groundup("verify", place, "--public-key", "cli.pub.pem")
    assert signed.returncode == 0, signed.stderr
    assert "signed 20" in signed.stdout
    assert groundup("sign", place).returncode == 2
    assert groundup("sign", place, "--key", "none.pem").returncode == 2
