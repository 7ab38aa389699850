"""Supervised fine-tuning of one model on one selection; the one place that builds an SFTTrainer.
Reads from top to bottom.

    accelerate launch --use_deepspeed --num_processes 2 -m train.sft OUT

OUT holds train.json (a `Job`) and receives ledger.json, log.jsonl (one line a logging step),
scratch/ (resumable checkpoints) and, last, checkpoint/ (the exported model). `train.launch.run`
writes train.json, starts this under Accelerate and cleans up.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import deepspeed
import torch
from datasets import Dataset
from transformers import (
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from trl import SFTConfig, SFTTrainer

from core.errors import UserError
from core.files import write_atomic
from core.models import load_tokenizer
from train import chat as chats
from train.config import Job
from train.data import tokens as data
from train.export import export, padding
from train.launch import read_log
from train.resuming import checkpoints
from train.settings.arguments import sft_arguments
from train.settings.engine import deepspeed_json
from train.sizes import speed

RANK, WORLD = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
GPU = torch.cuda.is_available()


@dataclass(frozen=True)
class Method:
    """What differs between ways to train (`SFT` below, `train.dpo.DPO`)."""

    prepare: Callable[..., data.Ledger]
    """(job, out, processes): make the tokens."""
    prepared: Callable[..., data.Ledger | None]
    """The same of tokens that are made already; None where they are not."""
    trainer: Callable[[Job, Path, data.Ledger, PreTrainedTokenizerBase], Any]
    """(job, out, ledger, tokenizer): the trainer, with its model."""


def main(out: Path, method: Method) -> None:
    """Train OUT/train.json's job and export it. Raises UserError for what a user can change."""
    job = Job.model_validate_json((out / "train.json").read_text())
    scratch = out / "scratch"
    (scratch / f"error-{RANK}.txt").unlink(missing_ok=True)  # an earlier attempt's

    # DeepSpeed would compile its shared-memory all-reduce on the CPU first (about a minute, g++ and
    # ninja needed), which serves inference only.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    # Before SFTConfig: it reads the world size, and fills "auto" values of the DeepSpeed JSON with
    # it.
    if GPU:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    deepspeed.init_distributed(dist_backend="nccl" if GPU else "gloo")

    # One process prepares and the others watch for the file: tokenising may take longer than a
    # collective may.
    get = method.prepare if RANK == 0 else partial(_wait_for, method.prepared)
    ledger = get(job, out, processes=WORLD)
    if RANK == 0:
        write_atomic(scratch / "deepspeed.json", deepspeed_json(job.config))
    torch.distributed.barrier()

    tokenizer = load_tokenizer(job.base, job.config.revision)
    chat = chats.choose(job.config, tokenizer)
    tokenizer.chat_template = chat.training
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(padding(tokenizer, chat))

    newest: list[Path | None] = [None]
    if RANK == 0:
        newest = [checkpoints.resumable(scratch, WORLD, _say)]
        step = checkpoints.step_of(newest[0])
        _keep_log_until(out / "log.jsonl", step)
        _say(f"resuming from step {step}" if step else "starting from the base model")
    torch.distributed.broadcast_object_list(newest, src=0)
    resume = str(newest[0]) if newest[0] else None
    torch.distributed.barrier()

    trainer = method.trainer(job, out, ledger, tokenizer)
    trainer.keep_count(out / "log.jsonl", _flops(trainer, ledger))
    trainer.train(resume_from_checkpoint=resume)

    trainer.save_model(str(scratch / "final"))  # every rank takes part: ZeRO-3 gathers here
    if RANK == 0:
        unset_hf_deepspeed_config()  # from here on from_pretrained loads whole weights again
        export(
            scratch / "final",
            out / "checkpoint",
            base=job.base,
            revision=job.config.revision,
            chat=chat,
            dtype=job.config.export_dtype,
        )


def fine_tuning(
    job: Job, out: Path, ledger: data.Ledger, tokenizer: PreTrainedTokenizerBase
) -> CountingTrainer:
    """TRL's SFTTrainer for this job."""
    # SFTConfig comes before the model: while it lives, from_pretrained partitions weights under
    # ZeRO-3 as they load.
    args = SFTConfig(**sft_arguments(job, out, ledger["gradient_accumulation_steps"], gpu=GPU))
    return CountingTrainer(
        model=job.base,
        args=args,
        # Rows carry input_ids and labels already, so TRL only packs them.
        train_dataset=Dataset.from_file(str(out / "scratch" / "tokens.arrow")),
        processing_class=tokenizer,
        peft_config=lora(job),
        callbacks=[MarkComplete()],
    )


