"""`magpie filters` and `magpie filter`: named strategies, and one applied to any tagged data set,
ours or published."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import polars as pl
from numpy.typing import NDArray

from core.errors import UserError, nearest
from recipes.exchange.import_data import spare
from recipes.verbs.terminal import table
from synth.filters.arm import ArmConfig
from synth.filters.rule import Filter, Vectors, resolve
from synth.filters.schedule import Selection, TokenCounter, select
from synth.filters.strategies import CHOICES, STRATEGIES, Param
from synth.published import chosen_rows, tagged
from synth.tags.reward import REWARD_MODELS

EMBEDDING = "embedded/all-MiniLM-L6-v2"


@dataclass(frozen=True)
class Applied:
    """What the filters read of a data set, and what each chose."""

    data: tagged.Tagged
    chosen: dict[str, Selection]


def apply_all(
    source: str | Path,
    names: Sequence[str],
    *,
    allow_short: bool = False,
    seed: int = 0,
    embedding: str | None = None,
    student: str | None = None,
    chat_template_path: str | None = None,
    **arm: Any,
) -> Applied:
    """Apply several named strategies to one data set, which is read once.

    `arm`: fields of ArmConfig that replace each strategy's own (`where`, `choose`, `params`,
    `budget`). `embedding`: the model for choices by likeness; `student`: the model whose tokenizer
    and chat template (or `chat_template_path`) count a budget in tokens. Raises UserError as
    `resolve`, `tagged.read` and `select` do.
    """
    rules = rules_of(names, {"allow_short": allow_short, **arm})
    data = tagged.read(source, rules)
    vectors = Vectors(_Embedder(source, data.frame["id"], embedding or EMBEDDING))
    tokens = (
        _counter(source, student, chat_template_path)
        if any(rule.budget and rule.budget.tokens for rule in rules)
        else None
    )
    return Applied(
        data, {rule.name: select(data.frame, rule, seed, tokens, vectors) for rule in data.rules}
    )


def main(
    source: str,
    strategy: str | None,
    *,
    params: Sequence[str],
    rows: int | None,
    tokens: int | None,
    where: str | None,
    choose: str | None,
    out: Path | None,
    form: str,
    as_json: bool,
    **settings: Any,
) -> None:
    """Apply, print the funnels, write the chosen rows (`out` is a folder when there are several
    strategies)."""
    names = [name.strip() for name in strategy.split(",")] if strategy else ["filter"]
    if form not in get_args(chosen_rows.Form):
        raise UserError(f"--form {form}: no such form{nearest(form, get_args(chosen_rows.Form))}.")
    if rows is not None and tokens is not None:
        raise UserError("a budget is either --rows or --tokens; give one.")
    budget = (
        {"rows": rows} if rows is not None else {"tokens": tokens} if tokens is not None else None
    )
    arm: dict[str, Any] = {
        "where": where,
        "choose": choose,
        "budget": budget,
        "params": _params(params, names),
    }
    settings |= {key: value for key, value in arm.items() if value}
    paths: dict[str, Path] = {}
    if out is not None:
        paths = (
            {name: out / f"{name}.parquet" for name in names} if len(names) > 1 else {names[0]: out}
        )
        for path in paths.values():
            spare(source, path)
    try:
        applied = apply_all(source, names, **settings)
    except UserError as error:  # `select` words its advice for recipes
        raise UserError(
            str(error).replace("say `allow_short: true`", "add --allow-short")
        ) from error
    if out is not None:
        for name, path in paths.items():
            chosen_rows.write(source, applied.chosen[name].rows, path, cast(chosen_rows.Form, form))
    if as_json:
        print(json.dumps(_json(source, applied, paths), indent=1))
    else:
        _show(source, applied, paths)


def show_filters(*, as_json: bool) -> None:
    """Print the named strategies, what they choose by, and reward models with the threshold that
    belongs to each."""
    if as_json:
        listed = {
            name: {**asdict(s), "params": dict(s.params), "answers": _answers(s.choose)}
            for name, s in STRATEGIES.items()
        }
        print(json.dumps(listed, indent=2))
        return
    table(
        ["strategy", "where", "choose", "rows", "parameters", "source"],
        [
            [
                name,
                s.filled(s.where, {}) or "",
                s.filled(s.choose, {}),
                f"{s.rows:,}" if s.rows else "",
                " ".join(
                    f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}"
                    for k, v in s.params.items()
                ),
                s.source,
            ]
            for name, s in STRATEGIES.items()
        ],
    )
    print()
    table(
        ["choose", "takes", "responses that it needs"],
        [[c.usage, c.takes, c.answers] for c in CHOICES.values()],
    )
    print()
    table(
        ["reward model", "tau1", "server args", "note"],
        [[m.name, m.tau1 or "", m.args or "", m.note] for m in REWARD_MODELS],
    )


def _answers(choose: str) -> str:
    return CHOICES[choose.partition("(")[0]].answers


def rules_of(names: Sequence[str], arm: dict[str, Any]) -> list[Filter]:
    """The filters of several strategies, with what `arm` replaces."""
    return [_rule(name, arm, names) for name in names]


def _rule(name: str, arm: dict[str, Any], names: Sequence[str]) -> Filter:
    """The filter of one strategy; the name `filter` is no strategy but what `arm` states. A
    threshold goes to the strategies that have it."""
    named = name != "filter"
    elsewhere = {
        key
        for other in names
        if other in STRATEGIES and other != name
        for key in STRATEGIES[other].params
    }
    own = STRATEGIES[name].params if name in STRATEGIES else {}
    arm = {
        **arm,
        "params": {
            key: value
            for key, value in arm.get("params", {}).items()
            if key in own or key not in elsewhere
        },
    }
    rows = STRATEGIES[name].rows if name in STRATEGIES else None
    if (
        not arm.get("budget")
        and rows is None
        and "all"
        not in (arm.get("choose"), STRATEGIES[name].choose if name in STRATEGIES else None)
    ):
        if named and name not in STRATEGIES:
            return resolve(
                name, ArmConfig(strategy=name), "--strategy"
            )  # its sentence names the nearest
        raise UserError(f"{name} takes as much as it is told to: add --rows N or --tokens N.")
    return resolve(
        name,
        ArmConfig.model_validate({**arm, **({"strategy": name} if named else {})}),
        f"strategy {name}" if named else "filter",
    )


def _params(given: Sequence[str], names: Sequence[str]) -> dict[str, Param]:
    """`tau1=-10` as numbers or texts, as the strategies declare them."""
    params: dict[str, Param] = {}
    declared = {
        key: value
        for name in names
        if name in STRATEGIES
        for key, value in STRATEGIES[name].params.items()
    }
    for each in given:
        key, equals, text = each.partition("=")
        if not equals:
            raise UserError(f"--param {each}: write NAME=VALUE, as in --param tau1=-10.")
        params[key] = text
        if not isinstance(declared.get(key, ""), str):
            try:
                params[key] = float(text)
            except ValueError as error:
                raise UserError(f"--param {each}: {key} is a number.") from error
            if not math.isfinite(float(text)):
                raise UserError(f"--param {each}: {key} must be finite.")
    return params


class _Embedder:
    """Embeddings of a data set's instructions, kept in the cache folder."""

    def __init__(self, source: str | Path, ids: pl.Series, model: str) -> None:
        self.source, self.ids, self.model = source, ids, model
        self.rows: dict[str, int] = {}

    def __call__(self, ids: pl.Series) -> NDArray[np.float32]:
        """float32 [len(ids), d], of unit length."""
        from core.models import cache_folder, resolve
        from synth.duplicates import embeddings

        if not self.rows:
            self.rows = {each: row for row, each in reversed(list(enumerate(self.ids)))}
        rows = np.array([self.rows[each] for each in ids], np.int64)
        held, back = np.unique(rows, return_inverse=True)
        places = pl.Series(held)
        found = embeddings.vectors(
            cache_folder(),
            self.ids.gather(places).to_list(),
            chosen_rows.texts(self.source, places),
            resolve(self.model, None),
        )
        return found[back]


