"""Types and ranges of settings that go verbatim to TRL, peft and transformers, whose own classes
take a text for a number until a training divides by it."""

from __future__ import annotations

import difflib
import inspect
import json
import math
import re
import types
import typing
from collections.abc import Collection, Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from core.errors import UserError, near, nearest

ONE_OR_MORE = frozenset(
    (
        "max_length",
        "per_device_train_batch_size",
        "per_device_eval_batch_size",
        "gradient_accumulation_steps",
        "dataloader_prefetch_factor",
        "save_total_limit",
        "logging_steps",
        "dataset_num_proc",
        "max_position_embeddings",
        "r",
    )
)
ABOVE_ZERO = frozenset(("num_train_epochs", "save_steps", "adam_epsilon", "beta", "ddp_timeout"))
ZERO_OR_MORE = frozenset(
    (
        "learning_rate",
        "weight_decay",
        "warmup_steps",
        "max_grad_norm",
        "dataloader_num_workers",
        "lora_alpha",
        "neftune_noise_alpha",
    )
)
SHARES = frozenset(["lora_dropout", "label_smoothing", "label_smoothing_factor", "warmup_ratio"])
ALONE = frozenset(["loss_type"])
"""Lists of texts of which TRL takes one by itself too."""
BELOW_ONE = frozenset(("adam_beta1", "adam_beta2"))

WORDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
    dict: "a mapping",
    list: "a list",
    tuple: "a list",
    type(None): "null",
}


def hints(kind: type) -> dict[str, Any]:
    """The annotations of a class's arguments; {} where they cannot be read."""
    try:
        return typing.get_type_hints(kind)
    except (NameError, TypeError, AttributeError):
        return {}


def check(at: str, kind: type, settings: Mapping[str, Any]) -> None:
    """Raise UserError, beginning with `at`, for the first setting whose value is of another type
    than the class `kind` says, or out of its range."""
    known = hints(kind)
    for name, value in settings.items():
        alone = name in ALONE and isinstance(value, str)
        if name in known and not alone and not fits(value, known[name]):
            needed = " or ".join(dict.fromkeys(w for w in words(known[name]) if w != "null"))
            raise UserError(f"{at}.{name}: needs {needed} (it is {shown(value)}).")
        bound = out_of_range(name, value)
        if bound is not None:
            raise UserError(f"{at}.{name}: needs {bound} (it is {shown(value)}).")


def fits(value: Any, annotation: Any) -> bool:
    """Whether a value as JSON has it is what an annotation asks for. A whole number is a number; an
    annotation that says nothing simple takes everything."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, each) for each in inner)
    if origin is typing.Literal:
        return value in inner
    if origin is typing.Annotated:
        return fits(value, inner[0])
    kind = origin or annotation
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if kind in (tuple, set, list):
        return isinstance(value, (list, tuple))
    if kind in (bool, str, dict, type(None)):
        return isinstance(value, kind)
    if isinstance(kind, type) and issubclass(kind, Enum):  # the class itself says which texts
        return isinstance(value, str)
    return True


def words(annotation: Any) -> Iterator[str]:
    """What an annotation asks for, in words."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        for each in inner:
            yield from words(each)
    elif origin is typing.Literal:
        yield f"one of {', '.join(map(str, inner))}"
    elif origin is typing.Annotated:
        yield from words(inner[0])
    elif isinstance(annotation, type) and issubclass(annotation, Enum):
        yield f"one of {', '.join(str(each.value) for each in annotation)}"
    else:
        yield WORDS.get(origin or annotation, "another kind of value")


def out_of_range(name: str, value: Any) -> str | None:
    """What a number needs to be, where it is not that; None where it is, or is no number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    if not math.isfinite(value):
        return "a finite number"
    needed = [
        (name in ONE_OR_MORE and value < 1 and not _is_share(name, value), "1 or more"),
        (name in ABOVE_ZERO and value <= 0, "more than 0"),
        (name in ZERO_OR_MORE and value < 0, "0 or more"),
        (name in SHARES and not 0 <= value <= 1, "a share from 0 to 1"),
        (name in BELOW_ONE and not 0 <= value < 1, "a number from 0 to below 1"),
        (name == "max_steps" and value < 1 and value != -1, "1 or more (or -1, for epochs)"),
    ]
    return next((bound for wrong, bound in needed if wrong), None)


def _is_share(name: str, value: float) -> bool:
    """`logging_steps` below 1 is a share of all steps."""
    return name == "logging_steps" and 0 < value < 1


def shown(value: Any) -> str:
    """A value as a recipe has it, not too long."""
    if value is None:
        return "empty"
    text = f"'{value}'" if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


TRUE_OR_FALSE = (
    "low_cpu_mem_usage",
    "use_cache",
    "use_safetensors",
    "local_files_only",
    "force_download",
    "tie_word_embeddings",
)
"""What from_pretrained reads as that, without a look at its type."""
DTYPES = ("auto", "bfloat16", "float16", "float32")


def check_model_init(at: str, settings: Mapping[str, Any], base: str) -> None:
    """Raise UserError, beginning with `at`, for what from_pretrained would pass on to a model that
    does not know it: a name that neither it nor the base's configuration has.

    Where the base's configuration is not at hand, only a name that is nearly a known one is."""
    dtype = settings.get("dtype", settings.get("torch_dtype"))
    if dtype is not None and dtype not in DTYPES:
        hint = nearest(str(dtype), DTYPES)
        raise UserError(f"{at}.dtype: there is no number format {shown(dtype)} here{hint}.")
    attention = settings.get("attn_implementation")
    if attention is not None and not isinstance(attention, str):
        raise UserError(f"{at}.attn_implementation: needs a text (it is {shown(attention)}).")
    for name, value in settings.items():
        if name in TRUE_OR_FALSE and not isinstance(value, (bool, type(None))):
            raise UserError(f"{at}.{name}: needs true or false (it is {shown(value)}).")
        bound = out_of_range(name, value)
        if bound is not None:
            raise UserError(f"{at}.{name}: needs {bound} (it is {shown(value)}).")
    known, whole = loading_names(base)
    for name in settings:
        if name not in known and (whole or misspelt(name, known)):
            hint = near(name, known)
            raise UserError(f"{at}: from_pretrained knows no argument '{name}'{hint}.")


def misspelt(name: str, known: Collection[str]) -> bool:
    """Whether a name is so nearly a known one that it is that one misspelt, where others may be
    right too."""
    return bool(difflib.get_close_matches(name, known, n=1, cutoff=0.85))


def loading_names(base: str) -> tuple[set[str], bool]:
    """(names that from_pretrained takes for a base, whether these are all)."""
    from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

    source = inspect.getsource(PreTrainedModel.from_pretrained)
    source += inspect.getsource(AutoModelForCausalLM.from_pretrained)
    known = set(re.findall(r'kwargs\.(?:pop|get)\(\s*"([a-z]\w+)"', source))
    known |= set(inspect.signature(PreTrainedModel.from_pretrained).parameters)
    known |= {"attn_implementation", "dtype", "torch_dtype", "force_download", "resume_download"}
    known |= {"device_map", "max_memory", "use_cache", "low_cpu_mem_usage", "offload_state_dict"}
    known |= {name for name in vars(PretrainedConfig()) if not name.startswith("_")}
    file = Path(base).expanduser() / "config.json"
    if not file.is_file():
        return known, False
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(file.parent, trust_remote_code=False)
    except (OSError, ValueError, KeyError):
        return known, False
    return known | set(config.to_dict()), True
