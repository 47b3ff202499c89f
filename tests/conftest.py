"""What every test shares: where real data may be found, and a store of its own."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Callable[[str], Path]:
    """A function from a name such as `mnist` to its path; the test is skipped where there is none.

    The data is looked for in GROUNDUP_TEST_DATA, then in `../shared/data` beside the repository.
    """
    root = Path(os.environ.get("GROUNDUP_TEST_DATA", ROOT.parent / "shared" / "data"))

    def find(name: str) -> Path:
        path = root / name
        if not path.exists():
            pytest.skip(f"the data set {name!r} is not on this machine (GROUNDUP_TEST_DATA names its folder)")
        return path

    return find


@pytest.fixture(autouse=True)
def own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test works in an empty directory with an empty store."""
    monkeypatch.setenv("GROUNDUP_STORE", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