class Counting:
    """What a trainer of TRL's gets to write log.jsonl with the tokens it really trained on: non-pad
    and loss-bearing, over all devices, resumes included."""

    args: Any
    state: Any

    def keep_count(self, log: Path, flops: float | None) -> None:
        """Log to `log` (rank 0), going on from its last line; `flops` a token gives MFU where the
        device's peak is known."""
        self._log_file, self._flops = log, flops
        lines = read_log(log)
        self._tokens: int = lines[-1]["tokens"] if lines else 0
        self._loss_tokens: int = lines[-1]["loss_tokens"] if lines else 0
        self._new = [0, 0]  # tokens and loss-bearing ones since the last line
        self._since: float | None = None

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[Any], Any]:
        """One optimizer step's batches; counts them (the trainer's own count covers no loss-bearing
        tokens and restarts on a resume)."""
        self._since = self._since or time.perf_counter()
        batches, bearing = super().get_batch_samples(*args, **kwargs)  # type: ignore[misc]
        for batch in batches:
            padded = "attention_mask" in batch
            tokens = batch["attention_mask"].sum() if padded else batch["input_ids"].numel()
            self._new[0] += int(tokens)
            self._new[1] += int(_bearing(batch))
        return batches, bearing

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add counts and rates to the trainer's figures and append them as one line."""
        if "loss" in logs and self._since is not None:
            logs |= self._figures(time.perf_counter() - self._since)
            self._new, self._since = [0, 0], None
        super().log(logs, start_time)  # type: ignore[misc]
        if RANK == 0 and "tokens" in logs:
            steps = {"step": self.state.global_step, "total_steps": self.state.max_steps}
            with self._log_file.open("a") as lines:
                lines.write(json.dumps(steps | self.state.log_history[-1]) + "\n")

    def _figures(self, seconds: float) -> dict[str, float]:
        """Counts of all devices up to now, and the rates of the last `seconds`."""
        new = torch.tensor(self._new, device=self.args.device)
        torch.distributed.all_reduce(new)
        tokens, loss_tokens = new.tolist()
        self._tokens += tokens
        self._loss_tokens += loss_tokens
        figures = {
            "tokens_per_second": tokens / seconds,
            "loss_tokens_per_second": loss_tokens / seconds,
            "seconds": seconds,
            "tokens": self._tokens,
            "loss_tokens": self._loss_tokens,
        }
        peak = speed.peak_flops(torch.cuda.get_device_name()) if GPU else None
        if peak and self._flops:
            figures["mfu"] = speed.mfu(tokens / seconds, self._flops, WORLD, peak)
        return figures


def _bearing(batch: Any) -> Any:
    """How many tokens of a batch bear loss: by their labels, or of pairs by the answers' mask."""
    if "labels" in batch:
        return (batch["labels"][..., 1:] != data.IGNORED).sum()
    return batch["completion_mask"][..., 1:].sum()


class CountingTrainer(Counting, SFTTrainer):  # type: ignore[misc]  # TRL has no types
    """SFTTrainer that counts."""


class MarkComplete(TrainerCallback):  # type: ignore[misc]
    """Marks a checkpoint complete once every rank has written its part."""

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Called on every rank after the checkpoint of `state.global_step` was written."""
        torch.distributed.barrier()
        if RANK == 0:
            name = f"{checkpoints.PREFIX}{state.global_step}"
            checkpoints.mark(Path(str(args.output_dir)) / name, WORLD)
        torch.distributed.barrier()


def lora(job: Job) -> Any:
    """The adapter's configuration; None for full fine-tuning."""
    if job.config.lora is None:
        return None
    from peft import LoraConfig

    return LoraConfig(**{"task_type": "CAUSAL_LM", **job.config.lora})


def _flops(trainer: Any, ledger: data.Ledger) -> float | None:
    """FLOPs a token of this training, or None for an architecture whose configuration does not
    say."""
    config = trainer.model.config.get_text_config()
    weights = dict(trainer.model.named_parameters())
    multiplying = sum(
        int(getattr(weight, "ds_numel", weight.numel()))  # ZeRO-3 holds a part of each
        for name, weight in weights.items()
        if config.tie_word_embeddings or "embed_tokens" not in name
    )
    frozen = not all(weight.requires_grad for weight in weights.values())
    try:
        return speed.flops_per_token(
            multiplying, config.to_dict(), ledger["mean_context"], frozen_base=frozen
        )
    except KeyError:
        return None


def _wait_for(
    prepared: Callable[..., data.Ledger | None], job: Job, out: Path, processes: int
) -> data.Ledger:
    while True:
        if (done := prepared(job, out, processes=processes)) is not None:
            return done
        if (out / "scratch" / "error-0.txt").exists():
            sys.exit(1)  # rank 0 has said why
        time.sleep(0.2)


def _keep_log_until(log: Path, step: int) -> None:
    """Drop lines of steps that will be trained again."""
    kept = [line for line in read_log(log) if line["step"] <= step]
    if log.exists():
        write_atomic(log, "".join(json.dumps(line) + "\n" for line in kept))


def _say(text: str) -> None:
    print(text, flush=True)


SFT = Method(data.prepare, data.prepared, fine_tuning)


def run(method: Method) -> None:
    """What a rank's process does: train the job of the folder that its command names."""
    folder = Path(sys.argv[1]).resolve()
    try:
        main(folder, method)
    # The launcher shows this one line instead of the ranks' interleaved tracebacks.
    except Exception as error:
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        traceback.print_exc()
        write_atomic(folder / "scratch" / f"error-{RANK}.txt", kind + str(error))
        sys.exit(1)


if __name__ == "__main__":
    run(SFT)
