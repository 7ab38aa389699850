"""`magpie agreement`: a judge against people, asked exactly as a benchmark asks it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from core.errors import UserError
from core.servers import Servers
from core.tracking import Log
from eval.config import AlpacaConfig, JudgeConfig
from eval.judging import against_people
from recipes import schema
from recipes.verbs.terminal import table


def main(
    judge: str,
    overrides: list[str],
    *,
    on: str,
    data: Path,
    benchmark: str,
    limit: int | None,
    as_json: bool,
) -> None:
    """Print the agreement of a recipe's judge (of each, where the benchmark has several), or of the
    judge model `judge`, with the people who labelled `on`. JSON of several judges is a list."""
    protocols, root = _protocols(judge, overrides, benchmark)
    log = Log()
    with Servers(log, root / "logs") as servers:
        measured = [
            against_people.run(protocol, on, data, root, limit=limit, servers=servers, log=log)
            for protocol in protocols
        ]
    if as_json:
        print(json.dumps(measured if len(measured) > 1 else measured[0], indent=2))
        return
    for protocol, found in zip(protocols, measured, strict=True):
        table(
            ["figure", "value"],
            [
                [k, f"{v:.4f}" if isinstance(v, float) else v]
                for k, v in found.items()
                if not isinstance(v, dict)
            ],
        )
        name = f" {protocol.judge.model}" if protocol.judge and len(protocols) > 1 else ""
        print(f"the judge{name} {against_people.sentence(found)}")


def _protocols(
    judge: str, overrides: list[str], benchmark: str
) -> tuple[Sequence[against_people.Protocol], Path]:
    if judge.endswith((".yaml", ".yml")) or judge in {p.stem for p in schema.shipped()}:
        recipe = schema.load(judge, overrides).recipe
        if (
            benchmark not in ("alpaca", "arena")
            or recipe.eval is None
            or getattr(recipe.eval, benchmark) is None
        ):
            raise UserError(
                f"--benchmark {benchmark}: the recipe {recipe.name} has no such judged benchmark; give alpaca or arena."
            )
        return recipe.eval.protocols("alpaca" if benchmark == "alpaca" else "arena"), Path(
            recipe.store
        )
    settings: dict[str, Any] = {"model": judge}
    for text in overrides:
        dotted, sign, value = text.partition("=")
        if not sign:
            raise UserError(
                f"override '{text}' has no form key.path=value (for example server.args.max_model_len=4096)."
            )
        here = settings
        *parents, last = dotted.split(".")
        for key in parents:
            here = here.setdefault(key, {})
        here[last] = yaml.safe_load(value)
    try:
        return [AlpacaConfig(judge=JudgeConfig.model_validate(settings), order="both")], Path(
            "runs"
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(
            f"judge {judge}: `{'.'.join(str(k) for k in first['loc'])}`: {first['msg']}."
        ) from error
