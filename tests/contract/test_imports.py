"""Imports point down: who may import whom, what must stay free of torch, and how fast help answers.

The table below is the design's. It is checked over the syntax trees of `src/groundup`, so an import
inside a function counts as much as one at the top of a file.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

pytestmark = pytest.mark.smoke

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "groundup"

BASE = {"artifact", "catalog", "config", "errors", "forecast", "machine", "places", "progress", "signing", "units"}
NOUNS = {
    "adapters", "checkpoints", "compression", "evaluation", "models", "monitoring", "runtimes", "serving", "tasks",
    "training",
}  # fmt: skip
GROUND = {"nn", "text", "data"}
# The modules beside the folders: recipe, plan, runner, cli and the commands behind it.
FRONT = {file.stem for file in PACKAGE.glob("*.py")} - BASE - {"__init__", "__main__"}

# A place (a folder, or a module beside them) and the places it may import besides itself.
# "evaluation.metrics" allows that part of evaluation only.
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "units": {"errors"},
    "machine": set(),
    "places": {"errors"},
    "progress": {"errors", "units"},
    "catalog": {"errors"},
    "config": {"catalog", "errors", "units"},
    "artifact": {"errors", "machine", "progress", "units"},
    "signing": {"artifact", "errors"},
    "forecast": BASE,
    "nn": BASE,
    "text": BASE,
    "data": BASE | {"text"},
    "models": BASE | {"nn"},
    "adapters": BASE | {"nn"},
    "tasks": BASE | GROUND | {"evaluation.metrics"},
    "training": BASE | GROUND,
    "evaluation": BASE | GROUND,
    "checkpoints": BASE | {"models", "nn"},
    "compression": BASE | {"nn", "training"},
    "runtimes": BASE | {"models", "adapters", "checkpoints", "nn"},
    # A file that a stranger sends is looked at by the functions that prepare reads files with, before a task gets it.
    "serving": BASE | {"runtimes", "text", "data.audio", "data.images", "evaluation.answering", "studio"},
    "studio": BASE,
    "monitoring": BASE | {"evaluation.metrics"},
    "stages": BASE | GROUND | NOUNS,
    "deploy": BASE | {"serving", "yaml"},
    # Stages are missing on purpose: plan finds them by name, through the catalog.
    **{name: BASE | GROUND | NOUNS | {"deploy"} | (FRONT - {"cli"}) for name in FRONT},
    "yaml": BASE,
    "search": BASE,
    "recipe": BASE | {"search", "yaml"},
    "__init__": BASE | FRONT - {"cli"},
    "__main__": {"cli"},
}

# These answer before torch has been loaded, which takes seconds.
WITHOUT_TORCH = [
    "groundup", "groundup.cli", "groundup.recipe", "groundup.plan", "groundup.runner", "groundup.catalog",
    "groundup.config", "groundup.artifact", "groundup.forecast", "groundup.data.sources", "groundup.text.normalise",
    "groundup.text.duplicates", "groundup.stages.prepare", "groundup.stages.tokenize", "groundup.serving.client",
    "groundup.serving.fit", "groundup.serving.health", "groundup.serving.supervisor", "groundup.serving.server",
    "groundup.serving.canary_client", "groundup.deploy.kubernetes", "groundup.deploy.vllm_serve",
]  # fmt: skip


@dataclass(frozen=True)
class Import:
    """One import statement: where it stands and the module of groundup it names."""

    file: Path
    line: int
    target: str
    at_top: bool

    @property
    def source(self) -> str:
        return ".".join(self.file.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")

    def __str__(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.line} imports groundup.{self.target}"


def imports_of(file: Path) -> Iterator[Import]:
    """Every import of groundup's own modules in a file, wherever it stands."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    top = {id(node) for node in _run_on_import(tree)}
    for node in ast.walk(tree):
        for target in _targets(node, file):
            yield Import(file, node.lineno, target, id(node) in top)


def _run_on_import(tree: ast.AST) -> Iterator[ast.AST]:
    """Nodes executed when the module is imported: not those in functions or under TYPE_CHECKING."""
    for node in ast.iter_child_nodes(tree):
        deferred = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        types_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        if not deferred and not types_only:
            yield node
            yield from _run_on_import(node)


def _targets(node: ast.AST, file: Path) -> Iterator[str]:
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"{file.relative_to(ROOT)}:{node.lineno}: write the import in full"
        names = [f"{node.module}.{alias.name}" for alias in node.names]
    else:
        return
    for name in names:
        if name.startswith("groundup.") and name != "groundup.__version__":
            yield _module(name.removeprefix("groundup").removeprefix("."))


def _module(name: str) -> str:
    """The module behind `text.prompt.render`: the longest part of the name that is a file or folder."""
    parts = name.split(".")
    while parts and not (PACKAGE.joinpath(*parts).is_dir() or PACKAGE.joinpath(*parts).with_suffix(".py").is_file()):
        parts.pop()
    return ".".join(parts) or "__init__"


