"""`magpie agreement`: a judge against people, asked exactly as a benchmark asks it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from core.errors import UserError
from core.files import finite
from core.servers import Servers
from core.tracking import Log
from eval.config import pairwise_benchmarks
from eval.judging.people import against_people
from eval.judging.people.against_people import Labelled
from eval.presets import judges as presets
from eval.protocols import AlpacaProtocol, AnswersConfig, JudgeConfig, PairwiseProtocol
from recipes import schema
from recipes.blocks.refusals import sentence
from recipes.verbs.terminal import say, table


def main(
    judge: str, overrides: list[str], benchmark: str, labelled: Labelled, *, as_json: bool
) -> None:
    """Print the agreement of a recipe's judge (of each, where the benchmark has several), or of the
    judge model `judge`, with the people. JSON of several judges is a list."""
    if judge.endswith((".yaml", ".yml")) or judge in {path.stem for path in schema.shipped()}:
        protocols, root = _of_recipe(schema.load(judge, overrides).recipe, benchmark)
    else:
        protocols, root = [_of_model(judge, overrides)], Path("runs")
    log = Log()
    with Servers(log, root / "logs") as servers:
        measured = [
            against_people.run(protocol, labelled, root, servers=servers, log=log)
            for protocol in protocols
        ]
    if as_json:
        shown = finite(measured if len(measured) > 1 else measured[0])
        print(json.dumps(shown, indent=2, allow_nan=False))
        return
    for protocol, agreement in zip(protocols, measured, strict=True):
        table(["figure", "value"], _figures(agreement))
        name = f" {protocol.judge.model}" if len(protocols) > 1 else ""
        say(f"the judge{name} {against_people.sentence(agreement)}")


def _figures(agreement: dict[str, Any]) -> list[tuple[str, object]]:
    return [
        (name, f"{value:.4f}" if isinstance(value, float) else value)
        for name, value in agreement.items()
        if not isinstance(value, dict)
    ]


def _of_recipe(recipe: schema.Recipe, benchmark: str) -> tuple[Sequence[PairwiseProtocol], Path]:
    """How each judge of a recipe's benchmark is asked, and the recipe's store."""
    for known in pairwise_benchmarks(recipe.eval) if recipe.eval else ():
        if known == benchmark and recipe.eval:
            return recipe.eval.protocols(known), Path(recipe.store)
    raise UserError(
        f"--benchmark {benchmark}: the recipe {recipe.name} has no such judged benchmark; "
        "give alpaca or arena."
    )


def _of_model(model: str, overrides: list[str]) -> AlpacaProtocol:
    """A judge that no recipe names is asked as by `eval.alpaca` without any setting."""
    named = model.startswith(presets.PREFIX)
    settings: dict[str, Any] = {"model": model}
    if named:
        settings = {"preset": model.removeprefix(presets.PREFIX)}
    for text in overrides:
        schema.override(settings, text, "server.args.max_model_len=4096")
    try:
        judge = JudgeConfig.model_validate(settings)
    except ValidationError as error:
        raise UserError(f"judge {model}: {sentence(error, settings)}.") from error
    asked = presets.settings(judge.preset, "alpaca")
    return AlpacaProtocol(judge=judge, answers=AnswersConfig(), order="both", **asked)
