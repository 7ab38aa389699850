"""Result files and folders, named or not -> one table of items, as a comparison takes it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path

import polars as pl

from core.errors import UserError
from eval.files import judgments, lm_eval_samples, values
from eval.files.judgments import LengthControl
from eval.files.kinds import MADE_BY, Kind, kind_of
from eval.files.parts import Named, Part, files_of, named
from eval.prompt_sets.prompts import is_folder


@dataclass(frozen=True)
class Asked:
    """How files are read where they leave it open."""

    length_control: LengthControl = field(default_factory=LengthControl)
    lower_is_better: bool = False
    """Of the values of JSONL files."""


@dataclass(frozen=True)
class Items:
    """What some files hold."""

    rows: pl.DataFrame
    """Columns arm, seed, benchmark, metric, item, cluster, value, higher_is_better."""
    arms: dict[str, list[str]]
    """The seeds of each arm; none where no seed varies it."""
    rivals: dict[str, str]
    """The model that each judged benchmark compares all arms with."""
    notes: list[str]


@dataclass(frozen=True)
class _Placed:
    """A part with the arm and the seed that it counts for."""

    arm: str
    seed: str
    part: Part


@dataclass
class _Found:
    """What one argument holds, while it is read."""

    parts: list[Part] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read(arguments: Sequence[str], asked: Asked) -> Items:
    """The items of every file that the arguments name (PATH, NAME=PATH, NAME/SEED=PATH; a folder
    means all result files in it).

    Raises UserError for what is no result file, for fewer than two arms, for arms that were judged
    against different models or asked about different documents, and for an arm that has an item
    twice.
    """
    is_folder(asked.length_control.data)
    notes: list[str] = []
    read_parts: list[tuple[Named, list[Part]]] = []
    for given in map(named, arguments):
        found = _of_argument(given, asked)
        notes += found.notes
        read_parts.append((given, found.parts))
    placed = _placed(read_parts)
    arms = _arms(placed)
    rows = _table(placed)
    _check_twice(rows)
    _check_documents(rows)
    _check_directions(placed)
    rivals = _rivals(placed)
    notes += _prompts_differ(rows) + _judges_differ(placed)
    if len({*arms, *rivals.values()}) < 2:
        raise UserError(
            f"there is one arm only ({', '.join(arms)}), and nothing to compare it with; give a "
            "second file, or NAME=PATH for each of them."
        )
    return Items(rows.drop("document", "prompt"), arms, rivals, list(dict.fromkeys(notes)))


def _placed(read_parts: Sequence[tuple[Named, list[Part]]]) -> list[_Placed]:
    """The parts of all arguments with their arms, in the order of the arguments: the first one's
    arm is the first."""
    unnamed = [part for given, parts in read_parts if not given.arm for part in parts]
    told_apart = iter(_told_apart(unnamed))
    placed: list[_Placed] = []
    for given, parts in read_parts:
        if given.arm:
            placed += _of_one_model(given, parts)
        else:
            own = islice(told_apart, len(parts))
            placed += [_Placed(part.model, "", part) for part in own]
    return placed


def _of_argument(given: Named, asked: Asked) -> _Found:
    """The parts of all files that one argument means, tool by tool."""
    kinds: dict[Kind, list[Path]] = defaultdict(list)
    for path in files_of(given.path):
        if lm_eval_samples.is_results(path):
            if path == given.path:
                kinds["lm-eval"] += lm_eval_samples.samples_of_results(path)
            continue
        kind = kind_of(path)
        if kind is None and lm_eval_samples.NAME.fullmatch(path.name):
            kind = "lm-eval"  # which says what is wrong with it
        if kind is not None:
            kinds[kind].append(path)
    if not kinds:
        raise UserError(f"{given.path} holds nothing to compare; what is read: {MADE_BY}.")
    found = _Found()
    for kind, files in kinds.items():
        _read_kind(kind, files, asked, found)
    if not found.parts:
        raise UserError(
            f"{given.path}: no item in it has a value; nothing to compare. "
            + " ".join(dict.fromkeys(found.notes))
        )
    return found


def _read_kind(kind: Kind, files: list[Path], asked: Asked, found: _Found) -> None:
    """Add what files of one kind hold."""
    read_parts: Iterable[Part] = ()
    if kind == "alpaca":
        judged = judgments.of_alpaca(files, asked.length_control)
        read_parts, notes = judged.parts, judged.notes
        found.notes += notes
    elif kind == "arena":
        judged = judgments.of_arena(files)
        read_parts, notes = judged.parts, judged.notes
        found.notes += notes
    elif kind == "wildbench":
        read_parts = chain.from_iterable(map(judgments.of_wildbench, files))
    elif kind == "scores":
        read_parts = chain.from_iterable(map(values.of_scores, files))
    elif kind == "values":
        read_parts = [
            values.of_values(path, lower_is_better=asked.lower_is_better) for path in files
        ]
    else:
        folders: dict[Path, list[Path]] = defaultdict(list)
        for path in files:
            folders[path.parent].append(path)
        for folder, own in folders.items():
            samples = lm_eval_samples.read(own, folder)
            found.parts += samples.parts
            found.notes += samples.notes
    found.parts += read_parts
    for part in found.parts:
        _check_finite(part)


LARGEST = 1e140
"""Of a value. Squares of larger ones, and sums of them over all items, are no numbers any more."""


def _check_finite(part: Part) -> None:
    """Raise UserError where a value is infinite, or so large that its square is: there is no mean,
    and no interval."""
    beyond = part.items.filter(pl.col("value").abs() > LARGEST)
    if beyond.height:
        kind = "infinite" if beyond["value"].is_infinite()[0] else "beyond what can be squared"
        raise UserError(
            f"{part.origin}: the {part.benchmark} {part.metric} of item {beyond['item'][0]} is "
            f"{kind}, and so would be the mean; leave it out, or give null where there is no "
            "value."
        )


def _of_one_model(given: Named, parts: Sequence[Part]) -> Iterator[_Placed]:
    """The parts of an argument that has a name, which must be one model's."""
    models = list(dict.fromkeys(part.model for part in parts))
    if len({part.origin for part in parts}) == 1 and len(models) > 1:
        raise UserError(
            f"{given.arm}={given.path}: the file holds {len(models)} models "
            f"({', '.join(models[:3])}); give it without a name, or one model's rows."
        )
    for part in parts:
        yield _Placed(given.arm, given.seed, part)


