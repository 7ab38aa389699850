"""Loss and gradient norm of every step equal those of an unpacked training in plain PyTorch, at
each stage of ZeRO, on one process and on two."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from core.tracking import Log
from tests import tiny
from train.config import Job, TrainConfig
from train.data import tokens as data
from train.data.rows import IGNORED
from train.launch import run
from train.resuming.record import read_log

pytestmark = pytest.mark.stack

STEPS, RATE, SEED = 7, 1e-3, 7
TRAINER = {
    "max_length": 128,
    "per_device_train_batch_size": 1,
    "max_steps": STEPS,
    "learning_rate": RATE,
    "save_strategy": "no",
    "gradient_checkpointing": False,
}
Figures = list[tuple[float, float]]
"""(loss, gradient norm before clipping) of each step."""


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(base model, selection folder) of 52 conversations: the second epoch begins within STEPS,
    after a step that is not full."""
    folder = tmp_path_factory.mktemp("given")
    return tiny.llama(folder / "model"), tiny.selection(folder / "selection", 52)


def config(base: Path, **changes: Any) -> TrainConfig:
    fixed = {"base": str(base), "chat_template_path": "chatml", "tokens_per_step": 500}
    return TrainConfig(**{**fixed, "trainer": TRAINER, **changes})


@pytest.fixture(scope="module")
def reference(given: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Figures:
    """The same steps over the same conversations, one at a time and whole: no packing, no
    DeepSpeed, no TRL."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM

    base, selection = given
    out = tmp_path_factory.mktemp("reference")
    (out / "scratch").mkdir()
    job = Job(
        config=config(base),
        base=str(base),
        selection=str(selection / "selection.parquet"),
        seed=SEED,
    )
    ledger = data.prepare(job, out, processes=1)
    made, of_two = (data.steps_of(job.config, ledger, ranks) for ranks in (1, 2))
    assert made.accumulation > 2 and made.packs % made.packs_per_step, "the last step is not full"
    last = made.steps_per_epoch - 1
    assert last < STEPS - 1, "an epoch ends within"
    assert of_two.fillers(last, 0) == 1 < of_two.fillers(last, 1) == of_two.accumulation, (
        "in its last step one micro-batch of rank 0 and all of rank 1 bear no loss"
    )
    packs = Dataset.from_file(str(data.folder_of(job, out) / "tokens.arrow"))
    first = [sum(label != IGNORED for label in packs[i]["labels"]) for i in made.step(SEED, 0)]
    assert sum(first[::2]) != sum(first[1::2]), "two ranks have different numbers of loss tokens"
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    adam = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0)
    figures = []
    for step in range(STEPS):
        documents = [each for pack in made.step(SEED, step) for each in _documents(packs[pack])]
        bearing = sum(sum(label != IGNORED for label in labels[1:]) for _, labels in documents)
        loss = 0.0
        for ids, labels in documents:
            logits = model(input_ids=torch.tensor([ids])).logits[0, :-1]
            wanted = torch.tensor(labels[1:])
            one = torch.nn.functional.cross_entropy(logits, wanted, reduction="sum") / bearing
            one.backward()
            loss += one.item()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item()
        adam.param_groups[0]["lr"] = RATE * (1 - step / STEPS)
        adam.step()
        adam.zero_grad()
        figures.append((loss, norm))
    return figures


def _documents(pack: dict[str, Any]) -> list[tuple[list[int], list[int]]]:
    """(token ids, labels) of each conversation in a pack."""
    found, start = [], 0
    for length in pack["seq_lengths"]:
        place = slice(start, start := start + length)
        found.append((pack["input_ids"][place], pack["labels"][place]))
    return found


FEW = [(1, 2), (2, 1), (3, 2)]
REST = [(1, 1), (2, 2), (3, 1)]


@pytest.mark.parametrize(
    ("stage", "processes"),
    [*FEW, *(pytest.param(*case, marks=pytest.mark.slow) for case in REST)],
)
def test_every_steps_loss_and_gradient_norm_are_those_of_plain_pytorch(
    reference: Figures, given: tuple[Path, Path], tmp_path: Path, stage: Any, processes: int
) -> None:
    base, selection = given
    made = config(base, zero_stage=stage, num_processes=processes)
    run(made, {"selection": selection}, tmp_path, base=str(base), seed=SEED, log=Log())
    lines = read_log(tmp_path / "log.jsonl")
    assert [line["loss"] for line in lines] == pytest.approx([a for a, _ in reference], rel=1e-5)
    norms = [line["grad_norm"] for line in lines]
    assert norms == pytest.approx([b for _, b in reference], rel=1e-5)
    assert norms[0] > 1, "clipping takes part"


@pytest.mark.slow
def test_steps_of_which_no_token_bears_loss_are_no_divergence(tmp_path: Path) -> None:
    """A user's text that fills whole packs, and a step of one pack: 12 of 13 steps bear no loss."""
    base, folder = tiny.llama(tmp_path / "model"), tmp_path / "selection"
    turns = [
        {"role": "user", "content": "river stone tree " * 60},
        {"role": "assistant", "content": "a red bird"},
    ]
    folder.mkdir()
    rows = {"id": [f"row-{n}" for n in range(4)], "messages": [turns] * 4}
    pl.DataFrame(rows).write_parquet(folder / "selection.parquet")
    trainer = {**TRAINER, "max_length": 64, "max_steps": 13}
    made = config(base, tokens_per_step=64, num_processes=1, trainer=trainer)
    out = tmp_path / "out"
    run(made, {"selection": folder}, out, base=str(base), seed=SEED, log=Log())
    losses = [line["loss"] for line in read_log(out / "log.jsonl")]
    assert len(losses) == 13 and sum(loss == 0 for loss in losses) == 12 and max(losses) > 1
