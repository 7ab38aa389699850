"""What any of TRL's trainers needs to be left alone for days: it stops where it diverges, drops or
tells spikes, saves when it is asked to stop, and writes down what it did. A mixin; only training
processes import this.

It hangs on five methods of transformers' Trainer (compute_loss, training_step, get_batch_samples,
log, _save_checkpoint) and on callbacks; tests/test_train_guards.py fails when one of them is no
longer called as it is today.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from core.errors import Stopped, UserError
from core.files import read_json, write_atomic
from train.config import TrainConfig
from train.data.rows import IGNORED
from train.resuming import checkpoints, clock, divergence, elastic, stopping
from train.resuming.later import Later
from train.resuming.ranks import GPU, RANK, WORLD, gather, say
from train.resuming.record import read_log
from train.sizes import slowness, speed

WATCHED = "watched.json"
"""In a checkpoint: what the watch over loss and gradient norm remembers."""


@dataclass(frozen=True)
class Guards:
    """What a guarded trainer is told beside its TRL arguments."""

    out: Path
    """The folder of the training."""

    config: TrainConfig

    resumed: Path | None
    """The checkpoint that it continues from."""

    per_step: int | None = None
    """Packs of an optimizer step, or pairs; another number of processes goes on from a checkpoint
    only where they are the same."""

    flops: float | None = None
    """FLOPs a token; gives MFU where the device's peak is known."""

    rows: Callable[[int], Sequence[str]] | None = None
    """Optimizer step (from 1) -> ids of the rows that all ranks see in it."""


