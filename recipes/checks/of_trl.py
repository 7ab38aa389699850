"""Trainings, judged by TRL, peft, transformers and DeepSpeed:
`python -m recipes.checks.of_trl ASKED OUT`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from core.errors import UserError
from recipes.checks.answering import serve
from train.config import DpoConfig, TrainConfig
from train.settings import arguments


def answer(question: Mapping[str, Any]) -> str | None:
    """What is said against one training."""
    value = question["value"]
    kind = DpoConfig if value["block"] == "dpo" else TrainConfig
    try:
        arguments.check(kind.model_validate(value["config"]))
    except UserError as error:
        return str(error)
    return None


if __name__ == "__main__":
    serve(sys.argv[1:], answer)
