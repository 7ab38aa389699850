"""How a checker answers: what its own process does beside asking its library. Imports nothing
heavy."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from core.files import write_atomic

ACCEPTED = ""
"""The answer to a question that the library has nothing against."""


def serve(argv: Sequence[str], answer: Callable[[dict[str, Any]], str | None]) -> None:
    """The main function of a checker: reads the questions of the file `argv[0]`, writes what
    `answer` says of each to the file `argv[1]`."""
    questions = json.loads(Path(argv[0]).read_text())
    said: list[str | None] = []
    for each in questions:
        try:
            said.append(answer(each) or ACCEPTED)
        except Exception as error:  # of another version, say: no recipe is refused for it
            print(f"{each['place']}: {type(error).__name__}: {error}", file=sys.stderr)
            said.append(None)
    write_atomic(Path(argv[1]), json.dumps(said))
