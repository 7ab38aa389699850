"""Sample files of lm-eval (`--log_samples`) -> one value an item of every metric.

A run leaves samples_TASK_DATE.jsonl for each task and one results_DATE.json beside them. The latter
says which way each metric is better, whose run it was, and which tasks are subjects of a group; the
samples are read without it too.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import NoneType
from typing import Any

import polars as pl

from core.errors import UserError, json_kind
from core.files import read_json
from eval.checkpoint.lm_eval_tasks import SUBJECTS
from eval.checkpoint.lm_eval_values import NO_FILTER, direction, named, scalars
from eval.files.parts import Part, frame
from eval.prompt_sets.records import located
from eval.scoring.stored import short_name

NAME = re.compile(r"samples_(?P<task>.+?)(?:_(?P<date>\d{4}-\d\d-\d\dT[\d.:-]+))?\.jsonl(?:\.gz)?")


@dataclass(frozen=True)
class Read:
    """The parts of one folder of samples, and what a reader must know beside them."""

    parts: list[Part]
    notes: list[str]


@dataclass
class _Filtered:
    """The samples of one filter while a file is read: each item with the digests of its document
    and of its prompt, its metrics that are numbers, and those that lm-eval names for it."""

    items: dict[str, tuple[str | None, str | None]] = field(default_factory=dict)
    values: dict[str, dict[str, float]] = field(default_factory=lambda: defaultdict(dict))
    named: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))

    def add(self, sample: Mapping[str, Any], where: str) -> None:
        """One sample. Raises UserError for an item that was there."""
        item = str(sample["doc_id"])
        metrics = dict(scalars(sample))
        for metric in metrics:
            if item in self.values[metric]:
                raise UserError(f"{where}: the item {item} has {metric} a second time; keep one.")
            self.values[metric][item] = metrics[metric]
        for metric in named(sample):
            self.named[metric].add(item)
        self.items.setdefault(item, (sample.get("doc_hash"), sample.get("prompt_hash")))

    def without(self, metric: str) -> list[str]:
        """The items that have no number for a metric that others have one for. A newer lm-eval says
        of each sample which metrics it has; of an older one's each sample has all."""
        held = self.values[metric]
        meant = self.named.get(metric) or self.items
        return [item for item in self.items if item in meant and item not in held]


def read(files: Sequence[Path], folder: Path) -> Read:
    """The sample files of one folder: the newest of each task. Groups that lm-eval scores as a mean
    over all items (MMLU) are one benchmark, clustered by subject where there are many."""
    newest, older = _newest(files)
    parts: list[Part] = []
    notes = [f"{folder}: {older} sample files of earlier runs are left out."] if older else []
    by_date: dict[str, list[tuple[str, Path]]] = defaultdict(list)
    for task, (date, path) in newest.items():
        by_date[date].append((task, path))
    for date, own in by_date.items():
        results = folder / f"results_{date}.json"
        known = _known(results) if date and results.is_file() else {}
        read_parts = [part for task, path in own for part in _parts(task, path, folder, known)]
        notes += _without_samples(known, newest, folder) + _incomplete(read_parts, folder)
        notes += _differing(read_parts, known, folder)
        parts += _pooled(read_parts, known)
    return Read(parts, notes)


TABLES = ("results", "groups", "higher_is_better")
"""Of a results file, what is read by task or group: objects of objects."""


def _known(results: Path) -> Mapping[str, Any]:
    """A results_DATE.json. Raises UserError for a table of it that has another form."""
    known = read_json(results, "remove it")
    if not isinstance(known, dict):
        raise UserError(f"{results} is {json_kind(known)}; lm-eval writes an object. Remove it.")
    for table in (*TABLES, "group_subtasks"):
        form, inside = (dict, "objects") if table in TABLES else (list, "lists of names")
        rows = known.get(table) or {}
        if not isinstance(rows, dict) or not all(isinstance(row, form) for row in rows.values()):
            raise UserError(
                f"{results}: `{table}` is no object of {inside} by name, as lm-eval writes it; "
                "remove the file (the samples are read without it)."
            )
    return known


def _without_samples(known: Mapping[str, Any], tasks: Collection[str], folder: Path) -> list[str]:
    """A sentence on the tasks of lm-eval's own table that no samples are here of."""
    groups = known.get("groups") or {}
    listed = known.get("results") or {}
    lost = [task for task in listed if task not in groups and task not in tasks]
    if not lost:
        return []
    return [
        f"{folder.name}: lm-eval ran {', '.join(lost)} too, whose sample files are not here; they "
        "are not compared."
    ]


def _incomplete(parts: Sequence[Part], folder: Path) -> list[str]:
    """A sentence for each metric that some items have no number for."""
    notes = []
    for part in parts:
        values = part.items["value"]
        if values.null_count():
            notes.append(
                f"{folder.name}: {values.null_count()} of {len(values)} items of {part.benchmark} "
                f"{part.metric} hold no number; they are items without a value."
            )
    return notes


def _newest(files: Sequence[Path]) -> tuple[dict[str, tuple[str, Path]], int]:
    """The newest file of each task with its date, and how many are older."""
    newest: dict[str, tuple[str, Path]] = {}
    for path in files:
        found = NAME.fullmatch(path.name)
        stem = path.name.partition(".jsonl")[0]
        task, date = (found["task"], found["date"] or "") if found else (stem, "")
        newest[task] = max(newest.get(task, ("", path)), (date, path))
    return newest, len(files) - len(newest)


