"""The project's own files: what is declared is what is used, and what is built can be installed."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOT_ENTRIES = {
    *(".ci", ".gitignore", "bench", "docs", "recipes", "src", "tests"),
    *("CHANGELOG.md", "LICENSE", "Makefile", "README.md", "README.zh.md", "constraints.txt", "pyproject.toml"),
}
LARGEST_FILE = 128 * 1024
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
# Words that mean a file was written with one particular machine in mind.
PRIVATE = re.compile(r"(?<![\w./$}{~-])/(?:work|tmp|root|home/\w+)/|pypi\.org|shared/design")
TEXT_FILES = {".py", ".md", ".yaml", ".toml", ".txt", ".html", ".css", ".js", ""}


def package_names(requirements: list[str]) -> set[str]:
    """`fsspec[http]>=2025` as `fsspec`, for each."""
    return {re.split(r"[\[<>=!~; ]", requirement, maxsplit=1)[0].lower() for requirement in requirements}


def extras() -> dict[str, set[str]]:
    optional = PROJECT["project"]["optional-dependencies"]
    return {name: package_names(requirements) for name, requirements in optional.items()}


def imported_by(folder: str) -> dict[str, str]:
    """Top-level packages imported under a folder, each with one place that does."""
    found = {}
    for file in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            for name in names:
                found.setdefault(name.partition(".")[0], f"{file.relative_to(ROOT)}:{node.lineno}")
    own = {"groundup", "tests", ""}
    if folder != "src":  # test modules import their helpers, and the benches, by bare names
        own |= {path.stem for place in (folder, "bench") for path in (ROOT / place).rglob("*.py")}
    return {name: place for name, place in found.items() if name not in own and name not in sys.stdlib_module_names}


def distributions() -> dict[str, set[str]]:
    """Import name to the packages that provide it, in lower case."""
    found = {
        name: {each.lower().replace("_", "-") for each in providers}
        for name, providers in metadata.packages_distributions().items()
    }
    return found | {"pydantic_core": {"pydantic"}}  # pinned by pydantic to the very release


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("folder", "groups"),
    [("src", None), ("tests", ["dev", "docs", "tracking"])],
)
def test_every_import_is_a_declared_dependency(folder: str, groups: list[str] | None) -> None:
    declared = package_names(PROJECT["project"]["dependencies"])
    declared |= set().union(*(packages for name, packages in extras().items() if groups is None or name in groups))
    providers = distributions()
    missing = {
        name: place
        for name, place in imported_by(folder).items()
        if not (providers.get(name, {name.replace("_", "-").lower()}) & declared)
    }
    assert not missing, f"add to pyproject.toml: {missing}"


@pytest.mark.smoke
def test_every_core_dependency_is_used() -> None:
    used = set().union(*(distributions().get(name, {name}) for name in imported_by("src")))
    assert package_names(PROJECT["project"]["dependencies"]) <= used


@pytest.mark.smoke
def test_constraints_pin_every_dependency_that_tests_need() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    assert all(re.fullmatch(r"[\w.-]+==[\w.+!-]+", line) for line in lines)
    pinned = {line.partition("==")[0].lower().replace("_", "-") for line in lines}
    wanted = package_names(PROJECT["project"]["dependencies"]) | extras()["dev"] | extras()["docs"]
    assert wanted <= pinned


@pytest.mark.smoke
def test_make_help_names_every_target_the_readme_speaks_of() -> None:
    done = subprocess.run(["make", "--no-print-directory"], cwd=ROOT, capture_output=True, text=True)
    targets = {line.split()[0] for line in done.stdout.splitlines()}
    assert targets == {"demo", "test", "check", "bench", "results", "docs", "clean"}


def tracked_files() -> list[str]:
    """The names of all files under version control, as git gives them."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [name for name in listed.stdout.split("\0") if name]


@pytest.mark.smoke
def test_no_data_and_no_outputs_are_kept_with_the_code() -> None:
    names = tracked_files()
    assert {name.partition("/")[0] for name in names} <= ROOT_ENTRIES, "what is new at the root is named above"
    large = [name for name in names if (ROOT / name).is_file() and (ROOT / name).stat().st_size > LARGEST_FILE]
    assert not large, f"larger than {LARGEST_FILE} bytes: {large}"


@pytest.mark.smoke
def test_nothing_names_the_machine_it_was_written_on() -> None:
    found = []
    for name in tracked_files():
        path = ROOT / name
        if path == Path(__file__).resolve() or not path.is_file() or path.suffix not in TEXT_FILES:
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            if PRIVATE.search(line):
                found.append(f"{name}:{number}: {line.strip()[:100]}")
    assert not found, "\n".join(found)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the sdist, built by hatchling without a network."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-d", str(folder)], cwd=ROOT, check=True)
    return folder


def test_the_wheel_holds_the_package_and_the_sdist_can_be_tested(built: Path) -> None:
    import tarfile

    wheel = zipfile.ZipFile(next(built.glob("*.whl")))
    in_wheel = {name for name in wheel.namelist() if name.startswith("groundup/")}
    on_disk = {
        path.relative_to(ROOT / "src").as_posix()
        for path in (ROOT / "src/groundup").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert in_wheel == on_disk
    with tarfile.open(next(built.glob("*.tar.gz"))) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    for wanted in ("README.md", "README.zh.md", "LICENSE", "Makefile", "constraints.txt", "tests/conftest.py"):
        assert wanted in names
    assert not any("__pycache__" in name for name in names)


def test_the_wheel_installs_into_a_fresh_environment(built: Path, tmp_path: Path) -> None:
    """pip installs the wheel as a user's would; the libraries it needs are lent by this environment."""
    place = tmp_path / "fresh"
    venv.create(place, with_pip=False, symlinks=os.name != "nt")
    python = place / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, str(next(built.glob("*.whl")))], check=True, capture_output=True)
    site = Path(
        subprocess.run(
            [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    )
    (site / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    command = python.with_name("groundup")
    done = subprocess.run([command, "--help"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    where = subprocess.run(
        [python, "-c", "import groundup; print(groundup.__file__)"], capture_output=True, text=True, cwd=tmp_path
    )
    assert str(site) in where.stdout, "the installed copy answers, not the checkout"
