"""The DeepSpeed configuration of a training, and what it could not do at the end."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from core.errors import UserError
from train.config import TrainConfig

DEEPSPEED = Path(__file__).parents[1] / "deepspeed"


def deepspeed_json(config: TrainConfig) -> str:
    """Text of the DeepSpeed configuration: the user's file byte for byte, the user's mapping, or
    ours for the stage. Raises UserError."""
    given = config.deepspeed
    if isinstance(given, dict):
        return json.dumps(given, indent=2)
    offload = "_offload" if config.offload else ""
    ours = DEEPSPEED / f"zero{config.zero_stage}{offload}.json"
    path = ours if given is None else Path(given).expanduser()
    try:
        text = path.read_text()
        json.loads(text)
    except OSError as error:
        raise UserError(
            f"train.deepspeed: {path} cannot be read ({error.strerror}); "
            "give the path of a DeepSpeed JSON file."
        ) from error
    except ValueError as error:
        raise UserError(f"train.deepspeed: {path} is not valid JSON ({error}).") from error
    return text


def check(config: TrainConfig) -> None:
    """Raise UserError where DeepSpeed could not offload, or not export at the end."""
    ninja = shutil.which("ninja") or (Path(sys.executable).parent / "ninja").exists()
    if config.offload and not (ninja and shutil.which("g++")):
        raise UserError(
            "train.offload: DeepSpeed compiles its CPU optimizer on first use and needs g++ "
            "and ninja for it; install both."
        )
    zero = json.loads(deepspeed_json(config)).get("zero_optimization", {})
    if zero.get("stage") == 3 and not zero.get("stage3_gather_16bit_weights_on_model_save"):
        raise UserError(
            "train.deepspeed: at stage 3 the weights can be exported only with "
            "zero_optimization.stage3_gather_16bit_weights_on_model_save: true; add it."
        )
