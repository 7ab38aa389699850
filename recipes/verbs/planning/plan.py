"""`magpie plan`: ten lines on what a recipe would do, cost and be able to find; on request every
stage and every training."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.errors import UserError
from core.sending.purse import Bill
from core.store import digest
from eval.config import EvalConfig, pairwise_benchmarks, rated_benchmarks
from recipes.blocks import adapters
from recipes.stages.session import REUSE
from recipes.stages.walk import Arms
from recipes.verbs.planning import detectable
from recipes.verbs.planning import trainings as of_trainings
from recipes.verbs.planning.grouped import groups
from recipes.verbs.terminal import say, table

if TYPE_CHECKING:
    from recipes.schema import Loaded, Recipe
    from recipes.stages.graph import Outcome
    from recipes.verbs.planning.trainings import Hardware
    from train.config import TrainConfig

BEFORE = ("instructions", "measure")
"""Stages whose reasons say what is missing of the synthesis."""


def show(
    loaded: Loaded, outcome: Outcome, hardware: Hardware, *, stages: bool, as_json: bool
) -> None:
    """Print the summary and a line a kind of stage that is left, or with `stages` one line a stage
    and what each training needs; as JSON everything."""
    trained = of_trainings.trainings(loaded.recipe, outcome, hardware)
    told = summary(loaded.recipe, outcome, trained)
    steps = outcome.steps
    if as_json:
        listed = []
        for step in steps:
            path = str(step.path) if step.path else None
            listed.append({"stage": step.name, "state": step.state, "why": step.why, "path": path})
        shown = {
            "recipe": loaded.recipe.name,
            "summary": told,
            "groups": [asdict(group) for group in groups(steps)],
            "steps": listed,
            "trainings": trained,
            "peak_disk_bytes": told["peak_disk_bytes"],
        }
        print(json.dumps(shown, indent=2))
        return
    for line in lines(told, hardware):
        say(line)
    if stages:
        table(["stage", "state", "why"], [(step.name, step.state, step.why) for step in steps])
        for line in of_trainings.lines(trained, hardware):
            say(line)
    else:
        left = [(group.kind, group.runs, group.reused, group.why) for group in groups(steps)]
        if left:
            table(["stage", "run", "reused", "why"], left)
        say("every stage and training: the same command with --all")


def summary(recipe: Recipe, outcome: Outcome, trained: list[dict[str, Any]]) -> dict[str, Any]:
    """What the ten lines say, as plain data."""
    arms = Arms.of(recipe)
    steps = outcome.steps
    left = [step for step in steps if step.state != REUSE]
    bills: dict[str, Bill] = {}
    for model, bill in outcome.bills.values():
        bills[model] = bills.get(model, Bill()).plus(bill)
    peak = next((one["disk_bytes"] for one in trained if "disk_bytes" in one), None)
    return {
        "arms": [name for name in arms.configs if name not in arms.controls],
        "controls": list(arms.controls),
        "seeds": list(arms.seeds),
        "baseline": arms.baseline,
        "stages": len(steps),
        "reused": len(steps) - len(left),
        "to_run": dict(Counter(step.name.partition("/")[0] for step in left)),
        "synthesis": [f"{s.name}: {s.why}" for s in left if s.name.partition("/")[0] in BEFORE],
        "training": _training(trained, [step.name for step in left]) | {"cap": recipe.gpu_hours},
        "served": _served(recipe, arms),
        "judges": {model: bill._asdict() for model, bill in bills.items()},
        "money": sum(bill.money for bill in bills.values()),
        "peak_disk_bytes": peak,
        "kept_disk_bytes": _kept(recipe, steps),
        "detectable": detectable.of_recipe(recipe, arms, _items(recipe, outcome)),
    }


def _served(recipe: Recipe, arms: Arms) -> dict[str, Any] | None:
    """Of which base servers answer for trainings by their adapters, or could (`proposed`), how many
    servers (one for each distinct block), and for whom; None where each checkpoint has to have a
    server of its own."""
    config = recipe.eval
    if config is None or recipe.train is None or recipe.train.lora is None:
        return None
    tuned = [name for name, arm in arms.configs.items() if arm.model is None and arm.dpo is None]
    runs = [f"{name}/{seed}" for name in tuned for seed in arms.seeds]
    if config.lora == "merged" and not (len(runs) > 1 and _servable(recipe.train, config)):
        return None
    blocks = {digest(dict(server)) for _, server in adapters.servers(config)}
    served = {"base": recipe.train.base, "servers": len(blocks), "trainings": runs}
    return served | {"proposed": config.lora == "merged"}


def _servable(train: TrainConfig, config: EvalConfig) -> bool:
    """Whether `eval.lora: served` would be taken."""
    try:
        adapters.check(train, config.model_copy(update={"lora": "served"}))
    except UserError:
        return False
    return True


def _training(trained: list[dict[str, Any]], left: list[str]) -> dict[str, Any]:
    """What is left of the trainings, over all arms and seeds."""
    waiting = Counter(name.split("/")[1] for name in left if name.partition("/")[0] == "train")
    said: dict[str, Any] = {"runs": sum(waiting.values()), "tokens": 0, "gpu_hours": 0.0}
    unknown = []
    for one in trained:
        runs = waiting[one["arm"]]
        if runs and "trained_tokens" in one:
            said["tokens"] += runs * one["trained_tokens"]
        elif runs:
            unknown.append(one["arm"])
        if runs and "gpu_hours" in one:
            said["gpu_hours"] += one["gpu_hours"] * runs / one["seeds"]
            said |= {"gpus": one["gpus"], "gpu": one["gpu"]}
    facts = {key: one[key] for one in trained for key in ("memory", "refused") if key in one}
    return said | {"unknown": unknown} | facts


def _kept(recipe: Recipe, steps: Any) -> int | None:
    """Bytes of the checkpoints of all runs, which stay."""
    from train.sizes.shapes import shape_of

    runs = sum(step.name.startswith("train/") for step in steps)
    if recipe.train is None or not runs:
        return None
    try:
        weights = shape_of(recipe.train.base, recipe.train.revision).weights
    except UserError:
        return None
    return int(runs * weights * (4 if recipe.train.export_dtype == "float32" else 2))


def _items(recipe: Recipe, outcome: Outcome) -> int | None:
    """How many items the primary metric has, as far as that is known before it is measured."""
    from eval.prompt_sets import prompts
    from eval.prompt_sets.checked_prompts import checked_prompts

    config = recipe.eval
    if config is None or config.deciding is None:
        return None
    benchmark, _, metric = config.deciding.partition("/")
    if benchmark == "heldout":
        return _conversations(recipe, outcome, foreign=metric == "foreign_loss")
    if config.checks is not None and benchmark == "checks":
        return len(checked_prompts(config.checks.prompts, config.checks.limit or config.limit))
    made = outcome.results.get(f"prompts/{benchmark}")
    if made is not None:
        return int(made.manifest["counts"]["rows"])
    source, limit = _prompt_set(config, benchmark)
    known, _ = prompts.ABOUT.get(source, (0, []))
    if (not known and Path(source).expanduser().is_file()) or source in prompts.SHIPPED:
        known = len(prompts.prompts(source, limit))
    return min(known, limit or known) or None


def _prompt_set(config: EvalConfig, benchmark: str) -> tuple[str, int | None]:
    """The prompt set of a judged benchmark, and how many of it are asked; ("", None) of others."""
    for rated in rated_benchmarks(config):
        if rated == benchmark:
            return config.rating(rated).prompts, config.rating(rated).limit
    for pairwise in pairwise_benchmarks(config):
        if pairwise == benchmark:
            return str(config.protocol(pairwise).prompts), config.limit
    return "", None


def _conversations(recipe: Recipe, outcome: Outcome, *, foreign: bool) -> int | None:
    """Held-out conversations: counted where they are selected, else about their share."""
    made = outcome.results.get("foreign" if foreign else "select/heldout")
    if made is not None:
        return int(made.manifest["counts"]["rows"])
    of = recipe.eval.heldout.foreign if recipe.eval and recipe.eval.heldout else None
    if foreign:
        return of.limit if of else None
    rows = recipe.synth.rows
    return round(rows * recipe.synth.heldout) if isinstance(rows, int) else None


# -- in words --------------------------------------------------------------------------------------


def lines(told: Mapping[str, Any], hardware: Hardware) -> Iterator[str]:
    """The summary for a reader, ten lines at most."""
    seeds = len(told["seeds"])
    controls = f" + {len(told['controls'])} controls" if told["controls"] else ""
    named = ", ".join([*told["arms"], *told["controls"]])
    size = f"{len(told['arms'])} arms{controls} x {seeds} seed{'s' * (seeds > 1)}"
    yield f"{size}: {named}; baseline {told['baseline']}"
    ran = ", ".join(f"{count} {name}" for name, count in told["to_run"].items()) or "nothing"
    yield f"{told['reused']} of {told['stages']} stages are reused; to run: {ran}"
    if told["synthesis"]:
        first, *more = told["synthesis"]
        yield first + (f" (and {len(more)} more)" if more else "")
    yield from _of_training(told["training"], hardware)
    if told["served"]:
        yield _of_served(told["served"])
    for model, bill in told["judges"].items():
        money = f", {bill['money']:,.2f} in money" if bill["money"] else ""
        read = f"{bill['prompt_tokens']:,} tokens read, {bill['tokens']:,} generated"
        yield f"judge {model}: at most {bill['calls']:,} calls, {read}{money}"
    if told["peak_disk_bytes"]:
        kept = told["kept_disk_bytes"]
        beside = f", and {kept / 1e9:,.0f} GB for the checkpoints of all runs" if kept else ""
        yield f"disk: {told['peak_disk_bytes'] / 1e9:,.0f} GB while one arm trains{beside}"
    yield from _of_detectable(told["detectable"])


def _of_training(one: Mapping[str, Any], hardware: Hardware) -> Iterator[str]:
    """Runs, tokens and GPU hours that are left; memory where it is known."""
    if not one["runs"]:
        return
    tokens = f"{one['tokens']:,} tokens" if one["tokens"] else "tokens not known yet"
    if one["tokens"] and one["unknown"]:
        tokens += f" without {', '.join(one['unknown'])}, not known yet"
    hours = ""
    if one["gpu_hours"]:
        hours = (
            f", {one['gpu_hours']:,.1f} GPU hours on {one['gpus']} x {one['gpu']} at "
            f"{hardware.mfu:.0%} of its peak (stated)"
        )
    if one["cap"]:
        hours += f"; the cap is {one['cap']:g} in all"
    yield f"training: {one['runs']} runs, {tokens}{hours}"
    if "refused" in one:
        yield f"training is refused: {one['refused']}"
    if "memory" in one:
        yield f"memory: {one['memory']}"


def _of_served(one: Mapping[str, Any]) -> str:
    """That one server answers for several trainings."""
    servers = f"{one['servers']} servers" if one["servers"] > 1 else "one server"
    trainings = len(one["trainings"])
    if one["proposed"]:
        return (
            f"each of {trainings} trainings is answered by a server of its own: {servers} of "
            f"{one['base']} could, with their adapters, by eval.lora=served (results of its own)"
        )
    answer = f"answer{'s' * (one['servers'] == 1)} for {trainings} training{'s' * (trainings > 1)}"
    return f"{servers} of {one['base']} {answer} by their adapters (eval.lora: served)"


def _of_detectable(one: Mapping[str, Any]) -> Iterator[str]:
    """The smallest difference that is found, and what it rests on."""
    if not one:
        return
    what = f"{one['primary']} decides"
    if one["difference"] is None:
        yield f"{what}; the smallest difference it finds: {one['rests_on']}"
        return
    alone = ""
    if one["seeds"] == 1:
        alone = "; one seed: of these checkpoints, not of the filters"
    elif one["seed_sd"] is None:
        alone = "; how much seeds vary is not known and not in it (`expected.seed_sd`)"
    steps = "judged to the end, in steps, whose intervals are wider " if one["sequential"] else ""
    yield (
        f"{what}; it finds a difference of {one['difference']:.2g} {one['unit']} 8 times in 10 "
        f"{steps}({one['prompts']} items, {one['pairs']} pairs at once; rests on "
        f"{one['rests_on']}{alone})"
    )
