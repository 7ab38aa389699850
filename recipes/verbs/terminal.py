"""What a person sees on stdout: tables that fit the terminal, sentences that wrap, and in a pipe
lines that a program reads.

A table in a pipe is its header and its rows with tabs between the cells; a sentence beside one
begins with "# ", so that `grep -v '^#'` leaves the table.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from core.files import finite, read_json

if TYPE_CHECKING:
    from recipes.schema import Loaded
    from recipes.stages.graph import Outcome

GAP = "  "
NARROWEST = 12
"""A column of words is not made narrower than this: below, rows are stacked."""
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]+")
_INSIDE = re.compile(r"(?<=\[)[^\]\[]{1,40}(?=\])")
"""What stands in brackets, an interval say, which no line may tear apart."""
_UNIT = re.compile(r"(?<=\d) %")
Rows = Iterable[Sequence[object]]


def table(columns: Iterable[str], rows: Rows, title: str = "") -> None:
    """A table on stdout, no wider than the terminal; tab-separated lines in a pipe. Nothing in a
    cell can move the cursor or change colours: models wrote some of it."""
    head = [plain(column) for column in columns]
    cells = [list(map(_cell, row)) for row in rows]
    if not sys.stdout.isatty():
        if title:
            say(title)
        print("\n".join("\t".join(row) for row in [head, *cells]))
        return
    width = shutil.get_terminal_size().columns
    if title:
        print("\n".join(wrapped(title, width)))
    print("\n".join(fitted(head, cells, width)))


def _cell(value: object) -> str:
    return "" if value is None else plain(str(value))


def say(text: str, bullet: str = "") -> None:
    """A sentence on stdout: wrapped at words behind a `bullet` in a terminal, one line after "# "
    in a pipe."""
    if sys.stdout.isatty():
        width = shutil.get_terminal_size().columns
        print("\n".join(wrapped(text, width, bullet, " " * len(bullet))))
    else:
        print(f"# {plain(text)}")


def plain(text: str) -> str:
    """Text without characters that steer a terminal, in one line."""
    return _CONTROLS.sub(" ", text)


def wrapped(text: str, width: int, first: str = "", then: str = "") -> list[str]:
    """Lines of whole words."""
    lines = wrap(
        _whole(plain(text)),
        max(width, 20),
        initial_indent=first,
        subsequent_indent=then,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [line.replace("\xa0", " ") for line in lines] or [first]


def fitted(head: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> Iterator[str]:
    """The lines of a table that is at most `width` wide: side by side where its columns fit, with
    columns of words wrapped where that is enough, else each row as a block of "name: value"."""
    columns = list(zip(head, *rows, strict=True))
    natural = [min(width, max(map(_wide, cells))) for cells in columns]
    least = [_least(cells, most) for cells, most in zip(columns, natural, strict=True)]
    room = width - len(GAP) * (len(head) - 1)
    if sum(least) > room:
        yield from _stacked(head, rows, width)
        return
    wide = list(natural)
    while sum(wide) > room:  # the widest column that can give way does
        at = max((at for at in range(len(wide)) if wide[at] > least[at]), key=lambda at: wide[at])
        wide[at] -= 1
    yield from _line(head, wide)
    yield GAP.join("─" * each for each in wide)
    for row in rows:
        yield from _line(row, wide)


def _least(cells: Sequence[str], natural: int) -> int:
    """The width that a column needs: its longest word, and room for a few beside it."""
    words = [word for cell in cells for word in _words(cell)]
    return min(natural, max([NARROWEST, *map(_wide, words)]))


def _words(cell: str) -> list[str]:
    """What no line may tear apart, intervals among it."""
    return _whole(cell).split(" ")


def _whole(text: str) -> str:
    """With no-break spaces inside of intervals and before the sign of a percentage."""
    inside = _INSIDE.sub(lambda found: found.group().replace(" ", "\xa0"), text)
    return _UNIT.sub("\xa0%", inside)


def _line(cells: Sequence[str], wide: Sequence[int]) -> Iterator[str]:
    """A row as lines, its cells wrapped to the columns' widths."""
    columns = [list(_filled(cell, width)) for cell, width in zip(cells, wide, strict=True)]
    for parts in zip_longest(*columns, fillvalue=""):
        padded = [
            part + " " * (width - _wide(part)) for part, width in zip(parts, wide, strict=True)
        ]
        yield GAP.join(padded).rstrip()


def _filled(cell: str, width: int) -> Iterator[str]:
    """A cell's lines of at most `width`, of whole words."""
    line = ""
    for word in _words(cell):
        longer = f"{line} {word}" if line else word
        if line and _wide(longer) > width:
            yield line.replace("\xa0", " ")
            longer = word
        line = longer
    yield line.replace("\xa0", " ")


def _stacked(head: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> Iterator[str]:
    """Each row as a block: its first cell, below it the others that are filled with their names."""
    for row in rows:
        yield from wrapped(row[0], width, then="  ")
        for name, cell in zip(head[1:], row[1:], strict=True):
            if cell:
                yield from wrapped(f"{name}: {cell}" if name else cell, width, "  ", "    ")


def _wide(text: str) -> int:
    """Columns that a terminal needs for a text: letters of East Asia take two."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


# -- the end of a run ------------------------------------------------------------------------------


def show(loaded: Loaded, outcome: Outcome, *, as_json: bool = False) -> None:
    """The answer, the tables behind it, the notes; last what was made, what it cost, what can be
    told, and where to look."""
    from recipes.report import ending

    recipe = loaded.recipe
    comparison: dict[str, Any] = {}
    if "compare" in outcome.results:
        comparison = read_json(outcome.results["compare"].path / "comparison.json")
    if as_json:
        told = ending.plain(recipe, outcome.results, comparison)
        print(json.dumps(finite(told), indent=2, allow_nan=False, ensure_ascii=False))
        return
    if comparison:
        unusable = ending.unusable(outcome.results)
        for line in ending.answer(comparison, unusable):
            say(line)
        of_comparison(comparison, unusable)
    for note in ending.notes(recipe, outcome.results, comparison):
        say(note, "- ")
    for name, text in ending.closing(recipe, outcome.results, comparison).items():
        say(f"{name}: {text}")
    report = recipe.folder / "report.html"
    if report.is_file():
        print(f"report: {report}")


def of_comparison(comparison: dict[str, Any], unusable: dict[str, str] | None = None) -> None:
    """A comparison's tables: one a figure in a terminal, in a pipe one with every value of its own.
    `unusable`: benchmark -> why its scores say nothing."""
    from eval.comparing.shown.table import figures, values

    if not sys.stdout.isatty():
        rows = values(comparison)
        if rows:
            table(rows[0], [list(row.values()) for row in rows])
        return
    for figure in figures(comparison, unusable):
        print()
        table(figure.rows[0], [list(row.values()) for row in figure.rows], figure.title)
    print()


def show_scores(rows: list[dict[str, Any]], *, as_json: bool) -> None:
    """Rows of `magpie score`: JSON as it is, or a table with the notes below it."""
    if as_json:
        print(json.dumps(finite(rows), indent=2, allow_nan=False))
        return
    columns = dict.fromkeys(name for row in rows for name in row)
    filled = {name for row in rows for name, value in row.items() if value is not None}
    shown = [name for name in columns if name in filled and name != "notes"]
    table(shown, [list(map(_score, map(row.get, shown))) for row in rows])
    for row in rows:
        for note in row.get("notes", []):
            say(f"{row.get('model')}: {note}", "- ")


def _score(value: object) -> object:
    return f"{value:.4g}" if isinstance(value, float) else value
