"""How long the page of a run takes to build and to open: seconds from going to the file until its
browser of prompts shows the first one, in headless Chromium, the best of a few tries.

    python benchmarks/bench_page.py [--prompts 5000] [--arms 10] [--seeds 3] [--characters 800]

Prints the seconds, the size, and how many prompts the page holds: what is beyond
`recipes.report.sections.browser.BROWSER_CHARACTERS` is a fixed sample.
"""

from __future__ import annotations

import argparse
import random
import resource
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

from eval import compare
from eval.comparing.metrics import Declared
from eval.comparing.scores import COLUMNS
from recipes.report import page

WORDS = (
    "the",
    "of",
    "data",
    "model",
    "answer",
    "judge",
    "seed",
    "filter",
    "prompt",
    "token",
    "row",
)


def main() -> None:
    """Print one line for the build and one for the opening."""
    parser = argparse.ArgumentParser()
    for name, default in (("prompts", 5000), ("arms", 10), ("seeds", 3), ("characters", 800)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--tries", type=int, default=3)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        inputs = run(root, asked.prompts, asked.arms, asked.seeds, asked.characters)
        began, used = time.monotonic(), time.process_time()
        counts = page.build(inputs, root, {"name": "benchmark"})
        spent = f"{time.process_time() - used:.1f} s CPU, {time.monotonic() - began:.1f} s"
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"build: {spent}, peak {peak:.2f} GiB of the process that also made the inputs")
        seconds = min(opened(root / "report.html", asked.tries))
        print(
            f"open: {seconds:.2f} s, {counts['bytes'] / 1e6:.1f} MB, {counts['prompts']:,} prompts "
            f"of {asked.prompts:,}, {asked.arms} arms x {asked.seeds} seeds"
        )


def opened(path: Path, tries: int) -> Iterator[float]:
    """Seconds until the page at `path` is there and shows a prompt, once a try. A page that says
    anything on the console, or asks for anything else than itself, is an error."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium")
    if chromium is None:
        raise SystemExit("no chromium on PATH (apt-get install -y chromium)")
    said: list[str] = []
    asked: list[str] = []
    arguments = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_playwright() as playwright:
        chrome = playwright.chromium.launch(executable_path=chromium, args=arguments)
        for _ in range(tries):
            tab = chrome.new_page(viewport={"width": 1280, "height": 900})
            tab.on("console", lambda message: said.append(message.text))
            tab.on("pageerror", lambda error: said.append(str(error)))
            tab.on("request", lambda request: asked.append(request.url))
            began = time.monotonic()
            tab.goto(path.as_uri(), wait_until="load")
            tab.locator("#entry .run").first.wait_for()
            yield time.monotonic() - began
            tab.close()
        chrome.close()
    if said or set(asked) != {path.as_uri()}:
        raise SystemExit(f"the page said {said[:3]} and asked for {sorted(set(asked))[:3]}")


def run(root: Path, prompts: int, arms: int, seeds: int, characters: int) -> dict[str, Path]:
    """The folders of a run with so many arms and seeds: answers of about so many characters,
    judgments, scores and their comparison."""
    chance = random.Random(0)
    text = " ".join(chance.choices(WORDS, k=40 * characters))
    names = [f"prompt-{k:05d}" for k in range(prompts)]
    asked = [f"Question {k}: {text[k : k + 120]}?" for k in range(prompts)]
    inputs: dict[str, Path] = {}
    scored: dict[str, Path] = {}

    def write(name: str, file: str, table: dict[str, Any]) -> Path:
        folder = root / name.replace("/", "-")
        folder.mkdir()
        pl.DataFrame(table).write_parquet(folder / file)
        inputs[name] = folder
        return folder

    for arm in range(arms):
        for seed in range(seeds):
            at = [chance.randrange(20 * characters) for _ in names]
            answers = [text[k : k + chance.randrange(1, 2 * characters)] for k in at]
            wins = [min(1.0, max(0.0, chance.gauss(0.5 + arm / 50, 0.3))) for _ in names]
            rows = {"id": names, "prompt": asked, "answer": answers}
            rows |= {"tokens": [len(answer) // 4 for answer in answers]}
            name = f"{arm}/{seed}"
            write(f"answers/arm-{name}", "answers.parquet", rows)
            games = {"item": names, "preference": wins, "judgment": names, "game": [1] * prompts}
            games |= {"model_characters": list(map(len, answers))}
            games |= {"baseline_characters": [characters] * prompts}
            write(f"judge/alpaca/arm-{name}", "judgments.parquet", games)
            items = dict(zip(COLUMNS, [["alpaca"] * prompts, ["win_rate"] * prompts], strict=False))
            items |= {"item": names, "cluster": names, "value": [100 * win for win in wins]}
            items |= {"status": ["ok"] * prompts, "reason": [""] * prompts}
            scored[f"arm-{name}"] = write(f"scores/arm-{name}", "scores.parquet", items)
    inputs["comparison"] = root / "comparison"
    compare.run(scored, inputs["comparison"], Declared("alpaca", "arm-0"), resamples=200)
    return inputs


if __name__ == "__main__":
    main()
