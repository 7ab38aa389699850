"""Where the time of a training's steps goes, why it is slow, and figures of all devices that are
gathered once a log line."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from train.config import TrainConfig
from train.resuming import clock
from train.resuming.later import Later
from train.sizes import slowness


def test_communication_that_other_kernels_hide_is_not_waited_for() -> None:
    kernels = [
        ("gemm", (0.0, 2.0)),
        ("ncclDevKernel_ReduceScatter", (1.0, 4.0)),  # half a second of it hidden on each side
        ("gemm", (3.5, 5.0)),
        ("RCCL_ncclDevKernel_AllGather", (6.0, 7.0)),
        ("Memcpy HtoD", (5.0, 5.5)),
    ]
    found = clock.shares(kernels, 10.0)
    assert found is not None
    assert found.communication == pytest.approx((1.5 + 1.0) / 10)
    assert found.idle == pytest.approx((10 - 6.5) / 10)
    assert clock.shares([], 10.0) is None, "a trace that saw nothing says nothing"


def test_the_time_of_a_line_is_data_communication_and_the_rest() -> None:
    on_cpu = clock.split(10.0, 1.0, 2.5, math.nan)
    assert on_cpu == {
        "seconds": 10.0,
        "data_seconds": 1.0,
        "communication_seconds": 2.5,
        "compute_seconds": 6.5,
    }
    on_gpu = clock.split(10.0, 1.0, 2.0, 3.0)
    assert (on_gpu["idle_seconds"], on_gpu["compute_seconds"]) == (3.0, 4.0)
    not_traced = clock.split(10.0, 1.0, math.nan, math.nan)
    assert not_traced == {"seconds": 10.0, "data_seconds": 1.0}


def test_a_clock_counts_waits_for_batches_and_in_collectives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def slowly() -> Iterator[int]:
        for number in range(3):
            time.sleep(0.02)
            yield number

    heard = clock.Collectives()
    monkeypatch.setattr(clock, "COLLECTIVES", heard)
    began = heard._timed(lambda: time.sleep(0.03))
    later = heard._timed(lambda: SimpleNamespace(wait=lambda: time.sleep(0.05), kept="as it is"))
    began()
    watch = clock.Clock(gpu=False)
    watch.start()
    fetched = watch.fetched(slowly())
    assert [next(fetched), next(fetched)] == [0, 1]
    assert next(fetched) == 2
    began()
    work = later()
    assert work.kept == "as it is"
    work.wait()
    data, communication, idle = watch.waits(1.0)
    assert 0.06 <= data < 0.5
    assert 0.08 <= communication < 0.5, "and nothing of what was before the line"
    assert math.isnan(idle)


# -- why a training is slow ------------------------------------------------------------------------


def lines(mfu: float = 0.1, **waits: float) -> list[dict[str, Any]]:
    return [{"mfu": mfu, "seconds": 10.0, **waits} for _ in range(slowness.AFTER)]


def config(**changes: Any) -> TrainConfig:
    trainer = {"max_length": 8192, "per_device_train_batch_size": 1, **changes.pop("trainer", {})}
    flash = {"attn_implementation": "flash_attention_2"}
    return TrainConfig(base="x/y", trainer=trainer, **{"model_init": flash, **changes})


@pytest.mark.parametrize(
    ("waits", "changes", "said"),
    [
        ({"data_seconds": 4.0}, {}, "40% of a step waits for data: raise trainer.dataloader"),
        ({"communication_seconds": 3.0}, {"zero_stage": 3}, "30% of a step waits for other devic"),
        ({"communication_seconds": 3.0}, {"zero_stage": 3}, "use zero_stage 2 where"),
        ({"communication_seconds": 3.0}, {}, "NCCL_DEBUG"),
        ({"idle_seconds": 5.0}, {}, "idle while Python prepares its work: raise trainer.per_devi"),
        ({"idle_seconds": 5.0}, {"offload": True}, "the optimizer steps on the CPU"),
        ({}, {"model_init": {}}, "attention is sdpa"),
        ({}, {"trainer": {"max_length": 1024}}, "a pass has 1,024 tokens"),
        ({}, {"trainer": {"packing": False}}, "rows are padded"),
        ({}, {"trainer": {"bf16": False}}, "it computes in fp32"),
        ({}, {}, "layers are computed twice"),
        ({}, {"checkpointing": "none"}, "no wait and no setting explains it"),
    ],
)
def test_a_slow_training_says_why_and_what_to_do(
    waits: dict[str, float], changes: dict[str, Any], said: str
) -> None:
    why = slowness.why(lines(**waits), config(**changes))
    assert why is not None and why.startswith("MFU is 10.0%, under 20%: ") and said in why


def test_the_longest_wait_is_named_first_and_short_ones_not_at_all() -> None:
    why = slowness.why(
        lines(data_seconds=2.0, communication_seconds=3.0, idle_seconds=1.4), config()
    )
    assert why is not None and why.index("30%") < why.index("20% of a step") and "idle" not in why


def test_a_training_that_is_fast_or_has_only_begun_says_nothing() -> None:
    assert slowness.why(lines(mfu=0.2, data_seconds=4.0), config()) is None
    assert slowness.why(lines()[1:], config()) is None
    assert slowness.why([{"seconds": 10.0}] * 20, config()) is None, "no peak is known"


# -- figures that are gathered later ---------------------------------------------------------------


@pytest.fixture
def alone() -> Iterator[None]:
    """A process group of one."""
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("alone")
def test_figures_are_worked_out_as_the_trainer_means_them() -> None:
    later, accelerator = Later(), SimpleNamespace()
    train: dict[str, list[Any]] = {"entropy": [], "rewards": [], "empty": []}
    trainer = SimpleNamespace(_metrics={"train": train}, _total_train_tokens=100)
    for batch in (1.0, 3.0):
        with later.instead_of(accelerator):
            count = accelerator.gather_for_metrics(torch.tensor(4)).sum()
            entropy = accelerator.gather_for_metrics(torch.tensor(batch)).sum()
            none = accelerator.gather_for_metrics(torch.tensor(0)).sum()
            pairs = accelerator.gather(torch.tensor([batch, batch + 2]))
        train["entropy"].append((entropy / count).item() if count > 0 else 0.0)
        train["empty"].append((entropy / none).item() if none > 0 else 0.0)
        train["rewards"].append(pairs.mean().item())
        trainer._total_train_tokens += count.item() // 1
    assert not vars(accelerator), "its own gathers are back"
    later.work_out(trainer)
    assert train == {"entropy": [0.25, 0.75], "rewards": [2.0, 4.0], "empty": [0.0, 0.0]}
    assert trainer._total_train_tokens == 108
    later.work_out(trainer)
    assert trainer._total_train_tokens == 108
