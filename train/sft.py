"""Supervised fine-tuning of one model on one selection; the one place that builds an SFTTrainer.
Reads from top to bottom.

    accelerate launch --use_deepspeed --num_processes 2 -m train.sft OUT

OUT holds train.json (a `Job`) and receives ledger.json, log.jsonl (one line a logging step),
scratch/ (resumable checkpoints) and, last, checkpoint/ (the exported model). `train.launch.run`
writes train.json, starts this under Accelerate and cleans up.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from trl import SFTConfig, SFTTrainer

from core.files import write_atomic
from core.models import load_tokenizer
from train import chat as chats
from train.config import Job
from train.data import tokens as data
from train.data.feeding import Epochs, InOrder
from train.data.order import Order
from train.export import export
from train.resuming import checkpoints, elastic, ranks, record
from train.resuming.guarded import Guarded, Guards
from train.resuming.ranks import GPU, RANK, WORLD, say
from train.settings import machine
from train.settings.arguments import agreed, packed_arguments, sft_arguments
from train.sizes import speed


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
    # Kept to the end: one training at a time writes into this folder.
    held = ranks.only_training(scratch, job.config.grace) if RANK == 0 else None
    if int(os.environ.get("LOCAL_RANK", 0)) == 0:
        machine.check(job.config, Path(job.base))
    # Before SFTConfig: it reads the world size, and fills "auto" values of the DeepSpeed JSON with
    # it.
    ranks.join(job.config)

    # One process prepares and the others watch for the file: tokenising may take longer than a
    # collective may.
    get = method.prepare if RANK == 0 else partial(_wait_for, method.prepared)
    ledger = get(job, out, processes=WORLD)
    # Before DeepSpeed is configured: what another number of processes made is loaded otherwise.
    resumed = checkpoints.resumable(scratch, RANK, WORLD, ranks.gather, say)
    if RANK == 0:
        text = elastic.engine_json(job.config, resumed, WORLD)
        write_atomic(scratch / "deepspeed.json", text)
    torch.distributed.barrier()

    tokenizer = load_tokenizer(job.base, job.config.revision)
    chat = chats.choose(job.config, tokenizer)
    tokenizer.chat_template = chat.training
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(chats.padding(tokenizer, chat))

    if RANK == 0:
        step = checkpoints.step_of(resumed)
        for log in ("log.jsonl", record.VALIDATION):
            record.keep_until(out / log, step)
        say(f"resuming from step {step}" if step else "starting from the base model")
    torch.distributed.barrier()

    trainer = method.trainer(job, out, ledger, tokenizer)
    rows = getattr(trainer, "rows_of", None)  # of pairs nobody knows them
    per_step = elastic.per_step(ledger)
    trainer.guard(Guards(out, job.config, resumed, per_step, _flops(trainer, ledger), rows))
    trainer.train_until_asked(resumed)

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
    if held is not None:
        held.release()


class Trainer(InOrder, Guarded, SFTTrainer):  # type: ignore[misc]  # TRL has no types
    """TRL's, guarded, taking our steps."""

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[Any], Any]:
        """As of `Guarded`, without the tokens of fillers."""
        batches, bearing = super().get_batch_samples(*args, **kwargs)
        self._new[0] -= self.filler_tokens()
        return batches, bearing


def fine_tuning(
    job: Job, out: Path, ledger: data.Ledger, tokenizer: PreTrainedTokenizerBase
) -> Trainer:
    """TRL's SFTTrainer for this job."""
    # SFTConfig comes before the model: while it lives, from_pretrained partitions weights under
    # ZeRO-3 as they load.
    accumulation = ledger["gradient_accumulation_steps"]
    arguments = sft_arguments(job, out, accumulation, gpu=GPU) | packed_arguments(job.config)
    args = agreed(SFTConfig(**arguments))
    folder, held_out = data.folder_of(job, out), ledger.get("validation")
    seed = job.seed if args.data_seed is None else args.data_seed
    order = Order(data.steps_of(job.config, ledger, WORLD), seed)
    trainer = Trainer(
        model=job.base,
        args=args,
        train_dataset=Dataset.from_file(str(folder / "tokens.arrow")),
        processing_class=tokenizer,
        peft_config=lora(job),
        callbacks=[Epochs(order, measures=held_out is not None)],
    )
    validation = folder / "validation.arrow" if held_out else None
    trainer.feed(order, validation, out / record.VALIDATION)
    return trainer


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


SFT = Method(data.prepare, data.prepared, fine_tuning)


def run(method: Method) -> None:
    """What a rank's process does: train the job of the folder that its command names."""
    ranks.run(partial(main, method=method), Path(sys.argv[1]).resolve())


if __name__ == "__main__":
    run(SFT)
