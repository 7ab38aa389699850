"""JSON Lines that a kill may cut in two and a disk may change: each line ends in a checksum of
itself.

A line is written in one piece. The last one of a file may be torn, which is a kill and no damage;
any other that does not hold what was written is told of, and left out.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from core.cells.damage import hurt

_END = re.compile(rb', "crc": "([0-9a-f]{8})"\}')


def sealed_line(record: Mapping[str, Any]) -> str:
    """A record, which holds something, as one line that ends in its checksum."""
    text = json.dumps(record, ensure_ascii=False)
    try:
        check = zlib.crc32(text.encode())
    except UnicodeEncodeError:  # a server sent half of a surrogate pair
        text = json.dumps(record)
        check = zlib.crc32(text.encode())
    return f'{text[:-1]}, "crc": "{check:08x}"}}'


def sealed_lines(path: Path, lost: str, wrong: list[int] | None = None) -> Iterator[dict[str, Any]]:
    """The records of a file of such lines, of which those of before there were checksums have none.
    What is `lost` with a damaged line ends the sentence that tells of it; its number is put into
    `wrong`."""
    for number, record in records(path.read_bytes()):
        if record is not None:
            yield record
            continue
        if wrong is not None:
            wrong.append(number)
        hurt(path, f"line {number} was changed after it was written; {lost}")


def records(data: bytes) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """The lines of such a file by number, None where one was changed; a torn last one is left
    out."""
    lines = data.split(b"\n")
    held = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    sealed = any(_END.search(line) for _, line in held)
    for at, (number, line) in enumerate(held):
        record = _record(line, sealed)
        torn = at == len(held) - 1 and bool(lines[-1]) and _is_torn(line)
        if record is not None or not torn:
            yield number, record


def _is_torn(line: bytes) -> bool:
    """Whether a line can be the beginning of a record, and no more."""
    try:
        json.JSONDecoder().raw_decode(line.decode(errors="replace"))
    except (ValueError, RecursionError):
        return line.startswith(b"{") and not line.endswith(b"}")
    return False


def _record(line: bytes, sealed: bool) -> dict[str, Any] | None:
    """What a line says; None where it is not what was written."""
    end = _END.search(line, max(len(line) - 20, 0))
    if (end is None or end.end() != len(line)) and sealed:
        return None
    text = line[: end.start()] + b"}" if end else line
    if end and zlib.crc32(text) != int(end.group(1), 16):
        return None
    try:
        record = json.loads(text.decode())
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None
