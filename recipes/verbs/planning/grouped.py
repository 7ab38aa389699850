"""The stages of a plan by their kind: how many run, how many are reused, and what caused it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from recipes.stages.session import REUSE, RUN, Step


@dataclass(frozen=True)
class Group:
    """All stages of one kind."""

    kind: str
    runs: int
    reused: int
    why: str


def groups(steps: Sequence[Step]) -> list[Group]:
    """One group a kind of which something is left to run, in the order of the stages. Its reason is
    that of the first stage with one of its own: a stage that only waits for others says less."""
    kinds: dict[str, list[Step]] = {}
    for step in steps:
        kinds.setdefault(step.name.partition("/")[0], []).append(step)
    found = []
    for kind, own in kinds.items():
        left = [step for step in own if step.state != REUSE]
        if left:
            found.append(Group(kind, len(left), len(own) - len(left), _why(left)))
    return found


def _why(left: Sequence[Step]) -> str:
    """The first reason, and how many others there are."""
    causes = dict.fromkeys(step.why for step in left if step.state == RUN)
    reasons = list(causes or dict.fromkeys(step.why for step in left))
    more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
    return f"{reasons[0]}{more}"
