"""`make faults`: every kind of fault in every stage that it can be done to, at drawn moments, and
what is left of it.

    python -m tests.campaigns.faults --count 300 --seed 0 --out runs/faults

After each fault the cause is taken away and the same command is run again. It must finish, and then
every result and every column must be what a run without faults leaves, no id twice, no process, no
temporary file, no lock held. Where the run is to recover by itself, the first command must finish.
Cases that are done are in OUT/cases.jsonl and not done again. Exit code 1 where one failed.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import count as counter
from pathlib import Path

from tests.campaigns.ground import (
    ASKED,
    GROUPS,
    STAGES,
    Ground,
    Place,
    doubled,
    left_over,
    unlike,
)
from tests.campaigns.harm import HARMS, Harm, Scene

PATIENCE = 240.0
"""Seconds that a command may take."""


@dataclass(frozen=True)
class Case:
    """A fault of a kind in a stage, at a moment: a share of the stage's requests, or of a second
    after it begins."""

    number: int
    harm: str
    stage: str
    moment: float


@dataclass(frozen=True)
class Outcome:
    """What came of a case: what the run ended with, how often the command was run again, and what
    is wrong."""

    case: Case
    struck: bool
    code: int | None
    again: int
    wrong: list[str]
    seconds: float


def cases(count: int, seed: int, only: str = "") -> list[Case]:
    """`count` cases: one of every fault, then every other pair of a fault and a stage, shuffled,
    then all again at other moments. Of these, the faults that hold one of the words in `only`,
    separated by commas."""
    dice = random.Random(seed)
    pairs = [(name, stage) for name, harm in HARMS.items() for stage in harm.stages]
    dice.shuffle(pairs)
    first = set({pair[0]: pair for pair in reversed(pairs)}.values())
    pairs.sort(key=lambda pair: pair not in first)
    numbers = counter()
    drawn = [
        Case(next(numbers), *pairs[n % len(pairs)], round(dice.random(), 3)) for n in range(count)
    ]
    return [case for case in drawn if any(word in case.harm for word in only.split(","))]


def tried(ground: Ground, case: Case) -> Outcome:
    """Do one case, in a folder of its own that is gone afterwards."""
    harm, begin = HARMS[case.harm], time.monotonic()
    folder = ground.folder / "disk"
    store = folder / "store" if harm.disk else None
    if harm.disk:
        folder.mkdir(exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", str(folder)], check=True)
    place = ground.place(f"case-{case.number}", harm.mode, STAGES[case.stage], store)
    try:
        ground.copied(place)
        struck, code, again, wrong = _done(ground, harm, place, case)
        said = place.said()
        wrong += ["a defect is said"] if "(a defect" in said else []
    finally:
        if harm.disk:
            subprocess.run(["umount", "-l", str(folder)], check=True)
    if not wrong:
        shutil.rmtree(place.folder, ignore_errors=True)
    return Outcome(case, struck, code, again, wrong, round(time.monotonic() - begin, 1))


def _done(
    ground: Ground, harm: Harm, place: Place, case: Case
) -> tuple[bool, int | None, int, list[str]]:
    """(whether the fault struck, exit code of the struck run, further runs, what is wrong)."""
    dice = random.Random(case.number)
    ground.model.bad = []
    before = Counter(ground.model.seen)
    undo = harm.act(Scene(ground, place, 0, dice)) if harm.before else None
    pid = ground.start(place)
    struck = harm.before or _awaited(ground, place, case, before, pid)
    if not harm.before and struck:
        scene = Scene(ground, place, pid, dice)
        undo, struck = harm.act(scene), scene.hit
    code = ground.zygote.wait(pid, PATIENCE)
    ground.model.bad = []
    if code is None:
        return struck, None, 0, [f"the run hangs for {PATIENCE:g} s", *_ended(place)]
    if undo is not None:
        undo()
    wrong = [f"it ended with {code}"] if harm.recovers and code != 0 else []
    last, again = code, 0
    while (last != 0 or again == 0) and again < 3:
        last = ground.zygote.wait(ground.start(place), PATIENCE)
        again += 1
    if last != 0:
        return struck, code, again, [*wrong, f"the same command ends with {last}", *_ended(place)]
    wanted = ground.wanted[place.mode, place.until]
    wrong += [*unlike(place.store, wanted), *doubled(place.store), *_settled(place)]
    return struck, code, again, wrong


def _settled(place: Place) -> list[str]:
    """What is left over, once ending processes had two seconds."""
    for _ in range(20):
        if not (left := list(left_over(place))):
            return []
        time.sleep(0.1)
    return left


def _ended(place: Place) -> Iterator[str]:
    """What the run said last; whatever still runs of it is ended."""
    from tests.campaigns.ground import processes

    for process in processes(place):
        process.kill()
    yield from place.said().strip().splitlines()[-1:]


def _awaited(ground: Ground, place: Place, case: Case, before: Counter[str], pid: int) -> bool:
    """Wait for the moment of a case; whether it came before the run's end."""
    total = ground.totals[place.mode][case.stage]
    wanted = 1 + int(case.moment * max(0, total - 2))
    while ground.zygote.wait(pid, 0) is None:
        if case.stage in ASKED:
            seen = ground.model.seen[case.stage] - before[case.stage]
            if place.mode == "own":
                seen = wanted if "waiting for" in place.said() or _served(place) else 0
            if seen >= wanted:
                return True
        elif f"{case.stage}/" in place.said() or f"\n{case.stage}:" in place.said():
            time.sleep(case.moment)
            return True
        time.sleep(0.005)
    return False


