"""A process that trains a tiny Llama under every ZeRO stage with a guarded trainer, one step of it
with a loss far too high, and prints what became of the weights. tests/test_train_guards.py reads
it; the figures are of transformers', TRL's and DeepSpeed's own code.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from datasets import Dataset
from deepspeed.utils import safe_get_full_fp32_param
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer

from core.errors import UserError
from train.config import TrainConfig
from train.resuming import divergence, guarded, ranks
from train.resuming.guarded import Guarded, Guards
from train.settings.engine import deepspeed_json

STEPS, SPIKE = 4, 3
CALM = {"losses": [5.8 + 0.01 * (i % 7) for i in range(40)]}


class Spiky(SFTTrainer):  # type: ignore[misc]
    """TRL's trainer, one step of which has a loss `factor` times too high."""

    factor = 1.0

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        loss = super().compute_loss(*args, **kwargs)
        return loss * self.factor if self.state.global_step == SPIKE - 1 else loss


class Trainer(Guarded, Spiky):  # type: ignore[misc]
    pass


class Weights(TrainerCallback):  # type: ignore[misc]
    """Remembers the fp32 weights after each step."""

    def __init__(self) -> None:
        self.after: list[torch.Tensor] = []

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any, **_: Any) -> None:
        every = []
        for weight in model.parameters():
            full = safe_get_full_fp32_param(weight)
            every.append((weight if full is None else full).detach().float().flatten().clone())
        self.after.append(torch.cat(every))


def trained(out: Path, stage: int, dtype: str, **settings: Any) -> tuple[Any, Weights]:
    """A trainer whose four steps are taken, and the weights after each."""
    out.mkdir(parents=True)
    config = TrainConfig(base=str(BASE), zero_stage=stage, spikes=settings.get("spikes", "skip"))
    args = SFTConfig(
        output_dir=str(out / "scratch"),
        deepspeed=json.loads(deepspeed_json(config)),
        bf16=dtype == "bfloat16",
        gradient_accumulation_steps=2,
        per_device_train_batch_size=2,
        max_steps=STEPS,
        learning_rate=1e-3,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        dataset_kwargs={"skip_prepare_dataset": True},
        gradient_checkpointing=False,
    )
    draw = torch.Generator().manual_seed(0)
    ids = [torch.randint(4, 250, (24,), generator=draw).tolist() for _ in range(STEPS * 4)]
    weights = Weights()
    trainer = settings.get("kind", Trainer)(
        model=AutoModelForCausalLM.from_pretrained(BASE, dtype=getattr(torch, dtype)),
        args=args,
        train_dataset=Dataset.from_dict({"input_ids": ids, "labels": ids}),
        processing_class=TOKENIZER,
        callbacks=[weights],
    )
    trainer.factor = settings.get("factor", 1.0)
    if not isinstance(trainer, Guarded):
        trainer.train()
        return trainer, weights
    trainer.guard(Guards(out, config, None, rows=lambda step: [f"row-of-{step}"]))
    trainer.watch = divergence.Watch(config.spikes, config.spike_threshold, CALM)
    if settings.get("hook") is not None:
        trainer.model.get_input_embeddings().weight.register_hook(settings["hook"])
    trainer.train_until_asked(None)
    return trainer, weights


def dropped(out: Path, stage: int, dtype: str) -> dict[str, Any]:
    """What became of a step whose loss was 50 times too high, and whether one 500 times too high
    came to anything else."""
    trainer, weights = trained(out / "50", stage, dtype, factor=50.0)
    other = trained(out / "500", stage, dtype, factor=500.0)[1].after[-1]
    steps = zip(weights.after, weights.after[1:], strict=False)
    lines = [json.loads(line) for line in (out / "50" / "log.jsonl").read_text().splitlines()]
    return {
        "changes": [float((after - before).abs().max()) for before, after in steps],
        "leaked": float((weights.after[-1] - other).abs().max()),
        "skipped": trainer.watch.skipped,
        "losses": [line["loss"] for line in lines],
        "norms": [line.get("grad_norm") for line in lines],
        "rates": [line["learning_rate"] for line in lines],
        "optimizer": type(trainer.model_wrapped.optimizer).__name__,
    }


def infinite_norm(out: Path) -> str:
    """What is said of a gradient that is not finite while the loss is."""
    try:
        trained(out, 2, "float32", hook=lambda gradient: gradient * torch.inf)
    except UserError as error:
        return str(error)
    return ""


def logged(out: Path, kind: Any) -> list[dict[str, Any]]:
    """What a trainer of this kind logs."""
    history = trained(out, 2, "float32", kind=kind)[0].state.log_history
    return [line for line in history if "loss" in line]


def beside_another() -> dict[str, float]:
    """The figures of a log line of two devices, of which the other one began its step 2 seconds
    sooner and waited for this one."""

    def of_two(figures: torch.Tensor) -> None:
        figures += torch.tensor([50.0, 40.0, 3.0, 0.1, 2.4, torch.nan], dtype=torch.double)

    trainer = SimpleNamespace(
        _new=torch.tensor([50, 40]),
        _tokens=0,
        _loss_tokens=0,
        clock=SimpleNamespace(waits=lambda _: (0.1, 0.2, torch.nan)),
        watch=SimpleNamespace(skipped=0),
    )
    with patch.object(torch.distributed, "all_reduce", of_two), patch.object(guarded, "WORLD", 2):
        return Guarded._figures(trainer, 1.0)  # type: ignore[arg-type]


if __name__ == "__main__":
    BASE, OUT = Path(sys.argv[1]), Path(sys.argv[2])
    TOKENIZER = AutoTokenizer.from_pretrained(BASE)
    TOKENIZER.pad_token = TOKENIZER.eos_token
    ranks.join(TrainConfig(base=str(BASE), trainer={"ddp_timeout": 1234}))
    found: dict[str, Any] = {}
    for name in sys.argv[3:]:
        of_stage, of_dtype = name.split("-")
        found[name] = dropped(OUT / name, int(of_stage), of_dtype)
    found["infinite"] = infinite_norm(OUT / "infinite")
    found["plain"], found["guarded"] = (
        logged(OUT / kind.__name__, kind) for kind in (Spiky, Trainer)
    )
    found["beside_another"] = beside_another()
    groups = torch.distributed.distributed_c10d._world.pg_map
    limits = [group._get_backend(torch.device("cpu")).options._timeout for group in groups]
    found["timeouts"] = [limit.total_seconds() for limit in limits]
    (OUT / "found.json").write_text(json.dumps(found))
