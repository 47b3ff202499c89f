"""Keys: made once, kept as digests, good until they are not, and changed under a running server."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundup.errors import UserError
from groundup.serving import keys
from groundup.serving.keys import KeyLimits, KeyRing, create, first_key, read, revoke, rotate, set_limits

FILE = Path("keys.json")
POSIX = pytest.mark.skipif(os.name == "nt", reason="files have no modes here")


@pytest.mark.smoke
def test_a_key_is_let_in_and_only_its_digest_is_kept() -> None:
    key_id, text = create(FILE, "ci", scopes=("infer", "metrics"), limits=KeyLimits(tokens_per_day=5))
    assert re.fullmatch(r"gu_[0-9A-Za-z]{8}_[0-9A-Za-z]{43}", text)
    verdict = KeyRing(FILE).check(text)
    assert verdict.principal == keys.Principal(
        key_id, "ci", frozenset({"infer", "metrics"}), KeyLimits(tokens_per_day=5)
    )
    assert text.rpartition("_")[2] not in FILE.read_text()


@POSIX
def test_the_file_is_its_owners_alone_after_every_change() -> None:
    key_id, _ = create(FILE, "a")
    assert FILE.stat().st_mode & 0o777 == 0o600
    revoke(FILE, key_id)
    assert FILE.stat().st_mode & 0o777 == 0o600


@POSIX
@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_file_that_others_may_write_is_refused(mode: int) -> None:
    create(FILE, "a")
    FILE.chmod(mode)
    with pytest.raises(UserError, match="others may write"):
        KeyRing(FILE)


def test_what_is_no_key_is_unknown() -> None:
    key_id, text = create(FILE, "a")
    other = create(FILE, "b")[1]
    ring = KeyRing(FILE)
    crossed = f"gu_{key_id}_{other.rpartition('_')[2]}"
    for wrong in (crossed, text[:-1], text + "x", text.lower(), f" {text}", f"{text}\n", "", "gu__", text.upper()):
        assert ring.check(wrong).problem == "unknown", wrong


@given(st.text(max_size=80) | st.from_regex(keys._KEY))
def test_no_text_raises(text: str) -> None:
    if not FILE.exists():
        create(FILE, "a")
    assert KeyRing(FILE).check(text).principal is None


def test_every_secret_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also for an id that nobody has, so that time does not tell which ids exist."""
    compared: list[tuple[str, str]] = []
    honest = keys.hmac.compare_digest

    def compare(a: str, b: str) -> bool:
        compared.append((a, b))
        return honest(a, b)

    _, text = create(FILE, "a")
    ring = KeyRing(FILE)
    monkeypatch.setattr(keys.hmac, "compare_digest", compare)
    assert ring.check(text).principal is not None
    assert ring.check(f"gu_AAAAAAAA_{text.rpartition('_')[2]}").principal is None
    assert len(compared) == 2
    # A digest that is no digest of anything: nobody's secret lets nobody in.
    assert ring.check("gu_AAAAAAAA_" + "0" * 43).principal is None


def test_a_key_expires(clock: Any) -> None:
    _, text = create(FILE, "a", expires_in_s=60)
    end = next(iter(read(FILE).keys.values())).expires
    assert end is not None
    clock.now = end - 1
    ring = KeyRing(FILE, clock=clock)
    assert ring.check(text).principal is not None
    clock.now = end
    assert ring.check(text).problem == "expired"
    assert ring.check(text[:-1] + ("a" if text[-1] != "a" else "b")).problem == "unknown", "only its owner is told"


def test_a_running_server_notices_what_the_commands_do(clock: Any) -> None:
    first, text = create(FILE, "a")
    ring = KeyRing(FILE, clock=clock)
    second = create(FILE, "b")[1]
    assert ring.check(second).problem == "unknown", "the file is looked at once a second"
    clock.now += keys.LOOK_EVERY_S
    assert ring.check(second).principal is not None
    set_limits(FILE, first, KeyLimits(concurrent=3))
    clock.now += keys.LOOK_EVERY_S
    found = ring.check(text).principal
    assert found is not None
    assert found.limits.concurrent == 3
    revoke(FILE, first)
    clock.now += keys.LOOK_EVERY_S
    assert ring.check(text).problem == "revoked"
    assert ring.renew(first, "0" * 64).problem == "unknown"


def test_a_file_that_breaks_changes_nothing_and_is_complained_of_once(clock: Any) -> None:
    _, text = create(FILE, "a")
    complaints: list[str] = []
    ring = KeyRing(FILE, clock=clock, complain=complaints.append)
    for broken in ("{", '{"format": 2, "keys": {}}', "[" * 100_000, '{"format": 1, "keys": {"x": {}}}'):
        FILE.write_text(broken)
        for _ in range(3):
            clock.now += keys.LOOK_EVERY_S
            assert ring.check(text).principal is not None
        with pytest.raises(UserError, match="broken"):
            KeyRing(FILE)
    assert len(complaints) == 4
    FILE.unlink()
    clock.now += keys.LOOK_EVERY_S
    assert ring.check(text).principal is not None
    assert "no file of keys" in complaints[-1]


