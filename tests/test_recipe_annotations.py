"""`magpie annotations`: what a recipe judged, written for the official tools and read back by
`magpie score`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from core.errors import UserError
from eval.scoring.of_files import score_alpaca, score_arena
from recipes import schema
from recipes.cli import app
from recipes.stages import graph
from recipes.verbs import annotations as written
from tests import small_recipe
from tests.scripted_server import ScriptedServer


def models_only(folder: Path, url: str, **changes: Any) -> Path:
    """A recipe that compares two finished models: nothing trains."""
    one, two = small_recipe.model(folder / "one"), small_recipe.model(folder / "two", "llama3")
    where = {"urls": [url], "max_in_flight": 16}
    settings = {
        "limit": 12,
        "judge": {"model": str(one), "server": where, "api": "completions"},
        "alpaca": {
            "order": "both",
            "codes": ["1", "2"],
            "answers": {"sampling": {"temperature": 0, "max_tokens": 30}, "server": where},
        },
        "arena": {
            "sampling": {"max_tokens": 30},
            "answers": {"sampling": {"temperature": 0, "max_tokens": 12}, "server": where},
        },
    }
    arms = {"one": {"model": str(one)}, "two": {"model": str(two)}}
    return small_recipe.recipe(
        folder,
        one,
        url,
        arms=arms,
        random_arm=False,
        eval=settings,
        synth__rows=4,
        synth__heldout=0,
        **changes,
    )


def test_written_judgments_score_as_the_recipe_says(tmp_path: Path) -> None:
    with ScriptedServer(small_recipe.answer) as server:
        path = models_only(tmp_path, server.url)
        loaded = schema.load(path)
        with pytest.raises(UserError, match="has no finished judgments"):
            written.write(loaded, tmp_path / "files")
        outcome = graph.run(loaded, "score")
        files = written.write(loaded, tmp_path / "files")
    assert [str(f.relative_to(tmp_path / "files")) for f in files] == [
        "alpaca_eval/two/annotations.json",
        "arena-hard-v0.1/model_judgment/one/two.jsonl",
    ]
    summary = json.loads((outcome.results["score/two"].path / "summary.json").read_text())
    counts = [
        outcome.results[f"judge/{name}/two"].manifest["counts"] for name in ("alpaca", "arena")
    ]
    assert [c["identical"] for c in counts] == [0, 0] and counts[0]["judged"] == 24
    done = CliRunner().invoke(
        app, ["annotations", str(path), "--out", str(tmp_path / "more"), "--json"]
    )
    listed = [
        Path(name).relative_to(tmp_path / "more") for name in json.loads(done.stdout)["files"]
    ]
    assert listed == [file.relative_to(tmp_path / "files") for file in files], done.stderr
    (alpaca,) = score_alpaca(files[:1])
    assert alpaca["model"] == "two" and alpaca["win_rate"] == pytest.approx(
        summary["alpaca"]["win_rate"]["value"]
    )
    assert (
        alpaca["n_total"] == summary["alpaca"]["win_rate"]["n"] == 12 and alpaca["win_rate"] != 50
    )
    assert json.loads(files[0].read_text())[0]["generator_1"] == "one"
    (arena,) = score_arena(files[1:])
    assert arena["score"] == pytest.approx(summary["arena"]["arena_score"]["value"])


def test_a_published_baseline_goes_by_the_name_in_its_file(tmp_path: Path) -> None:
    made = tmp_path / "gpt4.json"
    made.write_text(
        json.dumps([{"instruction": "p", "output": "a", "generator": "gpt4_1106_preview"}])
    )
    assert written._generator(made) == "gpt4_1106_preview"
    made.write_text(json.dumps([{"id": "p", "answer": "a"}]))
    assert written._generator(made) == "gpt4"
