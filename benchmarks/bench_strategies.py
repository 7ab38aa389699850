"""What selection strategies cost: the step that selects, timed on synthetic vectors, scores and
labels of N rows; and the passes of a model, timed on a few rows of real text with a small model on
this machine and projected to a million rows (a projection, marked so: rows of other lengths, larger
models and GPUs are other figures).

    python benchmarks/bench_strategies.py [--rows 100000] [--chosen 10000] [--pass-rows 200]
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import polars as pl

from synth.filters.choosing.facility import qdit
from synth.filters.choosing.label_gain import labels_of, mig
from synth.filters.choosing.near_queries import in_turns
from synth.filters.orders import by_hash, by_nearness, by_rank, matched, round_robin

WIDTH, HIDDEN, QUERIES, LABELS = 384, 576, 500, 20_000
MODEL = "embedded/SmolLM2-135M-Instruct"


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--chosen", type=int, default=10_000)
    parser.add_argument("--pass-rows", type=int, default=200)
    asked = parser.parse_args()
    if asked.rows:
        print(
            f"selecting {asked.chosen:,} of {asked.rows:,} rows: seconds, peak memory so far (GB)"
        )
        for name, step in steps(asked.rows, asked.chosen):
            seconds = timed(step)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
            print(f"  {name:24} {seconds:8.1f} {peak:6.2f}", flush=True)
    if asked.pass_rows:
        passes(asked.pass_rows)


def steps(rows: int, chosen: int) -> Iterable[tuple[str, Callable[[], Any]]]:
    """(strategy, what it does once everything is measured), made when it is asked for."""
    dice = np.random.default_rng(0)
    ids = pl.Series([f"{n:016x}" for n in dice.integers(2**63, size=rows)])
    score, length = dice.normal(size=rows), np.exp(dice.normal(6, 1, rows))
    groups = dice.choice(12, rows)
    yield "random-balanced", lambda: by_hash(ids, 0)[round_robin(groups[by_hash(ids, 0)])]
    like = np.sort(length)[-4 * chosen :: 4]
    yield "random-length-matched", lambda: matched(length[by_hash(ids, 0)], like)
    yield "fit, superfilter (top)", lambda: by_rank(pl.Series(score), ids, chosen)
    yield "fit (middle)", lambda: by_nearness(pl.Series(score), ids)
    yield "rip", lambda: [np.quantile(each, 0.5) for each in (score, length, score)]
    hidden, queries = clustered(rows, HIDDEN), clustered(QUERIES, HIDDEN)
    yield f"rds ({QUERIES} queries)", lambda: taken(in_turns(hidden, queries, chosen), chosen)
    names = [f"label {n}" for n in range(LABELS)]
    drawn = np.minimum(dice.zipf(1.3, (rows, 3)) - 1, LABELS - 1)
    labels = labels_of(pl.Series([[names[n] for n in each] for each in drawn.tolist()]))
    vectors = clustered(LABELS, WIDTH)
    quality = dice.uniform(1, 5, rows)
    for gain in ("exact", "gradient"):
        yield (
            f"mig ({gain})",
            lambda gain=gain: taken(
                mig(labels, quality, lambda some: vectors[: len(some)], 0.9, gain), chosen
            ),
        )
    embedded = clustered(rows, WIDTH)
    ranks = dice.permutation(rows) / rows
    yield "qdit (alpha 0.7)", lambda: taken(qdit(embedded, ranks, 0.7), chosen)


def clustered(rows: int, width: int) -> Any:
    """Unit vectors around one in a hundred as many centers, as instructions lie."""
    dice = np.random.default_rng(rows + width)
    centers = dice.normal(size=(max(rows // 100, 1), width)).astype(np.float32)
    made = centers[dice.integers(len(centers), size=rows)]
    made += dice.normal(size=(rows, width)).astype(np.float32)
    return made / np.linalg.norm(made, axis=1, keepdims=True)


def taken(batches: Iterable[Any], wanted: int) -> int:
    """How many rows come until there are as many as wanted."""
    count = 0
    for batch in batches:
        count += len(batch)
        if count >= wanted:
            break
    return count


def timed(step: Callable[[], Any]) -> float:
    """Seconds of a call."""
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


def passes(count: int) -> None:
    """Time the passes of SmolLM2-135M over conversations of this project's pages, by torch on this
    machine (a server of vLLM makes the same passes for fit and superfilter)."""
    import torch

    from core.models import resolve
    from recipes.stages.tokens import student
    from synth.chat.encoding import pair
    from synth.tags.scores.hidden_states import HiddenStates, compared
    from train.config import TrainConfig

    trained = student(TrainConfig(base=MODEL, chat_template_path="smollm2"), resolve)
    text = " ".join(path.read_text() for path in sorted(Path("docs").glob("*.md")))
    words = text.split()
    dice = np.random.default_rng(0)
    starts = dice.integers(len(words) - 400, size=count)
    talks = [
        pair(" ".join(words[at : at + 40]), " ".join(words[at + 40 : at + 110])) for at in starts
    ]
    encoded = trained.encode(talks)
    tokens = sum(len(ids) for ids, _ in encoded)
    states = HiddenStates(resolve(MODEL, None), trained)
    model = states._model()

    def likelihoods() -> None:
        with torch.inference_mode():
            for ids, _ in encoded:
                model(input_ids=torch.tensor([ids], device=model.device))

    def hidden() -> None:
        with TemporaryDirectory() as root:
            names = [str(n) for n in range(count)]
            compared(Path(root), names, talks, talks[:1], trained, resolve)

    device = "a GPU" if torch.cuda.is_available() else f"{torch.get_num_threads()} CPU threads"
    print(f"model passes: {MODEL} on {device}, {count} rows, {tokens / count:.0f} tokens a row")
    of_fit, of_hidden = timed(likelihoods), timed(hidden)
    for name, seconds in (("fit", of_fit), ("superfilter", 2 * of_fit), ("rds", of_hidden)):
        hours = seconds / count * 1e6 / 3600
        print(f"  {name:24} {seconds:8.1f} s; projected to 1M rows: {hours:8.1f} h", flush=True)


if __name__ == "__main__":
    main()
