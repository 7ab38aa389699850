"""Stored embeddings: each text once, by content and model; whole after a kill; equal to embedding
afresh."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from core.errors import UserError
from core.models import Model, resolve
from synth.duplicates import embeddings, kept_vectors
from synth.duplicates.embeddings import Vectors, vectors

TEXTS = [f"How do I cook {n} eggs?" for n in ("two", "three", "four", "five", "six")]


@pytest.fixture(scope="module")
def minilm() -> Model:
    return resolve("embedded/all-MiniLM-L6-v2")


@pytest.fixture
def embedded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every text that is really embedded, in order."""
    seen: list[str] = []
    encode = embeddings._encode

    def counted(encoder: object, texts: list[str]) -> Vectors:
        seen.extend(texts)
        return encode(encoder, texts)

    monkeypatch.setattr(embeddings, "_encode", counted)
    return seen


def afresh(texts: list[str], model: Model) -> Vectors:
    return embeddings._encode(embeddings._load(model.path, model.name), texts)


def ids(n: int) -> list[str]:
    return [f"row-{i}" for i in range(n)]


def test_vectors_are_those_of_embedding_afresh_and_equal_texts_are_bitwise_equal(
    tmp_path: Path, minilm: Model
) -> None:
    texts = [*TEXTS, TEXTS[1]]
    made = vectors(tmp_path, ids(6), texts, minilm)
    assert made.dtype == np.float32 and made.shape == (6, 384)
    assert np.abs(made - afresh(texts, minilm)).max() < 1e-6
    assert made[1].tobytes() == made[5].tobytes()


def test_a_grown_pool_embeds_only_its_new_texts_in_any_order(
    tmp_path: Path, minilm: Model, embedded: list[str]
) -> None:
    before = vectors(tmp_path, ids(3), TEXTS[:3], minilm)
    after = vectors(tmp_path, ids(6), [TEXTS[4], *TEXTS[:4], TEXTS[0]], minilm)
    assert embedded == [*TEXTS[:3], TEXTS[4], TEXTS[3]]
    assert (after[1:4] == before).all() and (after[5] == before[0]).all()


def test_what_the_store_holds_is_read_once_and_then_only_what_is_new(
    tmp_path: Path, minilm: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors(tmp_path, ids(2), TEXTS[:2], minilm)
    embeddings._found.cache_clear()  # as another process finds it
    read: list[Path] = []

    def noted(path: Path) -> pl.DataFrame:
        read.append(path)
        return pl.read_parquet(path)

    monkeypatch.setattr(kept_vectors, "read_parquet", noted)
    for count in (2, 2, 4, 4):
        made = vectors(tmp_path, ids(count), TEXTS[:count], minilm)
    assert len(read) == 1, "its own new part is known too"
    assert np.abs(made - afresh(TEXTS[:4], minilm)).max() < 1e-6
    shutil.rmtree(tmp_path / "vectors")
    again = vectors(tmp_path, ids(3), TEXTS[1:4], minilm)
    assert np.abs(again - afresh(TEXTS[1:4], minilm)).max() < 1e-6


def test_texts_that_are_known_by_a_digest_are_not_read_again(tmp_path: Path, minilm: Model) -> None:
    def unread() -> Iterator[str]:
        raise AssertionError("a text was read")
        yield

    names = [f"of {text}" for text in TEXTS]
    first = vectors(tmp_path, ids(5), TEXTS, minilm, known_as=names)
    again = vectors(tmp_path, ids(3), unread(), minilm, known_as=[names[n] for n in (4, 0, 4)])
    assert (again == first[[4, 0, 4]]).all()
    embeddings._found.cache_clear()  # another process
    again = vectors(tmp_path, ids(5), unread(), minilm, known_as=names)
    assert (again == first).all()
    with pytest.raises(AssertionError, match="a text was read"):
        vectors(tmp_path, ids(2), unread(), minilm, known_as=[names[0], "of another"])
    more = vectors(tmp_path, ids(2), [TEXTS[0], "new"], minilm, known_as=[names[0], "of another"])
    assert (more[0] == first[0]).all()
    vectors(tmp_path, ids(1), unread(), minilm, known_as=["of another"])


def test_slices_and_memory_maps_give_the_same_vectors(
    tmp_path: Path, minilm: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = vectors(tmp_path / "a", ids(5), TEXTS, minilm)
    monkeypatch.setattr(embeddings, "SLICE", 2)
    monkeypatch.setattr(embeddings, "IN_MEMORY", 0)
    mapped = vectors(tmp_path / "b", ids(5), iter(TEXTS), minilm)
    assert isinstance(mapped, np.memmap)
    assert np.abs(whole - mapped).max() < 1e-6
    turned = vectors(tmp_path / "b", ids(5), TEXTS[::-1], minilm)
    assert isinstance(turned, np.memmap) and (turned == mapped[::-1]).all()
    assert sorted(
        p.name[:17] for p in (tmp_path / "b").rglob("*") if p.is_file() and p.name != ".lock"
    )[-5:] == [
        "model.json",
        "rows-000000000000",
        "rows-000000000002",
        "rows-000000000004",
        "vectors.f32",
    ]


def test_what_a_killed_run_had_written_is_kept_and_its_torn_end_written_over(
    tmp_path: Path, minilm: Model, monkeypatch: pytest.MonkeyPatch, embedded: list[str]
) -> None:
    monkeypatch.setattr(embeddings, "SLICE", 2)

    def killed() -> Iterator[str]:
        yield from TEXTS[:4]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        vectors(tmp_path, ids(5), killed(), minilm)
    [file] = tmp_path.rglob("vectors.f32")
    with file.open("ab") as handle:
        handle.write(b"\1" * 3000)  # vectors whose part was never published
    again = vectors(tmp_path, ids(5), TEXTS, minilm)
    assert embedded == TEXTS
    assert np.abs(again - afresh(TEXTS, minilm)).max() < 1e-6


def test_another_model_has_vectors_of_its_own(
    tmp_path: Path, minilm: Model, embedded: list[str]
) -> None:
    vectors(tmp_path, ids(1), TEXTS[:1], minilm)
    vectors(tmp_path, ids(1), TEXTS[:1], Model(minilm.name, minilm.path, "another revision"))
    assert embedded == [TEXTS[0]] * 2


def test_a_missing_text_lost_vectors_and_no_model_are_one_sentence(
    tmp_path: Path, minilm: Model
) -> None:
    with pytest.raises(UserError, match="row row-1 has no text"):
        vectors(tmp_path, ids(2), [TEXTS[0], None], minilm)
    vectors(tmp_path, ids(1), TEXTS[:1], minilm)
    [file] = tmp_path.rglob("vectors.f32")
    file.write_bytes(b"")
    with pytest.raises(UserError, match=r"rows 0 to 1 of vectors\.f32"):
        vectors(tmp_path, ids(1), TEXTS[:1], minilm)
    with pytest.raises(UserError, match="is no longer there"):
        vectors(tmp_path, ids(1), TEXTS[:1], Model("nothing", f"{tmp_path}/nothing", "none"))


def test_no_texts_have_no_vectors(tmp_path: Path, minilm: Model) -> None:
    assert vectors(tmp_path, [], [], minilm).shape[0] == 0
