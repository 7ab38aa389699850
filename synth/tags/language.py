"""The language of an instruction, by lingua (as in the paper): ISO 639-1 codes such as EN."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import polars as pl

from core.columns import FAILED, OK
from core.errors import UserError, nearest

if TYPE_CHECKING:
    from lingua import LanguageDetector

VERSION = 1
"""Part of the column's key."""

BATCH = 1000


def language(rows: pl.DataFrame, settings: Mapping[str, Any]) -> Iterator[pl.DataFrame]:
    """The language of each instruction.

    `rows`: id, instruction. `settings`: languages (ISO 639-1 codes that may be answered, at least
    two; empty: all that lingua knows). Yields frames [id, language, status, reason]; a text in
    which no language is found (digits, symbols) is a failed cell. Raises UserError for an unknown
    code, or for a single one.
    """
    detector = _detector(tuple(sorted({code.upper() for code in settings.get("languages", ())})))
    for part in rows.iter_slices(BATCH):
        found = detector.detect_languages_in_parallel_of(part["instruction"].to_list())
        codes: list[str | None] = [f.iso_code_639_1.name if f else None for f in found]
        frame = pl.DataFrame({"id": part["id"], "language": pl.Series(codes, dtype=pl.String)})
        yield frame.with_columns(
            pl.when(pl.col("language").is_null())
            .then(pl.lit(FAILED))
            .otherwise(pl.lit(OK))
            .alias("status"),
            pl.when(pl.col("language").is_null()).then(pl.lit("no language found")).alias("reason"),
        )


@functools.lru_cache(maxsize=4)
def _detector(codes: tuple[str, ...]) -> LanguageDetector:
    from lingua import IsoCode639_1, Language, LanguageDetectorBuilder

    known: dict[str, Any] = {
        each.iso_code_639_1.name: each.iso_code_639_1 for each in Language.all()
    }
    for code in codes:
        if code not in known:
            raise UserError(
                f"tags.languages: lingua knows no language '{code}'{nearest(code, known)}"
            )
    if len(codes) == 1:
        raise UserError(
            f"tags.languages names only {codes[0]}: detection needs at least two languages; add those it could be mistaken for."
        )
    chosen: list[IsoCode639_1] = [known[code] for code in codes]
    builder = (
        LanguageDetectorBuilder.from_iso_codes_639_1(*chosen)
        if chosen
        else LanguageDetectorBuilder.from_all_languages()
    )
    return builder.build()
