"""What `eval.lora: served` asks of a recipe: adapters that one vLLM server of their base can
hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from core.errors import UserError
from core.serving import adapters
from eval.config import EvalConfig
from eval.protocols import AnswersConfig
from train.config import TrainConfig

ASKING = ("alpaca", "arena", "wildbench", "mtbench", "checks")
"""Benchmarks that may have `answers:` of their own."""


def servers(config: EvalConfig) -> Iterator[tuple[tuple[str, ...], Mapping[str, Any]]]:
    """The `server` blocks of checkpoints, each with the place of the block that holds it."""
    yield ("eval", "answers"), config.answers.server
    for name in ASKING:
        own: AnswersConfig | None = getattr(getattr(config, name), "answers", None)
        if own is not None:
            yield ("eval", name, "answers"), own.server
    for name in ("heldout", "tasks"):
        server = getattr(getattr(config, name), "server", None)
        if server is not None:
            yield ("eval", name), server


def check(train: TrainConfig | None, config: EvalConfig) -> None:
    """Raise UserError where `eval.lora: served` is written and vLLM could not serve what is
    trained."""
    if config.lora != "served":
        return
    if train is None or train.lora is None:
        raise UserError(
            "eval.lora: `served` is for trainings with `train.lora`; leave it out, or write that"
        )
    most = [(server.get("args") or {}).get("max_lora_rank") for _, server in servers(config)]
    lowest = min((int(each) for each in most if isinstance(each, int)), default=None)
    try:
        adapters.check(train.lora, lowest)
    except UserError as error:
        raise UserError(f"train.{error}; write `eval.lora: merged`") from error
