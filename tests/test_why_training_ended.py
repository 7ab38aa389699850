"""Why a training ended, of what its ranks wrote down and what torch logs when one is gone."""

from __future__ import annotations

from pathlib import Path

import pytest

from train import launch

KILLED_BY_ELASTIC = (
    "  exitcode  : -9 (pid: 41)\n  traceback : Signal 9 (SIGKILL) received by PID 41"
)
FALLOUT = [
    "RuntimeError: [/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by "
    "peer [127.0.0.1]:46122",
    "RuntimeError: [../third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting "
    "1800000ms for recv operation to complete",
    "RuntimeError: [enforce fail at gloo/transport/tcp/pair.cc:446] op.preamble.length <= n",
    "RuntimeError: Application timeout caused pair closure",
    "torch.distributed.DistBackendError: NCCL error in: ProcessGroupNCCL.cpp:2395, remote process "
    "exited or there was a network error",
    "torch.distributed.DistNetworkError: failed to recv, got 0 bytes",
    "torch.distributed.elastic.multiprocessing.api.SignalException: Process 41 got signal: 15",
    "RuntimeError: Rank 1 failed to pass monitoredBarrier in 1800000 ms",
    "ConnectionResetError: [Errno 104] Connection reset by peer",
    "BrokenPipeError: [Errno 32] Broken pipe",
]


def ended(out: Path, log: str, noted: str = "", code: int | None = 1) -> str:
    (out / "scratch").mkdir()
    if noted:
        (out / "scratch" / "error-0.txt").write_text(noted)
    (out / "trainer.log").write_text(log)
    return launch._reason(out, 0, code)


@pytest.mark.parametrize("said", FALLOUT)
def test_a_killed_rank_is_said_whatever_its_peers_say(tmp_path: Path, said: str) -> None:
    log = f"[rank0]: {said}\n{KILLED_BY_ELASTIC}"
    assert ended(tmp_path, log, noted=said) == launch.KILLED


def test_a_cause_that_a_rank_noted_comes_before_the_kill_that_followed(tmp_path: Path) -> None:
    noted = "ValueError: the loss is nan"
    assert ended(tmp_path, KILLED_BY_ELASTIC, noted) == "ValueError: the loss is nan."


def test_a_crash_in_a_library_is_named(tmp_path: Path) -> None:
    log = f"{FALLOUT[0]}\n  exitcode  : -15 (pid: 40)\n  exitcode  : -7 (pid: 41)\n"
    said = ended(tmp_path, log, noted=FALLOUT[0])
    assert "SIGBUS" in said and "/dev/shm" in said


def test_what_peers_say_is_better_than_nothing(tmp_path: Path) -> None:
    assert ended(tmp_path, "", noted=FALLOUT[3]) == f"{FALLOUT[3]}."
