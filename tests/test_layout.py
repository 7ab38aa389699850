"""The house: three floors of rooms, every arrow pointing down, packages that resolve here, a light
command line."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = {
    "core": {"core"},
    "synth": {"core", "synth"},
    "train": {"core", "train"},
    "eval": {"core", "eval"},
    "recipes": {"core", "synth", "train", "eval", "recipes"},
}
ORDER = {
    "synth": [
        {"pool", "preferences"},
        {"published"},
        {"tags"},
        {"generate", "duplicates"},
        {"filters", "context"},
        {"chat", "config", "measures"},
    ],
    "eval": [
        {"files"},
        {"scoring"},
        {"judging", "checkpoint"},
        {"prompt_sets"},
        {"compare"},
        {"comparing"},
        {"config", "stats"},
        {"protocols"},
        {"presets"},
    ],
    "recipes": [
        {"cli"},
        {"commands"},
        {"upkeep"},
        {"verbs", "launching", "comparisons"},
        {"exchange"},
        {"stages"},
        {"report", "checks"},
        {"schema"},
        {"blocks"},
    ],
}
"""The rooms of a floor from the top: a room imports rooms of its own tier and of those below. A
file at a floor's root is a room of its own."""

HEAVY = {
    "aiohttp",
    "datasets",
    "deepspeed",
    "lingua",
    "lm_eval",
    "plotly",
    "scipy",
    "sentence_transformers",
    "torch",
    "transformers",
    "trl",
    "vllm",
    "wandb",
}
MODULES = [p for package in FLOORS for p in sorted((ROOT / package).rglob("*.py"))]
MOST_ENTRIES = 12
MOST_LINES = 400


def module_name(path: Path) -> str:
    """The dotted name that a file is imported by."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {module_name(path): path for path in MODULES}


def imported(path: Path) -> set[str]:
    """Modules of this repository that a file imports anywhere, also for types and in functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in NAMES else node.module)
    return found & set(NAMES)


def first_parts(path: Path, *, top_level: bool) -> set[str]:
    """First parts of the modules that a file imports (only at module level, or anywhere)."""
    tree = ast.parse(path.read_text())
    nodes = _run_on_import(tree.body) if top_level else list(ast.walk(tree))
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


