"""Which packs train in which step, on any number of devices, and how documents become packs."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from core.errors import UserError
from train.config import TrainConfig
from train.data.order import MOST_WASTE, Order, Steps, steps
from train.data.packs import Packs, pack
from train.data.tokens import held_out
from train.settings.arguments import check

PACKS, WANTED = 1001, 96
"""Packs of 100 tokens each, and how many of them a step wants: 1001 leaves 41 for the last one."""


def made(devices: int, micro_batch: int) -> Steps:
    return steps(PACKS, PACKS * 100, WANTED * 100, (devices, micro_batch, 1))


def dealt(order: Order) -> list[Counter[int]]:
    """The places of each optimizer step over all devices, as Accelerate deals the batches of an
    order: batch k to device k modulo the devices."""
    size, devices = order.steps.micro_batch, order.steps.devices
    places = list(order)
    batches = [places[first : first + size] for first in range(0, len(places), size)]
    ranks = [batches[rank::devices] for rank in range(devices)]
    found = []
    for first in range(0, len(ranks[0]), order.steps.accumulation):
        of_step = [of_rank[first : first + order.steps.accumulation] for of_rank in ranks]
        found.append(Counter(itertools.chain(*itertools.chain(*of_step))))
    return found


def of_epoch(devices: int, micro_batch: int, epoch: int) -> list[Counter[int]]:
    order = Order(made(devices, micro_batch), seed=3)
    order.epoch = epoch
    found = dealt(order)
    for step in found:
        del step[PACKS]  # fillers
    return found


@pytest.mark.parametrize("epoch", [0, 1])
@pytest.mark.parametrize(("devices", "batch"), [(4, 2), (8, 1), (16, 4), (32, 3), (6, 1), (20, 1)])
def test_any_number_of_devices_takes_the_steps_of_one(devices: int, batch: int, epoch: int) -> None:
    assert of_epoch(devices, batch, epoch) == of_epoch(1, 1, epoch)


def loaded(devices: int, rank: int) -> Any:
    """The micro-batches of one device, as Accelerate itself prepares a loader for it."""
    from accelerate.data_loader import prepare_data_loader
    from torch.utils.data import DataLoader

    order = Order(made(devices, 1), seed=3)
    places: Any = list(range(PACKS + 1))
    loader: Any = DataLoader(places, sampler=order, collate_fn=list)
    return prepare_data_loader(
        loader, num_processes=devices, process_index=rank, put_on_device=False
    )


@pytest.fixture(scope="module")
def one_device() -> list[Counter[int]]:
    return of_epoch(1, 1, 0)


@pytest.mark.parametrize("devices", [4, 8, 16, 32])
def test_accelerate_gives_any_number_of_devices_the_steps_of_one(
    one_device: list[Counter[int]], devices: int
) -> None:
    ranks = [list(itertools.chain(*loaded(devices, rank))) for rank in range(devices)]
    passes = made(devices, 1).accumulation
    found = [
        Counter(itertools.chain(*(of_rank[first : first + passes] for of_rank in ranks)))
        for first in range(0, len(ranks[0]), passes)
    ]
    for step in found:
        del step[PACKS]  # fillers
    assert found == one_device


def curve(devices: int, folder: Path, **settings: Any) -> list[float]:
    """The learning rate of every step, by transformers' own count of steps and its scheduler."""
    import torch
    from transformers import Trainer, TrainingArguments

    args = TrainingArguments(
        output_dir=str(folder),
        use_cpu=True,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=made(devices, 1).accumulation,
        learning_rate=2e-5,
        **settings,
    )
    trainer = Trainer(model=torch.nn.Linear(1, 1), args=args)
    total = trainer.set_initial_training_values(args, loaded(devices, 0))[-1]
    trainer.create_optimizer_and_scheduler(total)
    optimizer, scheduler = trainer.optimizer, trainer.lr_scheduler
    rates = []
    for _ in range(total):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize(
    "settings",
    [
        {"num_train_epochs": 2, "lr_scheduler_type": "cosine", "warmup_steps": 5},
        {"num_train_epochs": 1.5, "lr_scheduler_type": "linear", "warmup_steps": 0.1},
    ],
)
def test_the_learning_rate_of_every_step_is_that_of_one_device(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    one = curve(1, tmp_path, **settings)
    assert len(one) == math.ceil(11 * settings["num_train_epochs"])
    assert max(one) == 2e-5 and one[0] == 0 and one[-1] < 1e-5
    for devices in (4, 8, 16, 32):
        assert curve(devices, tmp_path, **settings) == one


def test_an_epoch_trains_every_pack_once_and_the_next_in_another_order() -> None:
    first, second = of_epoch(8, 1, 0), of_epoch(8, 1, 1)
    assert sum(first, Counter()) == sum(second, Counter()) == Counter(range(PACKS))
    assert [sum(step.values()) for step in first] == [WANTED] * 10 + [PACKS - 10 * WANTED]
    assert first != second


@pytest.mark.parametrize(("devices", "passes"), [(1, 3), (2, 2), (4, 1), (8, 1)])
def test_a_step_that_wants_more_than_there_is_takes_an_epoch_and_no_idle_pass(
    devices: int, passes: int
) -> None:
    few = steps(3, 300, 262_144, (devices, 1, 1))
    assert (few.accumulation, few.steps_per_epoch) == (passes, 1)
    assert sorted(few.step(seed=0, step=0)) == [0, 1, 2]
    assert few.packs_per_step == 3 and few.waste == pytest.approx(1 - 3 / (devices * passes))


def test_another_seed_is_another_order() -> None:
    assert list(Order(made(8, 1), seed=1)) != list(Order(made(8, 1), seed=2))


@pytest.mark.parametrize("devices", [6, 8])
def test_fillers_are_counted_where_they_are_dealt(devices: int) -> None:
    taken = made(devices, 2)
    order = Order(taken, seed=0)
    places = list(order)
    for step in (0, taken.steps_per_epoch - 1):
        of_step = places[step * taken.places : (step + 1) * taken.places]
        for rank in range(devices):
            mine = [p for at, p in enumerate(of_step) if (at // 2) % devices == rank]
            assert taken.fillers(step, rank) == mine.count(PACKS)
    assert sum(taken.fillers(taken.steps_per_epoch - 1, rank) for rank in range(devices)) > 0


@pytest.mark.parametrize("step", [0, 10, 11, 25])
def test_the_packs_of_a_step_are_those_that_the_order_deals(step: int) -> None:
    taken = made(8, 1)
    epoch, place = divmod(step, taken.steps_per_epoch)
    assert Counter(taken.step(3, step)) == of_epoch(8, 1, epoch)[place]


def test_what_a_step_leaves_idle_is_told() -> None:
    six = steps(320, 32_000, 3200, (6, 1, 1))
    assert (six.packs_per_step, six.accumulation) == (32, 6)
    assert six.waste == pytest.approx(1 - 32 / 36)


def test_too_many_devices_for_a_step_is_an_error_that_names_others() -> None:
    with pytest.raises(UserError, match=r"32 packs .* 44% of the work") as refused:
        steps(320, 32_000, 3200, (19, 3, 1))
    text = str(refused.value)
    named = text[text.index("rain on ") + 8 : text.index(" device(s) or")]
    for count in named.split(", "):
        assert Steps(320, 32, int(count), 3).waste <= MOST_WASTE


def test_devices_that_leave_just_a_quarter_idle_are_among_those_named() -> None:
    with pytest.raises(UserError, match=r"Train on 1, 2, 3, 4 device\(s\), or raise"):
        steps(320, 32_000, 300, (8, 1, 1))  # 3 packs a step: 2 and 4 devices have 4 places
    with pytest.raises(UserError, match="batch_size to 1, or raise"):
        steps(320, 32_000, 300, (4, 3, 1))


def test_without_tokens_per_step_a_step_is_what_the_devices_take() -> None:
    assert steps(320, 32_000, None, (6, 2, 3)) == Steps(320, 36, 6, 2)


# --- packs ---

LENGTHS = np.random.default_rng(0).lognormal(6, 0.8, 6000).astype(np.int64).clip(1, 20_000)


def covered(packs: Packs) -> dict[int, list[tuple[int, int]]]:
    """The pieces (start, end) of each document, in order."""
    found: dict[int, list[tuple[int, int]]] = {}
    for document, start, length in zip(packs.documents, packs.starts, packs.lengths, strict=True):
        found.setdefault(int(document), []).append((int(start), int(start + length)))
    return {document: sorted(pieces) for document, pieces in found.items()}


@pytest.mark.parametrize("strategy", ["bfd_split", "wrapped"])
def test_packing_loses_no_token_and_repeats_none(strategy: str) -> None:
    pieces = covered(pack(LENGTHS, 2048, strategy))
    for document, length in enumerate(LENGTHS):
        ends = [0, *(end for _, end in pieces[document])]
        assert [start for start, _ in pieces[document]] == ends[:-1] and ends[-1] == length


@pytest.mark.parametrize("strategy", ["bfd", "bfd_split", "wrapped"])
def test_no_pack_exceeds_the_length(strategy: str) -> None:
    packs = pack(LENGTHS, 2048, strategy)
    full = [int(packs.lengths[packs.pieces(p)].sum()) for p in range(len(packs))]
    assert max(full) == 2048 and sum(full) == packs.lengths.sum()


def test_bfd_truncates_and_keeps_documents_whole_otherwise() -> None:
    pieces = covered(pack(LENGTHS, 2048, "bfd"))
    assert pieces == {d: [(0, min(int(n), 2048))] for d, n in enumerate(LENGTHS)}


def test_pieces_of_wrapped_packs_lie_in_the_order_of_the_documents() -> None:
    packs = pack(np.array([5, 3, 4]), 4, "wrapped")
    assert packs.documents.tolist() == [0, 0, 1, 2]
    assert packs.lengths.tolist() == [4, 1, 3, 4] and packs.ends.tolist() == [1, 3, 4]


def test_best_fit_takes_the_fullest_pack_that_has_room() -> None:
    packs = pack(np.array([6, 5, 4, 3, 2]), 10, "bfd")
    found = [packs.documents[packs.pieces(p)].tolist() for p in range(len(packs))]
    assert found == [[0, 2], [1, 3, 4]]


def test_packs_of_a_whole_set_are_full() -> None:
    lengths = np.random.default_rng(0).lognormal(6.2, 0.6, 60_000).astype(np.int64).clip(20, 8192)
    packs = pack(lengths, 8192, "bfd_split")
    assert lengths.sum() / (len(packs) * 8192) >= 0.995


# --- rows that are held out ---


def test_a_share_is_held_out_the_same_rows_of_every_set_that_has_them() -> None:
    ids = pl.Series([f"r{i}" for i in range(1000)])
    held = set(ids.filter(held_out(ids, 0.01)))
    assert len(held) == 10
    half = ids.head(500)
    assert held & set(half) <= set(half.filter(held_out(half, 0.02)))


def test_at_least_one_row_is_held_out_and_never_all() -> None:
    ids = pl.Series(["a", "b", "c"])
    assert held_out(ids, 0.001).sum() == 1 and held_out(ids, 0.99).sum() == 2
    assert not held_out(ids, 0.0).any() and not held_out(ids.head(1), 0.5).any()


# --- settings that packs and steps stand in for ---


@pytest.mark.parametrize(
    "trainer",
    [
        {"shuffle_dataset": True},
        {"train_sampling_strategy": "group_by_length"},
        {"dataloader_drop_last": True},
        {"auto_find_batch_size": True},
        {"truncation_mode": "keep_end"},
        {"dataset_kwargs": {"skip_prepare_dataset": True}},
    ],
)
def test_settings_without_effect_are_refused(trainer: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"train.trainer.{next(iter(trainer))}: .* no effect"):
        check(TrainConfig(base="some/base", chat_template_path="chatml", trainer=trainer))


def test_an_unknown_packing_strategy_names_the_nearest() -> None:
    trainer = {"packing_strategy": "bdf_split"}
    with pytest.raises(UserError, match="'bdf_split'; did you mean 'bfd_split'"):
        check(TrainConfig(base="some/base", chat_template_path="chatml", trainer=trainer))
