"""Direct preference optimisation: what pairs become as tokens, and real trainings of a tiny Llama
under DeepSpeed against a loss worked out by hand."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from core.errors import UserError
from core.tracking import Log
from tests import harness, tiny
from tests.waiting import exit_code, until
from train import chat as chats
from train.config import DEFAULTS, DpoConfig, Job
from train.data import pairs
from train.launch import run
from train.resuming.record import read_log

BETA, RATE, STEPS, PAIRS = 0.5, 2e-3, 4, 16
TRAINER = {
    "max_length": 128,
    "per_device_train_batch_size": 2,
    "max_steps": STEPS,
    "learning_rate": RATE,
    "lr_scheduler_type": "constant",
    "beta": BETA,
    "gradient_checkpointing": False,
    "save_steps": 2,
}


def config(base: Path, **changes: Any) -> DpoConfig:
    given = {
        "base": str(base),
        "chat_template_path": "chatml",
        "pairs_per_step": PAIRS,
        "num_processes": 2,
        "trainer": TRAINER,
    }
    return DpoConfig.model_validate({**given, **changes})


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(base model, folder of pairs)."""
    folder = tmp_path_factory.mktemp("given")
    return tiny.llama(folder / "model"), tiny.pairs(folder / "pairs", PAIRS)


def prepared(base: Path, folder: Path, out: Path, **changes: Any) -> tuple[Any, list[Any]]:
    """The ledger of a folder of pairs, and its tokens."""
    from datasets import Dataset

    made = config(base, **changes)
    job = Job(config=made, base=str(base), selection=str(folder / "train.parquet"), seed=0)
    ledger = pairs.prepare(job, out, processes=2)
    return ledger, Dataset.from_file(str(out / "scratch" / "pairs.arrow"), in_memory=True).to_list()


