"""The judges of judges.json by name."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.errors import nearest

FILE = Path(__file__).parent / "judges.json"
PREFIX = "preset:"

Known = Mapping[str, Any]
"""A preset: `judge` (a judge's block), the settings of each benchmark's block, `agreement` with
people where somebody measured it, `sources`, `note`, and `until` where its end is announced."""


@functools.cache
def presets() -> Mapping[str, Known]:
    """All presets by name."""
    known: Mapping[str, Known] = json.loads(FILE.read_text(encoding="utf-8"))
    return known


def preset(name: str) -> Known:
    """A preset by its name. Raises ValueError for an unknown one."""
    known = presets()
    if name not in known:
        other = nearest(name, known)
        raise ValueError(f"'{name}' is no preset of a judge{other}")
    return known[name]


def judge(said: Any) -> Any:
    """What a recipe says of a judge, with a preset (`preset:NAME`, or a mapping with `preset`)
    filled in: what the mapping says itself stands. Anything else as it is."""
    if isinstance(said, str) and said.startswith(PREFIX):
        said = {"preset": said.removeprefix(PREFIX)}
    name = said.get("preset") if isinstance(said, Mapping) else None
    if not isinstance(name, str):
        return said
    return {**preset(name)["judge"], **said}


def settings(name: str | None, benchmark: str) -> dict[str, Any]:
    """How a preset's judge is asked in a benchmark; nothing without a preset."""
    return {} if name is None else dict(preset(name).get(benchmark, {}))


def sentence(name: str) -> str:
    """What is known of a preset, for beside a score: its agreement with people as others measured
    it, until when it lives, its note."""
    known = preset(name)
    said = [
        f"of {one['of']} people's majority is known to be met in {one['accuracy']:.3f} of cases "
        f"on {one['dataset']} (people: {one['people']:.3f}; {one['source']})"
        for one in known["agreement"]
    ] or ["its agreement with people is not measured"]
    if "until" in known:
        said.append(f"its provider ends it on {known['until']}")
    return f"preset {name}: {'; '.join([*said, known['note']])}"
