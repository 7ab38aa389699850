"""`magpie label`: blinded pairs of a recipe's own answers for people to judge, and their labels
read back (what they say is in recipes/comparisons/labelled.py).

Which answers are shown is drawn at random from all prompts, or nothing could be said of the prompts
that nobody labelled; which side an arm is on is drawn once a pair. Names of arms are in key.json
alone, which stays with whoever asks. Answers are hostile text: the page shows them as text and
loads nothing, and no cell of the table begins like a formula.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import polars as pl

from core.cells.seals import with_seal
from core.errors import UserError
from core.files import write_atomic
from core.store import Result
from eval.prompt_sets.samples import MARK
from recipes.schema import Loaded, Recipe, with_random
from recipes.stages import graph
from recipes.stages.walk import baseline_of

Results = Mapping[str, Result]
SHOWN = ("alpaca", "arena", "wildbench")
"""Benchmarks whose answers are one text a prompt."""

CHOICES = {"A": 1, "B": 2, "tie": 0, "same": 0, "=": 0}
"""What a person may write, any case, and which answer it names."""

_FORM: dict[str, Any] = {"indent": 1, "ensure_ascii": False}

COLUMNS = ("pair", "prompt", "answer_A", "answer_B", "label")
FORMULA = ("=", "+", "-", "@", "\t", "\r", "|", "%")
"""How a cell begins that a spreadsheet would run."""


@dataclass(frozen=True)
class Pair:
    """Two arms' answers to one prompt. `a` and `b` are arms, `seeds` which training of each
    answered ("" of a finished model); `a_first` puts the answer of `a` on side A."""

    id: str
    item: str
    prompt: str
    a: str
    b: str
    seeds: tuple[str, str]
    a_first: bool
    answers: tuple[str, str]  # of a and of b

    @property
    def sides(self) -> tuple[str, str]:
        """What is shown on side A and on side B."""
        first, second = self.answers
        return (first, second) if self.a_first else (second, first)


@dataclass(frozen=True)
class Asked:
    """What is to be labelled: `arms` pairs of names (none: each arm with the baseline), so many
    pairs of answers for each, from a benchmark (none: the one that decides)."""

    arms: Sequence[tuple[str, str]] = ()
    count: int = 50
    benchmark: str | None = None
    seed: int = 0


def two_arms(named: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs of arms as the command line names them. Raises UserError for what is no A:B."""
    found = []
    for text in named:
        a, colon, b = text.partition(":")
        if not (a and colon and b) or a == b:
            raise UserError(f"--arms {text}: name two different arms, as in good:random.")
        found.append((a, b))
    return found


def write(loaded: Loaded, asked: Asked, out: Path) -> list[Path]:
    """Write labels.html (a page that makes labels.csv), labels.csv (the same pairs as a table) and
    key.json (who is who) below `out`; returns them. Raises UserError where there are no different
    answers of two arms to the same prompts, or `out` holds a key of other pairs."""
    recipe, results = loaded.recipe, graph.plan(loaded).results
    benchmark = _benchmark(recipe, asked.benchmark)
    chosen: list[Pair] = []
    alike: list[str] = []
    for a, b in asked.arms or _with_baseline(recipe):
        every = pairs(recipe, results, benchmark, (a, b))
        drawn = random.Random(f"{asked.seed}/{a}/{b}").sample(every, min(asked.count, len(every)))
        chosen += drawn
        alike += [] if every else [f"{a} and {b}"]
    if alike and (asked.arms or not chosen):
        raise UserError(
            f"nothing to label: no prompt of {benchmark} has two different answers by "
            f"{', nor by '.join(alike)}; name other arms (--arms A:B) or another benchmark."
        )
    # Mixed, so that nobody sees which pairs belong together.
    random.Random(asked.seed).shuffle(chosen)
    shown = [asdict(pair) | {"answers": list(map(_digest, pair.answers))} for pair in chosen]
    key = with_seal({"recipe": recipe.name, "benchmark": benchmark, "pairs": shown})
    out.mkdir(parents=True, exist_ok=True)
    _keep(out / "key.json", key)
    write_atomic(out / "labels.csv", table(chosen))
    write_atomic(out / "labels.html", page(chosen))
    return [out / name for name in ("labels.html", "labels.csv", "key.json")]