def _told_apart(parts: Sequence[Part]) -> list[Part]:
    """Parts that nobody named, by their models' names; where two places hold the same metric of the
    same model, by what tells the paths apart."""
    places: dict[tuple[str, str, str], set[Path]] = defaultdict(set)
    for part in parts:
        places[part.model, part.benchmark, part.metric].add(part.origin)
    clashing = {model for (model, _, _), origins in places.items() if len(origins) > 1}
    apart = []
    for part in parts:
        if part.model in clashing:
            rivals = {other.origin for other in parts if other.model == part.model}
            part = replace(part, model=_label(part.origin, rivals, part.model))
        apart.append(part)
    return apart


def _label(origin: Path, among: set[Path], model: str) -> str:
    """What a path has that the others have not: without the folders that all begin with and those
    that all end with."""
    split = [path.resolve().parts for path in among]
    parts = origin.resolve().parts
    begin, end = _shared(split), _shared([names[::-1] for names in split])
    own = parts[begin : len(parts) - end] or (model,)
    return "-".join(own).partition(".json")[0].replace("=", "-")


def _shared(split: Sequence[tuple[str, ...]]) -> int:
    """How many names all of some paths begin with."""
    count = 0
    for names in zip(*split, strict=False):
        if len(set(names)) > 1:
            break
        count += 1
    return count


def _arms(placed: Sequence[_Placed]) -> dict[str, list[str]]:
    """The arms and their seeds, in the order given. Raises UserError for an arm some of whose files
    have a seed."""
    arms: dict[str, dict[str, None]] = {}
    for one in placed:
        arms.setdefault(one.arm, {})[one.seed] = None
    for arm, seeds in arms.items():
        if "" in seeds and len(seeds) > 1:
            raise UserError(
                f"some files of {arm} have a seed and others none; write {arm}/SEED=PATH for all."
            )
    return {arm: list(filter(None, seeds)) for arm, seeds in arms.items()}


