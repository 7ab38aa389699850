"""Benchmarks of lm-eval (`lm_eval.simple_evaluate`), in a process of their own, so that the model's
memory is free afterwards.

    python -m eval.checkpoint.lm_eval_tasks SPEC.json

is what `run` starts; SPEC holds model, tasks, settings and the folder to write to.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import polars as pl

from core.errors import UserError
from core.files import finite, write_atomic
from core.pretrained.hub import offline_variables
from core.servers import Servers
from core.store import Counts
from core.tracking import Log
from eval.checkpoint.asked import Asked
from eval.checkpoint.lm_eval_models import Reached, reached
from eval.checkpoint.lm_eval_values import direction, scalars
from eval.config import TasksConfig

VERSION = 3
SHIPPED = {"everyday-science": Path(__file__).parent / "data" / "everyday-science.yaml"}

LISTS: dict[str, tuple[dict[str, Any], ...]] = {
    "open-llm-leaderboard-v1": (
        {"task": "arc_challenge", "num_fewshot": 25},
        {"task": "hellaswag", "num_fewshot": 10},
        {"task": "truthfulqa_mc2", "num_fewshot": 0},
        {"group": "mmlu", "num_fewshot": 5},
        {"task": "winogrande", "num_fewshot": 5},
        {"task": "gsm8k", "num_fewshot": 5},
    ),
    "mmlu-redux": ({"group": "mmlu_redux_generative"},),
}
"""Names of ours for lm-eval's tasks with the shots that the Magpie paper used (arXiv 2406.08464,
appendix; the leaderboard's own)."""

YAML = (".yaml", ".yml")

_ALL = "magpie-tasks"
"""The group that holds the entries with settings of their own; it has no score."""

OUTCOMES = {
    "task": pl.String,
    "metric": pl.String,
    "item": pl.String,
    "cluster": pl.String,
    "value": pl.Float64,
    "higher_is_better": pl.Boolean,
}
"""Columns of outcomes.parquet: one row for each item of each metric; `item` is lm-eval's doc_id,
`cluster` the subject that it belongs to in a group (else the item itself), `value` what the metric
gave that item."""

SUBJECTS = 10
"""A group of so many subjects (MMLU has 57) is clustered by subject: its questions are no
independent draws. Fewer clusters would leave nothing to know the error by."""


def release() -> str:
    """The version of lm-eval that computes the scores here; "" where it is not installed."""
    try:
        return version("lm_eval")
    except PackageNotFoundError:
        return ""


def run(
    config: TasksConfig,
    inputs: Mapping[str, Path],
    out: Path,
    *,
    model: Asked,
    servers: Servers,
    log: Log,
) -> Counts:
    """Evaluate a checkpoint; write `out`/outcomes.parquet and `out`/results.json (lm-eval's own
    table, with its standard errors).

    `model` is a folder, `embedded/NAME`, hub id, or a checkpoint with an adapter; `inputs` is
    empty; how lm-eval reaches it, and whether by its chat template, is in
    eval/checkpoint/lm_eval_models.py. Per-item outcomes are kept, so that arms can be compared item
    by item. Counts: tasks, items (of all tasks and metrics), chat_template (whether prompts went
    through it), and each task's metrics. Raises UserError, with lm-eval's last line, when it fails.
    """
    names = _names(config.tasks)
    for task in names:
        if task not in SHIPPED and task.endswith(YAML) and not Path(task).is_file():
            raise UserError(f"the lm-eval task file {task} does not exist.")
    if (out / "results.json").exists() and (out / "outcomes.parquet").exists():
        return _counts(out)  # a run killed after the evaluation
    out.mkdir(parents=True, exist_ok=True)
    with reached(config, model, servers) as how:
        by = "by its chat template" if how.evaluate["apply_chat_template"] else "without a template"
        asked = model if isinstance(model, str) else model.name
        log.say(f"lm-eval: {', '.join(names)} on {asked} ({how.backend}), {by}")
        _evaluate(config, how, out)
    return _counts(out)


