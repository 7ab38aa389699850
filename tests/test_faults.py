"""The fault campaign in small: what it would notice, that it goes on where it was, and (slow) a
fault of each sort for real."""

from __future__ import annotations

import json
import os
import socket
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import polars as pl
import pytest
from filelock import FileLock

from core.cells.journal import Journal
from tests.campaigns import faults, real
from tests.campaigns.faults import Case, Outcome, cases
from tests.campaigns.ground import STAGES, Ground
from tests.campaigns.harm import HARMS, REAL_HARMS, damage
from tests.campaigns.moments import watch
from tests.campaigns.remains import Place, doubled, held, left_over, role, unlike

PAIRS = sum(len(harm.stages) for harm in HARMS.values())
REAL_PAIRS = sum(len(harm.stages) for harm in REAL_HARMS.values())


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """A store with one result and one column, and nothing left over."""
    result = tmp_path / "store" / "results" / "select" / "k"
    column = tmp_path / "store" / "columns" / "quality" / "k"
    for folder in (result, column, tmp_path / "t"):
        folder.mkdir(parents=True)
    (result / "manifest.json").write_text(json.dumps({"digest": "d"}))
    pl.DataFrame({"id": ["a", "b"], "q": [1, 2]}).write_parquet(column / "part-0.parquet")
    return Place(tmp_path, tmp_path / "store", "urls", "select", tmp_path / "t")


def test_every_fault_is_done_to_every_stage_that_it_can_be_done_to() -> None:
    drawn = {(case.harm, case.stage) for case in cases(PAIRS, 3)}
    assert drawn == {(name, stage) for name, harm in HARMS.items() for stage in harm.stages}
    assert {stage for _, stage in drawn} == STAGES.keys()


def test_forty_cases_on_the_real_stack_are_every_pair_of_a_fault_and_a_stage_once() -> None:
    drawn = cases(40, 3, on_real=True)
    assert REAL_PAIRS == 40 == len({(case.harm, case.stage) for case in drawn})
    assert {case.stage for case in drawn} == real.STAGES.keys()
    assert all(case.real and case.how is REAL_HARMS[case.harm] for case in drawn)
    assert not {case.number for case in drawn} & {case.number for case in cases(PAIRS, 3)}


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
    case = cases(1, 0)[0]
    first = Outcome(case, True, 2, 1, ["x"], 1.5, "abc")
    again, other = replace(first, wrong=[], code=0), replace(first, case=cases(2, 0)[1])
    lines = [json.dumps(asdict(each)) + "\n" for each in (first, other, again)]
    (tmp_path / "cases.jsonl").write_text("".join(lines))
    assert faults.done_before(tmp_path / "cases.jsonl") == [again, other]
    assert "| all | 2 | 2 | 2 | 1 | 1 |" in faults.table([again, other])
    assert "2 by abc" in faults.page([again, other])


def test_a_run_that_was_never_struck_has_not_recovered() -> None:
    missed = Outcome(cases(1, 0)[0], False, 0, 1, [], 1.5)
    assert "| all | 1 | 1 | 0 | 0 | 0 |" in faults.table([missed])


NOTES = "up 7 6 5\nasked tags\nasked answers\nanswered answers\n"


@pytest.mark.parametrize(
    ("more", "comes"),
    [
        ("", False),
        ("answered tags\n", False),
        ("answered tags\nasked tags\n", True),
        ("asked tags\n", False),
    ],
    ids=["none answered", "none open", "some of both", "none answered, two open"],
)
def test_a_server_is_struck_once_it_has_answered_and_others_are_open(
    place: Place, more: str, comes: bool
) -> None:
    own = replace(place, mode="own")
    ground = Ground(place.folder, totals={"own": Counter(tags=1)})
    own.notes.write_text(NOTES + more)
    assert watch(ground, own, "tags", 0.0, Counter())() == comes
    assert own.pids == ({"server": 7, "supervisor": 6} if comes else {})


def test_a_training_is_struck_after_so_many_of_its_steps(place: Place) -> None:
    ground = Ground(place.folder, totals={"urls": Counter(train=22)})
    reached = watch(ground, place, "train", 0.1, Counter())
    log = place.store / "results" / "train" / "k.partial" / "log.jsonl"
    log.parent.mkdir(parents=True)
    log.write_text("{}\n{}\n")
    assert not reached()
    log.write_text("{}\n{}\n{}\n")
    assert reached()


@pytest.mark.parametrize(
    ("line", "known"),
    [
        ("python -P core/serving/supervisor.py env python -m tests.campaigns.served", "supervisor"),
        ("python -m tests.campaigns.served --port 1", "server"),
        ("python -m vllm.entrypoints.openai.api_server --port 1", "server"),
        ("VLLM::EngineCore", "engine"),
        ("VLLM::Worker_TP0", "worker"),
        ("python -m accelerate.commands.launch --num_processes 2 -m train.sft out", "launcher"),
        ("python -u -m train.sft out", "rank"),
        ("python tests/campaigns/tiny_trainer.py out", "launcher"),
        ("python tests/campaigns/tiny_trainer.py out rank", "rank"),
        ("bash", ""),
    ],
)
def test_processes_are_known_by_what_they_are(line: str, known: str) -> None:
    assert role(line) == known


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


def test_cells_of_a_journal_that_nobody_needed_to_take_up_count(place: Place) -> None:
    wanted = held(place.store)
    part = next(place.store.rglob("part-0.parquet"))
    cells = pl.read_parquet(part)
    cells.head(1).write_parquet(part)
    Journal(part.parent).append(cells)
    assert held(place.store) == wanted and not list(doubled(place.store))


def test_where_cells_were_lost_other_rows_may_be_measured_and_none_otherwise(place: Place) -> None:
    wanted = held(place.store)
    part = next(place.store.rglob("part-0.parquet"))
    pl.DataFrame({"id": ["b", "c"], "q": [2, 9]}).write_parquet(part)
    said = ["columns/quality/k lacks 1 rows and has 1 others"]
    assert list(unlike(place.store, wanted)) == said
    assert list(unlike(place.store, wanted, lost=True)) == []
    pl.DataFrame({"id": ["b", "c"], "q": [3, 9]}).write_parquet(part)
    assert list(unlike(place.store, wanted, lost=True)) == [
        "columns/quality/k holds something else"
    ]


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


def test_a_port_that_still_listens_and_shared_memory_that_nobody_uses_are_noticed(
    place: Place,
) -> None:
    piece = Path("/dev/shm") / f"faults-test-{os.getpid()}"
    piece.touch()
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            left = set(left_over(replace(place, ports={port})))
            assert {f"shared memory: {piece.name}", f"port: {port}"} <= left
        known = place.shared | {piece.name}
        left = set(left_over(replace(place, ports={port}, shared=known)))
        assert not {f"shared memory: {piece.name}", f"port: {port}"} & left
    finally:
        piece.unlink()


@pytest.mark.parametrize(
    ("how", "is_now"), [("flipped", b"abbd"), ("cut off", b"ab"), ("emptied", b"")]
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
        ("server answers half a body", "answers"),
        ("SIGKILL of a rank", "train"),
    )
    with Ground(tmp_path) as ground:
        ground.learn("urls")
        for number, (harm, stage) in enumerate(chosen):
            outcome = faults.tried(ground, Case(number, harm, stage, 0.4))
            assert outcome.struck and outcome.wrong == []