def _served(place: Place) -> bool:
    """Whether a server of its own has begun to answer."""
    return any((place.store / "columns").glob("*/*/journal-*.cells"))


def table(outcomes: list[Outcome]) -> str:
    """A row a fault: stages, cases, those that struck, whose first run finished, in which anything
    was wrong."""
    rows: dict[str, list[Outcome]] = defaultdict(list)
    for each in outcomes:
        rows[each.case.harm].append(each)
    lines = ["| fault | stages | cases | in mid-run | recovered within the run | wrong |"]
    lines += ["|---|---:|---:|---:|---:|---:|"]
    for name, own in [*sorted(rows.items()), ("all", outcomes)]:
        figures = (
            len({each.case.stage for each in own}),
            len(own),
            sum(each.struck for each in own),
            sum(each.code == 0 for each in own),
            sum(bool(each.wrong) for each in own),
        )
        lines.append(f"| {name} | {' | '.join(map(str, figures))} |")
    return "\n".join(lines)


def done_before(path: Path) -> list[Outcome]:
    """The outcomes in a file of cases."""
    lines = path.read_text().splitlines() if path.exists() else []
    read = map(json.loads, lines)
    return [Outcome(**{**each, "case": Case(**each["case"])}) for each in read]


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="words of the faults to try, with commas")
    parser.add_argument("--minutes", type=float, default=120)
    parser.add_argument("--out", type=Path, default=Path("runs/faults"))
    args = parser.parse_args()
    stop = time.monotonic() + 60 * args.minutes
    path = args.out.resolve() / "cases.jsonl"
    outcomes = done_before(path)
    known = {each.case for each in outcomes}
    left = [case for case in cases(args.count, args.seed, args.only) if case not in known]
    with Ground(args.out.resolve() / "work") as ground:
        for case in left:
            if time.monotonic() > stop:
                print(f"{args.minutes:g} minutes are over; the same command goes on")
                break
            if (mode := HARMS[case.harm].mode) not in ground.totals:
                ground.learn(mode, ("select",) if mode == "own" else GROUPS)
            outcomes.append(tried(ground, case))
            with path.open("a") as handle:
                handle.write(json.dumps(asdict(outcomes[-1])) + "\n")
            print(_line(outcomes[-1]), flush=True)
    (args.out / "table.md").write_text(table(outcomes) + "\n")
    print(table(outcomes))
    return int(any(each.wrong for each in outcomes))


def _line(outcome: Outcome) -> str:
    case = outcome.case
    end = "; ".join(outcome.wrong[:3]) or "well"
    where = f"{case.number} {case.harm} in {case.stage} at {case.moment}"
    return f"{where}: code {outcome.code}, {outcome.seconds} s: {end}"


if __name__ == "__main__":
    sys.exit(main())
