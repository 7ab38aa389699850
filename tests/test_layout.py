"""The house: three floors, every arrow pointing down; packages that resolve here; a light command line; files that tell nothing of a machine."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ALLOWED = {
    "core": {"core"},
    "synth": {"core", "synth"},
    "train": {"core", "train"},
    "eval": {"core", "eval"},
    "recipes": {"core", "synth", "train", "eval", "recipes"},
}
HEAVY = {
    "torch", "vllm", "trl", "transformers", "wandb", "deepspeed", "sentence_transformers", "lingua", "datasets", "lm_eval", "plotly", "aiohttp",
    "scipy",
}  # fmt: skip
MODULES = [p for package in ALLOWED for p in sorted((ROOT / package).rglob("*.py"))]


def imports(path: Path, *, top_level: bool) -> set[str]:
    """First parts of the modules that a file imports (only at module level, or anywhere)."""
    tree = ast.parse(path.read_text())
    nodes = list(ast.walk(tree)) if not top_level else _run_on_import(tree.body)
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
    return found


def _run_on_import(body: list[ast.stmt]) -> list[ast.AST]:
    found: list[ast.AST] = []
    for node in body:
        typing_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        if isinstance(node, (ast.If, ast.Try)) and not typing_only:
            found += _run_on_import(node.body)
        found.append(node)
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_every_arrow_points_down(path: Path) -> None:
    floor = path.relative_to(ROOT).parts[0]
    assert imports(path, top_level=False) & set(ALLOWED) <= ALLOWED[floor]


@pytest.mark.parametrize("path", [p for p in MODULES if p.name not in ("sft.py",)], ids=lambda p: p.relative_to(ROOT).as_posix())
def test_heavy_imports_wait_until_they_are_needed(path: Path) -> None:
    assert not imports(path, top_level=True) & HEAVY


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_packages_resolve_inside_this_repository(package: str) -> None:
    found = importlib.import_module(package).__file__
    assert found is not None and Path(found).is_relative_to(ROOT)


def test_the_command_line_imports_nothing_heavy() -> None:
    code = "import recipes.cli, sys; print([m for m in sys.modules if m in ('torch', 'polars', 'wandb', 'transformers', 'pydantic', 'yaml')])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_no_module_is_longer_than_350_lines() -> None:
    assert {p.relative_to(ROOT).as_posix(): n for p in MODULES if (n := len(p.read_text().splitlines())) > 350} == {}