class Guarded(Trainer):  # type: ignore[misc]
    """Before one of TRL's trainers: `class Trainer(Guarded, SFTTrainer)`. Call `guard` before
    `train`."""

    def guard(self, guards: Guards) -> None:
        """Begin to watch. Every rank calls it."""
        self.guards = guards
        earlier: dict[str, Any] = {}
        if guards.resumed is not None and (guards.resumed / WATCHED).exists():
            earlier = read_json(guards.resumed / WATCHED)
        config = guards.config
        self.watch = divergence.Watch(config.spikes, config.spike_threshold, gather(earlier)[0])
        self._log_file = guards.out / "log.jsonl"
        lines = read_log(self._log_file)
        self._tokens: int = lines[-1]["tokens"] if lines else 0
        self._loss_tokens: int = lines[-1]["loss_tokens"] if lines else 0
        # Tokens and loss-bearing ones since the last line, on this device.
        self._new = torch.zeros(2, dtype=torch.int64, device=self.args.device)
        self._since: float | None = None
        self.clock, self.later = clock.Clock(gpu=GPU), Later()
        self._lines: list[dict[str, Any]] = []  # of this start, until its speed is judged
        self._share: Any = None  # of this micro-batch, of the step's loss, on this rank
        self._step_loss: Any = 0.0
        self._verdict = divergence.GO
        self.stop_agreed = False
        self._asked: Callable[[], bool] = lambda: False
        self.add_callback(Repaired(self))
        self.add_callback(KeepCheckpoints(self))
        self.add_callback(EndSteps(self))

    def train_until_asked(self, checkpoint: Path | None) -> None:
        """Train from `checkpoint`, and save and stop where that is asked for. Raises Stopped then,
        and UserError where the training diverges."""
        out = self.guards.out
        file = stopping.listening(out)
        with stopping.noticing() as signalled:
            if RANK == 0:
                file.touch()
            self._asked = lambda: signalled() or (RANK == 0 and not file.exists())
            try:
                self.train(resume_from_checkpoint=checkpoint and str(checkpoint))
            finally:
                if RANK == 0:
                    file.unlink(missing_ok=True)
        step, total = self.state.global_step, self.state.max_steps
        if self.stop_agreed:
            if RANK == 0:
                stopping.note(out, step, total)
            torch.distributed.barrier()
            raise Stopped(f"asked to stop: saved step {step} of {total}")
        self._act(self.watch.end(), step)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """TRL's loss. With a step's last micro-batch, before its backward pass (inside which the
        optimizer steps), the whole step is judged: the one moment when all of its loss is known and
        none of it has changed the weights."""
        with self.later.instead_of(self.accelerator):
            result = super().compute_loss(
                model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch
            )
        if not self.model.training:
            return result
        loss, *outputs = result if return_outputs else (result,)
        # As the trainer scales it: over the tokens of the step already, or over its micro-batches.
        parts = 1 if num_items_in_batch is not None else self.current_gradient_accumulation_steps
        self._share = loss.detach() / parts
        self._step_loss = self._step_loss + self._share
        if self.accelerator.sync_gradients:
            self._judge_loss()
            if self.dropped_step:
                loss = loss * math.nan
        return (loss, *outputs) if return_outputs else loss

    def _judge_loss(self) -> None:
        """Judge the step's loss over all ranks, and agree on stopping: one all-reduce for both."""
        asked = float(self._asked())
        sums = torch.stack([self._step_loss.double(), torch.tensor(asked, device=self.args.device)])
        torch.distributed.all_reduce(sums)
        loss, asking = sums.tolist()
        self._step_loss = 0.0
        self.stop_agreed = self.stop_agreed or asking > 0
        self._verdict = self.watch.loss(loss / WORLD)
        self._act(self._verdict, self.state.global_step + 1)
        if self.dropped_step:
            _drop_gradients(self.model_wrapped)

    @property
    def dropped_step(self) -> bool:
        """Whether the step that is being taken is dropped."""
        return self._verdict.do == "skip"

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """One micro-batch forward and backward; the last one of a step has stepped the optimizer
        when it returns, and the gradient norm is judged."""
        loss = super().training_step(*args, **kwargs)
        if not self.accelerator.sync_gradients:
            return loss
        if self.dropped_step:
            return self._share
        if (norm := _norm(self.model_wrapped)) is not None:
            self._act(self.watch.norm(norm), self.state.global_step + 1)
        return loss

    def _act(self, verdict: divergence.Verdict, step: int) -> None:
        """Tell of a spike; raise UserError where the training ends."""
        if verdict.do == "go":
            return
        rows = self.guards.rows(step) if self.guards.rows is not None else []
        if verdict.do == "stop":
            raise divergence.diverged(self.guards.out, step, verdict.why, rows)
        done = {"warn": "kept", "skip": "dropped: the weights stay as they were"}[verdict.do]
        if RANK == 0:
            named = f" Its rows: {', '.join(rows)}." if rows else ""
            say(f"spike at step {step}: {verdict.why}; {done}.{named}")

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Save, unless there is no room: half a checkpoint would only take what room is left."""
        if (full := gather(self._no_room() if RANK == 0 else None)[0]) is not None:
            raise UserError(full)
        super()._save_checkpoint(model, trial)

    def _no_room(self) -> str | None:
        try:
            checkpoints.check_room(self.guards.out / "scratch", self.state.global_step)
        except UserError as error:
            return str(error)
        return None

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], *args: Any, **kwargs: Any
    ) -> tuple[list[Any], Any]:
        """One optimizer step's batches; counts them (the trainer's own count covers no loss-bearing
        tokens and restarts on a resume)."""
        if self._since is None:
            self._since = time.perf_counter()
            self.clock.start()
        fetched = self.clock.fetched(epoch_iterator)
        batches, bearing = super().get_batch_samples(fetched, *args, **kwargs)
        for batch in batches:
            padded = "attention_mask" in batch
            self._new[0] += batch["attention_mask"].sum() if padded else batch["input_ids"].numel()
            self._new[1] += _bearing(batch)
        self.clock.computes()
        return batches, bearing

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add counts and rates to the trainer's figures and append them as one line."""
        if "loss" in logs and self._since is not None:
            logs |= self._figures(time.perf_counter() - self._since)
            self._since = None
        self.later.work_out(self)
        super().log(logs, start_time)
        if RANK == 0 and "tokens" in logs:
            steps = {"step": self.state.global_step, "total_steps": self.state.max_steps}
            line = {key: _finite(value) for key, value in self.state.log_history[-1].items()}
            if (slow := self._slow(line)) is not None:
                line["slow"] = slow
                say(slow)
            with self._log_file.open("a") as lines:
                lines.write(json.dumps(steps | line, allow_nan=False) + "\n")

    def _slow(self, line: dict[str, Any]) -> str | None:
        """Why this start is slow, once, where it is."""
        if len(self._lines) == slowness.AFTER:
            return None
        self._lines.append(line)
        return slowness.why(self._lines, self.guards.config)

    def _figures(self, seconds: float) -> dict[str, float]:
        """Counts of all devices up to now, and the rates of the last `seconds` of this one."""
        times = self._new.new_tensor((seconds, *self.clock.waits(seconds)), dtype=torch.double)
        new = torch.cat([self._new.double(), times])
        torch.distributed.all_reduce(new)
        tokens, loss_tokens, *times_of_all = new.tolist()
        split = clock.split(*(each / WORLD for each in times_of_all))
        self._new.zero_()
        self._tokens += int(tokens)
        self._loss_tokens += int(loss_tokens)
        figures = {
            "tokens_per_second": tokens / split["seconds"],
            "loss_tokens_per_second": loss_tokens / split["seconds"],
            **split,
            "tokens": self._tokens,
            "loss_tokens": self._loss_tokens,
            "skipped_steps": self.watch.skipped,
        }
        if not GPU:
            return figures
        figures["peak_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
        peak = speed.peak_flops(torch.cuda.get_device_name())
        if peak and self.guards.flops:
            figures["mfu"] = speed.mfu(figures["tokens_per_second"], self.guards.flops, WORLD, peak)
        return figures


class Repaired(TrainerCallback):  # type: ignore[misc]
    """Puts right what is loaded of a checkpoint of another number of processes."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Called on every rank, once the checkpoint is loaded."""
        trainer = self._trainer
        elastic.repair(trainer.model_wrapped.optimizer, trainer.guards.resumed, WORLD)


class KeepCheckpoints(TrainerCallback):  # type: ignore[misc]
    """Marks a checkpoint complete once every rank has written its part, then removes those that are
    too many: never one that is needed while the next is not whole."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._limit: int | None = trainer.args.save_total_limit
        trainer.args.save_total_limit = None  # the trainer would remove before the mark

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Called on every rank after the checkpoint of `state.global_step` was written."""
        scratch = Path(str(args.output_dir))
        folder = scratch / f"{checkpoints.PREFIX}{state.global_step}"
        if RANK == 0:
            write_atomic(folder / WATCHED, json.dumps(self._trainer.watch.state()))
        torch.distributed.barrier()
        written = gather(checkpoints.written(folder, RANK, WORLD))
        if RANK == 0:
            checkpoints.mark(folder, WORLD, written, self._trainer.guards.per_step)
            checkpoints.rotate(scratch, self._limit)
        torch.distributed.barrier()


class EndSteps(TrainerCallback):  # type: ignore[misc]
    """Keeps the schedule going over dropped steps, and saves and ends the training after the step
    in which the ranks agreed on that."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        """Called on every rank between two steps, before the trainer logs and saves."""
        trainer = self._trainer
        trainer.clock.ends()
        if trainer.dropped_step and trainer.accelerator.optimizer_step_was_skipped:
            trainer.lr_scheduler.step()  # the trainer itself leaves it where it is then
        if trainer.stop_agreed:
            control.should_save = control.should_training_stop = True
        return control


def _drop_gradients(engine: Any) -> None:
    """Let the DeepSpeed `engine` drop the step whose last backward pass comes now, everything it
    accumulated included.

    The loss of that pass is made NaN, and each of DeepSpeed's optimizers drops a step whose
    gradients are not finite, clearing what belongs to it. The one of ZeRO 1 and 2 does so unless
    bf16.check_grad_overflow is off; without ZeRO and in fp32 there is none, only torch's.
    """
    optimizer = engine.optimizer
    if hasattr(optimizer, "check_grad_overflow"):
        optimizer.check_grad_overflow = True
    if not hasattr(optimizer, "overflow"):
        step = optimizer.step

        def no_step(*_: Any, **__: Any) -> None:
            optimizer.step = step

        optimizer.step = no_step


def _norm(engine: Any) -> float | None:
    """The last step's gradient norm before clipping, None where DeepSpeed gives none (without ZeRO)
    and where fp16 looks for its loss scale, dropping steps as it does."""
    norm = engine.get_global_grad_norm()
    if norm is None or (engine.fp16_enabled() and getattr(engine.optimizer, "overflow", False)):
        return None
    return float(norm)


def _bearing(batch: Any) -> Any:
    """How many tokens of a batch bear loss: by their labels, or of pairs by the answers' mask."""
    if "labels" in batch:
        return (batch["labels"][..., 1:] != IGNORED).sum()
    return batch["completion_mask"][..., 1:].sum()


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
