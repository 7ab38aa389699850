"""Results: keys, atomic publication, what survives a kill."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from core import files
from core.errors import UserError
from core.store import LAYOUT, MANIFEST, Store, check_version, digest, mark_version, tree_digest


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


@pytest.mark.process
def test_what_a_killed_process_left_half_written_is_swept_and_what_others_write_stays(
    tmp_path: Path,
) -> None:
    killed = "from core.files import replacing; import os, pathlib, sys\n"
    killed += "with replacing(pathlib.Path(sys.argv[1])) as new: new.touch(); os._exit(9)"
    subprocess.run([sys.executable, "-c", killed, str(tmp_path / "a.json")], check=False)
    assert len(list(tmp_path.glob(".a.json.*.tmp"))) == 1
    with files.replacing(tmp_path / "b.json") as temporary:
        temporary.touch()
        (tmp_path / ".c.json.00000000-99999999-12345678.tmp").touch()  # another machine's
        files.sweep(tmp_path)
        left = sorted(path.name for path in tmp_path.iterdir())
        assert left == [temporary.name, ".c.json.00000000-99999999-12345678.tmp"]


def test_what_a_killed_attempt_left_half_written_is_no_part_of_a_result(store: Store) -> None:
    partial = store.partial("select", "k" * 16)
    (partial / "deeper").mkdir(parents=True)
    (partial / "deeper" / ".x.json.0-1-2.tmp").touch()
    with store.build("select", "k" * 16, {}) as build:
        assert build is not None
    assert [path.name for path in store.folder("select", "k" * 16).rglob("*.tmp")] == []


@pytest.mark.parametrize("said", ["", "{", '{"version": 0}', "[2]"])
def test_a_damaged_store_json_is_made_again_of_its_copy(
    tmp_path: Path, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    mark_version(tmp_path)
    (tmp_path / "store.json").write_text(said)
    check_version(tmp_path)
    assert "store.json: is damaged" in capsys.readouterr().err
    mark_version(tmp_path)
    assert json.loads((tmp_path / "store.json").read_text()) == {"version": LAYOUT}
    assert LAYOUT == 2, "another number shuts out every store that there is"


def test_the_copy_of_a_newer_stores_layout_counts_too(tmp_path: Path) -> None:
    mark_version(tmp_path)
    (tmp_path / ".store.json").write_text('{"version": 99}')
    (tmp_path / "store.json").write_text("")
    with pytest.raises(UserError, match="layout 99"):
        check_version(tmp_path)
