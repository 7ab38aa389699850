"""Settings whose values only the trainer's code, the scheduler or the base itself can judge: names
of losses and trackers, arguments of a schedule, modules that an adapter is put on."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from core.errors import UserError, nearest
from train.config import DpoConfig, TrainConfig


def check(config: TrainConfig, arguments: Any) -> None:
    """Raise UserError for a name that nothing is called, and for arguments that the schedule does
    not take. `arguments`: the trainer's, as its class made them of `config.trainer`."""
    block, settings = config.block, config.trainer
    if settings.get("loss_type") is not None:
        method = "dpo" if isinstance(config, DpoConfig) else "sft"
        _named(f"{block}.trainer.loss_type", settings["loss_type"], _losses(method))
    if settings.get("report_to") is not None:
        from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

        trackers = {*INTEGRATION_TO_CALLBACK, "all", "none"}
        _named(f"{block}.trainer.report_to", settings["report_to"], trackers)
    if config.deepspeed is None and {"lr_scheduler_type", "lr_scheduler_kwargs"} & settings.keys():
        _schedule(f"{block}.trainer.lr_scheduler_kwargs", arguments)
    targets = (config.lora or {}).get("target_modules")
    if targets is not None and targets != "all-linear":
        _targets(f"{block}.lora.target_modules", config)


def _named(place: str, given: Any, known: Iterable[str]) -> None:
    """Raise UserError where one of the names is not known; nothing is said where none is."""
    names = set(known)
    for each in [given] if isinstance(given, str) else given:
        if names and each not in names:
            raise UserError(f"{place}: there is no '{each}'{nearest(str(each), names)}")


def _losses(method: str) -> set[str]:
    """The losses that TRL's trainer and its arguments tell apart, read from their source: only
    training itself looks at the name."""
    trl = importlib.util.find_spec("trl")
    if trl is None or trl.origin is None:
        return set()
    folder = Path(trl.origin).parent / "trainer"
    files = [folder / f"{method}_{part}.py" for part in ("trainer", "config")]
    source = "".join(file.read_text() for file in files if file.is_file())
    listed = " ".join(re.findall(r"loss_type not in \(([^)]*)\)", source))
    return {*re.findall(r'loss_type == "(\w+)"', source), *re.findall(r'"(\w+)"', listed)}


def _schedule(place: str, arguments: Any) -> None:
    """Raise UserError where a schedule cannot be made with its arguments."""
    import torch
    from transformers.optimization import get_scheduler

    steps = 100_000
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=arguments.learning_rate)
    kind, given = arguments.lr_scheduler_type, arguments.lr_scheduler_kwargs
    try:
        get_scheduler(kind, optimizer, arguments.get_warmup_steps(steps), steps, given)
    except (TypeError, ValueError) as error:
        name = getattr(kind, "value", kind)
        unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if unknown is not None:
            raise UserError(f"{place}: the schedule '{name}' takes no '{unknown[1]}'.") from error
        said = re.sub(r"^[\w.]+\(\) ", "", str(error)).rstrip(".")
        raise UserError(f"{place}: the schedule '{name}' cannot be made: {said}.") from error


def _targets(place: str, config: TrainConfig) -> None:
    """Raise UserError where no module of the base is called so: where its configuration is here, it
    is built without weights. A base that cannot be built so is left to the training."""
    file = Path(config.base).expanduser() / "config.json"
    if not file.is_file():
        return
    import torch
    from peft import LoraConfig
    from peft.tuners.tuners_utils import check_target_module_exists
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        known = AutoConfig.from_pretrained(file.parent, trust_remote_code=False)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(known, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, ImportError, RuntimeError):
        return
    lora: Mapping[str, Any] = config.lora or {}
    adapter = LoraConfig(**lora)
    modules = dict(model.named_modules())
    if any(check_target_module_exists(adapter, name) for name in modules if name):
        return
    linear = {name for name, each in modules.items() if isinstance(each, torch.nn.Linear)}
    names = sorted({name.rpartition(".")[2] for name in linear or modules})
    given = lora["target_modules"]
    told = ", ".join(given) if isinstance(given, list) else given
    raise UserError(f"{place}: the base has no module '{told}'; it has {', '.join(names)}.")
