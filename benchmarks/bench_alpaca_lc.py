"""How fast and how right is our AlpacaEval scoring, against the alpaca_eval package?

    python benchmarks/bench_alpaca_lc.py --data ../shared/data/eval/alpaca_eval [--annotations FILE
    ...] [--json]

Prints, for every annotation file: the length-controlled win rate by the package, by our copy of its
rules and by our default rules, and the seconds each took with the file loaded. The package (0.6.6)
lives in a virtual environment of its own below the temporary folder, made on the first run; it is
never a dependency. Its download of df_gamed.csv is replaced by the file in --data, and it is kept
from writing its weights.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

VERSION = "0.6.6"
ORACLE = """
import json, sys, time
import pandas as pd
from alpaca_eval.metrics import glm_winrate
gamed, files = sys.argv[1], sys.argv[2:]
glm_winrate.hf_hub_download = lambda **_: gamed
found = {}
for name in files:
    rows = pd.read_json(name)
    quiet = dict(save_weights_dir=None, is_add_glm_preference_inplace=False)
    glm_winrate.get_length_controlled_winrate(rows.head(50), **quiet)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        metrics = glm_winrate.get_length_controlled_winrate(rows, **quiet)
        seconds.append(time.perf_counter() - start)
    found[name] = {k: float(v) for k, v in metrics.items()} | {"seconds": min(seconds)}
print(json.dumps(found))
"""


def oracle() -> Path:
    """Python of an environment that holds alpaca_eval; made once, under the temporary folder."""
    folder = Path(tempfile.gettempdir()) / f"magpie-alpaca-eval-{VERSION}"
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        print(f"making an environment with alpaca_eval {VERSION} in {folder}", file=sys.stderr)
        venv.create(folder, with_pip=True, clear=True)
        constraints = Path(__file__).parents[1] / "constraints.txt"
        subprocess.run(
            [python, "-m", "pip", "install", "-q", f"alpaca_eval=={VERSION}", "-c", constraints],
            check=True,
            stdout=sys.stderr,
        )
        (folder / "complete").touch()
    return python


def fastest(function: Callable[[], Any], repeats: int = 5) -> tuple[Any, float]:
    """The function's result and the least of its times in seconds."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = function()
        seconds.append(time.perf_counter() - start)
    return result, min(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, default=Path(__file__).parents[1] / "../shared/data/eval/alpaca_eval"
    )
    parser.add_argument("--annotations", type=Path, nargs="*")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    from eval.prompt_sets import prompts
    from eval.scoring import alpaca, length_control

    files = arguments.annotations or sorted((arguments.data / "annotations").glob("*.json*"))
    reference = length_control.load_reference(arguments.data)
    gamed = next(arguments.data.glob("df_gamed*.csv"))
    done = subprocess.run(
        [oracle(), "-c", ORACLE, gamed, *files], check=True, capture_output=True, text=True
    )
    package = json.loads(done.stdout.strip().split("\n")[-1])
    code = (
        "import time; t = time.perf_counter(); import eval.scoring.of_files; "
        "print(time.perf_counter() - t)"
    )
    imported = min(
        float(
            subprocess.run(
                [sys.executable, "-c", code], capture_output=True, text=True, check=True
            ).stdout
        )
        for _ in range(3)
    )
    rows = []
    for path in files:
        annotations = [row for _, row in prompts.records(path)]

        def official(
            annotations: list[dict[str, Any]] = annotations,
        ) -> tuple[dict[str, Any], float, float]:
            (model,) = alpaca.judged(annotations)
            return alpaca.win_rate(model), *length_control.official(model, reference)

        def default(annotations: list[dict[str, Any]] = annotations) -> float:
            (model,) = alpaca.judged(annotations)
            alpaca.win_rate(model)
            return length_control.point(length_control.design(model, reference))

        (figures, lc, lc_error), official_seconds = fastest(official)
        value, default_seconds = fastest(default)
        theirs = package[str(path)]
        rows.append(
            {
                "file": path.name,
                "package_lc": theirs["length_controlled_winrate"],
                "official_lc": lc,
                "default_lc": value,
                "win_rate_difference": abs(figures["win_rate"] - theirs["win_rate"]),
                "standard_error_difference": abs(
                    figures["standard_error"] - theirs["standard_error"]
                ),
                "lc_difference": abs(lc - theirs["length_controlled_winrate"]),
                "lc_error_difference": abs(lc_error - theirs["lc_standard_error"]),
                "package_seconds": theirs["seconds"],
                "official_seconds": official_seconds,
                "default_seconds": default_seconds,
            }
        )
    found = {
        "rows": rows,
        "import_seconds": imported,
        "default_speedup": statistics.median(
            r["package_seconds"] / r["default_seconds"] for r in rows
        ),
        "official_speedup": statistics.median(
            r["package_seconds"] / r["official_seconds"] for r in rows
        ),
        "largest_lc_difference": max(r["lc_difference"] for r in rows),
    }
    if arguments.json:
        print(json.dumps(found, indent=2))
        return
    names = ("package", "official", "default")
    heads = [*(f"{name:>9s}" for name in names), *(f"{name + ' s':>10s}" for name in names)]
    print(f"{'file':44s}", *heads)
    for r in rows:
        values = " ".join(f"{r[k]:9.4f}" for k in ("package_lc", "official_lc", "default_lc"))
        print(
            f"{r['file']:44s} {values} "
            + " ".join(
                f"{r[k]:10.4f}" for k in ("package_seconds", "official_seconds", "default_seconds")
            )
        )
    print(
        f"median speed against alpaca_eval {VERSION}: default {found['default_speedup']:.0f}x, "
        f"official rules {found['official_speedup']:.1f}x"
    )
    print(
        f"largest difference from it {found['largest_lc_difference']:.4f}; import {imported:.2f} s"
    )


if __name__ == "__main__":
    main()
