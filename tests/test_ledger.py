"""What was paid: a ledger that was changed since is put right from its copy, and where there is
none no budget is taken for kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from core.cells import kept
from core.cells.damage import Damage
from core.errors import UserError
from core.sending.account import Account
from core.sending.purse import Bill, Ledger, Prices, Purse

PAID = Bill(1, 10, 20, 0.25)
RECIPE = "mine"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The ledgers of a run that ended: two models, in one file."""
    ledger = Ledger(tmp_path / "recipes" / RECIPE / "spent")
    for model in ("one", "two", "one"):
        ledger.add(model, PAID)
    ledger.close()
    kept.seal(tmp_path, RECIPE)
    return ledger.folder


def file(folder: Path) -> Path:
    (path,) = folder.glob("spent-*.jsonl")
    return path


def flipped(path: Path) -> None:
    """A digit of the money."""
    path.write_text(path.read_text().replace("0.5", "0.1"))


def look(folder: Path, *, moves: bool = True) -> list[str]:
    """What the next run, or a plan, says of it."""
    said: list[str] = []
    with Damage(said.append, moves=moves).noted():
        kept.look(folder.parent.parent.parent, RECIPE)
    return said


def emptied(path: Path) -> None:
    path.write_text("")


def cut(path: Path) -> None:
    path.write_text(path.read_text().splitlines()[0] + "\n")


@pytest.mark.parametrize("change", [flipped, emptied, cut, Path.unlink])
def test_a_changed_ledger_is_put_right_from_its_copy(
    folder: Path, change: Callable[[Path], object]
) -> None:
    before = Ledger(folder).bills()
    change(file(folder))
    assert "the copy of it in" in look(folder, moves=False)[0], "a plan names it"
    assert Ledger(folder).bills() != before, "and changes nothing"
    assert "the copy of it in" in look(folder)[0]
    assert Ledger(folder).bills() == before == {"one": PAID.plus(PAID), "two": PAID}


def test_a_ledger_that_a_killed_run_wrote_on_counts_as_it_is(folder: Path) -> None:
    other = Ledger(folder)
    other.path = file(folder)
    other.add("one", PAID)
    assert "says no less than it did" in look(folder)[0]
    assert Ledger(folder).bills()["one"].money == 0.75


def test_no_budget_is_kept_by_a_ledger_of_which_a_line_is_lost(folder: Path) -> None:
    path = file(folder)
    flipped(path)
    ledger, prices = Ledger(folder), Prices(input=1, output=1)
    with pytest.raises(UserError, match=rf"{path.name}, line 1 was changed .* budget of two \(9\)"):
        Purse(prices, 9.0, ledger=ledger, name="two")
    account = Account("two", Purse(prices, 9.0), ledger, folder)
    with pytest.raises(UserError, match="move it away"), account.open():
        pass
    assert Purse(prices, None, ledger=ledger, name="two").spent == 0.25, "no budget, no question"
    path.rename(folder / "lost.jsonl")
    assert Purse(prices, 9.0, ledger=ledger, name="two").spent == 0.0


def test_the_torn_line_of_a_killed_run_is_no_damage(folder: Path) -> None:
    path = file(folder)
    path.write_text(path.read_text() + '{"model": "one", "calls": 1, "mon')
    assert Purse(Prices(input=1, output=1), 9.0, ledger=Ledger(folder), name="one").spent == 0.5
