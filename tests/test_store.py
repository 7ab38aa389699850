"""Results: keys, atomic publication, what survives a kill."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from core.errors import UserError
from core.store import MANIFEST, Store, digest, tree_digest


def test_key_does_not_depend_on_the_order_of_keys() -> None:
    assert digest({"a": 1, "b": [1, 2]}) == digest({"b": [1, 2], "a": 1})


def test_a_result_exists_only_with_its_manifest(store: Store) -> None:
    with store.build("select", "k" * 64, {"x": 1}) as build:
        (build.path / "rows.txt").write_text("one")
        build.counts["rows"] = 1
        assert store.find("select", "k" * 64) is None
    found = store.find("select", "k" * 64)
    assert found is not None
    assert found.manifest["counts"] == {"rows": 1}
    (found.path / MANIFEST).unlink()
    store.memory("select", "k" * 64).unlink()  # which holds a copy
    assert store.find("select", "k" * 64) is None


def test_a_count_that_is_no_number_is_null_in_the_manifest(store: Store) -> None:
    """NaN is no JSON: no other program could read the manifest."""
    with store.build("score", "k" * 64, {}) as build:
        build.counts |= {"loss": float("nan"), "each": {"a": [float("inf"), 1.0]}}
    text = (store.folder("score", "k" * 64) / MANIFEST).read_text()
    counts = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert counts["counts"] == {"loss": None, "each": {"a": [None, 1.0]}}


def test_a_failed_build_keeps_its_work_for_the_next_attempt(store: Store) -> None:
    with pytest.raises(RuntimeError), store.build("train", "k" * 64, {}) as build:
        (build.path / "checkpoint-1").write_text("half")
        raise RuntimeError("killed")
    assert store.find("train", "k" * 64) is None
    with store.build("train", "k" * 64, {}) as build:
        assert (build.path / "checkpoint-1").read_text() == "half"


def test_a_folder_left_between_rename_and_manifest_is_made_again(store: Store) -> None:
    folder = store.folder("score", "k" * 64)
    folder.mkdir(parents=True)
    (folder / "leftover").write_text("x")
    with store.build("score", "k" * 64, {}) as build:
        (build.path / "scores").write_text("y")
    found = store.find("score", "k" * 64)
    assert found is not None
    assert [p.name for p in found.path.iterdir() if p.name != MANIFEST] == ["scores"]


def test_digest_is_of_the_content_not_of_the_key(store: Store) -> None:
    for key in ("a" * 64, "b" * 64):
        with store.build("answers", key, {}) as build:
            (build.path / "answers").write_text("same")
    first, second = store.find("answers", "a" * 64), store.find("answers", "b" * 64)
    assert first is not None and second is not None
    assert first.digest == second.digest == tree_digest(first.path)


def test_two_runs_cannot_make_the_same_result_at_once(store: Store) -> None:
    with (
        store.build("train", "k" * 64, {}),
        pytest.raises(UserError, match=r"another run \(process \d+ on .*\) is making train"),
        store.build("train", "k" * 64, {}),
    ):
        pass


def test_a_broken_manifest_is_one_sentence(store: Store) -> None:
    folder: Path = store.folder("score", "k" * 64)
    folder.mkdir(parents=True)
    (folder / MANIFEST).write_text("{")
    with pytest.raises(
        UserError, match=r"not valid JSON; `magpie verify .* --repair` sets it aside"
    ):
        store.find("score", "k" * 64)


def test_manifest_keeps_the_spec_for_a_later_plan(store: Store) -> None:
    with store.build("train", "k" * 64, {"learning_rate": 2e-5}):
        pass
    found = store.find("train", "k" * 64)
    assert found is not None
    assert json.loads((found.path / MANIFEST).read_text())["spec"] == {"learning_rate": 2e-5}