def test_rotation_overlaps_and_keeps_the_id(clock: Any) -> None:
    key_id, old = create(FILE, "a", limits=KeyLimits(tokens_per_month=9))
    new = rotate(FILE, key_id, overlap_s=3600)
    assert new.startswith(f"gu_{key_id}_")
    rotated_out = read(FILE).keys[key_id].secrets[1].expires
    assert rotated_out is not None
    clock.now = rotated_out - 1
    ring = KeyRing(FILE, clock=clock)
    assert ring.check(old).principal == ring.check(new).principal
    clock.now = rotated_out
    assert ring.check(old).problem == "expired"
    found = ring.check(new).principal
    assert found is not None
    assert found.limits.tokens_per_month == 9


def test_rotation_without_overlap_ends_the_old_secret_at_once() -> None:
    key_id, old = create(FILE, "a")
    new = rotate(FILE, key_id, overlap_s=0)
    ring = KeyRing(FILE)
    assert ring.check(old).principal is None
    assert ring.check(new).principal is not None


def test_a_second_rotation_does_not_prolong_the_first() -> None:
    key_id, _ = create(FILE, "a")
    rotate(FILE, key_id, overlap_s=60)
    first_end = read(FILE).keys[key_id].secrets[1].expires
    rotate(FILE, key_id, overlap_s=3600)
    ends = [secret.expires for secret in read(FILE).keys[key_id].secrets]
    assert ends[0] is None
    assert ends[2] == first_end


def test_a_revoked_key_is_not_rotated_back_to_life() -> None:
    key_id, _ = create(FILE, "a")
    revoke(FILE, key_id)
    with pytest.raises(UserError, match="revoked"):
        rotate(FILE, key_id, overlap_s=60)


def test_the_first_key_is_made_once() -> None:
    text = first_key(FILE)
    assert text is not None
    principal = KeyRing(FILE).check(text).principal
    assert principal is not None
    assert principal.scopes == {"infer", "admin", "metrics"}
    assert first_key(FILE) is None


@pytest.mark.parametrize("name", ["", "a\nb", "x" * 65, "\x1b[31m"])
def test_a_name_that_would_spoil_a_list_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="cannot name a key"):
        create(FILE, name)
    assert not FILE.exists()


def test_an_unknown_scope_gets_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'infer'"):
        create(FILE, "a", scopes=("inferr",))


def _create_many(path: str, count: int) -> None:
    for number in range(count):
        create(Path(path), f"{os.getpid()} {number}")


def test_commands_at_the_same_time_lose_no_key() -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_create_many, args=(str(FILE.absolute()), 5)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert len(read(FILE).keys) == 15
    assert not list(Path().glob(".keys.json.*")), "nothing half-written stays"


def groundup(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "groundup", *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"COLUMNS": "200"},
    )


def test_the_command_line(tmp_path: Path) -> None:
    made = groundup("keys", "create", "--name", "ci", "--expires", "90d", "--tokens-per-day", "20k", "--scope", "infer")
    assert made.returncode == 0, made.stderr
    text = made.stdout.strip()
    assert re.fullmatch(keys._KEY, text), "standard output is the key alone, for a script to take"
    assert "cannot be shown again" in made.stderr
    place = tmp_path / ".groundup/keys.json"
    assert KeyRing(place).check(text).principal is not None
    listed = json.loads(groundup("keys", "list", "--json").stdout)
    assert [each["name"] for each in listed] == ["ci"]
    assert "sha256" not in json.dumps(listed)
    key_id = listed[0]["id"]
    changed = groundup("keys", "limits", key_id, "--requests-per-minute", "60", "--none", "tokens-per-day", "--json")
    limits = json.loads(changed.stdout)["limits"]
    assert (limits["requests_per_minute"], limits["tokens_per_day"]) == (60, None)
    rotated = groundup("keys", "rotate", key_id, "--overlap", "0s")
    assert KeyRing(place).check(text).principal is None
    assert KeyRing(place).check(rotated.stdout.strip()).principal is not None
    assert groundup("keys", "revoke", key_id).returncode == 0
    assert "revoked" in groundup("keys", "list").stdout
    for wrong, hint in (
        (("revoke", "AAAAAAAA"), "groundup keys list"),
        (("create", "--name", "x", "--scope", "root"), "known: admin, infer, metrics"),
        (("create", "--name", "x", "--expires", "soon"), "--expires"),
        (("limits", key_id, "--concurrent", "0"), "--concurrent"),
        (("list", "--file", "none.json"), "groundup keys create"),
    ):
        failed = groundup("keys", *wrong)
        assert failed.returncode == 2, (wrong, failed)
        assert hint in failed.stderr
        assert "Traceback" not in failed.stderr
