"""What a trainer of TRL's gets to read packs in our order, and to measure the loss on rows that are
held out. Only the training process imports this."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from train.data.order import FILLER_TOKENS, Order
from train.data.rows import IGNORED

COLUMNS = ["input_ids", "labels", "seq_lengths"]


class InOrder:
    """A trainer that takes the steps of an `Order`; its dataset's last row is the filler."""

    args: Any
    state: Any
    control: Any
    model: Any
    model_wrapped: Any
    accelerator: Any
    train_dataset: Any
    data_collator: Any

    def feed(self, order: Order, held_out: Path | None, log: Path) -> None:
        """Take the steps of `order`; measure the loss on the packs of `held_out`, an Arrow file as
        `train.data.tokens` writes it (None: there are none), into `log`, a line a measurement."""
        self.order, self._log = order, log
        self._held_out = _rows(Dataset.from_file(str(held_out))) if held_out else None

    def get_train_dataloader(self) -> Any:
        """The packs in the order's places. Accelerate deals batch k to process k modulo the
        processes, which is how `Order` lays them."""
        loader = DataLoader(
            _rows(self.train_dataset),
            batch_size=self.order.steps.micro_batch,
            sampler=self.order,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            persistent_workers=self.args.dataloader_persistent_workers,
            prefetch_factor=self.args.dataloader_prefetch_factor,
        )
        return self.accelerator.prepare(loader)

    def rows_of(self, step: int) -> list[str]:
        """Ids of the rows that all devices see in optimizer step `step`, counted from 1."""
        packs = self.order.steps.step(self.order.seed, step - 1)
        return list(
            dict.fromkeys(each for pack in packs for each in self.train_dataset[pack]["ids"])
        )

    def filler_tokens(self) -> int:
        """Tokens of fillers in this device's part of the optimizer step that is to be taken."""
        step, rank = self.state.global_step, self.args.process_index
        return FILLER_TOKENS * self.order.steps.fillers(step, rank)

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """The mean loss of a token of the rows that are held out, over all devices: the same on any
        number of them. Logged, and added to the log of `feed`."""
        if self._held_out is None:
            return {}
        sums = torch.zeros(2, dtype=torch.float64, device=self.args.device)
        self.model_wrapped.eval()
        with torch.no_grad():
            for batch in self._held_out_batches():
                bearing = (batch["labels"][..., 1:] != IGNORED).sum()
                loss = self.compute_loss(self.model_wrapped, batch)  # type: ignore[attr-defined]
                sums += torch.stack([loss.double() * bearing, bearing.double()])
        torch.distributed.all_reduce(sums)
        loss, tokens = sums.tolist()
        figures = {"eval_loss": loss / max(1, tokens)}
        self.log(dict(figures))  # type: ignore[attr-defined]
        self.model_wrapped.train()
        # As the trainer's own does: it resets the wish to evaluate.
        self.control = self.callback_handler.on_evaluate(  # type: ignore[attr-defined]
            self.args, self.state, self.control, figures
        )
        if self.args.process_index == 0:
            line = {"step": self.state.global_step, "epoch": self.state.epoch, **figures}
            with self._log.open("a") as lines:
                lines.write(json.dumps({**line, "loss_tokens": int(tokens)}) + "\n")
        return figures

    def _held_out_batches(self) -> Iterator[Any]:
        """This device's batches of the packs that are held out, as many as every other device's."""
        rows, devices = self._held_out, self.args.world_size
        assert rows is not None
        filler = len(rows) - 1
        mine = list(range(self.args.process_index, filler, devices))
        mine += [filler] * (-(-filler // devices) - len(mine))
        size = self.order.steps.micro_batch
        for first in range(0, len(mine), size):
            batch = self.data_collator([rows[place] for place in mine[first : first + size]])
            yield self._prepare_inputs(batch)  # type: ignore[attr-defined]


class Epochs(TrainerCallback):  # type: ignore[misc]
    """Tells an order which epoch begins, and when the loss on held-out rows is to be measured:
    after the first step, as the paper did, and after each epoch."""

    def __init__(self, order: Order, *, measures: bool) -> None:
        self.order, self.measures = order, measures

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """From the steps done, so that a resumed training is in the epoch that it left."""
        self.order.epoch = state.global_step // self.order.steps.steps_per_epoch

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Called after each optimizer step."""
        of_epoch = state.global_step % self.order.steps.steps_per_epoch == 0
        ends = of_epoch or state.global_step in (1, state.max_steps)
        control.should_evaluate = control.should_evaluate or (self.measures and ends)


def _rows(dataset: Any) -> Any:
    """Token ids and labels as arrays, which cost a fraction of lists to read."""
    some = dataset.select_columns(COLUMNS)
    return some.with_format("numpy", columns=COLUMNS[:2], output_all_columns=True)