def _counter(source: str | Path, student: str | None, template: str | None) -> TokenCounter:
    """Tokens of every row's conversation under the student's chat template; null where there is no
    response."""
    if student is None:
        raise UserError(
            "--tokens needs --student MODEL: tokens are counted with its chat template and tokenizer."
        )
    from core.models import resolve
    from recipes.stages.tokens import count_tokens
    from synth.published import rows
    from synth.published.to_published import to_form
    from train.config import TrainConfig

    known: dict[str, int] = {}

    def count(frame: pl.DataFrame) -> pl.Series:
        if not known:
            config, base = (
                TrainConfig(base=student, chat_template_path=template),
                resolve(student, None).path,
            )
            with redirect_stdout(
                sys.stderr
            ):  # some libraries log to stdout when they are imported, where --json is read
                for batch in rows.read(source):
                    known.update(count_tokens(config, base, to_form(batch, "messages")))
        return pl.Series([known.get(each) for each in frame["id"]], dtype=pl.Int64)

    return count


def _json(source: str, applied: Applied, paths: dict[str, Path]) -> dict[str, Any]:
    data = applied.data
    found = {
        name: {**chosen.funnel, **({"out": str(paths[name])} if name in paths else {})}
        for name, chosen in applied.chosen.items()
    }
    return {
        "source": source,
        "rows": len(data.frame),
        "rows_without": data.out,
        "failed_tags": data.failed,
        "strategies": found,
    }


def _show(source: str, applied: Applied, paths: dict[str, Path]) -> None:
    data = applied.data
    lost = "; ".join(f"{n:,} {reason}" for reason, n in data.out.items())
    print(f"{source}: {len(data.frame):,} rows{f' ({lost})' if lost else ''}")
    if data.failed:
        print()
        table(
            ["column", "failed tags", "cells"],
            [
                [c, reason, f"{n:,}"]
                for c, reasons in data.failed.items()
                for reason, n in reasons.items()
            ],
        )
    for name, chosen in applied.chosen.items():
        funnel: Any = chosen.funnel
        left = funnel["pool"] - funnel["heldout"] - funnel["reserved_duplicates"]
        lines = [["rows", "", f"{left:,}"]]
        for reason, n in funnel["failed"].items():
            left -= n
            lines.append([reason, f"{n:,}", f"{left:,}"])
        for step in funnel["steps"]:
            left -= step["stopped"]
            lines.append([step["predicate"], f"{step['stopped']:,}", f"{left:,}"])
        size = f"{funnel['chosen_tokens']:,} tokens" if funnel["chosen_tokens"] is not None else ""
        lines.append(
            [
                f"chosen: {funnel['choose']} {size}".strip(),
                f"{left - funnel['chosen']:,}",
                f"{funnel['chosen']:,}",
            ]
        )
        print(f"\n{name}\n")
        table(["", "stopped", "left"], lines)
        if name in paths:
            print(f"written to {paths[name]}")
