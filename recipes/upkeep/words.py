"""Things of a store as a person reads them, and as scripts do."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import Any

from recipes.upkeep.contents import Thing


def plain(thing: Thing) -> dict[str, Any]:
    """A thing for JSON."""
    return {**asdict(thing), "path": str(thing.path)}


def day(seconds: float) -> str:
    """A time as a person reads it, to the minute, by this machine's clock."""
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M") if seconds else ""


def size(count: int) -> str:
    """Bytes as a person reads them, in powers of ten as disks are sold."""
    for unit, power in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= power:
            return (
                f"{count / power:.3g} {unit}"
                if count < 1000 * power
                else f"{count / power:,.0f} {unit}"
            )
    return f"{count} bytes"
