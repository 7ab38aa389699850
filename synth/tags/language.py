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
        languages = detector.detect_languages_in_parallel_of(part["instruction"].to_list())
        codes = [each.iso_code_639_1.name if each else None for each in languages]
        frame = part.select("id").with_columns(pl.Series("language", codes, dtype=pl.String))
        none = pl.when(pl.col("language").is_null())
        yield frame.with_columns(
            status=none.then(pl.lit(FAILED)).otherwise(pl.lit(OK)),
            reason=none.then(pl.lit("no language found")),
        )


@functools.lru_cache(maxsize=4)
def _detector(codes: tuple[str, ...]) -> LanguageDetector:
    """Tells these languages apart; all that lingua knows where none are given."""
    from lingua import Language, LanguageDetectorBuilder

    if not codes:
        return LanguageDetectorBuilder.from_all_languages().build()
    known = {each.iso_code_639_1.name: each.iso_code_639_1 for each in Language.all()}
    for code in codes:
        if code not in known:
            hint = nearest(code, known)
            raise UserError(f"tags.languages: lingua knows no language '{code}'{hint}")
    if len(codes) == 1:
        raise UserError(
            f"tags.languages names only {codes[0]}: detection needs at least two languages; "
            "add those it could be mistaken for."
        )
    chosen = [known[code] for code in codes]
    return LanguageDetectorBuilder.from_iso_codes_639_1(*chosen).build()
