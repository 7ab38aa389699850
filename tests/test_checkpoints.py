"""train/resuming/checkpoints.py: which checkpoint a training resumes from, as its ranks see it on
disks that do not always show all of them the same."""

from __future__ import annotations

import errno
import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from core.errors import UserError
from train.resuming import checkpoints

FILES = {
    "model.safetensors": b"12345",
    "rng_state_0.pth": b"0",
    "rng_state_1.pth": b"1",
    "global_step5/mp_rank_00_model_states.pt": b"1234",
    "global_step5/bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt": b"123",
    "global_step5/bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt": b"123",
}
OF_RANK_1 = "global_step5/bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt"


def checkpoint(
    folder: Path, step: int, processes: int = 2, more: dict[str, bytes] | None = None
) -> Path:
    path = folder / f"checkpoint-{step}"
    for name, content in (FILES | (more or {})).items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    written = [checkpoints.written(path, rank, processes) for rank in range(processes)]
    checkpoints.mark(path, processes, written)
    return path


def on_ranks(world: int, work: Callable[[int, checkpoints.Gather], Any]) -> list[Any]:
    """`work(rank, gather)` on `world` threads that gather from each other, as ranks do."""
    barrier, board, results = threading.Barrier(world, timeout=60), [None] * world, [None] * world

    def rank(number: int) -> None:
        def gather(value: Any) -> list[Any]:
            board[number] = value
            barrier.wait()
            every = list(board)
            barrier.wait()
            return every

        try:
            results[number] = work(number, gather)
        except UserError as error:
            results[number] = error

    threads = [threading.Thread(target=rank, args=(number,)) for number in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def resumable(scratch: Path, said: list[str], world: int = 2) -> list[Any]:
    """What each rank resumes from."""
    return on_ranks(
        world,
        lambda rank, gather: checkpoints.resumable(scratch, rank, world, gather, said.append),
    )


def test_every_file_has_one_rank_that_answers_for_it() -> None:
    owned = [checkpoints.own(FILES, rank, 2) for rank in (0, 1)]
    assert sorted([*owned[0], *owned[1]]) == sorted(FILES)
    assert owned[1] == ["rng_state_1.pth", OF_RANK_1]


def test_rank_0_answers_for_files_of_ranks_that_are_no_more() -> None:
    assert sorted(checkpoints.own(FILES, 0, 1)) == sorted(FILES)


def test_the_newest_complete_checkpoint_is_found_by_every_rank(tmp_path: Path) -> None:
    checkpoint(tmp_path, 5)
    newest = checkpoint(tmp_path, 10)
    assert resumable(tmp_path, []) == [newest, newest]


@pytest.mark.parametrize("harm", ["unmarked", "missing", "short", "flipped", "of rank 1"])
def test_an_incomplete_checkpoint_is_set_aside_and_named(tmp_path: Path, harm: str) -> None:
    older, newer = checkpoint(tmp_path, 5), checkpoint(tmp_path, 10)
    if harm == "unmarked":
        (newer / checkpoints.MARK).unlink()
    elif harm == "missing":
        (newer / "global_step5" / "mp_rank_00_model_states.pt").unlink()
    elif harm == "short":
        (newer / "model.safetensors").write_bytes(b"123")
    elif harm == "flipped":
        (newer / "model.safetensors").write_bytes(b"12344")
    else:
        (newer / OF_RANK_1).write_bytes(b"1")
    said: list[str] = []
    assert resumable(tmp_path, said) == [older, older]
    aside = tmp_path / "aside-checkpoint-10"
    assert len(said) == 1 and "step 10 is incomplete" in said[0] and str(aside) in said[0]
    assert not newer.exists() and (aside / "rng_state_0.pth").read_bytes() == b"0"


def test_what_one_rank_cannot_see_is_resumed_from_by_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine's view of a shared disk lags behind: only rank 1 sees an old size."""
    older = checkpoint(tmp_path, 5)
    checkpoint(tmp_path, 10)
    honest = checkpoints.fault

    def stale(folder: Path, rank: int = 0, world: int = 1) -> str | None:
        return "x has 0 bytes" if rank == 1 and "10" in folder.name else honest(folder, rank, world)

    monkeypatch.setattr(checkpoints, "fault", stale)
    said: list[str] = []
    assert resumable(tmp_path, said) == [older, older]
    assert "rank 1: x has 0 bytes" in said[0]


def test_what_was_set_aside_before_stays_beside_what_is_set_aside_now(tmp_path: Path) -> None:
    for _ in range(3):
        checkpoints.set_aside(checkpoint(tmp_path, 5))
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [f"aside-checkpoint-5{more}" for more in ("", "-1", "-2")]


def test_nothing_complete_means_the_base_model(tmp_path: Path) -> None:
    (checkpoint(tmp_path, 5) / checkpoints.MARK).unlink()
    assert resumable(tmp_path, []) == [None, None]


def test_a_checkpoint_of_another_world_size_is_refused_unless_it_is_converted(
    tmp_path: Path,
) -> None:
    folder = checkpoint(tmp_path, 5)
    (refusal,) = resumable(tmp_path, [], world=1)
    assert "made by 2 process(es) and is not converted for the 1 " in str(refusal)
    made = json.loads((folder / checkpoints.MARK).read_text())
    (folder / checkpoints.MARK).write_text(json.dumps(made | {"elastic": True}))
    assert resumable(tmp_path, [], world=1) == [folder]


def test_the_newest_checkpoints_stay_and_those_without_a_mark_do_not_count(tmp_path: Path) -> None:
    for step in (5, 10, 15, 20):
        checkpoint(tmp_path, step)
    (tmp_path / "checkpoint-20" / checkpoints.MARK).unlink()
    checkpoints.rotate(tmp_path, 2)
    assert [step for step, _ in checkpoints.steps(tmp_path)] == [20, 15, 10]


def test_without_a_limit_all_stay(tmp_path: Path) -> None:
    for step in (5, 10, 15):
        checkpoint(tmp_path, step)
    checkpoints.rotate(tmp_path, None)
    assert [step for step, _ in checkpoints.steps(tmp_path)] == [15, 10, 5]


def test_a_checkpoint_that_would_not_fit_is_not_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint(tmp_path, 5, more={"global_step5_universal/zero/norm/fp32.pt": b"123456"})
    checkpoints.set_aside(checkpoint(tmp_path, 3))
    size = sum(map(len, FILES.values()))  # the next one has no copy for other numbers of processes
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=size))
    checkpoints.check_room(tmp_path, 10)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=size - 1))
    with pytest.raises(UserError, match="no room for the checkpoint of step 10") as refusal:
        checkpoints.check_room(tmp_path, 10)
    assert "aside-checkpoint-3 in it can go" in str(refusal.value)
    assert "continues from step 5" in str(refusal.value)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_told_from_other_errors(tmp_path: Path, error: Exception) -> None:
    assert checkpoints.is_full(tmp_path, error)
    assert not checkpoints.is_full(tmp_path, RuntimeError("shape mismatch"))
