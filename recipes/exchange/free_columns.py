"""What `magpie filter` computes by itself: columns that a rule reads and a file lacks, where that
needs no model."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path

from core.files import cache_folder
from core.store import digest
from recipes.exchange import tag_data
from recipes.exchange.tag_data import Tagger, Written
from synth.filters.rule import Rule
from synth.published import tagged
from synth.published.files import AS_IT_IS, files

FREE = ("language", "pii", "response_pii", "minhash")
"""Measures by rules alone; lengths and the like follow from the texts while they are read."""


def with_free(source: str | Path, rules: Sequence[Rule], embedding: str | None) -> str | Path:
    """The source, or a copy of it with the columns that it lacks and that can be computed here;
    those of nearest neighbours only where a model that embeds is named. What is computed is said,
    and kept in the cache folder, so that the next filter finds it."""
    free = (*FREE, "neighbors") if embedding else FREE
    lacking = [m for m in tagged.lacking(source, rules) if m in free]
    if not lacking:
        return source
    root = cache_folder() / "filtered" / digest([str(source), *_files(source)])[:16]
    written = Written(root / "rows.parquet", root)
    tagger = Tagger(embedding=embedding)
    with redirect_stdout(sys.stderr):
        print(f"computing what {source} lacks: {', '.join(lacking)} (kept in {root})")
    found = tag_data.measured(
        tagger.config(str(source), AS_IT_IS, None), ",".join(lacking), tagger, root
    )
    tag_data.write(found, str(source), AS_IT_IS, None, written)
    return written.out


def _files(source: str | Path) -> list[tuple[str, int, int]]:
    """What tells that a source on disk is what it was."""
    path = Path(source).expanduser()
    held = [(file, file.stat()) for file in files(path)] if path.exists() else []
    return [(str(file.resolve()), stat.st_size, stat.st_mtime_ns) for file, stat in held]
