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
from pathlib import Path
from typing import Any

import deepspeed
import torch
from datasets import Dataset
from transformers import (
    AutoTokenizer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from trl import SFTConfig, SFTTrainer

from core.errors import UserError
from core.files import write_atomic
from train import chat as chats
from train import checkpoints, data, throughput
from train.arguments import deepspeed_json, sft_arguments
from train.config import Job
from train.export import export, padding

RANK, WORLD = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
GPU = torch.cuda.is_available()


def main(out: Path) -> None:
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
    ledger = data.prepare(job, out, processes=WORLD) if RANK == 0 else _wait_for_ledger(job, out)
    if RANK == 0:
        write_atomic(scratch / "deepspeed.json", deepspeed_json(job.config))
    torch.distributed.barrier()

    # SFTConfig comes before the model: while it lives, from_pretrained partitions weights under
    # ZeRO-3 as they load.
    args = SFTConfig(**sft_arguments(job, out, ledger["gradient_accumulation_steps"], gpu=GPU))
    tokenizer = AutoTokenizer.from_pretrained(
        job.base, revision=job.config.revision or "main", trust_remote_code=False
    )
    chat = chats.choose(job.config, tokenizer)
    tokenizer.chat_template = chat.training
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(padding(tokenizer, chat))

    resume = checkpoints.resumable(scratch, WORLD, _say) if RANK == 0 else None
    found: list[Any] = [resume]
    torch.distributed.broadcast_object_list(found, src=0)
    resume = found[0]
    if RANK == 0:
        _keep_log_until(
            out / "log.jsonl", int(resume.name.removeprefix("checkpoint-")) if resume else 0
        )
        _say(
            f"resuming from step {resume.name.removeprefix('checkpoint-')}"
            if resume
            else "starting from the base model"
        )
    torch.distributed.barrier()

    trainer = CountingTrainer(
        model=job.base,
        args=args,
        # Rows carry input_ids and labels already, so TRL only packs them.
        train_dataset=Dataset.from_file(str(scratch / "tokens.arrow")),
        processing_class=tokenizer,
        peft_config=_lora(job),
        callbacks=[MarkComplete()],
    )
    trainer.keep_count(out / "log.jsonl", _flops(trainer, ledger))
    trainer.train(resume_from_checkpoint=str(resume) if resume else None)

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


class CountingTrainer(SFTTrainer):  # type: ignore[misc]  # TRL has no types
    """SFTTrainer that writes log.jsonl with the tokens it really trained on: non-pad and
    loss-bearing, over all devices, resumes included."""

    def keep_count(self, log: Path, flops: float | None) -> None:
        """Log to `log` (rank 0), going on from its last line; `flops` a token gives MFU where the
        device's peak is known."""
        self._log_file, self._flops = log, flops
        last = (
            [json.loads(line) for line in log.read_text().splitlines()][-1:] if log.exists() else []
        )
        self._tokens: int = last[0]["tokens"] if last else 0
        self._loss_tokens: int = last[0]["loss_tokens"] if last else 0
        self._new_tokens, self._new_loss_tokens = 0, 0
        self._since: float | None = None

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[Any], Any]:
        """One optimizer step's batches; counts them (the trainer's own count covers no loss-bearing
        tokens and restarts on a resume)."""
        self._since = self._since or time.perf_counter()
        batches, bearing = super().get_batch_samples(*args, **kwargs)
        for batch in batches:
            self._new_tokens += (
                int(batch["attention_mask"].sum())
                if "attention_mask" in batch
                else batch["input_ids"].numel()
            )
            self._new_loss_tokens += int((batch["labels"][..., 1:] != data.IGNORED).sum())
        return batches, bearing

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add counts and rates to the trainer's figures and append them as one line."""
        if "loss" in logs and self._since is not None:
            seconds = time.perf_counter() - self._since
            new = torch.tensor([self._new_tokens, self._new_loss_tokens], device=self.args.device)
            torch.distributed.all_reduce(new)
            tokens, loss_tokens = int(new[0]), int(new[1])
            self._tokens, self._loss_tokens = self._tokens + tokens, self._loss_tokens + loss_tokens
            self._new_tokens, self._new_loss_tokens, self._since = 0, 0, None
            logs |= {
                "tokens_per_second": tokens / seconds,
                "loss_tokens_per_second": loss_tokens / seconds,
                "seconds": seconds,
            }
            logs |= {"tokens": self._tokens, "loss_tokens": self._loss_tokens}
            peak = throughput.peak_flops(torch.cuda.get_device_name()) if GPU else None
            if peak and self._flops:
                logs["mfu"] = throughput.mfu(tokens / seconds, self._flops, WORLD, peak)
        super().log(logs, start_time)
        if RANK == 0 and "tokens" in logs:
            with self._log_file.open("a") as lines:
                lines.write(
                    json.dumps(
                        {
                            "step": self.state.global_step,
                            "total_steps": self.state.max_steps,
                            **self.state.log_history[-1],
                        }
                    )
                    + "\n"
                )


class MarkComplete(TrainerCallback):  # type: ignore[misc]
    """Marks a checkpoint complete once every rank has written its part."""

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Called on every rank after the checkpoint of `state.global_step` was written."""
        torch.distributed.barrier()
        if RANK == 0:
            checkpoints.mark(Path(str(args.output_dir)) / f"checkpoint-{state.global_step}", WORLD)
        torch.distributed.barrier()


def _lora(job: Job) -> Any:
    if job.config.lora is None:
        return None
    from peft import LoraConfig

    return LoraConfig(**{"task_type": "CAUSAL_LM", **job.config.lora})


def _flops(trainer: SFTTrainer, ledger: data.Ledger) -> float | None:
    """FLOPs a token of this training, or None for an architecture whose configuration does not
    say."""
    weights = {
        name: int(getattr(p, "ds_numel", p.numel())) for name, p in trainer.model.named_parameters()
    }
    tied = trainer.model.config.get_text_config().tie_word_embeddings
    multiplying = sum(n for name, n in weights.items() if tied or "embed_tokens" not in name)
    frozen = any(not p.requires_grad for p in trainer.model.parameters())
    try:
        return throughput.flops_per_token(
            multiplying,
            trainer.model.config.get_text_config().to_dict(),
            ledger["mean_context"],
            frozen_base=frozen,
        )
    except KeyError:
        return None


def _wait_for_ledger(job: Job, out: Path) -> data.Ledger:
    while True:
        if (done := data.prepared(job, out, processes=WORLD)) is not None:
            return done
        if (out / "scratch" / "error-0.txt").exists():
            sys.exit(1)  # rank 0 has said why
        time.sleep(0.2)


def _keep_log_until(log: Path, step: int) -> None:
    """Drop lines of steps that will be trained again."""
    if log.exists():
        kept = [
            line
            for line in log.read_text().splitlines()
            if line.endswith("}") and json.loads(line)["step"] <= step
        ]
        write_atomic(log, "".join(f"{line}\n" for line in kept))


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    folder = Path(sys.argv[1]).resolve()
    try:
        main(folder)
    except (
        Exception
    ) as error:  # the launcher shows this one line instead of the ranks' interleaved tracebacks
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        traceback.print_exc()
        write_atomic(folder / "scratch" / f"error-{RANK}.txt", kind + str(error))
        sys.exit(1)
