"""`make inputs`: malformed inputs against whoever reads them, in process and through the command
line.

    python -m tests.campaigns.inputs --count 10000 --cli 200 --seed 0

For each kind of input: how many were tried, taken, refused in a sentence; how many ended in a
traceback, lost rows without a word, took over 10 s, or were refused in words that are nobody's. The
smallest example of each kind of trouble is written below --out. Exit code 1 where there is any.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase, settings

from core.errors import UserError, of_system
from tests.campaigns.trials import TRIALS, Trial

LONGEST = 10
"""Seconds that an input may take."""
POOR = re.compile(r"pydantic|Traceback|<class|\bNoneType\b|object at 0x|\.rs:\d|<unicode string>")
"""What no sentence for a user holds."""
COLUMNS = ("tried", "taken", "refused", "traceback", "silent loss", "hang", "poor sentence")
BAD = COLUMNS[3:]


class Hang(BaseException):
    """An input took longer than LONGEST."""


@dataclass
class Found:
    """What became of the inputs of one kind, and the smallest example of each trouble."""

    counts: Counter[str] = field(default_factory=Counter)
    troubles: dict[str, tuple[str, Any]] = field(default_factory=dict)

    def note(self, outcome: str, why: str, given: Any) -> None:
        """Count one input."""
        self.counts["tried"] += 1
        self.counts[outcome] += 1
        if outcome in BAD:
            kind = f"{outcome}: {why}"
            known = self.troubles.get(kind)
            if known is None or len(repr(given)) < len(repr(known[1])):
                self.troubles[kind] = (why, given)


@contextmanager
def watched() -> Iterator[None]:
    """Raise Hang where the block takes too long."""

    def stop(*_: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, LONGEST)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def outcome(trial: Trial, given: Any) -> tuple[str, str]:
    """What one input comes to, and why: taken, refused, or one of BAD."""
    here = Path.cwd()
    with tempfile.TemporaryDirectory(prefix="inputs-") as folder:
        os.chdir(folder)
        begin = time.monotonic()
        try:
            with watched():
                wrong = trial.read(given, Path(folder))
        except UserError as error:
            return _sentence(str(error), folder)
        except Hang:
            return "hang", f"over {LONGEST} s"
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # polars' panics are no Exceptions
            said = of_system(error)
            return _sentence(said, folder) if said else ("traceback", _where(error))
        finally:
            os.chdir(here)
        if time.monotonic() - begin > LONGEST:
            return "hang", f"over {LONGEST} s"
        return ("silent loss", re.sub(r"\d+", "N", wrong)) if wrong else ("taken", "")


def _sentence(text: str, folder: str) -> tuple[str, str]:
    plain = text.replace(folder, "")
    poor = POOR.search(plain)
    if poor or not plain.strip() or len(plain) > 10_000:
        word = poor[0] if poor else f"{len(plain)} characters"
        return "poor sentence", f"{word!r} in: {re.sub(r'[0-9]+', 'N', plain)[:160]}"
    return "refused", ""


def _where(error: BaseException) -> str:
    """A traceback as its type and the last line of ours."""
    frames = traceback.extract_tb(error.__traceback__)
    root = str(Path(__file__).parents[2])
    ours = [
        f for f in frames if f.filename.startswith(root) and "/tests/campaigns/" not in f.filename
    ]
    last = (ours or frames)[-1]
    place = f"{last.filename.removeprefix(root)}:{last.lineno} {last.name}"
    return f"{type(error).__name__} at {place}: {str(error).splitlines()[:1]}"[:260]


def tried(trial: Trial, count: int, seed: int, become: Callable[..., tuple[str, str]]) -> Found:
    """`count` inputs of a kind, drawn from `seed`, and what `become` says became of each."""
    found = Found()

    @hypothesis.seed(seed)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @hypothesis.given(trial.draw)
    def one(given: Any) -> None:
        found.note(*become(trial, given), given)

    one()
    return found


def by_cli(trial: Trial, given: Any) -> tuple[str, str]:
    """What one input comes to through the command line, in a process of its own."""
    assert trial.argv is not None
    with tempfile.TemporaryDirectory(prefix="inputs-") as folder:
        argv = [sys.executable, "-m", "recipes.cli", *trial.argv(given, Path(folder))]
        env = {**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
        begin = time.monotonic()
        try:
            done = subprocess.run(
                argv, cwd=folder, env=env, capture_output=True, timeout=90, check=False
            )
        except subprocess.TimeoutExpired:
            return "hang", "over 90 s"
        said = done.stderr.decode(errors="replace")
        if "Traceback" in said or "(a defect" in said:
            return "traceback", said.strip().splitlines()[-1][:260]
        if time.monotonic() - begin > 6 * LONGEST:  # a process of its own loads libraries first
            return "hang", f"{time.monotonic() - begin:.0f} s"
        if done.returncode == 0:
            return "taken", ""
        if done.returncode != 2 or not said.strip():
            return "poor sentence", f"exit code {done.returncode}: {said[-160:]!r}"
        last = said.strip().splitlines()[-1]
        return _sentence(last, folder)


def table(found: dict[str, Found]) -> str:
    """A row a kind of input, and the sum."""
    rows = [(name, *(each.counts[column] for column in COLUMNS)) for name, each in found.items()]
    rows.append(("all", *(sum(row[n] for row in rows) for n in range(1, len(COLUMNS) + 1))))
    head = f"| inputs | {' | '.join(COLUMNS)} |\n|---|{'---:|' * len(COLUMNS)}"
    return "\n".join(
        [
            head,
            *(
                f"| {' | '.join(f'{cell:,}' if isinstance(cell, int) else cell for cell in row)} |"
                for row in rows
            ),
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--cli", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="")
    parser.add_argument("--out", type=Path, default=Path("runs/inputs"))
    args = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    chosen = {name: t for name, t in TRIALS.items() if args.only in name}
    found = {}
    for name, trial in chosen.items():
        share = {"recipe": 4, "override": 3, "import": 3, "filter": 2}.get(name, 1)
        whole = sum(
            {"recipe": 4, "override": 3, "import": 3, "filter": 2}.get(n, 1) for n in chosen
        )
        begin = time.monotonic()
        found[name] = tried(trial, -(-args.count * share // whole), args.seed, outcome)
        print(f"{name}: {dict(found[name].counts)} in {time.monotonic() - begin:.0f} s", flush=True)
    shells = {name: trial for name, trial in chosen.items() if trial.argv}
    for name, trial in shells.items() if args.cli else ():
        given = -(-args.cli // len(shells))
        found[f"{name} (command line)"] = tried(trial, given, args.seed + 1, by_cli)
    print(table(found))
    return report(found, args.out)


def report(found: dict[str, Found], out: Path) -> int:
    """Print and write every kind of trouble with its smallest example; 1 where there is any."""
    troubles = [
        (name, kind, given)
        for name, each in found.items()
        for kind, (_, given) in each.troubles.items()
    ]
    out.mkdir(parents=True, exist_ok=True)
    (out / "table.md").write_text(table(found) + "\n")
    with (out / "troubles.txt").open("w", encoding="utf-8", errors="backslashreplace") as handle:
        for name, kind, given in troubles:
            print(f"{name}: {kind}".encode(errors="backslashreplace").decode())
            handle.write(f"{name}: {kind}\n    {given!r}\n\n")
    return int(bool(troubles))


if __name__ == "__main__":
    sys.exit(main())
