"""Tasks and their settings, judged by lm-eval: `python -m recipes.checks.of_lm_eval ASKED OUT`."""

from __future__ import annotations

import dataclasses
import difflib
import re
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from core.errors import UserError, nearest
from eval.checkpoint.lm_eval_tasks import YAML, expand
from recipes.checks import annotated, lm_eval_models
from recipes.checks.answering import serve
from train.settings.values import shown

NUMBERS: dict[str, tuple[float, str]] = {
    "num_fewshot": (0, "a whole number of 0 or more"),
    "limit": (0, "a number above 0"),
    "max_batch_size": (1, "a whole number of 1 or more"),
    "bootstrap_iters": (0, "a whole number of 0 or more"),
    "numpy_random_seed": (0, "a whole number of 0 or more"),
    "repeats": (1, "a whole number of 1 or more"),
}
ANYTHING = re.compile(r"doc_to_|process_|custom_")
"""Beginnings of a task's settings that hold templates, numbers of answers or functions."""


def answer(question: Mapping[str, Any]) -> str | None:
    """What lm-eval says against a block `eval.tasks`."""
    place, value = question["place"], question["value"]
    try:
        for number, entry in enumerate(value["tasks"]):
            _task(f"{place}.tasks.{number}", entry)
        _evaluate(f"{place}.evaluate", value["evaluate"])
        _backend(f"{place}.backend", value["backend"])
        lm_eval_models.check(
            f"{place}.model_args",
            value["backend"],
            value.get("model_args") or {},
            value.get("base"),
        )
    except UserError as error:
        return str(error)
    return None


@cache
def _known() -> frozenset[str]:
    """Every task, group and tag of the installed lm-eval."""
    from lm_eval.tasks import TaskManager

    return frozenset(TaskManager().task_index)


def _task(place: str, entry: str | Mapping[str, Any]) -> None:
    """Raise UserError for a name that lm-eval does not know, and for a key that no task has."""
    for each in expand([entry]):
        name = each if isinstance(each, str) else str(each.get("task") or each.get("group"))
        if name.endswith(YAML):
            _file(place, Path(name))
        elif name not in _known():
            raise UserError(f"{place}: lm-eval knows no task '{name}'{_near(name)}.")
    if isinstance(entry, Mapping):
        from lm_eval.api.instance import OutputType
        from lm_eval.config.task import TaskConfig

        names = {field.name for field in dataclasses.fields(TaskConfig)} | {"group"}
        asked = annotated.arguments(TaskConfig) | {"output_type": OutputType}
        for key, value in entry.items():
            if key not in names:
                raise UserError(f"{place}: a task has no setting '{key}'{nearest(key, names)}.")
            _number(f"{place}.{key}", key, value)
            if not ANYTHING.match(key):
                annotated.check(f"{place}.{key}", value, asked.get(key, Any))


def _near(name: str) -> str:
    """The nearest of thousands of names; none of them where none is near."""
    close = difflib.get_close_matches(name, _known(), n=1, cutoff=0.75)
    return f"; did you mean '{close[0]}'?" if close else ""


def _file(place: str, path: Path) -> None:
    """Raise UserError for a task file that is not there or says no task."""
    if not path.is_file():
        raise UserError(f"{place}: the task file {path} does not exist.")
    from eval.checkpoint.lm_eval_tasks import read_task

    try:
        task = read_task(str(path))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{place}: the task file {path} cannot be read ({error}).") from error
    if not isinstance(task, str) and not (task.get("task") or task.get("group")):
        raise UserError(f"{place}: the task file {path} names no `task`.")


def _evaluate(place: str, settings: Mapping[str, Any]) -> None:
    """Raise UserError for what simple_evaluate takes no argument of, or no such value."""
    from lm_eval import simple_evaluate

    known = annotated.arguments(simple_evaluate)
    for name, value in settings.items():
        if name not in known:
            hint = nearest(name, known)
            raise UserError(f"{place}: lm_eval.simple_evaluate has no argument '{name}'{hint}.")
        _number(f"{place}.{name}", name, value)
        if name != "batch_size":
            annotated.check(f"{place}.{name}", value, known[name])
    size = settings.get("batch_size")
    automatic = isinstance(size, str) and size.startswith("auto")
    if size is not None and not automatic and not (_whole(size) and int(size) >= 1):
        raise UserError(f"{place}.batch_size: needs a whole number of 1 or more, or auto.")


def _whole(value: Any) -> bool:
    return (isinstance(value, int) and not isinstance(value, bool)) or str(value).isdecimal()


def _number(place: str, name: str, value: Any) -> None:
    if value is None or name not in NUMBERS:
        return
    low, needed = NUMBERS[name]
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    whole = number and (name == "limit" or float(value).is_integer())
    if not whole or value < low or (name == "limit" and value == 0):
        raise UserError(f"{place}: needs {needed} (it is {shown(value)}).")


def _backend(place: str, backend: str | None) -> None:
    """Raise UserError for a type of model that lm-eval does not have."""
    from lm_eval.models import MODEL_MAPPING

    if backend is not None and backend not in MODEL_MAPPING:
        hint = nearest(backend, MODEL_MAPPING)
        raise UserError(f"{place}: lm-eval has no type of model '{backend}'{hint}.")


if __name__ == "__main__":
    serve(sys.argv[1:], answer)