def _keep(path: Path, key: dict[str, Any]) -> None:
    """Write the key, never over another's: labels that were made would lose their meaning."""
    text = json.dumps(key, **_FORM)
    known = json.dumps({name: said for name, said in key.items() if name != "seal"}, **_FORM)
    # one of before there were seals says the same without it
    if path.exists() and path.read_bytes() not in (text.encode(), known.encode()):
        raise UserError(
            f"{path.parent} holds the key of other pairs, which labels may exist for; "
            "give another folder as --out."
        )
    write_atomic(path, text)


def _benchmark(recipe: Recipe, named: str | None) -> str:
    """The benchmark whose answers are shown."""
    run = recipe.eval.benchmarks if recipe.eval else ()
    shown = [name for name in run if name in SHOWN]
    wanted = named or (recipe.eval.deciding if recipe.eval else None)
    if named is None and wanted not in shown and shown:
        wanted = shown[0]
    if wanted not in shown:
        which = ", ".join(shown) or "none"
        raise UserError(
            f"recipe {recipe.name} has no answers to show of {wanted or 'any benchmark'}; "
            f"those with one answer a prompt are: {which}."
        )
    return str(wanted)


def _with_baseline(recipe: Recipe) -> list[tuple[str, str]]:
    """Each arm beside the baseline."""
    arms = with_random(recipe)
    baseline = baseline_of(recipe, arms)
    return [(arm, baseline) for arm in arms if arm != baseline]


def pairs(recipe: Recipe, results: Results, benchmark: str, arms: tuple[str, str]) -> list[Pair]:
    """Every prompt that both arms answered differently, once: with several seeds, which of those
    that both have is drawn from the prompt's id. Raises UserError for an arm without answers."""
    answers = {arm: _answers(recipe, results, benchmark, arm) for arm in arms}
    for arm, own in answers.items():
        if not own:
            known = ", ".join(with_random(recipe))
            raise UserError(
                f"{arm} has no answers in {benchmark} (arms: {known}); `magpie run` makes them."
            )
    path = results[f"prompts/{benchmark}"].path / "prompts.jsonl"
    a, b = arms
    both = _seeds(answers[a], answers[b])
    found = []
    for record in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
        item = str(record["id"])
        at = both[int(_digest(f"seed/{item}"), 16) % len(both)]
        one, other = answers[a][at[0]].get(item), answers[b][at[1]].get(item)
        if one is None or other is None or one == other:
            continue
        name = _digest("/".join((a, b, *at, item, one, other)))[:12]
        first = int(_digest(f"side/{name}"), 16) % 2 == 0
        prompt = _conversation(record)
        found.append(Pair(name, item, prompt, a, b, at, first, (one, other)))
    return found


def _conversation(record: Mapping[str, Any]) -> str:
    """What was asked, with what was said before it."""
    before = [f"{turn['role']}: {turn['content']}" for turn in record.get("history") or ()]
    return "\n\n".join([*before, str(record["prompt"])])


def _answers(
    recipe: Recipe, results: Results, benchmark: str, arm: str
) -> dict[str, dict[str, str]]:
    """An arm's answers by seed ("" of a finished model) and prompt."""
    found: dict[str, dict[str, str]] = {}
    for seed, run in _runs(recipe, arm).items():
        # What benchmarks share has no name of theirs.
        shared = results.get(f"answers/{run}")
        of_benchmark = results.get(f"answers/{run}/{benchmark}", shared)
        if of_benchmark is None:
            continue
        frame = pl.read_parquet(of_benchmark.path / "answers.parquet", glob=False)
        rows = frame.filter(pl.col("status") == "ok").select("id", "answer").iter_rows()
        found[seed] = {item: text for item, text in rows if MARK not in item}
    return found


