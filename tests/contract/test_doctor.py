"""`doctor` looks at this machine and every limited finding carries its remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from groundup import doctor


def test_a_machine_that_runs_the_tests_is_not_broken() -> None:
    findings = doctor.examine()
    assert {"Python", "torch", "threads", "disk", "GPU"} <= {f.name for f in findings}
    assert not [f for f in findings if f.state == "broken"]
    assert all(f.remedy for f in findings if f.state == "limited")


def test_a_store_that_cannot_be_written_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GROUNDUP_STORE", "/proc/store")
    broken = [f for f in doctor.examine() if f.state == "broken"]
    assert [f.name for f in broken] == ["disk"]
    assert "GROUNDUP_STORE" in broken[0].remedy