def room(module: str) -> str:
    """FLOOR.ROOM of a module: its folder, or itself where it lies at its floor's root."""
    return ".".join(module.split(".")[:2])


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of two and more nodes that reach each other (Tarjan's components)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in sorted(graph[node]):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            at = stack.index(node)
            if len(stack) - at > 1:
                found.append(sorted(stack[at:]))
            del stack[at:]

    for node in sorted(graph):
        if node not in index:
            visit(node)
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_every_arrow_between_floors_points_down(path: Path) -> None:
    floor = path.relative_to(ROOT).parts[0]
    assert first_parts(path, top_level=False) & set(FLOORS) <= FLOORS[floor]


@pytest.mark.parametrize("floor", sorted(ORDER))
def test_every_arrow_between_rooms_points_down(floor: str) -> None:
    tiers = {f"{floor}.{name}": tier for tier, names in enumerate(ORDER[floor]) for name in names}
    upwards = []
    for module, path in NAMES.items():
        if module.startswith(f"{floor}."):
            for other in imported(path):
                if room(other) in tiers and tiers[room(other)] < tiers[room(module)]:
                    upwards.append(f"{module} -> {other}")
    assert upwards == []


@pytest.mark.parametrize("floor", sorted(ORDER))
def test_every_room_has_its_place_in_the_order(floor: str) -> None:
    rooms = {room(module) for module in NAMES if module.startswith(f"{floor}.")}
    placed = {f"{floor}.{name}" for tier in ORDER[floor] for name in tier}
    assert rooms == placed


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert circles({module: imported(path) - {module} for module, path in NAMES.items()}) == []


def test_no_rooms_import_each_other_in_a_circle() -> None:
    graph: dict[str, set[str]] = defaultdict(set)
    for module, path in NAMES.items():
        graph[room(module)] |= {room(other) for other in imported(path)} - {room(module)}
    assert circles(graph) == []


def test_no_folder_has_more_than_twelve_entries() -> None:
    entries: dict[str, set[str]] = defaultdict(set)
    for path in MODULES:
        inside = path.relative_to(ROOT)
        for depth in range(1, len(inside.parts)):
            if inside.parts[depth] != "__init__.py":
                entries["/".join(inside.parts[:depth])].add(inside.parts[depth])
    assert {
        folder: len(names) for folder, names in entries.items() if len(names) > MOST_ENTRIES
    } == {}


PATTERNS = {"read_parquet", "scan_parquet", "read_parquet_schema"}


def test_no_path_is_taken_for_a_pattern() -> None:
    """Polars does, where it is not told otherwise: a store may lie in a folder `runs[1]`."""
    taken = []
    for module, path in NAMES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                said = {keyword.arg for keyword in node.keywords}
                if ast.unparse(node.func).startswith("pl.") and node.func.attr in PATTERNS:
                    taken += [] if "glob" in said else [f"{module}:{node.lineno}"]
    assert taken == [], "say glob=False (of a schema: pl.scan_parquet(..., glob=False))"


def test_every_package_says_what_lives_in_it() -> None:
    packages = [path for path in MODULES if path.name == "__init__.py"]
    undescribed = []
    for path in packages:
        body = ast.parse(path.read_text()).body
        if len(body) != 1 or not ast.get_docstring(ast.parse(path.read_text())):
            undescribed.append(module_name(path))
    assert packages and undescribed == []


def test_no_module_is_longer_than_400_lines() -> None:
    lengths = {module: len(path.read_text().splitlines()) for module, path in NAMES.items()}
    assert {module: lines for module, lines in lengths.items() if lines > MOST_LINES} == {}


IN_TRAINING = {
    "train/data/feeding.py",
    "train/sft.py",
    "train/dpo.py",
    "train/resuming/clock.py",
    "train/resuming/guarded.py",
    "train/resuming/later.py",
    "train/resuming/ranks.py",
}
"""Modules that only the processes of a training import."""


@pytest.mark.parametrize(
    "path",
    [p for p in MODULES if p.relative_to(ROOT).as_posix() not in IN_TRAINING],
    ids=lambda p: p.relative_to(ROOT).as_posix(),
)
def test_heavy_imports_wait_until_they_are_needed(path: Path) -> None:
    assert not first_parts(path, top_level=True) & HEAVY


@pytest.mark.parametrize("package", sorted(FLOORS))
def test_packages_resolve_inside_this_repository(package: str) -> None:
    found = importlib.import_module(package).__file__
    assert found is not None and Path(found).is_relative_to(ROOT)


def test_every_package_is_listed_for_the_build() -> None:
    import tomllib

    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert set(listed) == {module_name(p) for p in MODULES if p.name == "__init__.py"}


@pytest.mark.parametrize("page", ["docs/architecture.md", "CONTRIBUTING.md", "README.md"])
def test_a_page_names_files_that_exist(page: str) -> None:
    named = re.findall(r"`((?:core|synth|train|eval|recipes)/[\w./-]+)`", (ROOT / page).read_text())
    placeholders = [name for name in named if "NAME" in name]
    missing = [n for n in named if n not in placeholders and not (ROOT / n).exists()]
    assert named and missing == []


@pytest.mark.process
def test_the_command_line_imports_nothing_heavy() -> None:
    heavy = ("torch", "polars", "wandb", "transformers", "pydantic", "yaml")
    code = f"import recipes.cli, sys; print([m for m in sys.modules if m in {heavy}])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


# -- what ruff has no rule for --------------------------------------------------------------------

COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
UNDESCRIBED_LINES = 15


def nodes(kind: type[ast.AST] | tuple[type[ast.AST], ...]) -> Iterator[tuple[str, Any]]:
    """("file:line", node) of every syntax node of a kind in the packages."""
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, kind):
                yield f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}", node


def own_expressions(statement: ast.stmt) -> Iterator[ast.AST]:
    """The syntax nodes of a statement, those of statements inside it left out."""
    waiting: list[ast.AST] = [statement]
    while waiting:
        children = ast.iter_child_nodes(waiting.pop())
        inner = [child for child in children if not isinstance(child, ast.stmt)]
        yield from inner
        waiting += inner


def test_a_statement_holds_at_most_one_conditional_expression() -> None:
    crowded = []
    for where, statement in nodes(ast.stmt):
        conditional = [e for e in own_expressions(statement) if isinstance(e, ast.IfExp)]
        if len(conditional) > 1:
            crowded.append(where)
    assert crowded == [], "name the middle step"


def test_no_comprehension_stands_inside_another() -> None:
    nested = []
    for where, comprehension in nodes(COMPREHENSIONS):
        inner = [node for node in ast.walk(comprehension) if isinstance(node, COMPREHENSIONS)]
        if len(inner) > 1:
            nested.append(where)
    assert nested == [], "name the middle step"


def test_every_function_over_fifteen_lines_says_what_it_does() -> None:
    silent = []
    for where, function in nodes(FUNCTIONS):
        lines = function.end_lineno - function.lineno + 1
        if lines > UNDESCRIBED_LINES and ast.get_docstring(function) is None:
            silent.append(f"{where} {function.name}")
    assert silent == []
