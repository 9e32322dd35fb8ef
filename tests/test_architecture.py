"""Properties of the source as a whole."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "server").rglob("*.py"))
HEAVY = ("torch", "transformers", "peft", "vllm", "sklearn")
LONGEST = 400


def names(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("module", ["server.app", "server.cli"])
def test_a_gateway_imports_nothing_that_it_does_not_need(module: str) -> None:
    # Importing torch alone takes seconds and hundreds of megabytes.
    script = f"import {module}, json, sys; print(json.dumps([*sys.modules]))"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = {name.partition(".")[0] for name in json.loads(done.stdout)}
    assert "server" in loaded
    assert loaded.isdisjoint(HEAVY)


def test_importing_the_gateway_starts_nothing() -> None:
    script = "import server.app, threading; print(threading.active_count())"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["1"]
    assert done.stderr == ""


@pytest.mark.parametrize("path", SOURCES, ids=names)
def test_a_file_says_what_it_is_and_is_short(path: Path) -> None:
    text = path.read_text()
    assert ast.get_docstring(ast.parse(text)), "a module begins with what it is for"
    assert text.count("\n") <= LONGEST


@pytest.mark.parametrize("path", SOURCES, ids=names)
def test_everything_public_says_what_it_does(path: Path) -> None:
    public = [
        node
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and not node.name.startswith("_")
    ]
    assert [node.name for node in public if ast.get_docstring(node) is None] == []


@pytest.mark.parametrize("path", SOURCES, ids=names)
def test_no_module_is_a_drawer_for_anything(path: Path) -> None:
    assert path.stem not in {"utils", "helpers", "common", "manager", "service", "misc"}
