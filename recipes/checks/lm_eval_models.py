"""Arguments of lm-eval's types of models: the names that each takes, and what it or the library
behind it says of their values."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.errors import UserError, nearest
from recipes.checks import annotated
from train.settings.values import loading_names, misspelt, shown

DTYPES = ("dtype", "softmax_dtype", "mixed_precision_dtype")
ADDED = ("batch_size", "max_batch_size", "device")
"""What simple_evaluate tells every model."""


def check(place: str, backend: str | None, args: Mapping[str, Any], base: str | None) -> None:
    """Raise UserError for an argument that the type of model does not take, and for a value that is
    none of its. `base`: the folder of a model like those that it will load.

    A type whose own library is not here is not looked into.
    """
    if not args:
        return
    try:
        from lm_eval.api.registry import get_model

        kind = get_model(backend or "hf")
    except Exception:  # whatever another library's import raises
        return
    known, whole = _known(kind, base)
    for name, value in args.items():
        if name not in known and (whole or misspelt(name, known)):
            hint = nearest(name, known)
            hint = hint if "did you mean" in hint else ""
            raise UserError(
                f"{place}: lm-eval's model '{backend or 'hf'}' takes no '{name}'{hint}."
            )
        at = f"{place}.{name}"
        if name in DTYPES and isinstance(value, str):
            _dtype(at, value)
        else:
            annotated.check(at, value, known.get(name, Any))


def _known(kind: Any, base: str | None) -> tuple[dict[str, Any], bool]:
    """(name -> what is asked for, whether those are all) of a type of model."""
    known: dict[str, Any] = dict.fromkeys(ADDED, Any)
    within = [each for each in kind.__mro__ if "__init__" in vars(each) and each is not object]
    for each in reversed(within):
        own = annotated.arguments(each.__init__)
        known |= {
            name: asked for name, asked in own.items() if asked is not Any or name not in known
        }
    parents = {each.__name__ for each in kind.__mro__}
    if "VLLM" in parents:  # whose annotations name fewer words than vLLM takes
        more = _engine_arguments()
        return dict.fromkeys([*more, *known], Any) | _plain(known), bool(more)
    if "HFLM" in parents:
        names, whole = loading_names(base or "")
        return dict.fromkeys([*names, *_read_from_kwargs(kind)], Any) | known, whole
    passed = inspect.signature(kind.__init__).parameters.values()
    open_ = any(each.kind is each.VAR_KEYWORD for each in passed)
    # A model of an API passes over what it does not know.
    if known.get("timeout") is int:  # a part of a second is taken too
        known["timeout"] = float
    return known, "TemplateAPI" in parents or not open_


def _read_from_kwargs(kind: Any) -> set[str]:
    """Names that a class, or one that it is made of, reads from its further arguments."""
    sources = [inspect.getsource(each) for each in kind.__mro__ if each is not object]
    return set(re.findall(r'kwargs(?:\.(?:get|pop)\(|\[)\s*"([a-z]\w+)"', "".join(sources)))


def _plain(known: Mapping[str, Any]) -> dict[str, Any]:
    """Without lists of words."""
    return {name: asked for name, asked in known.items() if "Literal" not in str(asked)}


def _engine_arguments() -> list[str]:
    """vLLM's engine arguments, read from its source: importing it takes seconds."""
    vllm = importlib.util.find_spec("vllm")
    if vllm is None or vllm.origin is None:
        return []
    tree = ast.parse((Path(vllm.origin).parent / "engine" / "arg_utils.py").read_text())
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    return [
        field.target.id
        for node in classes
        if node.name == "EngineArgs"
        for field in node.body
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
    ]


def _dtype(at: str, value: str) -> None:
    """Raise UserError for a number format that torch does not have."""
    import torch

    formats = {name for name, each in vars(torch).items() if isinstance(each, torch.dtype)}
    if value != "auto" and value not in formats:
        usual = nearest(value, ("auto", "bfloat16", "float16", "float32", "half", "float"))
        raise UserError(f"{at}: there is no number format {shown(value)}{usual}.")