def _evaluate(config: TasksConfig, how: Reached, out: Path) -> None:
    """Run lm-eval in a process of its own. Raises UserError when it fails."""
    spec = {
        "out": str(out.resolve()),
        "tasks": expand(config.tasks),
        "model": how.backend,
        "model_args": how.model_args,
        "evaluate": how.evaluate,
    }
    path = out / "spec.json"
    output = out / "lm-eval.log"
    write_atomic(path, json.dumps(spec))
    try:
        with output.open("w") as lines:
            done = subprocess.run(
                [sys.executable, "-m", "eval.checkpoint.lm_eval_tasks", str(path)],
                stdout=lines,
                stderr=subprocess.STDOUT,
                env={
                    "TOKENIZERS_PARALLELISM": "false",
                    **os.environ,
                    **offline_variables(),
                    **how.env,
                },
                check=False,
            )
    finally:
        path.unlink()
    if done.returncode != 0:
        named = ", ".join(_names(config.tasks))
        *_, last = ["no output", *output.read_text(errors="replace").strip().splitlines()]
        raise UserError(f"lm-eval failed on {named}: {last} (all of it: {output})")
    output.unlink()  # times and addresses: not part of a result


def _counts(out: Path) -> Counts:
    results: dict[str, dict[str, Any]] = json.loads((out / "results.json").read_text())
    outcomes = pl.read_parquet(out / "outcomes.parquet", glob=False)
    protocol = json.loads((out / "protocol.json").read_text())
    counted = {"tasks": outcomes["task"].n_unique(), "items": outcomes.height}
    return {**counted, **protocol, "results": results}


def main(spec: Path) -> None:
    """Run lm-eval as SPEC says and write its results beside it."""
    settings = json.loads(spec.read_text())
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    import lm_eval
    from lm_eval.tasks import TaskManager

    names = _names(settings["tasks"])
    folders = sorted({str(Path(t).resolve().parent) for t in names if t.endswith(YAML)})
    with TemporaryDirectory() as folder:
        tasks = requested(settings["tasks"], Path(folder))
        evaluation = lm_eval.simple_evaluate(
            model=settings["model"],
            model_args=settings["model_args"],
            tasks=tasks,
            task_manager=TaskManager(include_path=[*folders, folder]),
            log_samples=True,
            **{**_device(settings["model"]), **settings["evaluate"]},
        )
    out = Path(settings["out"])
    rows: list[dict[str, Any]] = []
    said = evaluation.get("higher_is_better") or {}
    for task, samples in evaluation["samples"].items():
        for sample in samples:
            item = {"task": task, "item": str(sample["doc_id"])}
            for metric, value in scalars(sample):
                higher = direction(said, task, metric)
                rows.append(item | {"metric": metric, "value": value, "higher_is_better": higher})
    outcomes = pl.DataFrame(pooled(rows, evaluation, names), schema=OUTCOMES)
    outcomes.write_parquet(out / "outcomes.parquet")
    results = {task: figures for task, figures in evaluation["results"].items() if task != _ALL}
    chat = {"chat_template": bool(settings["evaluate"]["apply_chat_template"])}
    write_atomic(out / "protocol.json", json.dumps(chat))
    write_atomic(out / "results.json", json.dumps(finite(results), indent=2, default=str))


