"""What the selections of arms have in common with each other, and with what they are measured on.

Two arms that chose nearly the same rows cannot differ much; those that ask the same and were
answered by others can. A row that repeats a held-out
conversation or a prompt of the evaluation makes its arm look better than it is.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any

import polars as pl

from core.files import read_json, write_atomic
from core.store import Counts
from core.tracking import Log
from recipes.stages.session import Results, Session, Stage
from recipes.stages.sets.data_arms import first_asked
from recipes.stages.synthesis import FILE
from recipes.stages.walk import Arms, Selections
from synth.duplicates.decontaminate import overlap as shared_grams
from synth.pool.short_columns import digest_texts, messages_digest

VERSION = 2
AT_ONCE = 16_384
"""Conversations that are read at once."""
FOUND = "overlap.json"
NGRAM, NEAR = 8, 0.5
"""A row is near a text of which this share of the words lies in shared 8-grams (the rule of Tulu 3,
arXiv 2411.15124)."""
COMMON = "overlap of selections"
"""What a comparison calls this stage's result among its inputs."""
MEASURED = "measured on "
"""Begins what this stage calls the texts that arms are measured on."""


def overlaps(session: Session, arms: Arms, selections: Selections, measured: Results) -> Results:
    """Jaccard similarity of every two arms' rows and of their instructions, seed by seed, and how
    many of the texts that arms are `measured` on (held-out rows, prompts) each arm has a
    near-duplicate of, as the input `COMMON` of a comparison. {} where no arm has rows."""
    chosen: Results = {
        f"{arm}/{seed}": selections.get((arm, seed))
        for arm in arms.with_rows
        for seed in arms.seeds
    }
    if not chosen:
        return {}

    def make(out: Path, log: Log, inputs: dict[str, Path]) -> Counts:
        found = common([*chosen], inputs)
        write_atomic(out / FOUND, json.dumps(found, indent=1))
        return {"pairs": len(found["pairs"]), "near": sum(one["near"] for one in found["near"])}

    on = {f"{MEASURED}{name}": result for name, result in measured.items()}
    spec = {"ngram": NGRAM, "near": NEAR, "VERSION": VERSION}
    return {COMMON: session.result(Stage("overlap", spec, {**chosen, **on}, make))}


def common(runs: Sequence[str], folders: Mapping[str, Path]) -> dict[str, Any]:
    """`pairs` and `near` of the selections of `runs` ("ARM/SEED"); `folders`: theirs by run, and
    those of what arms are measured on, by `MEASURED` and a name."""
    read: dict[Path, _Selected] = {}  # seeds of an arm that is drawn once share their rows
    for run in runs:
        if folders[run] not in read:
            read[folders[run]] = _selected(folders[run] / FILE)
    rows = {run: read[folders[run]] for run in runs}
    texts = {
        name.removeprefix(MEASURED): _measured(path)
        for name, path in folders.items()
        if name.startswith(MEASURED)
    }
    asked = {run: selected.asked for run, selected in rows.items()}
    return {"pairs": _pairs(rows), "near": _near(asked, texts)}


@dataclass(frozen=True)
class _Selected:
    """The distinct rows of a selection."""

    asked: pl.DataFrame
    """[text (digest), instruction] of the distinct instructions."""
    conversations: frozenset[str]
    """Digests of whole conversations."""
    instructions: frozenset[str]


def _selected(path: Path) -> _Selected:
    asked: list[pl.DataFrame] = []
    conversations: set[str] = set()
    rows = pl.scan_parquet(path, glob=False).select("messages").collect()
    for part in rows.iter_slices(AT_ONCE):
        conversations.update(messages_digest(part["messages"]))
        first = part.select(first_asked().alias("instruction"))
        asked.append(first.with_columns(text=digest_texts(first["instruction"])))
    schema = {"text": pl.String, "instruction": pl.String}
    texts = pl.concat([pl.DataFrame(schema=schema), *(part.select(*schema) for part in asked)])
    distinct = texts.unique("text", maintain_order=True)
    return _Selected(distinct, frozenset(conversations), frozenset(distinct["text"]))