FILES = sorted(PACKAGE.rglob("*.py"))
IMPORTS = [found for file in FILES for found in imports_of(file)]


def place_of(module: str) -> str:
    return module.partition(".")[0] or "__init__"


def is_allowed(found: Import) -> bool:
    here, there = place_of(found.source), place_of(found.target)
    if here == there:
        # What two stages share belongs to a noun, or, if it needs several nouns, to a file that is no stage.
        return here != "stages" or found.target.partition(".")[2].startswith("_")
    allowed = MAY_IMPORT.get(here, set())
    return there in allowed or any(found.target.startswith(part) for part in allowed if "." in part)


def test_every_file_has_a_place_in_the_table() -> None:
    strangers = {place_of(".".join(f.relative_to(PACKAGE).with_suffix("").parts)) for f in FILES} - set(MAY_IMPORT)
    assert not strangers, f"no rule says what {sorted(strangers)} may import: add one to MAY_IMPORT"


def test_imports_point_down() -> None:
    wrong = [
        f"{found}\n    {place_of(found.source)} may import: {', '.join(sorted(MAY_IMPORT[place_of(found.source)]))}"
        for found in IMPORTS
        if not is_allowed(found)
    ]
    assert not wrong, "imports that point up or sideways:\n" + "\n".join(wrong)


def test_no_file_is_imported_in_a_circle() -> None:
    graph: dict[str, set[str]] = {}
    for found in IMPORTS:
        if found.at_top and found.target != found.source:
            graph.setdefault(found.source, set()).add(found.target)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        raise AssertionError("imports run in a circle: " + " → ".join(error.args[1])) from None


def test_nothing_is_unpickled() -> None:
    wrong = []
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            text = ast.unparse(node) if isinstance(node, ast.Import | ast.ImportFrom | ast.Call) else ""
            loads = text.startswith("torch.load(") and "weights_only=True" not in text
            if loads or text.startswith(("import pickle", "from pickle", "import dill", "import cloudpickle")):
                wrong.append(f"{file.relative_to(ROOT)}:{getattr(node, 'lineno', '?')}: {text}")
    assert not wrong, "weights are safetensors, state is safetensors plus JSON:\n" + "\n".join(wrong)


def test_torch_is_imported_only_where_it_is_used() -> None:
    script = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(name)\n"
        "    heavy = [m for m in ('torch', 'transformers', 'matplotlib.pyplot') if m in sys.modules]\n"
        "    if heavy: sys.exit(f'{name} imports {heavy[0]}')\n"
    )
    done = subprocess.run([sys.executable, "-c", script, *WITHOUT_TORCH], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_training_imports_the_compiler_only_to_compile() -> None:
    """Torch's compiler takes a second or two to import, and all of torch's optimizers ask for it."""
    script = (
        "import sys, torch\n"
        "from groundup.training import devices, optimizers\n"
        "network = torch.nn.Linear(3, 2)\n"
        "for kind in (kind() for kind in optimizers.OPTIMIZERS.values()):\n"
        "    devices.make_deterministic(True, 'cpu')\n"
        "    built = kind.build(optimizers.Weights(network), 'cpu')\n"
        "    for _ in range(2):\n"
        "        network(torch.ones(1, 3)).sum().backward()\n"
        "        for one in built: one.step()\n"
        "    tensors, others = optimizers.state_of(built, network)\n"
        "    optimizers.load_state(built, network, tensors | others)\n"
        "    devices.make_deterministic(False, 'cpu')\n"
        "    if 'torch._dynamo' in sys.modules: sys.exit(f'{kind.name} imports the compiler')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(resource is None, reason="this system does not count the processor time of children")
def test_help_answers_at_once() -> None:
    command = [str(Path(sys.executable).with_name("groundup")), "--help"]
    wall, cpu = [], []
    for _ in range(5):
        start, before = time.perf_counter(), children_seconds()
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"TERM": "dumb"})
        wall.append(time.perf_counter() - start)
        cpu.append(children_seconds() - before)
        assert done.returncode == 0 and "plan" in done.stdout, done.stderr
    print(f"groundup --help: {min(wall):.3f} s on the clock, {min(cpu):.3f} s of processor time")
    # 0.3 s is the promise on an idle machine; beside other tests the clock says little, the processor more.
    assert min(cpu) < 0.45


def children_seconds() -> float:
    """Processor time of all child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_threads_that_wait_do_not_spin_for_long() -> None:
    """OpenMP reads it when torch is imported; whoever sets a policy of their own keeps it."""
    script = "import os, groundup; print(os.environ.get('GOMP_SPINCOUNT'))"
    clean = {key: value for key, value in os.environ.items() if key not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    for more, expected in (({}, "30000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "PASSIVE"}, "None")):
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=clean | more)
        assert done.stdout.strip() == expected, done.stderr
