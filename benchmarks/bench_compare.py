"""CPU time of `magpie compare` on stored AlpacaEval annotations, and what pairing gains.

    python benchmarks/bench_compare.py FOLDER      # FOLDER: annotations/, and AlpacaEval's tables

Each form runs in a process of its own, imports included; wall time depends on what else the machine
does, CPU time hardly. Ends with 1 where a form takes more of it than it may.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from recipes.comparisons.of_files import paired_gains

FORMS = {
    "without length control": (["--no-length-control"], 4.0),
    "with length control": (["--data", "{data}"], 10.0),
}
"""Options of each form, and the seconds of CPU time that it may take."""


def main(folder: Path) -> int:
    fine = True
    files = sorted(map(str, (folder / "annotations").glob("*.json*")))
    for form, (options, most) in FORMS.items():
        given = [option.replace("{data}", str(folder)) for option in options]
        command = [sys.executable, "-m", "recipes.cli", "compare", *files, *given, "--json"]
        before = os.times()
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        after = os.times()
        cpu = sum(after[2:4]) - sum(before[2:4])
        fine &= cpu <= most
        comparison = json.loads(done.stdout)
        gains = paired_gains(comparison)
        print(
            f"{len(files)} files, {form}: {cpu:.2f} s CPU (at most {most:g}); {len(gains)} pairs, "
            f"unpaired over paired error {sum(gains) / len(gains):.4f} on average"
        )
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
