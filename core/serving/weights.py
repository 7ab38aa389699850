"""Where a server of our own takes a model of the hub from: its folder at one commit, so that what
is served is what the key names, and no server asks the hub."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from core.models import Model, folder, resolve
from core.wire import ServerSpec


def spec_at(model: Model, block: Mapping[str, Any]) -> ServerSpec:
    """The settings of a resolved model's server: a recipe's `server` block, and the commit of a
    model of the hub, unless the block names a revision of its own or servers that exist."""
    args = dict(block.get("args") or {})
    if model.commit is not None and not block.get("urls"):
        args = {"revision": model.commit, **args}
    return ServerSpec(model=model.path, **{**block, "args": args})


def local(spec: ServerSpec, say: Callable[[str], None] | None = None) -> ServerSpec:
    """The same from the model's folder on this machine, under the name that requests give,
    downloaded now where need be; `say` hears of that.

    A model that Ray spreads over machines keeps its id: each of them has a cache of its own. Raises
    UserError where the model cannot be had.
    """
    if Path(spec.model).is_dir() or not re.fullmatch(r"[\w.-]+/[\w.-]+", spec.model):
        return spec
    if spec.args.get("distributed_executor_backend") == "ray":
        return spec
    model = resolve(spec.model, spec.args.get("revision"))
    args = {"served_model_name": spec.request_model, **spec.args}
    args.pop("revision", None)
    return spec.model_copy(update={"model": str(folder(model, say)), "args": args})