def _end_with(parent: int) -> None:
    """End this process when the one that started it is gone (a SIGKILL there runs no clean-up)."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def expand(wanted: Sequence[str | Mapping[str, Any]]) -> list[str | dict[str, Any]]:
    """The tasks of a recipe with our own names replaced: `LISTS` by their entries, shipped tasks by
    their files."""
    tasks: list[str | dict[str, Any]] = []
    for task in wanted:
        if isinstance(task, str):
            tasks += LISTS.get(task, (str(SHIPPED.get(task, task)),))
        else:
            tasks.append(dict(task))
    return tasks


def _names(wanted: Sequence[str | Mapping[str, Any]]) -> list[str]:
    """The name of each entry: a text, or what a mapping has for `task` or `group`."""
    return [
        task if isinstance(task, str) else str(task.get("task") or task.get("group"))
        for task in wanted
    ]


def first_name(wanted: Sequence[str | Mapping[str, Any]]) -> str:
    """What the metrics of the first of these tasks begin with: its name, of a file's the file's."""
    name = _names(expand(wanted))[0]
    return Path(name).stem if name.endswith(YAML) else name


def requested(
    expanded: Sequence[str | Mapping[str, Any]], folder: Path
) -> list[str | dict[str, Any]]:
    """What simple_evaluate gets: names, the content of YAML files, and one group with every entry
    that overrides a task's own settings.

    lm-eval 0.4 takes {"task": NAME, "num_fewshot": 5} for a reference to a task of its own only
    inside a group that a file defines (at the top it would be a new task; in a group given as a
    mapping, members that are groups lose their names), so that file is written into `folder`, which
    TaskManager must include. Members that are groups go by `group`.
    """
    plain: list[str | dict[str, Any]] = []
    changed: list[dict[str, Any]] = []
    for entry in expanded:
        if isinstance(entry, str):
            plain.append(read_task(entry))
            continue
        name = str(entry.get("task", ""))
        own = read_task(name)
        if isinstance(own, str):
            changed.append({**entry, "task": own} if name else dict(entry))
        else:
            plain.append(own | {k: v for k, v in entry.items() if k != "task"})
    if not changed:
        return plain
    group = {"group": _ALL, "task": changed}
    (folder / f"{_ALL}.yaml").write_text(json.dumps(group))  # JSON is YAML
    return [*plain, _ALL]


def pooled(
    rows: list[dict[str, Any]], evaluation: Mapping[str, Any], asked: Sequence[str]
) -> list[dict[str, Any]]:
    """Outcomes with the subjects of each group asked for by name, where lm-eval gives the group a
    score of its own (MMLU), as one task.

    Its items are "SUBJECT/doc_id" and weigh alike, as in lm-eval's MMLU score (weight_by_size);
    with at least `SUBJECTS` subjects those are the clusters. `evaluation` is what
    simple_evaluate returns.
    """
    children: Mapping[str, Sequence[str]] = evaluation.get("group_subtasks") or {}
    scored = evaluation.get("groups") or {}

    def leaves(name: str) -> Iterator[str]:
        for child in children.get(name, ()):
            yield from leaves(child) if child in children else (child,)

    group_of = {leaf: group for group in asked if group in scored for leaf in leaves(group)}
    subjects = Counter(group_of.values())
    merged = []
    for row in rows:
        task, item = row["task"], row["item"]
        group = group_of.get(task)
        if group is not None:
            item = f"{task}/{item}"
        by_subject = subjects.get(str(group), 0) >= SUBJECTS
        named = {"task": group or task, "item": item, "cluster": task if by_subject else item}
        merged.append(row | named)
    return merged


def read_task(name: str) -> str | dict[str, Any]:
    """A task by its name, or the content of a YAML file with `data_files` made absolute (lm-eval
    reads them relative to the process).

    A file that uses !function or include goes by its task's name: lm-eval finds it in the file's
    folder and loads those parts itself.
    """
    if not name.endswith(YAML):
        return name
    import yaml

    class Plain(yaml.SafeLoader):
        """Reads a task file without running anything."""

    Plain.add_multi_constructor("!", lambda loader, suffix, node: loader.construct_scalar(node))
    path = Path(name).resolve()
    text = path.read_text()
    task: dict[str, Any] = yaml.load(text, Plain)
    if "!function" in text or "include" in task:
        return str(task["task"])
    kwargs = task.get("dataset_kwargs") or {}
    if "data_files" in kwargs:
        kwargs["data_files"] = _absolute(kwargs["data_files"], path.parent)
    return task


def _device(backend: str) -> dict[str, str]:
    """lm-eval's default device is CUDA, also where torch has none."""
    if backend != "hf":
        return {}
    import torch

    return {"device": "cuda" if torch.cuda.is_available() else "cpu"}


def _absolute(files: Any, folder: Path) -> Any:
    if isinstance(files, dict):
        return {split: _absolute(value, folder) for split, value in files.items()}
    if isinstance(files, list):
        return [_absolute(value, folder) for value in files]
    return files if "://" in str(files) else str(folder / str(files))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
