"""`make faults`: every kind of fault in every stage that it can be done to, at drawn moments, and
what is left of it.

    python -m tests.campaigns.faults --count 300 --real 40 --seed 0 --out runs/faults

After each fault the cause is taken away and the same command is run again. It must finish, and then
every result and every column must be what a run without faults leaves, no id twice, no process, no
temporary file, no lock, no port held. Where the run is to recover by itself, the first command must
finish. Cases that are done are in OUT/cases.jsonl and not done again, with `--again` but for those
that went wrong. Exit code 1 where one failed.
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
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import count as counter
from pathlib import Path

from tests.campaigns import real
from tests.campaigns.ground import ROOT, STAGES, Ground
from tests.campaigns.harm import HARMS, REAL_HARMS, Harm, Scene
from tests.campaigns.moments import watch
from tests.campaigns.remains import Place, doubled, left_over, processes, unlike

PATIENCE = {False: 240.0, True: 900.0}
"""Seconds that a command may take, on the real stack and not."""
REAL_FROM = 10_000
"""The number of the first case on the real stack."""
SAID = ("(a defect", "Traceback (most recent call last)")
"""What no run may say."""


@dataclass(frozen=True)
class Case:
    """A fault of a kind in a stage, at a moment: a share of the stage's requests, or of a second
    after it begins."""

    number: int
    harm: str
    stage: str
    moment: float

    @property
    def real(self) -> bool:
        """Whether it is done on real vLLM and TRL."""
        return self.number >= REAL_FROM

    @property
    def how(self) -> Harm:
        """What is done."""
        return (REAL_HARMS if self.real else HARMS)[self.harm]


@dataclass(frozen=True)
class Outcome:
    """What came of a case: what the run ended with, how often the command was run again, what is
    wrong, and on which version."""

    case: Case
    struck: bool
    code: int | None
    again: int
    wrong: list[str]
    seconds: float
    version: str = ""


def cases(count: int, seed: int, only: str = "", *, on_real: bool = False) -> list[Case]:
    """`count` cases: one of every fault, then every other pair of a fault and a stage, shuffled,
    then all again at other moments. Of these, the faults that hold one of the words in `only`,
    separated by commas."""
    dice = random.Random(seed)
    harms: Mapping[str, Harm] = REAL_HARMS if on_real else HARMS
    pairs = [(name, stage) for name, harm in harms.items() for stage in harm.stages]
    dice.shuffle(pairs)
    first = set({pair[0]: pair for pair in reversed(pairs)}.values())
    pairs.sort(key=lambda pair: pair not in first)
    numbers = counter(REAL_FROM if on_real else 0)
    drawn = [
        Case(next(numbers), *pairs[n % len(pairs)], round(dice.random(), 3)) for n in range(count)
    ]
    return [case for case in drawn if any(word in case.harm for word in only.split(","))]


def tried(ground: Ground, case: Case) -> Outcome:
    """Do one case, in a folder of its own that is gone afterwards."""
    harm, begin = case.how, time.monotonic()
    folder = ground.folder / "disk"
    store = folder / "store" if harm.disk else None
    if harm.disk:
        folder.mkdir(exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96m", "tmpfs", str(folder)], check=True)
    group = (real.STAGES if case.real else STAGES)[case.stage]
    place = ground.place(f"case-{case.number}", harm.mode, group, store)
    try:
        ground.copied(place)
        struck, code, again, wrong = _done(ground, harm, place, case)
        said = place.said()
        wrong += [f"it says {words}" for words in SAID if words in said]
    finally:
        if harm.disk:
            subprocess.run(["umount", "-l", str(folder)], check=True)
    shutil.rmtree(place.temporary, ignore_errors=True)
    if not wrong:
        shutil.rmtree(place.folder, ignore_errors=True)
    seconds = round(time.monotonic() - begin, 1)
    return Outcome(case, struck, code, again, wrong, seconds, version())


def version() -> str:
    """The commit that is tried, with a plus where the tree is not as it says."""
    asked = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+", "--abbrev=8"]
    return subprocess.run(asked, capture_output=True, text=True).stdout.strip()


def _done(
    ground: Ground, harm: Harm, place: Place, case: Case
) -> tuple[bool, int | None, int, list[str]]:
    """(whether the fault struck, exit code of the struck run, further runs, what is wrong)."""
    dice = random.Random(case.number)
    ground.model.bad = []
    reached = watch(ground, place, case.stage, case.moment, Counter(ground.model.seen))
    scene = Scene(ground, place, 0, dice)
    undo = harm.act(scene) if harm.before else None
    scene.pid = pid = ground.start(place)
    if not harm.before:
        scene.hit = False
        while not scene.hit and ground.zygote.wait(pid, 0) is None:
            scene.hit = reached()
            time.sleep(0.005)
        undo = harm.act(scene) if scene.hit else None
    patience = PATIENCE[case.real]
    code = ground.zygote.wait(pid, patience)
    ground.model.bad = []
    if code is None:
        return scene.hit, None, 0, [f"the run hangs for {patience:g} s", *_ended(place)]
    if undo is not None:
        undo()
    wrong = scene.wrong
    wrong += [f"it ended with {code}"] if harm.recovers and code != 0 else []
    last: int | None = code
    again = 0
    # One that finished by itself is looked at as it left the store.
    while last != 0 and again < 3:
        last = ground.zygote.wait(ground.start(place), patience)
        again += 1
    if last != 0:
        wrong += [f"the same command ends with {last}", *_ended(place)]
        return scene.hit, code, again, wrong
    wanted = ground.wanted[real.plain(place.mode), place.until]
    wrong += [
        *unlike(place.store, wanted, lost=harm.loses),
        *doubled(place.store),
        *_settled(place, harm),
    ]
    return scene.hit, code, again, wrong


def _settled(place: Place, harm: Harm) -> list[str]:
    """What is left over, once ending processes had ten seconds."""
    for _ in range(100):
        if not (left := list(left_over(place, lost=harm.loses))):
            return []
        time.sleep(0.1)
    return left


def _ended(place: Place) -> Iterator[str]:
    """What the run said last; whatever still runs of it is ended."""
    for process in processes(place):
        process.kill()
    yield from place.said().strip().splitlines()[-1:]


def table(outcomes: list[Outcome]) -> str:
    """A row a fault: stages, cases, those that struck, whose first run finished, in which anything
    was wrong."""
    rows: dict[str, list[Outcome]] = defaultdict(list)
    for each in outcomes:
        rows[each.case.harm].append(each)
    lines = ["| fault | stages | cases | struck | recovered within the run | wrong |"]
    lines += ["|---|---:|---:|---:|---:|---:|"]
    for name, own in [*sorted(rows.items()), ("all", outcomes)]:
        figures = (
            len({each.case.stage for each in own}),
            len(own),
            sum(each.struck for each in own),
            sum(each.struck and each.code == 0 for each in own),
            sum(bool(each.wrong) for each in own),
        )
        lines.append(f"| {name} | {' | '.join(map(str, figures))} |")
    return "\n".join(lines)


def page(outcomes: list[Outcome]) -> str:
    """Both tables, and how many cases each version did."""
    known = {False: "The scripted server and the tiny trainer", True: "Real vLLM and TRL"}
    parts = []
    for on_real, name in known.items():
        own = [each for each in outcomes if each.case.real == on_real]
        if own:
            versions = Counter(each.version for each in own)
            by = ", ".join(f"{n} by {name or 'an older one'}" for name, n in versions.items())
            parts.append(f"{name} (cases by version: {by}):\n\n{table(own)}\n")
    return "\n".join(parts)


def done_before(path: Path) -> list[Outcome]:
    """The outcomes in a file of cases, the last of each."""
    lines = path.read_text().splitlines() if path.exists() else []
    read = map(json.loads, lines)
    every = [Outcome(**{**each, "case": Case(**each["case"])}) for each in read]
    return list({each.case: each for each in every}.values())


def main() -> int:
    args = _arguments()
    stop = time.monotonic() + 60 * args.minutes
    path = args.out.resolve() / "cases.jsonl"
    drawn = cases(args.count, args.seed, args.only)
    drawn += cases(args.real, args.seed, args.only, on_real=True)
    known = {each.case for each in done_before(path) if not (args.again and each.wrong)}
    with Ground(args.out.resolve() / "work") as ground:
        for case in (case for case in drawn if case not in known):
            if time.monotonic() > stop:
                print(f"{args.minutes:g} minutes are over; the same command goes on")
                break
            if real.plain(case.how.mode) not in ground.totals:
                ground.learn(real.plain(case.how.mode))
            outcome = tried(ground, case)
            with path.open("a") as handle:
                handle.write(json.dumps(asdict(outcome)) + "\n")
            print(_line(outcome), flush=True)
    outcomes = done_before(path)
    (args.out / "table.md").write_text(page(outcomes))
    print(page(outcomes))
    return int(any(each.wrong for each in outcomes))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--real", type=int, default=40, help="cases on real vLLM and TRL")
    parser.add_argument("--again", action="store_true", help="do those that went wrong again")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="words of the faults to try, with commas")
    parser.add_argument("--minutes", type=float, default=120)
    parser.add_argument("--out", type=Path, default=Path("runs/faults"))
    return parser.parse_args()


def _line(outcome: Outcome) -> str:
    case = outcome.case
    end = "; ".join(outcome.wrong[:3]) or "well"
    where = f"{case.number} {case.harm} in {case.stage} at {case.moment}"
    return f"{where}: code {outcome.code}, {outcome.seconds} s: {end}"


if __name__ == "__main__":
    sys.exit(main())
