"""A checker of settings that imports nothing: it refuses odd numbers, and fails at none."""

from __future__ import annotations

import sys
from typing import Any

from recipes.checks.answering import serve


def answer(question: dict[str, Any]) -> str | None:
    """What is said against one question."""
    value = question["value"]["value"]
    return f"{question['place']}: {value} is odd" if value % 2 else None


if __name__ == "__main__":
    serve(sys.argv[1:], answer)
