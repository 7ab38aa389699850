"""How lm-eval reaches a checkpoint: in its own process (hf, vllm), or through a server of ours
(local-completions, local-chat-completions)."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from core import models
from core.errors import UserError
from core.servers import Servers
from core.serving.devices import gpus
from core.wire import ServerSpec, Target
from eval.checkpoint.answers import stop_ids
from eval.checkpoint.asked import Asked, folder_of, named, server_of
from eval.config import TasksConfig

SERVED = {"local-completions": "/v1/completions", "local-chat-completions": "/v1/chat/completions"}
"""lm-eval's backends that talk to a server, and where."""

KEY = "OPENAI_API_KEY"
"""Where lm-eval looks for the server's key."""


@dataclass(frozen=True)
class Reached:
    """lm-eval's model type, its arguments, what goes to simple_evaluate where the recipe does not
    say it, and the process's environment (a key is in no file)."""

    backend: str
    model_args: dict[str, Any]
    evaluate: dict[str, Any]
    env: dict[str, str] = field(default_factory=dict)


@contextmanager
def reached(config: TasksConfig, model: Asked, servers: Servers) -> Iterator[Reached]:
    """How lm-eval reaches `model` (a folder, `embedded/NAME`, hub id, or a checkpoint with an
    adapter), while the block runs.

    By `local-completions` and without a `base_url` of the recipe's, a server of ours answers
    (`config.server`); any other backend loads the checkpoint's own weights, so our servers end
    first. `apply_chat_template` is on where the checkpoint has a chat template, unless `evaluate`
    says otherwise. Raises UserError when a server does not start.
    """
    backend, own = backend_of(config)
    path = folder_of(model)
    chat = has_chat_template(str(own.get("pretrained") or path))
    evaluate = {"apply_chat_template": chat, **config.evaluate}
    if backend in SERVED and "base_url" not in own:
        spec = server_of(model, path, config.server or {})
        asked = {"model": spec.request_model, **named(model), "tokenizer": path, **own}
        with servers.targets(spec) as targets:
            yield _by_server(backend, spec, targets[0], asked, evaluate, path)
        return
    servers.release()  # their memory
    if "pretrained" not in own and backend not in SERVED:
        own = {"pretrained": path, **own}
    yield Reached(backend, own, evaluate)


def _by_server(
    backend: str,
    spec: ServerSpec,
    target: Target,
    asked: dict[str, Any],
    evaluate: dict[str, Any],
    folder: str,
) -> Reached:
    """Through one server of ours, as many tokens as it takes; `asked`: model and tokenizer, and
    what the recipe says; `folder`: the checkpoint's."""
    templated = bool(evaluate["apply_chat_template"])
    model_args = {
        "base_url": target.address + SERVED[backend],
        "tokenizer_backend": "huggingface" if backend == "local-completions" else None,
        "num_concurrent": spec.max_in_flight,
        "max_length": _longest(target),
        "timeout": int(spec.timeout),
        # What a chat template has written stands in the text already.
        "add_bos_token": not templated and _writes_bos(folder),
        **asked,
    }
    said = evaluate.get("gen_kwargs") or {}
    if isinstance(said, dict):
        # Our servers pass over generation_config.json, where a chat model's end of turn is.
        evaluate = evaluate | {"gen_kwargs": {"stop_token_ids": stop_ids(folder), **said}}
    return Reached(backend, model_args, evaluate, {KEY: target.key or "none"})


def _longest(target: Target) -> int:
    """The most tokens of a prompt and its answer that the server takes."""
    request = urllib.request.Request(f"{target.address}/v1/models")
    if target.key:
        request.add_header("Authorization", f"Bearer {target.key}")
    try:
        with urllib.request.urlopen(request, timeout=30) as reply:
            listed = json.load(reply)["data"]
        return int(listed[0].get("max_model_len") or 2048)
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise UserError(
            f"the server at {target.address} does not say which models it has ({error}); "
            "is it OpenAI-compatible?"
        ) from error


def has_chat_template(path: str) -> bool:
    """Whether a checkpoint's tokenizer has a chat template."""
    return bool(getattr(models.tokenizer(path), "chat_template", None))


def _writes_bos(path: str) -> bool:
    """Whether the tokenizer puts a BOS before any text by itself, as lm-eval's hf backend lets
    it."""
    tokenizer = models.tokenizer(path)
    first = tokenizer("a")["input_ids"][:1]
    return bool(first == [tokenizer.bos_token_id])


def backend_of(config: TasksConfig) -> tuple[str, dict[str, Any]]:
    """(lm-eval's model type, its arguments): the recipe's own, else what uses every GPU."""
    own = dict(config.model_args)
    if config.backend is not None or own or not _installed("vllm"):
        return config.backend or "hf", own
    here = len(gpus())
    if not here:
        return "hf", own
    # lm-eval gives each replica to a worker of Ray's.
    replicas = here if _installed("ray") else 1
    return "vllm", {"dtype": "auto", "data_parallel_size": replicas}


def _installed(distribution: str) -> bool:
    """Whether a distribution is installed: lm-eval asks for vLLM by it, and the CPU build has
    another name."""
    try:
        return bool(version(distribution))
    except PackageNotFoundError:
        return False
