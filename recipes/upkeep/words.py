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
    for unit, power in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= power:
            held = count / power
            return f"{held:.3g} {unit}" if held < 1000 else f"{held:,.0f} {unit}"
    return f"{count} bytes"
