"""Sampling grids: exact rows, ids that stay when the grid grows, replacements for failed draws; and
what a recipe may say."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest
from pydantic import ValidationError

from core.errors import UserError
from core.store import canonical
from synth.config.synthesis import SynthConfig
from synth.generate.sampling_grid import DRAWS, PRESETS, Plan, apportion, entries

BASE = {
    "teacher": "r0",
    "system_prompt": None,
    "sampling": {"temperature": 1.0, "top_p": 1.0, "max_tokens": 64},
    "seed": 0,
}
HOT = {"temperature": 1.2, "top_p": 0.995}


def config(**settings: Any) -> SynthConfig:
    return SynthConfig.model_validate(
        {"teacher": {"model": "m"}, "instruction": BASE["sampling"], **settings}
    )


def ids(**settings: Any) -> list[str]:
    return Plan(BASE, config(**settings)).places["id"].to_list()


def status(**known: str) -> pl.DataFrame:
    return pl.DataFrame(
        {"id": list(known), "status": list(known.values())},
        schema={"id": pl.String, "status": pl.String},
    )


def test_the_papers_grids_have_its_rows() -> None:
    pro = entries(config(rows=1_000_000, grid="magpie-pro"))
    assert [(c.rows, *c.sampling.values()) for c in pro] == [
        (300_000, 1.0, 1.0),
        (300_000, 1.1, 0.995),
        (300_000, 1.2, 0.995),
        (100_000, 1.25, 0.99),
    ]
    air = entries(config(rows=3_000_000, grid="magpie-air"))
    assert [c.rows for c in air] == [300_000] * 9 + [100_000] * 3
    assert {(c.sampling["temperature"], c.sampling["top_p"]) for c in air} == {
        (t, p) for t in (1.0, 1.1, 1.2, 1.25) for p in (1.0, 0.995, 0.99)
    }


@pytest.mark.parametrize("rows", [1, 7, 10, 999, 1000, 1001, 123_457])
@pytest.mark.parametrize("name", PRESETS)
def test_a_scaled_grid_has_exactly_the_rows_that_were_asked_for(rows: int, name: str) -> None:
    counts = apportion(rows, [weight for weight, _, _ in PRESETS[name]])
    total = sum(weight for weight, _, _ in PRESETS[name])
    assert sum(counts) == rows
    assert all(
        abs(n - rows * weight / total) < 1
        for n, (weight, _, _) in zip(counts, PRESETS[name], strict=True)
    )


def test_a_pool_without_a_grid_keeps_the_ids_it_always_had() -> None:
    import hashlib

    assert ids(rows=3) == [
        hashlib.sha256(f"{canonical(BASE)}{i}".encode()).hexdigest()[:20] for i in range(3)
    ]


def test_a_place_samples_with_the_seed_that_it_always_had() -> None:
    import hashlib

    places = Plan(BASE, config(rows=200)).places
    for index, name, seed in places.select("index", "id", "seed").rows():
        digest = hashlib.sha256(f"{canonical(BASE)}{index}".encode()).digest()
        assert digest.hex().startswith(name) and seed == int(digest.hex()[-8:], 16) % 2**31
    assert places["seed"].max() > 2**30 and places["seed"].n_unique() == 200  # type: ignore[operator]


def test_a_teacher_of_which_one_instruction_in_three_fails_fills_996_places_of_1000() -> None:
    assert round(1000 * (1 - (1 / 3) ** DRAWS)) == 996


def test_more_rows_of_a_cell_or_another_cell_change_no_id() -> None:
    cold = {"rows": 5, "sampling": {}}
    small = ids(grid=[cold, {"rows": 4, "sampling": HOT}])
    grown = ids(grid=[{"rows": 8, "sampling": {}}, {"rows": 4, "sampling": HOT}])
    more = ids(
        grid=[{"rows": 3, "sampling": {"temperature": 1.1}}, {"rows": 4, "sampling": HOT}, cold]
    )
    assert len(set(small)) == 9 and set(small) <= set(grown) and set(small) <= set(more)
    assert len(set(grown)) == 12 and len(set(more)) == 12
    assert set(ids(rows=5)) < set(small), (
        "a pool that gets a grid keeps the rows of the sampling it had"
    )


def test_a_place_keeps_its_seed() -> None:
    one = Plan(BASE, config(grid=[{"rows": 2, "sampling": HOT}])).places
    two = Plan(
        BASE, config(grid=[{"rows": 9, "sampling": {}}, {"rows": 4, "sampling": HOT}])
    ).places
    assert one.join(two, on=["id", "seed"], how="inner").height == 2


def test_two_cells_of_one_sampling_are_refused() -> None:
    with pytest.raises(UserError, match="cell 2 has the sampling of cell 1"):
        Plan(
            BASE,
            config(
                grid=[{"rows": 1, "sampling": {}}, {"rows": 2, "sampling": {"temperature": 1.0}}]
            ),
        )


def test_rows_that_do_not_sum_up_are_one_sentence_and_rows_may_be_left_to_the_cells() -> None:
    grid = [{"rows": 3, "sampling": {}}, {"rows": 4, "sampling": HOT}]
    assert config(grid=grid).rows == 7
    with pytest.raises(ValidationError, match="the rows of `grid` sum to 7, but `rows` says 9"):
        config(grid=grid, rows=9)


def test_sampling_of_a_cell_is_the_common_one_with_what_it_changes() -> None:
    plan = Plan(
        BASE,
        config(
            grid=[
                {"rows": 1, "sampling": {}},
                {"rows": 1, "sampling": {"min_p": 0.1, "top_p": None}},
            ]
        ),
    )
    assert plan.sampling(BASE["sampling"]) == [
        BASE["sampling"],
        {"temperature": 1.0, "top_p": None, "max_tokens": 64, "min_p": 0.1},
    ]  # type: ignore[arg-type]


def test_a_failed_draw_is_followed_by_another_for_its_place_which_depends_on_the_place_alone() -> (
    None
):
    plan = Plan(BASE, config(rows=4))
    first = plan.places["id"].to_list()
    made, due = plan.draws(status(**{first[0]: "ok", first[1]: "failed", "of another pool": "ok"}))
    assert made["id"].to_list() == first[:2]
    assert due["place"].to_list() == first[1:] and due["id"].to_list()[1:] == first[2:]
    again = due["id"][0]
    assert again not in first and due["seed"][0] != plan.places["seed"][1]
    _, alone = plan.draws(status(**{first[1]: "failed"}))
    assert again in alone["id"].to_list()
    made, due = plan.draws(
        status(**{**dict.fromkeys(first, "ok"), first[1]: "failed", again: "ok"})
    )
    assert due.is_empty() and made["id"].to_list() == [
        first[0],
        first[1],
        again,
        first[2],
        first[3],
    ]


def test_a_place_that_always_fails_is_given_up() -> None:
    plan = Plan(BASE, config(rows=1))
    known: dict[str, str] = {}
    for _ in range(DRAWS):
        _, due = plan.draws(status(**known))
        known[due["id"].item()] = "failed"
    made, due = plan.draws(status(**known))
    assert len(made) == DRAWS == made["id"].n_unique() and due.is_empty()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"system_prompt": "x", "system_prompts": [{"text": "y"}]}, "not both"),
        ({"system_prompts": [{"text": "y", "domain": "math"}]}, "either `text`, or `file`"),
        ({"system_prompts": [{"weight": 2}]}, "either `text`, or `file`"),
        ({"system_prompts": [{"text": "y", "weight": 0}]}, "greater than 0"),
        ({"first_token": {}}, "needs `suppress` or `temperature`"),
        ({"rows": {"import": "x"}, "grid": "magpie-pro"}, "imported rows are not drawn"),
        ({"grid": "magpie-ultra"}, "magpie-pro"),
        (
            {"category_balance": 10, "tags": {"category": {"model": {"model": "other"}}}},
            "must be the teacher, or a server given by `urls`",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        config(**settings)