def _parts(task: str, path: Path, folder: Path, known: Mapping[str, Any]) -> Iterator[Part]:
    """Every metric of one task. An item without a number where others have one is kept, without a
    value."""
    filters: dict[str, _Filtered] = defaultdict(_Filtered)
    for where, sample in located(path):
        if "doc_id" not in sample:
            raise UserError(f"{where}: no doc_id; a sample of lm-eval has one.")
        _check_metrics(sample, where)
        _check_texts(sample, where)
        filters[sample.get("filter", NO_FILTER)].add(sample, where)
    if not filters:
        raise UserError(f"{path} holds no samples; remove it, or run the task again.")
    name = short_name(str(known.get("model_name") or folder.resolve().name).rstrip("/"))
    said = known.get("higher_is_better") or {}
    for read_samples in filters.values():
        for metric, values in read_samples.values.items():
            items = [*values, *read_samples.without(metric)]
            documents, prompts = zip(*(read_samples.items[item] for item in items), strict=True)
            rows = frame(items, list(map(values.get, items)), documents=documents, prompts=prompts)
            yield Part(name, task, metric, rows, folder, direction(said, task, metric))


def _check_metrics(sample: Mapping[str, Any], where: str) -> None:
    """Raise UserError where a sample does not name its metrics by texts."""
    named = sample.get("metrics")
    if named is None:
        return
    if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
        raise UserError(f"{where}: `metrics` is no list of names; lm-eval writes them so.")


def _check_texts(sample: Mapping[str, Any], where: str) -> None:
    """Raise UserError where the filter, or the digests that tell documents and prompts apart, are
    no texts."""
    for name in ("doc_hash", "prompt_hash", "filter"):
        if not isinstance(sample.get(name), (str, NoneType)):
            raise UserError(f"{where}: `{name}` is {json_kind(sample[name])}; it is a text.")


def _differing(parts: Sequence[Part], known: Mapping[str, Any], folder: Path) -> list[str]:
    """A sentence for each figure of lm-eval's own table that is not the mean over the items."""
    notes = []
    for part in parts:
        stated = _stated(known, "results", part.benchmark, part.metric)
        mean = _mean([part])
        if stated is not None and mean is not None and abs(stated - mean) > 1e-6:
            notes.append(
                f"{folder.name}: lm-eval reports {stated:.4g} for {part.benchmark} {part.metric}; "
                f"the mean over its items, which is compared here, is {mean:.4g}."
            )
    return notes


def _stated(known: Mapping[str, Any], table: str, name: str, metric: str) -> float | None:
    """A figure of lm-eval's own tables."""
    key = metric if "," in metric else f"{metric},none"
    value = ((known.get(table) or {}).get(name) or {}).get(key)
    return float(value) if isinstance(value, (int, float)) else None


def _mean(parts: Sequence[Part]) -> float | None:
    """The mean over all items of some parts."""
    values = pl.concat([part.items["value"] for part in parts]).drop_nulls()
    mean = values.mean()
    return float(mean) if isinstance(mean, float) else None


def _pooled(parts: Sequence[Part], known: Mapping[str, Any]) -> list[Part]:
    """The parts, those of a group's subjects as one where lm-eval's score of the group is the mean
    over all of their items."""
    children: Mapping[str, Sequence[str]] = known.get("group_subtasks") or {}

    def leaves(name: str) -> Iterator[str]:
        for child in children.get(name, ()):
            yield from leaves(child) if child in children else (child,)

    left = list(parts)
    groups = {group: set(leaves(group)) for group in known.get("groups") or {}}
    for group in sorted(groups, key=lambda name: -len(groups[name])):
        for metric in dict.fromkeys(part.metric for part in left):
            of_group = groups[group]
            own = [p for p in left if p.metric == metric and p.benchmark in of_group]
            stated = _stated(known, "groups", group, metric)
            whole = bool(own) and {p.benchmark for p in own} == of_group
            mean = _mean(own) if whole else None
            if stated is None or mean is None or abs(stated - mean) > 1e-6:
                continue
            by_subject = len(of_group) >= SUBJECTS
            rows = pl.concat([_of_subject(part, by_subject) for part in own])
            taken = set(map(id, own))
            left = [part for part in left if id(part) not in taken]
            left.append(replace(own[0], benchmark=group, items=rows))
    return left


def _of_subject(part: Part, by_subject: bool) -> pl.DataFrame:
    """The items of a group's subject, which are a cluster where there are many subjects."""
    subject = pl.lit(part.benchmark)
    item = subject + "/" + pl.col("item")
    return part.items.with_columns(item=item, cluster=subject if by_subject else item)


def samples_of_results(path: Path) -> list[Path]:
    """The sample files that lie beside a results_DATE.json. Raises UserError where there are
    none."""
    date = path.name.removeprefix("results_").removesuffix(".json")
    found = sorted(path.parent.glob(f"samples_*_{date}.jsonl*"))
    if not found:
        raise UserError(
            f"{path} has no sample files beside it; run lm-eval with --log_samples, which keeps "
            "what each item scored."
        )
    return found


def is_results(path: Path) -> bool:
    """Whether a file is lm-eval's own table of a run."""
    if not re.fullmatch(r"results.*\.json", path.name):
        return False
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return False
    return isinstance(content, dict) and {"results", "configs"} <= content.keys()
