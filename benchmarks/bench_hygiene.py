"""How many rows a second do the hygiene columns take, and do they find what was planted?

    python benchmarks/bench_hygiene.py [--rows 100000] [--prompts 805] [--peer-rows 5000]

Makes instructions of about 40 words (Zipf-distributed words, seeded). One in ten repeats an earlier
one with a word in 30 changed, one in a hundred holds a whole evaluation prompt, one in a hundred an
e-mail address or a phone number. Prints rows a second of wall and of CPU time for each column
(responses are five instructions long), the share of what was planted that was found, and of the
rest that was flagged. Where `datasketch` is installed, its MinHash and LSH are timed on the first
`--peer-rows` rows beside rensa's signatures and our groups.
"""

from __future__ import annotations

import argparse
import importlib.util
import resource
import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import polars as pl

from synth.duplicates import decontaminate, minhash
from synth.tags import pii, sanitize, text_figures

Made = TypeVar("Made")
WORDS, LENGTH = 50_000, 40


def corpus(rows: int, prompts: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    """([id, instruction, copy_of, contaminated, personal], [id, prompt])."""
    dice = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    vocabulary = np.array(
        ["".join(letters[dice.integers(0, 26, dice.integers(2, 9))]) for _ in range(WORDS)]
    )

    def sentence(length: int) -> list[str]:
        found: list[str] = vocabulary[np.minimum(dice.zipf(1.3, length), WORDS) - 1].tolist()
        return found

    asked = [sentence(int(dice.integers(10, 60))) for _ in range(prompts)]
    texts: list[list[str]] = []
    facts: list[tuple[int, bool, bool]] = []
    for row in range(rows):
        kind = dice.random()
        words, copy = sentence(int(dice.integers(LENGTH // 2, 2 * LENGTH))), row
        if kind < 0.10 and row:
            copy = int(dice.integers(0, row))
            words = list(texts[copy])
            for at in range(15, len(words), 30):
                words[at] = "changed"
        elif kind < 0.11:
            words = [*words[:5], *asked[int(dice.integers(0, prompts))], *words[5:10]]
        elif kind < 0.12:
            words[3] = f"jane.{row}@uni-bonn.de" if row % 2 else f"650-253-{row % 10000:04d}"
        texts.append(words)
        before = facts[copy] if copy != row else (0, False, False)
        facts.append((copy, before[1] or 0.10 <= kind < 0.11, before[2] or 0.11 <= kind < 0.12))
    frame = pl.DataFrame(facts, schema=["copy_of", "contaminated", "personal"], orient="row")
    frame = frame.with_columns(
        pl.Series("instruction", [" ".join(w) for w in texts])
    ).with_row_index("id")
    named = pl.DataFrame(
        {"id": [f"p{k}" for k in range(prompts)], "prompt": [" ".join(a) for a in asked]}
    )
    return frame.with_columns(pl.col("id").cast(pl.String)), named


def timed(name: str, rows: int, work: Callable[[], Made]) -> Made:
    """Run and print rows a second."""
    wall, cpu = time.perf_counter(), time.process_time()
    made = work()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(
        f"{name:34}{rows / wall:12,.0f} rows/s wall{rows / cpu:12,.0f} rows/s CPU   ({wall:.1f} s)"
    )
    return made


def rates(found: pl.Series, planted: pl.Series) -> str:
    """How much of what was planted was found, and of the rest flagged."""
    share, more = (
        len(found.filter(found & planted)) / planted.sum(),
        len(found.filter(found & ~planted)) / (~planted).sum(),
    )
    return f"    found {share:.1%} of {planted.sum():,} planted, flagged {more:.2%} of the rest"


def characters(texts: pl.Series) -> int:
    """Mean length."""
    return round(texts.str.len_chars().sum() / len(texts))


def peer(frame: pl.DataFrame, rows: int) -> None:
    """datasketch beside rensa, on the same n-grams."""
    from datasketch import MinHash, MinHashLSH

    texts = frame["instruction"].head(rows)

    def groups() -> int:
        index = MinHashLSH(threshold=0.7, num_perm=128)
        met = 0
        for number, words in enumerate(texts.to_list()):
            split = words.lower().split()
            sketch = MinHash(num_perm=128)
            sketch.update_batch(
                [" ".join(split[at : at + 3]).encode() for at in range(max(len(split) - 2, 1))]
            )
            met += bool(index.query(sketch))
            index.insert(number, sketch)
        return met

    timed("datasketch (MinHash, LSH)", len(texts), groups)
    timed(
        "rensa, with our groups",
        len(texts),
        lambda: minhash.groups(minhash.signatures(len(texts), [texts], 3, 128), 0.7),
    )


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--prompts", type=int, default=805)
    parser.add_argument("--peer-rows", type=int, default=5_000)
    args = parser.parse_args()
    frame, prompts = corpus(args.rows, args.prompts)
    few = frame.head(max(args.rows // 5, 1))
    responses = few.select(
        "id",
        pl.concat_str(
            [pl.col("instruction").shift(k, fill_value="") for k in range(5)], separator="\n"
        ).alias("response"),
    )
    print(
        f"{args.rows:,} instructions of {characters(frame['instruction'])} "
        f"characters, {args.prompts} evaluation prompts, "
        f"{len(responses):,} responses of {characters(responses['response'])} characters"
    )
    timed(
        "text (instructions)",
        args.rows,
        lambda: text_figures.instruction_columns(frame.select("id", "instruction")),
    )
    timed("text (responses)", len(responses), lambda: text_figures.response_columns(responses))
    timed("sanitized", args.rows, lambda: sanitize.sanitized(frame["instruction"], "llama-3"))
    kinds = timed("pii (instructions)", args.rows, lambda: pii.kinds(frame["instruction"]))
    print(rates(kinds != "", frame["personal"]))
    timed("response_pii", len(responses), lambda: pii.kinds(responses["response"]))
    shared = timed(
        f"overlap (against {args.prompts} prompts)",
        args.rows,
        lambda: decontaminate.overlap(frame, prompts),
    )
    print(rates(shared["eval_overlap"] > 0.5, frame["contaminated"]))
    ids = frame["id"].to_list()
    near = timed(
        "minhash",
        args.rows,
        lambda: minhash.minhash(
            ids, [frame["instruction"]], threshold=0.7, ngram=3, permutations=128
        ),
    )
    print(rates(near["minhash_duplicate"], frame["copy_of"].cast(pl.String) != frame["id"]))
    print(
        f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} "
        "GiB, texts included"
    )
    if importlib.util.find_spec("datasketch"):
        peer(frame, args.peer_rows)


if __name__ == "__main__":
    main()
