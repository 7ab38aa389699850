"""What makes a large pool affordable: servers that never drain, texts that are read once, files
that are written once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from core.models import resolve
from core.servers import Servers
from core.tracking import Log
from recipes import schema
from synth.context import Context
from synth.filters.arm import ArmConfig
from synth.filters.rule import resolve as resolve_filter
from synth.pool import measure as measuring
from synth.pool.draw import draw
from synth.pool.pool import Pool
from tests import small_recipe
from tests.scripted_server import ScriptedServer


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_recipe.model(tmp_path_factory.mktemp("model") / "llama")


@pytest.fixture(scope="module")
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer(small_recipe.answer) as running:
        yield running


def test_requests_of_the_next_slice_are_sent_while_those_of_this_one_are_in_flight(
    tmp_path: Path, llama: Path, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "SLICE", 4)
    recipe = schema.load(small_recipe.recipe(tmp_path, llama, server.url)).recipe
    pool = Pool(recipe.synth, Context(tmp_path, resolve))
    arm = ArmConfig.model_validate({"choose": "all"})
    rules = [(resolve_filter("all", arm), (0,))]
    with Servers(Log(), tmp_path / "logs") as servers:
        draw(pool, servers, Log())
    with (
        ScriptedServer(small_recipe.answer, delay=0.05) as slow,
        Servers(Log(), tmp_path / "logs") as servers,
    ):
        other = small_recipe.recipe(tmp_path, llama, slow.url)
        pool = Pool(schema.load(other).recipe.synth, Context(tmp_path, resolve))
        counts = measuring.measure(pool, rules, servers, Log())
    assert counts["response"]["cells"] == 100
    assert slow.high_water > 4, "one slice at a time would have four open"
    frame = pool.frame(["response"])
    assert frame["status:response"].to_list() == ["ok"] * 100, "each cell is of its row's text"
