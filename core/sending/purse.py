"""What hosted models cost: prices, the budget that stops new requests, and the ledger that keeps
what was spent across runs. Imports pydantic only."""

from __future__ import annotations

import threading
import uuid
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TextIO

from pydantic import BaseModel, ConfigDict, Field

from core.cells.lines import sealed_line, sealed_lines
from core.errors import UserError
from core.files import write_atomic


class Prices(BaseModel):
    """What a hosted model costs, in one currency of the user's choice."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    input: float = Field(ge=0)
    """Price of a million prompt tokens."""
    output: float = Field(ge=0)
    """Price of a million generated tokens."""

    def cost(self, prompt_tokens: float, tokens: float) -> float:
        """Price of so many tokens."""
        return (prompt_tokens * self.input + tokens * self.output) / 1e6


class Bill(NamedTuple):
    """What was bought of a model: calls that were answered, tokens read and generated, money."""

    calls: int = 0
    prompt_tokens: int = 0
    tokens: int = 0
    money: float = 0.0

    def plus(self, other: Bill) -> Bill:
        """Both together."""
        return Bill(
            self.calls + other.calls,
            self.prompt_tokens + other.prompt_tokens,
            self.tokens + other.tokens,
            self.money + other.money,
        )


class Ledger:
    """What an experiment paid, by model: a line a reply in a file of this process, handed to the
    operating system at once, so that a kill loses none and two processes never write into each
    other's lines. A file that is closed holds one line a model."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / f"spent-{uuid.uuid4().hex[:12]}.jsonl"
        self._lock = threading.Lock()
        self._file: TextIO | None = None

    def bills(self) -> dict[str, Bill]:
        """What was paid by all processes so far, by model."""
        return self._bills()[0]

    def spent(self, model: str, budget: float | None) -> float:
        """What was paid of a model so far, in money. Raises UserError where there is a budget to
        keep and a line of the ledger is damaged: what it says was paid is too little."""
        bills, damaged = self._bills()
        if budget is not None and damaged:
            path, number = damaged[0]
            raise UserError(
                f"{path}, line {number} was changed after it was written, so what was spent is not "
                f"known, and the budget of {model} ({budget:g}) cannot be kept; restore that file "
                "from a copy, or move it away, so that what it held does not count."
            )
        return bills.get(model, Bill()).money

    def _bills(self) -> tuple[dict[str, Bill], list[tuple[Path, int]]]:
        """What was paid by model, and the lines that were changed since, by file and number."""
        sums: defaultdict[str, Bill] = defaultdict(Bill)
        damaged = []
        for path in sorted(self.folder.glob("spent-*.jsonl")):
            wrong: list[int] = []
            for model, bill in _lines(path, wrong):
                sums[model] = sums[model].plus(bill)
            damaged += [(path, number) for number in wrong]
        return dict(sums), damaged

    def add(self, model: str, bill: Bill) -> None:
        """Remember what a reply cost."""
        line = sealed_line({"model": model, **bill._asdict()})
        with self._lock:
            if self._file is None:
                self.folder.mkdir(parents=True, exist_ok=True)
                self._file = self.path.open("a")
            self._file.write(f"{line}\n")
            self._file.flush()

    def close(self) -> None:
        """Sum up the lines of this process."""
        sums: defaultdict[str, Bill] = defaultdict(Bill)
        with self._lock:
            if self._file is None:
                return
            self._file.close()
            self._file = None
            for model, bill in _lines(self.path):
                sums[model] = sums[model].plus(bill)
            lines = [sealed_line({"model": m, **b._asdict()}) for m, b in sums.items()]
            write_atomic(self.path, "\n".join(lines) + "\n")


def _lines(path: Path, wrong: list[int] | None = None) -> list[tuple[str, Bill]]:
    """The lines of a ledger's file; one that a kill cut in two is left out, and one that was
    changed since, which is told of and put among the `wrong`."""
    read = []
    for entry in sealed_lines(path, "what it cost is not in the bill", wrong):
        with suppress(TypeError, KeyError):
            read.append((str(entry.pop("model")), Bill(**entry)))
    return read


@dataclass
class Purse:
    """Money: what was spent in all, what is in flight, and whether another call would pass the
    budget. Its methods may be called by several threads."""

    prices: Prices | None
    budget: float | None
    spent: float = 0.0
    stopped: bool = False
    ledger: Ledger | None = None
    """Where each call's cost is written down, under `name`, and what was spent before is read."""
    name: str = ""
    _flying: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Prompt and generated tokens, at most, of the calls that have not come back."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        if self.ledger is not None:
            self.spent += self.ledger.spent(self.name, self.budget)

    def cost(self, prompt_tokens: float, tokens: float) -> float:
        """Price of so many tokens; 0 without prices."""
        return 0.0 if self.prices is None else self.prices.cost(prompt_tokens, tokens)

    @property
    def in_flight(self) -> bool:
        """Whether money is set aside for calls that have not come back."""
        return bool(self._flying)

    def reserve(self, key: str, prompt_tokens: int, tokens: int) -> bool:
        """Set the most a call can cost aside; False when that could pass the budget."""
        most = self.cost(prompt_tokens, tokens)
        with self._lock:
            held = 0.0
            if self.budget is not None:
                held = sum(self.cost(*sizes) for sizes in self._flying.values())
            if self.budget is not None and self.spent + held + most > self.budget:
                self.stopped = True
                return False
            self._flying[key] = (prompt_tokens, tokens)
        return True

    def held(self, key: str) -> tuple[int, int]:
        """Prompt and generated tokens that were set aside for a call in flight."""
        return self._flying.get(key, (0, 0))

    def settle(self, key: str, prompt_tokens: int, tokens: int) -> float:
        """A call came back and cost this (nothing: it failed); returns the money."""
        money = self.cost(prompt_tokens, tokens)
        with self._lock:
            self._flying.pop(key, None)
            self.spent += money
        if self.ledger is not None and (prompt_tokens or tokens):
            self.ledger.add(self.name, Bill(1, prompt_tokens, tokens, money))
        return money