def written(folder: Path, *rows: tuple[list[Any], list[Any], list[Any]]) -> Path:
    """A folder with these (prompt, chosen, rejected)."""
    folder.mkdir()
    named = [
        dict(zip(("id", "prompt", "chosen", "rejected"), (str(n), *row), strict=True))
        for n, row in enumerate(rows)
    ]
    pl.DataFrame(named).write_parquet(folder / "train.parquet")
    return folder


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def says(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def test_a_pair_is_its_prompt_and_two_answers_that_end_their_turn(
    given: tuple[Path, Path], tmp_path: Path
) -> None:
    folder = written(tmp_path / "in", ([user("why")], [says("a river")], [says("red")]))
    _, (row,) = prepared(given[0], folder, tmp_path / "out")
    words = tiny.tokenizer()
    shown = [words.decode(row[f"{part}_ids"]) for part in ("prompt", "chosen", "rejected")]
    assert shown == [
        "<|im_start|>user\nwhy<|im_end|>\n<|im_start|>assistant\n",
        "a river<|im_end|>",
        "red<|im_end|>",
    ]


def test_of_several_turns_the_last_answer_is_compared(
    given: tuple[Path, Path], tmp_path: Path
) -> None:
    prompt = [user("why"), says("a river"), user("is")]
    folder = written(tmp_path / "in", (prompt, [says("red")], [says("blue stone")]))
    _, (row,) = prepared(given[0], folder, tmp_path / "out")
    words = tiny.tokenizer()
    assert words.decode(row["chosen_ids"]) == "red<|im_end|>"
    assert words.decode(row["prompt_ids"]).count("<|im_end|>") == 3


def test_control_tokens_in_an_answer_are_text(given: tuple[Path, Path], tmp_path: Path) -> None:
    bad = says("red<|im_end|>\n<|im_start|>user\nblue")
    folder = written(tmp_path / "in", ([user("why")], [says("a river")], [bad]))
    ledger, (row,) = prepared(given[0], folder, tmp_path / "out")
    end = tiny.tokenizer().convert_tokens_to_ids("<|im_end|>")
    assert ledger["spelled_rows"] == 1
    assert row["rejected_ids"].count(end) == 1 and row["rejected_ids"][-1] == end


def test_pairs_without_a_difference_to_learn_from_are_dropped_and_counted(
    given: tuple[Path, Path], tmp_path: Path
) -> None:
    long = "river stone " * 40
    folder = written(
        tmp_path / "in",
        ([user("why")], [says("a river")], [says("red")]),
        ([user(long)], [says("a river")], [says("red")]),
        ([user("why")], [says(f"{long} a")], [says(f"{long} b")]),
        ([user("why")], [says(long)], [says("red")]),
    )
    ledger, rows = prepared(
        given[0],
        folder,
        tmp_path / "out",
        trainer={**TRAINER, "max_length": 40},
        max_truncated_share=1.0,
    )
    assert [row["id"] for row in rows] == ["0", "3"]
    assert ledger["dropped"] == {pairs.FULL: 1, pairs.ALIKE: 1}
    assert ledger["truncated_rows"] == 1
    kept = [len(r["prompt_ids"]) + len(r[f"{s}_ids"]) for r in rows for s in ("chosen", "rejected")]
    assert sum(kept) == ledger["trained_tokens"] and max(kept) == 40
    parts = ("trained_tokens", "truncated_tokens", "dropped_tokens")
    assert ledger["tokens"] == sum(ledger[part] for part in parts)


def test_too_large_a_share_that_is_cut_is_refused(given: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"would be cut .* more than dpo.max_truncated_share 1.0%"):
        prepared(*given, tmp_path, trainer={**TRAINER, "max_length": 16})


@pytest.mark.parametrize(
    ("pairs_per_step", "sentence"),
    [(10, r"no multiple of the 4 pairs .* use one of 1, 5 devices"), (2, "use one of 1 devices")],
)
def test_a_step_that_the_devices_cannot_fill_is_refused_with_counts_that_can(
    given: tuple[Path, Path], tmp_path: Path, pairs_per_step: int, sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        prepared(*given, tmp_path, pairs_per_step=pairs_per_step)


def test_settings_of_fine_tuning_are_refused(given: tuple[Path, Path]) -> None:
    with pytest.raises(ValueError, match="a step of DPO is counted in pairs"):
        config(given[0], tokens_per_step=100)


def test_our_defaults_are_those_of_fine_tuning_as_far_as_trl_knows_them_here() -> None:
    from dataclasses import fields

    from trl import DPOConfig

    known = {field.name for field in fields(DPOConfig)}
    wanted = {name: value for name, value in DEFAULTS.items() if name in known}
    assert wanted.items() <= DpoConfig().trainer_arguments().items() and "ddp_timeout" in wanted


def by_hand(base: Path, folder: Path, *, steps: int = STEPS) -> tuple[list[float], list[float]]:
    """(losses, gradient norms) of full-batch DPO in plain PyTorch: one sequence at a time, the loss
    as the paper has it, -log sigmoid(beta (log pi/ref of chosen - of rejected))."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base)
    words = tiny.tokenizer()
    template = chats.read("chatml", training=True)
    rows = pl.read_parquet(folder / "train.parquet").to_dicts()

    def logp(messages: list[dict[str, str]]) -> torch.Tensor:
        ids, mask = chats.encode(words, [messages], template)[0]
        every = torch.log_softmax(model(torch.tensor([ids])).logits[0, :-1].float(), -1)
        chosen = every[torch.arange(len(ids) - 1), torch.tensor(ids[1:])]
        return (chosen * torch.tensor(mask[1:])).sum()

    def ratio(row: dict[str, Any]) -> torch.Tensor:
        return logp(row["prompt"] + row["chosen"]) - logp(row["prompt"] + row["rejected"])

    with torch.no_grad():
        reference = torch.stack([ratio(row) for row in rows])
    adam = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
    losses, norms = [], []
    for _ in range(steps):
        policy = torch.stack([ratio(row) for row in rows])
        loss = -torch.nn.functional.logsigmoid(BETA * (policy - reference)).mean()
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)))
        adam.step()
        adam.zero_grad()
        losses.append(float(loss.detach()))
    return losses, norms


@pytest.fixture(scope="module")
def two(given: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The result of two processes under ZeRO-2."""
    out = tmp_path_factory.mktemp("two")
    base, folder = given
    run(config(base), {"pairs": folder}, out, base=str(base), seed=3, log=Log())
    return out


@pytest.mark.stack
def test_two_processes_give_the_loss_that_is_worked_out_by_hand(
    two: Path, given: tuple[Path, Path]
) -> None:
    log = read_log(two / "log.jsonl")
    losses, norms = by_hand(*given)
    assert [line["loss"] for line in log] == pytest.approx(losses, abs=1e-4)
    assert [line["grad_norm"] for line in log] == pytest.approx(norms, rel=1e-3)
    assert losses[0] == pytest.approx(0.6931, abs=1e-4) and losses[-1] < 0.5


@pytest.mark.stack
def test_its_log_counts_pairs_tokens_and_margins(two: Path) -> None:
    ledger, last = json.loads((two / "ledger.json").read_text()), read_log(two / "log.jsonl")[-1]
    assert last["tokens"] == STEPS * ledger["trained_tokens"]
    assert last["loss_tokens"] == STEPS * ledger["trained_loss_tokens"]
    assert last["rewards/margins"] > 0 and last["rewards/accuracies"] > 0.5


@pytest.mark.stack
def test_it_exports_a_checkpoint_that_stops(two: Path) -> None:
    from transformers import AutoTokenizer

    words = AutoTokenizer.from_pretrained(two / "checkpoint")
    generation = json.loads((two / "checkpoint" / "generation_config.json").read_text())
    assert generation["eos_token_id"][0] == words.convert_tokens_to_ids("<|im_end|>")


@pytest.mark.stack
@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 3])
def test_other_stages_give_the_same_losses(
    two: Path, given: tuple[Path, Path], tmp_path: Path, stage: int
) -> None:
    base, folder = given
    made = config(base, zero_stage=stage)
    run(made, {"pairs": folder}, tmp_path, base=str(base), seed=3, log=Log())
    mine, theirs = (
        [line["loss"] for line in read_log(out / "log.jsonl")] for out in (tmp_path, two)
    )
    assert mine == pytest.approx(theirs, abs=1e-4)


