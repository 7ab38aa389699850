"""Generated tokens per kept row: the schedule against the original's order (answer everything, tag
everything, then filter), same cells.

    python benchmarks/bench_cost_per_kept_row.py --rows 1000 --store /tmp/cost

About 40 minutes on two cores; continues where it stopped.

A pool of SmolLM2-135M-Instruct is drawn; the schedule buys, for several arms at once, what they
want and not more; then everything else is bought as well, which is the original's order. What one
arm alone would have bought is replayed over the measured cells, by the same schedule. The bound of
`longest`: exactly the rows that no instruction-only predicate refuses are answered. Of
`hash_order`: rows in order until the budget is full. Every token is counted by the server, none is
estimated but the projection at the end.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import polars as pl

from core.models import resolve
from core.servers import Servers
from core.tracking import Log
from synth.config.synthesis import SynthConfig
from synth.context import Context
from synth.filters.arm import ArmConfig
from synth.filters.rule import Rule
from synth.filters.rule import resolve as resolve_filter
from synth.filters.schedule import select, wanted
from synth.measures import COLUMNS, MEASURES
from synth.pool.draw import draw
from synth.pool.measure import measure
from synth.pool.pool import Pool

TEACHER = {"model": "embedded/SmolLM2-135M-Instruct", "server": {"args": {"max_model_len": 2048}}}
AIR = "input_quality >= 'good' AND difficulty >= 'medium' AND min_neighbor_distance > 0"
PRO_2 = "input_quality >= 'good' AND difficulty >= 'easy' AND min_neighbor_distance > 0"
# Paper, section 3.4: 4 x A100; hours of instructions and of responses.
PAPER = {"Air 3M": (1.55, 50.0), "Pro 1M": (3.5, 150.0)}
Rules = Sequence[tuple[Rule, Sequence[int]]]


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--rows", type=int, default=1000)
    options.add_argument("--keep", type=int, default=100, help="budget of each arm, rows")
    options.add_argument("--store", type=Path)
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        store = chosen.store or Path(scratch)
        budget = {"rows": chosen.keep}
        arms = {
            "magpie-air's": arm("air", where=AIR, choose="longest", budget=budget),
            "magpie-pro-2's": arm("pro-2", where=PRO_2, choose="longest", budget=budget),
            "random": arm("random", choose="hash_order", budget=budget),
        }
        pool = pool_of(store, chosen.rows)
        with Servers(Log(), store / "logs") as servers:
            draw(pool, servers, Log())
            measure(pool, [(rule, (0,)) for rule in arms.values()], servers, Log())
            bought = bought_now(pool)
            everything = arm(
                "all",
                where="input_quality >= 'very poor' AND difficulty >= 'very easy'",
                choose="all",
            )
            measure(pool, [(everything, (0,))], servers, Log())
        report(pool, arms, bought, store)


def arm(name: str, **settings: object) -> Rule:
    """An arm as the paper fills it: answers that were cut off count like others."""
    lenient = {"allow_short": True, "allow_cut": True}
    return resolve_filter(name, ArmConfig.model_validate(lenient | settings))


def pool_of(store: Path, rows: int) -> Pool:
    config = SynthConfig.model_validate(
        {
            "teacher": TEACHER,
            "rows": rows,
            "system_prompt": "default",
            "instruction": {"temperature": 0.8, "top_p": 0.95, "max_tokens": 96},
            "response": {"temperature": 0.0, "max_tokens": 160},
            "tags": {
                "quality": {
                    "mode": "explain",
                    "sampling": {"temperature": 0.7, "seed": 0, "max_tokens": 200},
                },
                "difficulty": {
                    "mode": "explain",
                    "sampling": {"temperature": 0.7, "seed": 0, "max_tokens": 200},
                },
            },
        }
    )
    return Pool(config, Context(store, resolve))


def bought_now(pool: Pool) -> dict[str, set[str]]:
    """The rows whose cell of each measure exists."""
    ids = pool.frame()["id"]
    found = {m: pool.spent(m, ids) for m in pool.columns}
    return {m: set(cells["id"].to_list()) for m, cells in found.items() if cells is not None}


def replay(truth: pl.DataFrame, rules: Rules) -> dict[str, set[str]]:
    """What the schedule would buy for these arms, were nothing measured yet: measure -> ids."""
    known: dict[str, set[str]] = {m: set() for m in MEASURES}
    while True:
        frame = masked(truth, known)
        wants = wanted(frame, rules)
        if not wants:
            return known
        name, ids = next(iter(wants.items()))
        known[name] |= set(truth["id"].to_list()) if MEASURES[name].reads == "pool" else set(ids)


def masked(truth: pl.DataFrame, known: dict[str, set[str]]) -> pl.DataFrame:
    """The frame as it looked when only these cells had been measured."""
    hide = []
    for measure_, ids in known.items():
        if measure_ != "text":
            names = [
                f"status:{measure_}",
                *[
                    c
                    for c in MEASURES[measure_].columns
                    if c in truth.columns and COLUMNS[c][0] == measure_
                ],
            ]
            hide += [pl.when(pl.col("id").is_in(list(ids))).then(pl.col(n)).alias(n) for n in names]
    return truth.with_columns(hide)


def tokens_of(pool: Pool, bought: dict[str, Iterable[str]]) -> int:
    total = int(pool.drawn()["tokens"].sum())
    for name, ids in bought.items():
        if name in pool.columns:
            spent = pool.spent(name, pl.Series(list(ids), dtype=pl.String))
            total += int(spent["tokens"].sum() or 0) if spent is not None else 0
    return total


def report(pool: Pool, arms: dict[str, Rule], bought: dict[str, set[str]], store: Path) -> None:
    truth = pool.frame()
    everyone = {m: truth["id"].to_list() for m in ("quality", "difficulty", "response")}
    naive = tokens_of(pool, everyone)
    by_name = {
        m: int(s["tokens"].sum()) for m in everyone if (s := pool.spent(m, truth["id"])) is not None
    }
    print(
        f"pool: {len(truth)} SmolLM2 instructions, "
        f"{int(pool.drawn()['tokens'].sum()):,} tokens; everything: "
        + ", ".join(f"{m} {n:,}" for m, n in by_name.items())
    )
    rows = {name: [(rule, (0,))] for name, rule in arms.items()}
    rows["all three at once"] = [(rule, (0,)) for rule in arms.values()]
    for name, rules in rows.items():
        cells = replay(truth, rules)
        kept = {i for rule, _ in rules for i in select(masked(truth, cells), rule, 0).ids}
        bound = len(answered_at_least(truth, rules))
        cost = tokens_of(pool, cells)
        print(
            f"{name}: answered {len(cells['response'])} (bound {bound}, "
            f"{100 * len(cells['response']) / max(bound, 1) - 100:+.1f} %), "
            f"quality {len(cells['quality'])}, difficulty "
            f"{len(cells['difficulty'])} of {len(truth)}; kept {len(kept)}"
        )
        print(
            f"    selectivity of the answers {len(cells['response']) / len(truth):.3f};"
            f" tokens a kept row {cost / max(len(kept), 1):,.1f} "
            f"against {naive / max(len(kept), 1):,.1f} in the "
            f"original's order: {naive / cost:.2f} times less"
        )
        for paper, (instructions, responses) in PAPER.items():
            hours = 4 * (instructions + responses * len(cells["response"]) / len(truth))
            print(
                f"    at this selectivity the paper's {paper}: {hours:.0f} "
                f"GPU-hours instead of {4 * (instructions + responses):.0f}"
            )
    same = replay(truth, rows["all three at once"])
    differ = {m: len(bought.get(m, set()) ^ same[m]) for m in ("quality", "difficulty", "response")}
    print(
        "the real run of all three bought what the replay says, but "
        f"for {differ} cells (0 unless the pool had been filled before)"
    )


def answered_at_least(truth: pl.DataFrame, rules: Rules) -> set[str]:
    """The bound, without the schedule: rows that no instruction predicate refuses for `longest`,
    the first ones in order for `hash_order`."""
    needed: set[str] = set()
    for rule, seeds in rules:
        open_rows = truth.filter(rule.where.root.expr) if rule.where is not None else truth
        if rule.choose.kind == "longest":
            needed |= set(open_rows["id"].to_list())
        else:
            needed |= set(select(truth, rule, seeds[0]).ids)
    return needed


if __name__ == "__main__":
    main()
