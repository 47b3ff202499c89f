"""The command line: help, exit codes, errors without tracebacks, JSON for scripts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest


def groundup(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "groundup", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, env={**os.environ, "COLUMNS": "200", **environment}
    )


@pytest.mark.smoke
def test_version_and_help() -> None:
    assert groundup("--version").stdout.startswith("groundup 0.")
    shown = groundup("--help")
    assert shown.returncode == 0
    for command in ("init", "plan", "run", "show", "generate", "verify", "catalog", "explain", "doctor", "clean"):
        assert command in shown.stdout


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["run", "nothing.yaml"], "there is no such recipe"),
        (["show", "runs/none/base"], "no artefact"),
        (["verify", "."], "no artefact"),
        (["explain", "pretrain.tokns"], "did you mean 'tokens'"),
        (["catalog", "modles"], "did you mean 'models'"),
        (["catalog", "--rows", "many"], "--rows"),
        (["generate", "runs/none/base", "x"], "no artefact"),
        (["init", "--kind", "gptt"], "no template"),
    ],
)
def test_a_users_mistake_exits_with_2_and_no_traceback(arguments: list[str], expected: str) -> None:
    failed = groundup(*arguments)
    assert failed.returncode == 2, failed
    assert expected in failed.stderr
    assert "Traceback" not in failed.stderr


def test_init_writes_a_recipe_that_plan_accepts(write_stories: Callable[[Path, int], None]) -> None:
    write_stories(Path("texts"), 40)
    for kind in ("gpt", "bert"):
        made = groundup("init", kind, "--data", "texts/*.txt", "--kind", kind)
        assert made.returncode == 0, made.stderr
        words = ["--set", "stages.words.tokenize.vocab_size=300"]
        planned = groundup("plan", f"{kind}/groundup.yaml", "--quick", "--json", "--quiet", *words)
        assert planned.returncode == 0, planned.stderr
        stages = json.loads(planned.stdout)["stages"]
        assert list(stages) == ["corpus", "words", "base", "report"]
        assert stages["base"]["estimated"]
    assert groundup("init", "gpt").returncode == 2, "an existing recipe is not overwritten"
    schema = json.loads(Path("gpt/.groundup/recipe.schema.json").read_text())
    assert schema["properties"]["stages"]


def test_explain_catalog_and_schema() -> None:
    assert "default" in groundup("explain", "stages.base.pretrain.grad_clip").stdout
    assert "d_model" in groundup("explain", "models.gpt").stdout
    listed = json.loads(groundup("catalog", "--json").stdout)
    assert {"gpt", "gpt2", "bert"} <= set(listed["models"])
    small = json.loads(groundup("catalog", "--task", "language_modeling", "--rows", "1k", "--json").stdout)
    large = json.loads(groundup("catalog", "--rows", "100M", "--memory", "64GiB", "--json").stdout)
    assert small["recommendation"]["model"]["d_model"] < large["recommendation"]["model"]["d_model"]
    schema = json.loads(groundup("schema").stdout)
    assert "pretrain" in schema["properties"]["stages"]["additionalProperties"]["properties"]


def test_a_closed_pipe_is_no_error() -> None:
    shown = subprocess.run(
        f"{sys.executable} -m groundup schema | head -c 10", shell=True, capture_output=True, text=True, timeout=60
    )
    assert "Traceback" not in shown.stderr
    assert shown.stdout.startswith("{")