@pytest.mark.stack
@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_an_adapter_learns_against_the_model_without_it(
    given: tuple[Path, Path], tmp_path: Path, stage: int
) -> None:
    base, folder = given
    made = config(
        base,
        zero_stage=stage,
        lora={"r": 8, "target_modules": "all-linear"},
        trainer={**TRAINER, "learning_rate": 2e-2},
    )
    run(made, {"pairs": folder}, tmp_path, base=str(base), seed=3, log=Log())
    losses = [line["loss"] for line in read_log(tmp_path / "log.jsonl")]
    assert losses[0] == pytest.approx(0.6931, abs=1e-4), "an adapter begins as nothing"
    assert losses[-1] < losses[0] - 0.05
    assert (tmp_path / "checkpoint" / "model.safetensors").exists()


LONG = 16


@pytest.mark.stack
@pytest.mark.slow
def test_a_killed_dpo_goes_on_and_asks_the_reference_once(
    given: tuple[Path, Path], tmp_path: Path
) -> None:
    """A rank is killed within an epoch, then the harness; the steps are those of a training that
    was never stopped, and what the reference made of the pairs is read again."""
    base, folder = given
    trainer = {**TRAINER, "max_steps": LONG, "save_steps": 1}
    made = config(base, pairs_per_step=4, trainer=trainer)
    whole, out = tmp_path / "whole", tmp_path / "out"
    run(made, {"pairs": folder}, whole, base=str(base), seed=harness.SEED, log=Log())

    process = harness.started(made, base, {"pairs": folder}, out)
    reference = written_reference(out)
    assert len(reference) == 1
    until(lambda: harness.saved(out), "a checkpoint", process)
    os.kill(harness.ranks(out)[1], signal.SIGKILL)
    assert exit_code(process) != 0 and not harness.trainers(out)
    first = harness.saved(out)
    assert 0 < first < LONG

    process = harness.started(made, base, {"pairs": folder}, out)
    assert written_reference(out) == reference, "neither made anew nor made twice"
    process.kill()
    process.wait()
    until(lambda: not harness.trainers(out), "the end of every trainer")
    second = harness.saved(out)
    assert first <= second < LONG

    run(made, {"pairs": folder}, out, base=str(base), seed=harness.SEED, log=Log())
    text = (out / "trainer.log").read_text()
    assert f"resuming from step {first}" in text and f"resuming from step {second}" in text
    one, other = (read_log(each / "log.jsonl") for each in (whole, out))
    assert [line["step"] for line in other] == list(range(1, LONG + 1))
    assert [line["loss"] for line in other] == pytest.approx(
        [line["loss"] for line in one], abs=1e-5
    )
    assert other[-1]["tokens"] == one[-1]["tokens"]


def written_reference(out: Path) -> dict[str, int]:
    """The files of the reference's log-probabilities, and when each was written."""
    return {path.name: path.stat().st_mtime_ns for path in (out / "scratch").glob("cache-*.arrow")}
