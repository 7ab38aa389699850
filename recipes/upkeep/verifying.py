"""`magpie verify [RECIPE] [--repair]`."""

from __future__ import annotations

import json
import sys

from core.cells.damage import Damage
from core.tracking import Log
from recipes.schema import Loaded
from recipes.upkeep import verified
from recipes.upkeep.listing import named


def main(where: str, overrides: list[str], *, repair: bool, as_json: bool) -> int:
    """Verify the store `where`, or that of the recipe that it names; with `repair` set aside what
    is damaged, and run the recipe. Returns the exit code: 1 where anything is damaged still."""
    root, loaded = named(where, overrides)
    found = verified.verify(root, Damage(Log().say, moves=repair))
    if as_json:
        print(json.dumps(verified.as_json(found), indent=2))
    else:
        for line in verified.lines(found, repaired=repair):
            print(line)
    if not found.damaged or not repair:
        return int(bool(found.damaged))
    return _made_again(loaded)


def _made_again(loaded: Loaded | None) -> int:
    """Make again what was set aside, where it is known of which recipe."""
    from recipes.stages import graph

    if loaded is None:
        print("run the recipes of this store: each makes again what it lacks", file=sys.stderr)
        return 0
    graph.run(loaded)
    return 0