def _runs(recipe: Recipe, arm: str) -> dict[str, str]:
    """The runs of an arm by seed: one, under "", of a finished model; none of what is no arm."""
    config = with_random(recipe).get(arm)
    if config is None:
        return {}
    if config.model is not None:
        return {"": arm}
    trained = recipe.train or recipe.dpo
    return {str(seed): f"{arm}/{seed}" for seed in (trained.seeds if trained else (0,))}


def _seeds(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Which trainings of two arms are shown together: those of one seed, else all with all."""
    same = [(seed, seed) for seed in a if seed in b]
    return same or [(one, other) for one in a for other in b]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def table(chosen: Iterable[Pair]) -> str:
    """The pairs as CSV, to be filled in: `label` is A, B or tie."""
    out = io.StringIO()
    rows = csv.writer(out, lineterminator="\n")
    rows.writerow(COLUMNS)
    for pair in chosen:
        rows.writerow([pair.id, *map(_cell, (pair.prompt, *pair.sides)), ""])
    return out.getvalue()


def _cell(text: str) -> str:
    """A text that no spreadsheet takes for a formula."""
    return f"'{text}" if text.lstrip(" \n").startswith(FORMULA) else text


def page(chosen: Sequence[Pair]) -> str:
    """The page: one file that loads nothing and sends nothing."""
    import base64

    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    shown = [{"id": p.id, "prompt": p.prompt, "A": p.sides[0], "B": p.sides[1]} for p in chosen]
    # In a script element only "<" could end the data.
    data = json.dumps(shown, ensure_ascii=True).replace("<", "\\u003c")
    parts = {
        name: (Path(__file__).parent / "templates" / f"label.{name}").read_text(encoding="utf-8")
        for name in ("js", "css")
    }
    digests = {
        name: "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        for name, text in parts.items()
    }
    template = environment.get_template("label.html.jinja")
    return template.render(data=data, parts=parts, digests=digests, count=len(shown))


# -- reading labels back --------------------------------------------------------------------------


def read(files: Sequence[Path], key: Mapping[str, Any]) -> pl.DataFrame:
    """Labels of one or several people (a CSV each) beside the key: a row a labelled pair, with
    `votes` (1: the answer of `a` is better, -1: that of `b`, 0: neither), one a person.

    Rows without a label are left out. Raises UserError, naming file and row, for a label that is
    none of A, B and tie, a pair that the key does not have, or one that a person labelled twice.
    """
    known = {pair["id"]: pair for pair in key["pairs"]}
    votes: dict[str, list[int]] = {}
    for path in files:
        for name, label in _labels(path, known).items():
            votes.setdefault(name, []).append(label)
    rows = []
    for pair, own in votes.items():
        row = known[pair]
        seed_a, seed_b = row["seeds"]
        named = {"id": pair, "item": row["item"], "a": row["a"], "b": row["b"]}
        rows.append(named | {"seed_a": seed_a, "seed_b": seed_b, "votes": own})
    if not rows:
        raise UserError(f"none of the pairs in {', '.join(map(str, files))} has a label yet.")
    return pl.DataFrame(rows)


def _labels(path: Path, known: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    """One person's labels by pair, as votes for `a`."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as labels ({error}).") from error
    # Answers of any length stand beside the labels.
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))
    rows = csv.DictReader(io.StringIO(text))
    if not {"pair", "label"} <= set(rows.fieldnames or ()):
        raise UserError(f"{path}: no labels; a table of them has the columns pair and label.")
    votes: dict[str, int] = {}
    choices = {name.lower(): choice for name, choice in CHOICES.items()}
    for number, row in enumerate(rows, 1):
        label = (row["label"] or "").strip().lower()
        if not label:
            continue
        name = (row["pair"] or "").strip()
        where = f"{path}, row {number}"
        if label not in choices:
            raise UserError(f"{where}: the label {row['label']!r} is none of A, B and tie.")
        if name not in known:
            raise UserError(
                f"{where}: the pair {name!r} is none of the key's; is it of these labels?"
            )
        if name in votes:
            raise UserError(f"{where}: the pair {name} is labelled a second time; keep one label.")
        side = {1: 1, 2: -1, 0: 0}[choices[label]]
        votes[name] = side if known[name]["a_first"] else -side
    return votes
