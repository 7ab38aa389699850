"""Label mode against explain mode: what the agreement figures are, which rows are asked twice, and
that none is bought twice."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recipes.schema import load
from recipes.stages import graph
from synth.measures import SHIPPED
from synth.pool.mode_agreement import agreement, sentence
from tests import small_recipe
from tests.scripted_server import ScriptedServer


def test_the_same_labels_agree_wholly() -> None:
    found = agreement([0, 1, 2, 4], [0, 1, 2, 4], 5, [1.1, 2.0, 2.9, 4.8])
    assert (found["n"], found["exact"], found["within_one"], found["shift"]) == (4, 1.0, 1.0, 0.0)
    assert found["kappa"] == pytest.approx(1.0) and found["spearman"] == pytest.approx(1.0)


def test_figures_are_those_of_scikit_learn_and_scipy() -> None:
    metrics, stats = pytest.importorskip("sklearn.metrics"), pytest.importorskip("scipy.stats")
    dice = random.Random(1)
    label = [dice.randrange(5) for _ in range(200)]
    explain = [min(4, max(0, level + dice.choice([-2, -1, 0, 0, 0, 1]))) for level in label]
    ranks = [level + 1 + dice.uniform(-0.4, 0.4) for level in label]
    found = agreement(label, explain, 5, ranks)
    assert found["kappa"] == pytest.approx(
        metrics.cohen_kappa_score(label, explain, weights="quadratic")
    )
    assert found["spearman"] == pytest.approx(stats.spearmanr(ranks, explain).statistic)
    assert found["exact"] == np.mean(np.equal(label, explain)) and found["shift"] == pytest.approx(
        np.mean(explain) - np.mean(label)
    )
    assert found["within_one"] == np.mean(np.abs(np.subtract(label, explain)) <= 1)
    assert agreement(label, explain, 12, None)["kappa"] == pytest.approx(
        metrics.cohen_kappa_score(label, explain)
    )


def test_what_the_rows_cannot_say_is_none_and_said_so() -> None:
    found = agreement([2, 2, 2], [2, 2, 2], 5, [3.0, 3.0, 3.0])
    assert (found["kappa"], found["spearman"], found["exact"]) == (None, None, 1.0)
    assert "weighted kappa undefined, rank correlation undefined of 3 rows" in sentence(
        "quality", found
    )
    assert agreement([], [], 5, []) == {"n": 0} and "no row" in sentence("quality", {"n": 0})


def test_a_tag_without_order_has_no_levels() -> None:
    found = agreement([0, 11], [0, 3], 12, None)
    assert set(found) == {"n", "exact", "kappa"} and "within" not in sentence(
        "category", found | {"failed": 2}
    )
    assert "(2 more could not be read in the other mode)" in sentence(
        "category", found | {"failed": 2}
    )


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_recipe.model(tmp_path_factory.mktemp("model") / "llama")


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer(small_recipe.answer) as made:
        yield made


def run(path: Path, *overrides: str) -> None:
    graph.run(load(path, list(overrides)), until="select")


def explained(server: ScriptedServer) -> int:
    return sum("json" in (r.body.get("structured_outputs") or {}) for r in server.requests)


def shown(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        (path.parent / "store" / "recipes" / "small" / "measure" / "tag_agreement.json").read_text()
    )
    return found


def test_a_sample_is_asked_in_the_other_mode_once_and_a_larger_one_asks_only_what_is_new(
    tmp_path: Path, llama: Path, server: ScriptedServer
) -> None:
    path = small_recipe.recipe(tmp_path, llama, server.url)
    run(path)
    assert shown(path) == {} and explained(server) == 0
    run(path, "synth.tags.quality.check=12")
    assert (
        explained(server) == 12
        and shown(path)["quality"]["n"] == shown(path)["quality"]["asked"] == 12
    )
    run(path, "synth.tags.quality.check=12")
    assert explained(server) == 12
    run(path, "synth.tags.quality.check=20")
    assert explained(server) == 20 and shown(path)["quality"]["n"] == 20
    assert {"exact", "within_one", "kappa", "spearman", "tokens"} <= set(shown(path)["quality"])


def test_a_recipe_in_the_other_mode_finds_the_sample_bought(
    tmp_path: Path, llama: Path, server: ScriptedServer
) -> None:
    path = small_recipe.recipe(tmp_path, llama, server.url, arms__good__allow_cut=True)
    run(path, "synth.tags.quality.check=12")
    run(path, "synth.tags.quality.mode=explain")
    tagged = len([r for r in server.requests if "logprob_token_ids" in r.body])
    assert explained(server) == tagged, "every tagged row was explained once, the sample not again"


def test_the_report_says_how_far_the_modes_agree(tmp_path: Path) -> None:
    import polars as pl

    from recipes.report.sections import pool_tags

    found = {
        "quality": {
            "asked": 9,
            "failed": 1,
            **agreement(
                [0, 1, 2, 3, 4, 2, 1, 0], [0, 1, 2, 3, 4, 2, 1, 1], 5, [1, 2, 3, 4, 5, 3, 2, 1]
            ),
        }
    }
    (tmp_path / "tag_agreement.json").write_text(json.dumps(found))
    pl.DataFrame({"id": ["a", "b"], "input_quality": ["good", "poor"]}).write_parquet(
        tmp_path / "pool.parquet"
    )
    sentences = pool_tags.of_pool({"measure": tmp_path}, {}, SHIPPED.columns)["sentences"]
    assert any(
        "quality: label mode and explain mode give the same label on 88%" in s for s in sentences
    )