def _table(placed: Sequence[_Placed]) -> pl.DataFrame:
    """All items."""
    frames = []
    for one in placed:
        part = one.part
        frames.append(
            part.items.with_columns(
                arm=pl.lit(one.arm),
                seed=pl.lit(one.seed),
                benchmark=pl.lit(part.benchmark),
                metric=pl.lit(part.metric),
                higher_is_better=pl.lit(part.higher_is_better, pl.Boolean),
            )
        )
    return pl.concat(frames)


def _check_twice(rows: pl.DataFrame) -> None:
    """Raise UserError where an arm has an item twice under one seed."""
    names = rows.select("arm", "seed", "benchmark", "metric", "item")
    twice = names.filter(names.is_duplicated())
    if twice.height:
        arm, seed, benchmark, metric, item = twice.row(0)
        under = f" under seed {seed}" if seed else ""
        raise UserError(
            f"{arm} has the item {item} of {benchmark} {metric} more than once{under}; name the "
            "files apart (NAME=PATH for arms, NAME/SEED=PATH for seeds of one arm)."
        )


def _check_documents(rows: pl.DataFrame) -> None:
    """Raise UserError where two arms mean different documents by one item."""
    known = rows.drop_nulls("document")
    asked = known.group_by("benchmark", "item").agg(
        documents=pl.col("document").n_unique(), arms=pl.col("arm").unique(maintain_order=True)
    )
    other = asked.filter(pl.col("documents") > 1)
    if other.height:
        benchmark, item, _, arms = other.sort("benchmark", "item").row(0)
        raise UserError(
            f"{benchmark}: the item {item} is not the same document in {' and '.join(arms[:2])} "
            f"({other.height} such items); evaluate them on the same version of the data."
        )


def _prompts_differ(rows: pl.DataFrame) -> list[str]:
    """A sentence for each benchmark whose arms were asked the same items in different words."""
    known = rows.drop_nulls("prompt")
    asked = known.group_by("benchmark", "item", maintain_order=True).agg(
        prompts=pl.col("prompt").n_unique()
    )
    shares = asked.group_by("benchmark", maintain_order=True).agg((pl.col("prompts") > 1).mean())
    return [
        f"{benchmark}: {100 * share:.0f} % of the prompts differ between arms (shots, chat "
        "template or task version), so part of a difference may be the prompt's."
        for benchmark, share in shares.iter_rows()
        if share
    ]


def _check_directions(placed: Sequence[_Placed]) -> None:
    """Raise UserError where two files disagree on whether more of a metric is better."""
    said: dict[tuple[str, str], dict[bool, Path]] = defaultdict(dict)
    for one in placed:
        part = one.part
        if part.higher_is_better is not None:
            said[part.benchmark, part.metric].setdefault(part.higher_is_better, part.origin)
    for (benchmark, metric), ways in said.items():
        if len(ways) > 1:
            raise UserError(
                f"{benchmark} {metric}: more is better in {ways[True]} and worse in {ways[False]}; "
                "the two measure something else, so compare them apart."
            )


def _judges_differ(placed: Sequence[_Placed]) -> list[str]:
    """A sentence for each benchmark whose arms were not judged by the same judges."""
    judged: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for one in placed:
        if one.part.judges:
            judged[one.part.benchmark][one.arm] |= set(one.part.judges)
    notes = []
    for benchmark, arms in judged.items():
        by_judges: dict[str, list[str]] = defaultdict(list)
        for arm, judges in arms.items():
            by_judges[" and ".join(sorted(judges))].append(arm)
        if len(by_judges) > 1:
            said = "; ".join(f"{', '.join(own)} by {who}" for who, own in by_judges.items())
            notes.append(
                f"{benchmark}: the arms were not judged alike ({said}), so a difference between "
                "them may be the judges'."
            )
    return notes


def _rivals(placed: Sequence[_Placed]) -> dict[str, str]:
    """The model that each judged benchmark compares with. Raises UserError where one has two."""
    against: dict[str, dict[str, str]] = defaultdict(dict)
    for one in placed:
        if one.part.against:
            against[one.part.benchmark][one.part.against] = one.arm
    for benchmark, arms in against.items():
        if len(arms) > 1:
            (first, a), (second, b) = list(arms.items())[:2]
            raise UserError(
                f"{benchmark}: {a} was judged against {first}, {b} against {second}; their win "
                "rates are of different games."
            )
    return {benchmark: next(iter(arms)) for benchmark, arms in against.items()}
