"""How fast is the question-level bootstrap of Arena-Hard, and how much wider is it than the
published interval?

python benchmarks/bench_arena_bootstrap.py [--battles FILE] [--resamples 10000]
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = Path(__file__).parents[1] / "../shared/data/eval/arena_hard/battles_gpt-4-0613.jsonl"
    parser.add_argument("--battles", type=Path, nargs="+", default=[default])
    parser.add_argument("--resamples", type=int, default=10_000)
    arguments = parser.parse_args()
    from eval.scoring import arena

    models = arena.read(arguments.battles)
    official = arena.official_intervals(models)
    for games, published in zip(models, official, strict=True):
        start = time.perf_counter()
        found = arena.interval(games, resamples=arguments.resamples)
        seconds = time.perf_counter() - start
        print(
            f"{games.model}: {found.value:.3f}, standard error {found.standard_error:.3f} "
            f"over {found.n} questions [{found.lower:.1f}, {found.upper:.1f}], "
            f"{arguments.resamples} resamples in {seconds:.2f} s; "
            f"published kind {published.standard_error:.3f} "
            f"[{published.lower:.1f}, {published.upper:.1f}]"
        )


if __name__ == "__main__":
    main()