def _measured(folder: Path) -> pl.DataFrame:
    """[id, prompt] of held-out conversations, or of a prompt set."""
    rows = folder / "heldout.parquet"
    if rows.is_file():
        return pl.read_parquet(rows, glob=False).select("id", first_asked().alias("prompt"))
    lines = (folder / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
    read = [json.loads(line) for line in lines]
    return pl.DataFrame(
        {"id": [one["id"] for one in read], "prompt": [one["prompt"] for one in read]},
        schema={"id": pl.String, "prompt": pl.String},
    )


def _pairs(rows: Mapping[str, _Selected]) -> list[dict[str, Any]]:
    """Each two arms, with the mean over the seeds of the Jaccard similarity of their rows (whole
    conversations) and of their instructions."""
    seeds: dict[str, list[str]] = {}
    for run in rows:
        arm, _, seed = run.rpartition("/")
        seeds.setdefault(arm, []).append(seed)
    found = []
    for a, b in combinations(seeds, 2):
        both = [(rows[f"{a}/{seed}"], rows[f"{b}/{seed}"]) for seed in seeds[a]]
        whole = [_jaccard(one.conversations, other.conversations) for one, other in both]
        asked = [_jaccard(one.instructions, other.instructions) for one, other in both]
        shares = {"jaccard": fmean(whole), "jaccard_instructions": fmean(asked)}
        found.append({"a": a, "b": b, **shares})
    return found


def _jaccard(one: Set[str], other: Set[str]) -> float:
    return len(one & other) / len(one | other) if one | other else 0.0


def _near(
    rows: Mapping[str, pl.DataFrame], measured: Mapping[str, pl.DataFrame]
) -> list[dict[str, Any]]:
    """For each set of texts and each run: of how many of them it has a near-duplicate, and some of
    them by id. All runs' rows are compared once."""
    everything = pl.concat(rows.values()).unique("text", maintain_order=True)
    found = []
    for name, texts in measured.items():
        named = everything.rename({"text": "id"})
        hits = shared_grams(named, texts, NGRAM).filter(pl.col("eval_overlap") >= NEAR)
        for run, frame in rows.items():
            mine = hits.join(frame.select(id="text"), on="id", how="semi")
            ids = mine["eval_overlap_prompt"].unique(maintain_order=True).to_list()
            one = {"measured_on": name, "run": run, "of": len(texts), "near": len(ids)}
            found.append(one | {"examples": ids[:5]})
    return found


def told(comparison: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A comparison with what selections have in common: `overlap` (of rows) and
    `overlap_instructions` beside every difference, and a sentence for every arm that repeats what
    it is measured on."""
    found = read_json(folder / FOUND)
    pairs = {frozenset((one["a"], one["b"])): one for one in found["pairs"]}
    differences = []
    for row in comparison["differences"]:
        known = pairs.get(frozenset((row["a"], row["b"])), {})
        shared = {"overlap": known.get("jaccard")}
        shared["overlap_instructions"] = known.get("jaccard_instructions")
        differences.append(row | shared)
    asked = {frozenset((row["a"], row["b"])) for row in comparison["differences"]}
    notes = [*comparison["notes"], *sentences(found, asked)]
    return comparison | {"differences": differences, "overlap": found, "notes": notes}


def _repeated(runs: Sequence[Mapping[str, Any]]) -> str:
    """That runs were trained on near-duplicates of texts that they are measured on."""
    most = max(runs, key=lambda one: int(one["near"]))
    texts = f"of {most['of']} texts of {most['measured_on']}"
    if len(runs) == 1:
        return (
            f"{most['run']} was trained on near-duplicates of {most['near']} {texts}: its figures "
            "there are better than they should be."
        )
    fewest = min(int(one["near"]) for one in runs)
    span = str(fewest) if fewest == most["near"] else f"{fewest} to {most['near']}"
    return (
        f"{len(runs)} trainings saw near-duplicates of {span} {texts} ({most['run']} the most): "
        "their figures there are better than they should be."
    )


def sentences(found: Mapping[str, Any], asked: Collection[frozenset[str]]) -> list[str]:
    """What a reader must know of these overlaps: repeated texts, and arms that are nearly one or
    ask the same, where their difference is `asked` for (a control has the rows of its arm)."""
    near: dict[str, list[Mapping[str, Any]]] = {}
    for one in found["near"]:
        if one["near"]:
            near.setdefault(one["measured_on"], []).append(one)
    pairs = [one for one in found["pairs"] if frozenset((one["a"], one["b"])) in asked]
    alike = [_alike(one) for one in pairs if one["jaccard_instructions"] >= NEAR]
    return [*map(_repeated, near.values()), *alike]


def _alike(one: Mapping[str, Any]) -> str:
    """That two arms have most of their rows in common, or only what is asked in them."""
    arms, rows, asked = f"{one['a']} and {one['b']}", one["jaccard"], one["jaccard_instructions"]
    if rows >= NEAR:
        return (
            f"{arms} have {rows:.0%} of their rows in common (Jaccard): they can differ by no more "
            "than the rest makes."
        )
    return (
        f"{arms} have {asked:.0%} of their instructions in common (Jaccard) and {rows:.0%} of "
        "their rows: they differ mostly in how the same was answered."
    )
