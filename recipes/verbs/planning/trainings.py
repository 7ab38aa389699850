"""What a plan says of each training: rows, tokens, packs, steps, memory, disk and hours, from what
is made or from what the recipe states."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.errors import UserError
from core.files import read_json
from recipes.blocks.added_arms import made_of
from recipes.schema import with_random

if TYPE_CHECKING:
    from recipes.schema import Recipe
    from recipes.stages.graph import Outcome
    from train.config import TrainConfig


@dataclass(frozen=True)
class Hardware:
    """What hours and memory are worked out for: GPUs, GiB of each, the device's name, and the share
    of its peak that is reached. None: as the recipe states, or this machine's."""

    gpus: int | None = None
    gpu_memory: float | None = None
    gpu: str = "H100"
    mfu: float = 0.4


@dataclass(frozen=True)
class Work:
    """Rows of an arm and their tokens, once over all of them, and where the figures are from."""

    rows: int | None
    tokens: int | None
    said: str


def trainings(recipe: Recipe, outcome: Outcome, hardware: Hardware) -> list[dict[str, Any]]:
    """One mapping an arm that is trained: its seeds, its work and everything that follows."""
    seeds: dict[str, int] = Counter()
    found: dict[str, list[Path | None]] = defaultdict(list)
    for step in outcome.steps:
        stage, _, run = step.name.partition("/")
        if stage in ("tokens", "train"):
            arm = run.split("/")[0]
            seeds[arm] += stage == "train"
            found[arm].append(step.path)
    fits: dict[str, dict[str, Any]] = {}
    listed = []
    for arm, count in seeds.items():
        config = _config_of(recipe, arm)
        work = _work(recipe, arm, found[arm])
        said = {"arm": arm, "seeds": count, "method": config.block, **asdict(work)}
        of = f"{config.block} {config.base}"
        if of not in fits:
            fits[of] = _machine_and_verdict(recipe, config, hardware)
        steps = _steps(recipe, config, work, count, hardware)
        listed.append(said | fits[of] | steps)
    return listed


def _config_of(recipe: Recipe, arm: str) -> TrainConfig:
    """How an arm is trained: a DPO goes on from a finished model, or from a fine-tuning of the
    recipe's base."""
    before = recipe.arms[arm].dpo if arm in recipe.arms else None
    config = recipe.train if before is None else recipe.dpo
    assert config is not None, "recipes.schema refuses arms that nothing trains"
    if before is None:
        return config
    finished = recipe.arms[before]
    if finished.model is not None:
        base: dict[str, Any] = {"base": finished.model, "revision": finished.revision}
    else:
        assert recipe.train is not None, "recipes.schema refuses arms that nothing trains"
        base = {"base": recipe.train.base, "revision": recipe.train.revision}
    return config.model_copy(update=base)


def _work(recipe: Recipe, arm: str, paths: list[Path | None]) -> Work:
    """Of the ledger of a training that is made or has begun, else as the recipe states it, else the
    rows that the arm may have at most."""
    for path in filter(None, paths):
        for folder in (path, path.with_name(f"{path.name}.partial")):
            with suppress(UserError, FileNotFoundError):  # a damaged one counts nothing
                ledger = read_json(folder / "ledger.json")
                if {"trained_rows", "trained_tokens"} <= ledger.keys():
                    return Work(ledger["trained_rows"], ledger["trained_tokens"], "counted")
    arms = with_random(recipe)
    arm = made_of(arms).get(arm, arm)
    if recipe.expected is not None:
        stated = recipe.expected.arms.get(arm, recipe.expected)
        if stated.rows or stated.tokens:
            return Work(stated.rows, stated.tokens, "stated")
    budget = arms[arm].budget if arm in arms else None
    if budget is None:
        return Work(None, None, "known when its selection is made")
    return Work(budget.rows, budget.tokens, "budget")


