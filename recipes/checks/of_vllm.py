"""Server arguments and sampling, judged by vLLM: `python -m recipes.checks.of_vllm ASKED OUT`."""

from __future__ import annotations

import inspect
import re
import sys
import types
import typing
from collections.abc import Mapping
from contextlib import suppress
from types import NoneType
from typing import Any

from core.errors import UserError, first_line, near, nearest
from core.serving.devices import gpus
from core.serving.vllm_server import command_line, cpu_defaults, sampling_defaults
from recipes.blocks import refusals
from recipes.checks import vllm_names
from recipes.checks.answering import serve

ALONE = {"tensor_parallel_size": 1, "pipeline_parallel_size": 1, "data_parallel_size": 1}
"""A recipe's machine may have more GPUs than this one; `magpie doctor` counts them."""


READ = {
    "int": "a whole number",
    "float": "a number",
    "human_readable_int": "a whole number (or 8k)",
    "human_readable_int_or_auto": "a whole number (or 8k, or auto)",
    "optional_type": "another kind of value",
}
"""What vLLM's parser reads, in words."""


def answer(question: Mapping[str, Any]) -> str | None:
    """What vLLM says against one question, beginning with its place."""
    place, value = question["place"], question["value"]
    try:
        if question["kind"] == "sampling":
            _sampling(place, value["api"], value["sampling"])
        else:
            _engine(place, value["args"], value["model"])
    except UserError as error:
        return str(error)
    return None


def _sampling(place: str, api: str, sampling: Mapping[str, Any]) -> None:
    """Raise UserError for a value that a request with it would be refused for."""
    from pydantic import ValidationError
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest

    try:
        if api == "chat":
            chat = ChatCompletionRequest(messages=[], model="model", **sampling)
            chat.to_sampling_params(chat.max_tokens or 16, {})
        else:
            asked = CompletionRequest(prompt="text", model="model", **sampling)
            asked.to_sampling_params(asked.max_tokens or 16, {})
    except ValidationError as error:
        raise UserError(_first(place, error)) from error
    except Exception as error:  # its own classes among them, which are no ValueErrors
        raise UserError(f"{place}: vLLM refuses it: {first_line(error)}") from error


def _first(place: str, error: Any) -> str:
    """The first problem of a pydantic error, in its words, without its classes."""
    problem = error.errors()[0]
    key = next((str(part) for part in problem["loc"] if str(part)[:1].islower()), "")
    return f"{place}{f'.{key}' if key else ''}: {refusals.said([problem]).splitlines()[0]}"


def _engine(place: str, args: Mapping[str, Any], model: str | None) -> None:
    """Raise UserError for an argument that vLLM's parser does not know or cannot read, for a value
    that its configuration classes refuse, and where the model is here (`model`: its folder) for
    what does not fit it."""
    from vllm.engine.arg_utils import AsyncEngineArgs

    read = _parsed(place, args)
    _quantization(place, args.get("quantization"))
    vllm_names.check(place, args, read)
    for name in args:
        _field(place, name, getattr(read, name, None))
    if model is None:
        return
    settings = {**sampling_defaults(args), **args}
    if not gpus():
        settings = cpu_defaults(settings)
    whole = _parsed(place, {**settings, **ALONE})
    whole.model = model
    try:
        AsyncEngineArgs.from_cli_args(whole).create_engine_config()
    except Exception as error:
        # what this machine lacks is found by the run, or by `magpie doctor`
        if not _of_recipe(error):
            return
        raise UserError(f"{place}: vLLM refuses it for this model: {_cause(error)}") from error


def _quantization(place: str, method: Any) -> None:
    """Raise UserError for a method that vLLM does not have; its parser takes any text."""
    from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS

    if method is not None and method not in QUANTIZATION_METHODS:
        hint = nearest(str(method), QUANTIZATION_METHODS)
        raise UserError(f"{place}.quantization: vLLM has no method '{method}'{hint}")


def _of_recipe(error: Exception) -> bool:
    """Whether an error is about the arguments, and not about a machine where vLLM finds no
    device."""
    from vllm.platforms import current_platform

    kinds = (ValueError, TypeError, NotImplementedError)
    said = isinstance(error, kinds) or type(error).__module__.startswith("vllm")
    return said and bool(current_platform.device_type)


def _cause(error: Exception) -> str:
    """The first sentence of what vLLM says; of a pydantic error the first problem."""
    if hasattr(error, "errors"):
        with suppress(LookupError, TypeError):
            return _sentence(_needs(str(error.errors()[0]["msg"])))
    return _sentence(first_line(error))


def _sentence(text: str) -> str:
    """The first sentence of a long text."""
    return re.split(r"\. (?=[A-Z])", text.splitlines()[0])[0]


