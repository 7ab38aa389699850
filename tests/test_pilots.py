"""Decision accuracy: what a pilot said of the pairs that the full run decided."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from core.errors import UserError
from eval.comparing.decisions import decisions, interval
from recipes.cli import app
from recipes.comparisons import pilots
from recipes.stages import graph

PILOT = {"a": 3.0, "b": 2.0, "c": 1.0, "d": 0.0}
FULL = {"a": 5.0, "b": 6.0, "c": 1.0, "d": 0.0}
"""Scores: only a and b come out the other way round."""


def comparison(
    scores: dict[str, float], told: float = 0.0, models: tuple[str, ...] = (), lower: bool = False
) -> dict[str, Any]:
    """A comparison that tells apart what differs by more than `told`."""
    names = sorted(scores)
    differences = []
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            d = scores[a] - scores[b]
            better = a if (d > 0) != lower else b
            verdict = f"{better} is better" if abs(d) > told else "cannot tell"
            row = {"benchmark": "x", "metric": "m", "a": a, "b": b}
            differences.append(row | {"difference": d, "verdict": verdict})
    arms = [{"name": name, "seeds": [] if name in models else ["0"]} for name in names]
    return {"arms": arms, "differences": differences}


def test_pairs_that_both_order_alike_are_counted() -> None:
    (found,) = decisions(comparison(PILOT), comparison(FULL))
    assert (found.arms, found.pairs, found.alike) == (4, 6, 5.0)
    assert found.decision_accuracy == pytest.approx(5 / 6)
    assert found.lower < 5 / 6 < found.upper


def test_the_order_of_two_arms_in_a_row_does_not_matter() -> None:
    full = comparison(FULL)
    for row in full["differences"]:
        row |= {"a": row["b"], "b": row["a"], "difference": -row["difference"]}
    (found,) = decisions(comparison(PILOT), full)
    assert found.alike == 5.0


def test_no_worse_and_equal_tell_nothing_apart() -> None:
    pilot, full = comparison(PILOT), comparison(FULL)
    pilot["differences"][0]["verdict"] = "a is no worse"
    full["differences"][1]["verdict"] = "equal within 2"
    (found,) = decisions(pilot, full)
    assert (found.decided, found.same, found.untold, found.opposite) == (5, 4, 1, 0)


def test_a_verdict_of_the_full_run_is_met_missed_or_contradicted() -> None:
    (found,) = decisions(comparison(PILOT, told=1.5), comparison(FULL, told=0.9))
    # the pilot tells a-c, a-d, b-d; not a-b, b-c, c-d
    assert (found.decided, found.same, found.untold, found.opposite) == (6, 3, 3, 0)
    (found,) = decisions(comparison(PILOT, told=0.5), comparison(FULL, told=0.9))
    assert (found.same, found.untold, found.opposite) == (5, 0, 1)


def test_no_difference_at_all_is_half_an_agreement() -> None:
    (found,) = decisions(comparison({"a": 1.0, "b": 1.0}), comparison({"a": 2.0, "b": 1.0}))
    assert found.alike == 0.5


def test_arms_of_one_run_only_and_finished_models_count_nowhere() -> None:
    full = comparison(FULL | {"z": 9.0, "gpt": 9.0}, models=("gpt",))
    (found,) = decisions(comparison(PILOT | {"gpt": 9.0}, models=("gpt",)), full)
    assert (found.arms, found.pairs) == (4, 6)


@pytest.mark.parametrize("arms", [3, 6, 12])
def test_the_interval_covers_what_other_arms_would_show(arms: int) -> None:
    """Arms whose pilot is as noisy as their true differences: 75 % of pairs come out alike."""
    rng = np.random.default_rng(arms)
    covered = 0
    for _ in range(1000):
        true = rng.normal(size=arms)
        pilot = true + rng.normal(size=arms)
        alike = np.sign(np.subtract.outer(true, true)) == np.sign(np.subtract.outer(pilot, pilot))
        share = (alike.sum() - arms) / (arms * (arms - 1))
        lower, upper = interval(float(share), arms)
        covered += lower <= 0.75 <= upper
    assert covered >= 940


@pytest.fixture
def two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Two recipes' names, with comparisons in place of their runs."""
    made = {"demo": comparison(PILOT), "full.yaml": comparison(FULL | {"e": 1.0})}

    def finished(asked: Any) -> tuple[None, Any]:
        folder = tmp_path / asked.name
        folder.mkdir(exist_ok=True)
        (folder / "comparison.json").write_text(json.dumps(made[asked.name]))
        result = SimpleNamespace(path=folder)
        return None, graph.Outcome([], {"compare": result}, False)  # type: ignore[dict-item]

    monkeypatch.setattr(pilots, "finished", finished)
    return list(made)


def test_two_recipes_are_a_pilot_and_its_full_run(two: list[str]) -> None:
    done = CliRunner().invoke(app, ["compare", *two])
    assert "0.83 [" in done.stdout
    assert "demo, full.yaml: only one of them trains e; left out." in done.stdout
    found = json.loads(CliRunner().invoke(app, ["compare", *two, "--json"]).stdout)
    (row,) = found["decisions"]
    assert (row["pilot"], row["full"], row["pairs"]) == ("demo", "full.yaml", 6)


def test_recipes_without_two_arms_in_common_are_refused(
    two: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pilots, "decisions", lambda *_: iter(()))
    with pytest.raises(UserError, match="have no two trained arms of the same name"):
        raise CliRunner().invoke(app, ["compare", *two]).exception or AssertionError
