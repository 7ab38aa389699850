"""How each judge behaved, from the manifests of its judgings."""

from __future__ import annotations

from core.store import MANIFEST
from recipes.report import sources
from recipes.report.sources import Inputs, Record


def judgings(inputs: Inputs) -> list[Record]:
    """What each judging counted, from its manifest: games judged, agreement of the two orders,
    preference for what was shown first."""
    judges = []
    for (benchmark, run), folder in sources.judgments(inputs).items():
        counts = sources.read_object(folder / MANIFEST).get("counts") or {}
        if "rows" in counts:
            judges.append({"benchmark": benchmark, "name": run.name, **counts})
    return judges
