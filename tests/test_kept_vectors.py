"""Vectors that the store keeps and that were changed since: the part is named and set aside, and
only its texts are embedded again."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from filelock import FileLock
from numpy.typing import NDArray

from core.cells import seals
from core.cells.damage import ASIDE, Damage
from core.cells.leases import leased
from core.errors import UserError
from core.models import Model
from core.store import Store
from recipes.upkeep import verified
from synth.duplicates import embeddings, kept_vectors

MODEL = Model("letters", "", "a revision")
TEXTS = [f"How do I cook {n} eggs?" for n in ("two", "three", "four", "five", "six", "nine")]
NAMES = [f"of {text}" for text in TEXTS]


class Letters:
    """Vectors by the letters of a text, and every text that was asked for."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def open(self) -> AbstractContextManager[object]:
        return nullcontext()

    def encode(self, texts: list[str]) -> NDArray[Any]:
        self.seen += texts
        return np.array([[1.0 + text.count(letter) for letter in "aeiounst"] for text in texts])

    def stored(self) -> None:
        pass


def embed(
    root: Path, texts: Sequence[str] = TEXTS, known: Sequence[str] | None = None
) -> tuple[NDArray[np.float32], list[str], list[str]]:
    """(vectors, the texts that were embedded, what was said of damage), as by a new process."""
    embeddings._found.cache_clear()
    encoder, said = Letters(), list[str]()
    with Damage(said.append, moves=True).noted():
        vectors = embeddings.vectors(root, texts, texts, MODEL, encoder, known)
    return np.array(vectors), encoder.seen, said


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store with three parts of two vectors each."""
    monkeypatch.setattr(embeddings, "SLICE", 2)
    monkeypatch.setattr(seals, "SETTLED", 0.0)
    (tmp_path / "results").mkdir()
    embed(tmp_path, known=NAMES)
    return tmp_path


def folder(root: Path) -> Path:
    (found,) = (root / "vectors").iterdir()
    return found


def parts(root: Path) -> list[Path]:
    return sorted(folder(root).glob("rows-*.parquet"))


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def as_before(root: Path) -> None:
    """What a version of before there were digests left: no digests, and nothing remembered."""
    for path in parts(root):
        plain = path.with_name(f"{path.name[:17]}.parquet")
        pl.read_parquet(path).write_parquet(plain)
        path.unlink()
    for path in folder(root).glob("known-*"):
        pl.read_parquet(path).select("name", "place").write_parquet(folder(root) / "new")
        path.unlink()
        (folder(root) / "new").rename(folder(root) / "known-000000.parquet")
    for path in (root / "verified").rglob("*.json"):
        path.unlink()


WHOLE = embeddings._unit(Letters().encode(TEXTS))


def test_a_flipped_byte_of_the_vectors_is_named_and_only_its_part_is_made_again(root: Path) -> None:
    flip(folder(root) / "vectors.f32", 3 * 8 * 4 + 1)  # of the fourth text
    vectors, again, said = embed(root, known=NAMES)
    assert again == TEXTS[2:4] and (vectors == WHOLE).all()
    assert len(said) == 1 and "rows 2 to 4 of vectors.f32, were changed" in said[0]
    (aside,) = (path for path in (root / ASIDE).rglob("rows-*"))
    assert aside.name.startswith("rows-000000000002-")
    assert embed(root, known=NAMES)[1:] == ([], [])


@pytest.mark.parametrize("part", [0, 1, 2])
def test_a_flipped_byte_of_a_part_makes_its_texts_anew(root: Path, part: int) -> None:
    flip(parts(root)[part], 30)
    vectors, again, said = embed(root, known=NAMES)
    assert again == TEXTS[2 * part : 2 * part + 2] and (vectors == WHOLE).all()
    assert len(said) == 1 and ".parquet: was changed after it was made; it is now" in said[0]
    assert embed(root, TEXTS[::-1], NAMES[::-1])[1:] == ([], [])


def test_a_last_part_that_is_lost_gives_no_name_anothers_vector(root: Path) -> None:
    """Its rows are filled with other texts, of which the names of before know nothing."""
    parts(root)[2].unlink()
    assert embed(root, ["an egg", "no egg"])[1] == ["an egg", "no egg"]
    vectors, again, _ = embed(root, known=NAMES)
    assert again == TEXTS[4:] and (vectors == WHOLE).all()


@pytest.mark.parametrize("size", [0, 3 * 8 * 4, 6 * 8 * 4 - 1])
def test_vectors_that_are_cut_off_are_made_again(root: Path, size: int) -> None:
    os.truncate(folder(root) / "vectors.f32", size)
    vectors, again, said = embed(root, known=NAMES)
    assert again == TEXTS[size // (2 * 8 * 4) * 2 :] and (vectors == WHOLE).all()
    assert len(said) == 1 and "are not there any more" in said[0]
    assert ("(and 2 more parts)" in said[0]) == (size == 0)


def test_a_lost_file_of_vectors_is_made_again(root: Path) -> None:
    (folder(root) / "vectors.f32").unlink()
    vectors, again, said = embed(root)
    assert again == TEXTS and (vectors == WHOLE).all() and "are gone with" in said[0]


def test_two_parts_that_changed_places_do_not_count(root: Path) -> None:
    first, second, _ = parts(root)
    held = first.read_bytes(), second.read_bytes()
    names = first.name, second.name
    first.unlink()
    second.unlink()
    for (name, other), data in zip((names, names[::-1]), held, strict=True):
        (folder(root) / (other[:17] + name[17:])).write_bytes(data)
    vectors, again, said = embed(root)
    assert again == TEXTS[:4] and (vectors == WHOLE).all() and "of other vectors" in said[0]


@pytest.mark.parametrize("change", [lambda p: flip(p, 20), lambda p: p.write_bytes(b"")])
def test_names_that_were_changed_are_looked_up_anew_and_nothing_is_embedded(
    root: Path, change: Callable[[Path], object]
) -> None:
    (known,) = folder(root).glob("known-*")
    change(known)
    vectors, again, said = embed(root, known=NAMES)
    assert not again and (vectors == WHOLE).all() and "looked up anew" in said[0]
    assert embed(root, known=NAMES)[2] == []


@pytest.mark.parametrize("held", ["{]", "[1]", '{"dimensions": 4}', '{"dimensions": "8"}', ""])
def test_what_is_beside_the_vectors_is_not_needed(root: Path, held: str) -> None:
    (folder(root) / "model.json").write_text(held)
    vectors, again, said = embed(root)
    assert not again and (vectors == WHOLE).all() and "model.json" in said[0]


def test_where_nothing_is_set_aside_it_is_one_sentence(root: Path) -> None:
    flip(folder(root) / "vectors.f32", 9)
    embeddings._found.cache_clear()
    with pytest.raises(UserError, match=r"rows 0 to 2 of vectors\.f32, were changed .* --repair"):
        embeddings.vectors(root, TEXTS, TEXTS, MODEL, Letters())


def test_a_plan_leaves_a_damaged_part_where_it_is_and_does_without(root: Path) -> None:
    flip(folder(root) / "vectors.f32", 9)
    embeddings._found.cache_clear()
    with Damage(lambda line: None, moves=False).noted():
        assert embeddings.stored(root, TEXTS[2:], MODEL) is not None
        assert embeddings.stored(root, TEXTS, MODEL) is None
    assert len(parts(root)) == 3


# -- what costs nothing ----------------------------------------------------------------------------


def test_the_vectors_are_read_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "verified" / "vectors" / f"{folder(root).name}.json").unlink()
    embed(root)  # reads them, and remembers

    def read(*_: object) -> str:
        raise AssertionError("the vectors were read")

    monkeypatch.setattr(kept_vectors, "_digest_of", read)
    assert (embed(root)[0] == WHOLE).all()
    embed(root, ["an egg"])  # what is added is known without being read
    embed(root)
    with pytest.raises(AssertionError, match="were read"):
        verified.verify(root, Damage(print, moves=False))


def test_an_appended_file_that_was_changed_before_is_read_again(root: Path) -> None:
    """What is added to changed vectors makes none of them believed."""
    embeddings._found.cache_clear()
    with Damage(print, moves=True).noted():
        embeddings.vectors(root, TEXTS, TEXTS, MODEL, Letters())
        index, _ = embeddings._found(folder(root), root)
        flip(folder(root) / "vectors.f32", 9)
        index.add([b"0" * 16], embeddings._unit(np.ones((1, 8))))
        index.remember()
    assert embed(root)[1] == TEXTS[:2]


# -- stores of before ------------------------------------------------------------------------------


def test_vectors_of_before_are_taken_as_they_are(root: Path) -> None:
    as_before(root)
    vectors, again, said = embed(root, known=NAMES)
    assert not again and not said and (vectors == WHOLE).all()
    more, again, _ = embed(root, [*TEXTS, "an egg"], [*NAMES, "of an egg"])
    assert again == ["an egg"] and (more[:6] == WHOLE).all()
    (added,) = (path for path in parts(root) if len(path.stem) > 17)
    assert added.name.startswith("rows-000000000006-")
    assert embed(root, [*TEXTS, "an egg"], [*NAMES, "of an egg"])[1:] == ([], [])


def test_verify_seals_vectors_of_before(root: Path) -> None:
    as_before(root)
    found = verified.verify(root, Damage(print, moves=False))
    assert len(found.unsealed) == 3 and not found.damaged
    flip(folder(root) / "vectors.f32", 3 * 8 * 4)
    assert embed(root)[1] == TEXTS[2:4]


def test_verify_sets_nothing_aside_where_a_run_is_writing(root: Path) -> None:
    """Its vectors, under their lock; a result, under its lease."""
    store = Store(root)
    with store.build("score", "a" * 64, {}) as build:
        assert build is not None
        (build.path / "scores.json").write_text("[1]")
    result = store.folder("score", "a" * 64)
    (result / "scores.json").write_text("[2]")
    flip(folder(root) / "vectors.f32", 9)

    def verify() -> tuple[list[str], set[Path]]:
        said: list[str] = []
        return said, {*verified.verify(root, Damage(said.append, moves=True)).damaged}

    with FileLock(str(folder(root) / ".lock")), leased(Path(f"{result}.lease"), "", None):
        said, found = verify()
    assert found == {parts(root)[0], result} and (result / "scores.json").exists()
    assert sum("another run" in line and "verify it again afterwards" in line for line in said) == 2
    assert verify()[1] == found and not result.exists() and len(parts(root)) == 2
    assert verify()[1] == set()


def test_a_part_of_before_that_names_more_than_it_has_does_not_count(root: Path) -> None:
    as_before(root)
    first, second, _ = parts(root)
    pl.concat([pl.read_parquet(first), pl.read_parquet(second)]).write_parquet(first)
    assert embed(root)[1] == TEXTS[:2]


def test_names_of_before_do_not_hold_for_rows_that_were_filled_since(root: Path) -> None:
    as_before(root)
    parts(root)[2].unlink()
    embed(root, ["an egg", "no egg"])
    vectors, again, _ = embed(root, known=NAMES)
    assert again == TEXTS[4:] and (vectors == WHOLE).all()


def test_the_length_of_vectors_of_before_follows_from_their_file(root: Path) -> None:
    as_before(root)
    (folder(root) / "model.json").write_text("{]")
    vectors, again, said = embed(root)
    assert not again and (vectors == WHOLE).all() and len(said) == 1
