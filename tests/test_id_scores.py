"""An arm that takes what a file of ids says: its scores go where its rows go."""

from __future__ import annotations

from pathlib import Path

import polars as pl
from typer.testing import CliRunner

from recipes import schema
from recipes.cli import app
from recipes.stages import graph
from tests import small_recipe
from tests.scripted_server import ScriptedServer


def test_the_scores_of_a_file_of_ids_are_a_column_of_the_exported_rows(tmp_path: Path) -> None:
    llama = small_recipe.model(tmp_path / "llama")
    with ScriptedServer(small_recipe.answer) as server:
        path = small_recipe.recipe(tmp_path, llama, server.url)
        graph.run(schema.load(path), "select")
        pool = pl.read_parquet(tmp_path / "store/recipes/small/measure/pool.parquet")
        answered = pool.filter((pl.col("status:response") == "ok") & ~pl.col("heldout"))
        scores = answered.select("id").with_row_index("score").cast({"score": pl.Float64})
        scores.write_parquet(tmp_path / "less.parquet")
        arms = {"less": {"choose": f"ids({tmp_path / 'less.parquet'})", "budget": {"rows": 5}}}
        path = small_recipe.recipe(tmp_path, llama, server.url, arms=arms)
        graph.run(schema.load(path), "select")
    out = tmp_path / "out.parquet"
    asked = ["export", str(path), "--arm", "less", "--form", "magpie", "--out", str(out)]
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 0, done.output
    best = scores.sort("score", descending=True).head(5)
    rows = pl.read_parquet(out)
    assert dict(rows.select("id", "selection_score").iter_rows()) == dict(
        best.select("id", "score").iter_rows()
    )