def _parsed(place: str, args: Mapping[str, Any]) -> Any:
    """The arguments as vLLM's server reads its command line."""
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    class Parser(FlexibleArgumentParser):  # type: ignore[misc]  # vLLM has no types
        """Says what is wrong instead of ending the process."""

        def error(self, message: str) -> Any:
            raise UserError(message)

    parser = make_arg_parser(Parser(prog="vllm"))
    known = {action.dest: action for action in parser._actions}
    for name, value in args.items():
        if name not in known:
            raise UserError(f"{place}: vLLM knows no argument '{name}'{near(name, known)}")
        shown = refusals.shown(value)
        if known[name].nargs == 0 and not isinstance(value, (bool, NoneType)):
            raise UserError(f"{place}.{name}: needs true or false (it is {shown})")
        if known[name].nargs is None and isinstance(value, bool):
            needed = READ.get(getattr(known[name].type, "__name__", ""), "a text")
            raise UserError(f"{place}.{name}: needs {needed} (it is {shown})")
    try:
        return parser.parse_args(command_line(args))
    except UserError as error:
        raise UserError(_of_parser(place, " ".join(str(error).split()))) from error


def _of_parser(place: str, said: str) -> str:
    """What argparse says of an option, in the words of recipes."""
    found = re.fullmatch(r"argument --([\w-]+)\S*: (.*)", said)
    if found is None:
        return f"{place}: vLLM refuses it: {said}"
    at = f"{place}.{found[1].replace('-', '_')}"
    choice = re.fullmatch(r"invalid choice: (.*) \(choose from (.*)\)", found[2])
    if choice is not None:
        return f"{at}: needs one of {choice[2]} (it is {choice[1]})"
    value = re.fullmatch(r"invalid (\w+) value: (.*)", found[2])
    if value is not None:
        return f"{at}: needs {READ.get(value[1], 'another kind of value')} (it is {value[2]})"
    unreadable = re.fullmatch(r"Value (.*) cannot be converted to <function.*", found[2])
    if unreadable is not None:
        return f"{at}: needs a mapping (it is '{unreadable[1]}')"
    inner = re.search(r"validation errors? for \w+ (?:([a-z_]\S*) )?(.*?) \[type=(\w+)", found[2])
    if inner is None:
        return f"{at}: vLLM refuses it: {found[2]}"
    if inner[3] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"{at}: unknown key `{inner[1]}`"
    return f"{at}{f'.{inner[1]}' if inner[1] else ''}: {_needs(inner[2])}"


def _needs(said: str) -> str:
    """What pydantic says of one value, in words."""
    said = said.removeprefix("Value error, ").removeprefix("Assertion failed, ")
    kind = re.sub(r"^Input should be (an? valid )?", "", said)
    words = {"dictionary": "a mapping", "boolean": "true or false", "integer": "a whole number"}
    words |= {"an object": "a mapping", "string": "a text"}
    listed = "one of " if kind.startswith("'") and "," in kind else ""
    return f"needs {listed}{words.get(kind, kind)}" if kind != said else said


def _field(place: str, name: str, value: Any) -> None:
    """Raise UserError for a value that the configuration class with a field of this name refuses
    (the parser takes `--max-model-len -5`)."""
    import dataclasses
    from typing import Annotated

    import vllm.config
    from pydantic import TypeAdapter, ValidationError
    from pydantic.errors import PydanticSchemaGenerationError, PydanticUserError

    owner = _owner(name)
    for kind in vars(vllm.config).values():
        if value is None or not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
            continue
        if owner not in ("", kind.__name__):
            continue
        info = getattr(kind, "__pydantic_fields__", {}).get(name)
        if info is None or not (info.metadata or _is_told(info.annotation)):
            continue
        try:
            whole: Any = Annotated[info.annotation, *info.metadata]
            TypeAdapter(whole).validate_python(value)
        except ValidationError as error:
            raise UserError(_first(f"{place}.{name}", error)) from error
        except (PydanticSchemaGenerationError, PydanticUserError, NameError, TypeError):
            continue


def _owner(name: str) -> str:
    """The configuration class that an engine argument is of, where its default says so: other
    classes may have a field of the same name and another range."""
    from vllm.engine.arg_utils import EngineArgs

    source = inspect.getsource(EngineArgs)
    told = re.search(rf"^    {name}: [^=]+= (?:get_field\()?\s*(\w+)[.,]", source, re.MULTILINE)
    return told[1] if told else ""


def _is_told(annotation: Any) -> bool:
    """Whether an annotation asks for one of some words alone, or for a plain value."""
    kinds = typing.get_args(annotation) if _is_union(annotation) else (annotation,)
    plain = (bool, int, float, NoneType)
    return all(kind in plain or typing.get_origin(kind) is typing.Literal for kind in kinds)


def _is_union(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (typing.Union, types.UnionType)


if __name__ == "__main__":
    serve(sys.argv[1:], answer)
