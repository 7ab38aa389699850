"""The fault campaign in small: what it would notice, that it goes on where it was, and (slow) a
fault of each sort for real."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import polars as pl
import pytest
from filelock import FileLock

from tests.campaigns import faults
from tests.campaigns.faults import Outcome, cases
from tests.campaigns.ground import STAGES, Ground, Place, doubled, held, left_over, unlike
from tests.campaigns.harm import HARMS, damage

PAIRS = sum(len(harm.stages) for harm in HARMS.values())


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """A store with one result and one column, and nothing left over."""
    result = tmp_path / "store" / "results" / "select" / "k"
    column = tmp_path / "store" / "columns" / "quality" / "k"
    for folder in (result, column, tmp_path / "t"):
        folder.mkdir(parents=True)
    (result / "manifest.json").write_text(json.dumps({"digest": "d"}))
    pl.DataFrame({"id": ["a", "b"], "q": [1, 2]}).write_parquet(column / "part-0.parquet")
    return Place(tmp_path, tmp_path / "store", "urls", "select")


def test_every_fault_is_done_to_every_stage_that_it_can_be_done_to() -> None:
    drawn = {(case.harm, case.stage) for case in cases(PAIRS, 3)}
    assert drawn == {(name, stage) for name, harm in HARMS.items() for stage in harm.stages}
    assert {stage for _, stage in drawn} == STAGES.keys()


def test_one_of_every_fault_comes_first_and_chosen_ones_keep_their_numbers() -> None:
    drawn = cases(PAIRS, 3)
    assert {case.harm for case in drawn[: len(HARMS)]} == HARMS.keys()
    chosen = cases(PAIRS, 3, "Ctrl-C,launcher")
    assert chosen == [c for c in drawn if c.harm in ("Ctrl-C", "SIGKILL of the launcher")]


def test_a_second_round_comes_at_other_moments_and_a_seed_draws_the_same() -> None:
    drawn = cases(2 * PAIRS, 3)
    assert drawn == cases(2 * PAIRS, 3) != cases(2 * PAIRS, 4)
    first, again = drawn[0], drawn[PAIRS]
    assert (first.harm, first.stage) == (again.harm, again.stage)
    assert first.moment != again.moment


def test_what_is_done_is_read_back_so_that_a_campaign_goes_on(tmp_path: Path) -> None:
    outcome = Outcome(cases(1, 0)[0], True, 2, 1, ["x"], 1.5)
    (tmp_path / "cases.jsonl").write_text(json.dumps(asdict(outcome)) + "\n")
    assert faults.done_before(tmp_path / "cases.jsonl") == [outcome]
    assert "| all | 1 | 1 | 1 | 0 | 1 |" in faults.table([outcome])


def test_a_store_that_is_what_it_should_be_is_well(place: Place) -> None:
    assert [*unlike(place.store, held(place.store)), *doubled(place.store), *left_over(place)] == []


def test_another_cell_a_lost_result_and_a_row_too_many_are_noticed(place: Place) -> None:
    wanted = held(place.store)
    part = next(place.store.rglob("part-0.parquet"))
    pl.DataFrame({"id": ["a", "b"], "q": [1, 3]}).write_parquet(part)
    next(place.store.rglob("manifest.json")).unlink()
    assert sorted(unlike(place.store, wanted)) == [
        "columns/quality/k holds something else",
        "results/select/k is missing",
    ]
    assert list(unlike(place.store, {})) == ["columns/quality/k is there besides"]
    pl.DataFrame({"id": ["b"], "q": [2]}).write_parquet(part.with_name("part-1.parquet"))
    assert list(doubled(place.store)) == ["k holds 1 ids twice"]


def test_temporary_files_unfinished_work_and_held_locks_are_noticed(place: Place) -> None:
    (place.temporary / "torchelastic_x").mkdir()
    (place.store / "results" / "train").mkdir()
    (place.store / "results" / "train" / "k.partial").mkdir()
    with FileLock(place.store / "x.lock"):
        assert list(left_over(place)) == [
            "temporary: torchelastic_x",
            "unfinished: results/train/k.partial",
            "held: x.lock",
        ]


@pytest.mark.parametrize(
    ("how", "is_now"), [("flipped", b"abbd"), ("cut", b"ab"), ("emptied", b"")]
)
def test_files_are_damaged_as_the_table_says(tmp_path: Path, how: str, is_now: bytes) -> None:
    (tmp_path / "x").write_bytes(b"abcd")
    damage(tmp_path / "x", how)
    assert (tmp_path / "x").read_bytes() == is_now


@pytest.mark.slow
def test_a_few_faults_for_real_leave_nothing_wrong(tmp_path: Path) -> None:
    """A kill, a stop, a bad server and a killed rank; the whole campaign is `make faults`."""
    chosen = (
        ("SIGKILL of the harness", "responses"),
        ("SIGTERM to the harness", "train"),
        ("server answers: cut", "answers"),
        ("SIGKILL of a rank", "train"),
    )
    with Ground(tmp_path) as ground:
        ground.learn("urls")
        for number, (harm, stage) in enumerate(chosen):
            outcome = faults.tried(ground, faults.Case(number, harm, stage, 0.4))
            assert outcome.struck and outcome.wrong == []