def _machine_and_verdict(recipe: Recipe, config: TrainConfig, hardware: Hardware) -> dict[str, Any]:
    """Disk of one training and, where GPUs are known, what each of them holds."""
    from recipes.verbs.readiness.memory import machine
    from train.sizes.disk import peak_disk
    from train.sizes.fitting import Machine, verdict
    from train.sizes.shapes import shape_of

    try:
        shape = shape_of(config.base, config.revision)
    except UserError as error:
        return {"memory": str(error)}
    where: Machine | None = None
    with suppress(UserError):  # no GPU is known: nothing is asked of one
        where = machine(recipe, hardware.gpus, hardware.gpu_memory)
    found: dict[str, Any] = {"weights": shape.weights}
    peak = peak_disk(config, on_gpu=where is not None)
    if peak is not None:
        found["disk_bytes"] = peak
    if where is None:
        return found
    found["gpus"] = where.devices
    try:
        return found | {"memory": verdict(config, shape, where)}
    except UserError as error:
        return found | {"memory": str(error)}


def _steps(
    recipe: Recipe, config: TrainConfig, work: Work, seeds: int, hardware: Hardware
) -> dict[str, Any]:
    """Packs, steps, warm-up and accumulation of one seed, and hours where GPUs are known."""
    from recipes.verbs.readiness.memory import machine
    from train.settings.machine import processes
    from train.sizes.schedule import expected_hours, peak_of, schedule
    from train.sizes.shapes import shape_of

    if not work.rows or not work.tokens:
        return {}
    devices = None
    with suppress(UserError):  # no GPU is known
        devices = machine(recipe, hardware.gpus, hardware.gpu_memory).devices
    try:
        planned = schedule(config, work.rows, work.tokens, devices or processes(config))
    except UserError as error:
        return {"refused": str(error)}
    found = asdict(planned)
    if devices is None:
        return found
    try:
        shape = shape_of(config.base, config.revision)
    except UserError:
        return found
    peak = peak_of(hardware.gpu) * hardware.mfu
    spent = expected_hours(config, shape, planned, work.rows, work.tokens, peak)
    each = {"hours": spent / devices, "gpu_hours": spent * seeds}
    return found | each | {"hours_of_all_seeds": spent / devices * seeds, "gpu": hardware.gpu}


def lines(listed: list[dict[str, Any]], hardware: Hardware) -> Iterator[str]:
    """The same for a reader."""
    for one in listed:
        seeds = "1 seed" if one["seeds"] == 1 else f"{one['seeds']} seeds"
        yield f"training {one['arm']} ({seeds})"
        rows, tokens, said = one["rows"], one["tokens"], one["said"]
        if rows is None and tokens is None:
            yield f"  rows and tokens: {said}"
        else:
            counted = f"{tokens:,} tokens an epoch" if tokens else "tokens not known yet"
            kind = "pairs" if one["method"] == "dpo" else "rows"
            yield f"  {rows:,} {kind}, {counted} ({said})" if rows else f"  {counted} ({said})"
        if "refused" in one:
            yield f"  {one['refused']}"
        if "steps" in one:
            yield from _of_steps(one)
        if "memory" in one:
            yield f"  memory: {one['memory']}"
        if "disk_bytes" in one:
            yield f"  disk at the peak of one training: {one['disk_bytes'] / 1e9:,.0f} GB"
        if "hours" in one:
            yield (
                f"  time: {one['hours']:.1f} hours a seed, {one['hours_of_all_seeds']:.1f} for "
                f"{seeds} ({one['gpu_hours']:.0f} GPU hours) on {one['gpus']} x {one['gpu']} at "
                f"{hardware.mfu:.0%} of its peak (stated)"
            )


def _of_steps(one: dict[str, Any]) -> Iterator[str]:
    kind = "pairs" if one["method"] == "dpo" else "sequences"
    yield (
        f"  {one['sequences']:,} {kind} an epoch, {one['steps_per_epoch']:,} steps an epoch, "
        f"{one['steps']:,} in all, {one['warmup']:,} of them warm-up"
    )
    wasted = one["empty"] / (one["empty"] + one["sequences_per_step"])
    waste = f", {wasted:.0%} of the work without rows" if one["empty"] else ""
    yield (
        f"  {one['tokens_per_step']:,} tokens a step: {one['sequences_per_step']} {kind}, "
        f"{one['accumulation']} passes a device{waste}"
    )
