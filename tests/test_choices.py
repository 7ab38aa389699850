"""What `choose` reads of its text, and each kind's order on a few rows, worked out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from core.errors import UserError
from synth.filters.choices import CHOICES, Choose, read
from synth.filters.choosing import kinds
from synth.filters.choosing.candidates import NO_VECTORS, Candidates, Vectors
from synth.filters.orders import by_hash
from synth.measures import DIFFICULTY, QUALITY

DEITA = ("difficulty_rank", "difficulty", "pair_score_rank", "pair_score")
MIG = ("intent", "pair_score")
RIP = ("worst_reward", "worst_length", "reward_gap")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("ids") / "ids.txt"
    path.write_text("a\n")
    return str(path)


@pytest.mark.parametrize(
    ("text", "arguments", "ranks"),
    [
        ("longest", (), ("response_length",)),
        ("top(instruct_reward)", ("instruct_reward",), ("instruct_reward",)),
        ("hash_order", (), ()),
        ("hash_order(second)", ("second",), ()),
        ("difficulty_mix", ("easy",), ("difficulty", "response_length")),
        ("difficulty_mix(hard)", ("hard",), ("difficulty", "response_length")),
        ("balanced(task_category)", ("task_category",), ("task_category",)),
        ("balanced(language, instruct_reward)", *[("language", "instruct_reward")] * 2),
        ("diverse", (), ()),
        ("deita", ("0.9",), DEITA),
        ("deita(1)", ("1",), DEITA),
        ("random_balanced(task_category)", ("task_category",), ("task_category",)),
        ("random_length_matched(good)", ("good",), ("response_length",)),
        ("part(instruct_reward, low)", ("instruct_reward", "low"), ("instruct_reward",)),
        ("qdit(instruct_reward)", ("instruct_reward", "0.7"), ("instruct_reward",)),
        ("qdit(instruct_reward, 0)", ("instruct_reward", "0"), ("instruct_reward",)),
        ("mig(intent, pair_score)", ("intent", "pair_score", "exact", "0.9"), MIG),
        ("mig(intent, pair_score, gradient)", ("intent", "pair_score", "gradient", "0.9"), MIG),
        ("mig(intent, pair_score, exact, 0.5)", ("intent", "pair_score", "exact", "0.5"), MIG),
        ("rip", ("0.5", "0.5", "0.5"), RIP),
        ("rip(0.1, 0.2)", ("0.1", "0.2", "0.5"), RIP),
        ("rip( 0.1 , 0.2, 1 )", ("0.1", "0.2", "1"), RIP),
        ("all", (), ()),
    ],
)  # fmt: skip
def test_a_choice_has_its_arguments_with_what_was_left_out_and_the_columns_that_it_ranks_by(
    text: str, arguments: tuple[str, ...], ranks: tuple[str, ...]
) -> None:
    assert read(text, "choose") == Choose(text.partition("(")[0], arguments, ranks)


def test_a_choice_by_a_file_ranks_by_no_column_of_it(file: str) -> None:
    assert read(f"ids({file})", "choose").ranks == ()
    assert read(f"rds({file})", "choose").ranks == ("response_length",)


@pytest.mark.parametrize(
    ("kind", "least", "most"),
    [
        ("longest", 0, 0),
        ("top", 1, 1),
        ("hash_order", 0, 1),
        ("difficulty_mix", 0, 1),
        ("balanced", 1, 2),
        ("diverse", 0, 0),
        ("deita", 0, 1),
        ("random_balanced", 1, 1),
        ("random_length_matched", 1, 1),
        ("part", 2, 2),
        ("qdit", 1, 2),
        ("mig", 2, 4),
        ("rds", 1, 1),
        ("rip", 0, 3),
        ("ids", 1, 1),
        ("all", 0, 0),
    ],
)
def test_too_few_or_too_many_arguments_are_shown_how_to_read(
    kind: str, least: int, most: int
) -> None:
    for count in (least - 1, most + 1):
        if count >= 0:
            with pytest.raises(UserError, match="should read"):
                read(f"{kind}({', '.join('x' * count)})", "choose")


def test_what_a_choice_waits_for_and_what_draws_another_sample() -> None:
    def those(flag: str) -> set[str]:
        return {name for name, choice in CHOICES.items() if getattr(choice, flag)}

    assert those("greedy") == {"diverse", "deita", "qdit", "mig"}
    assert those("waits") == {"rds", "rip"}
    assert those("controls") == {"random_length_matched"}
    assert those("seeded") == {"hash_order", "random_balanced", "random_length_matched"}


@pytest.mark.parametrize(
    "text",
    ["deita(0)", "deita(1.01)", "deita(x)", "qdit(instruct_reward, -0.01)", "rip(1.01)", "rip(x)"],
)
def test_a_number_beyond_its_bounds_is_one_sentence(text: str) -> None:
    with pytest.raises(UserError, match=r"is no (cosine|number)"):
        read(text, "choose")


@pytest.mark.parametrize(
    "text",
    [
        "mig(response, pair_score)",
        "mig(instruct_reward, pair_score)",
        "balanced(response)",
        "balanced(task_category, language)",
        "part(instruct_reward, lowest)",
        "mig(intent, pair_score, best)",
        "difficulty_mix(very hard)",
        "rds(/no/such/file)",
    ],
)
def test_an_argument_of_another_kind_is_refused(text: str) -> None:
    with pytest.raises(UserError):
        read(text, "choose")


# -- orders ----------------------------------------------------------------------------------------


def order(text: str, rows: dict[str, Any], vectors: Vectors = NO_VECTORS, **more: Any) -> str:
    """The ids in the order of a choice."""
    frame = pl.DataFrame(rows)
    frame = frame.with_columns(id=pl.Series(list("abcdefghijkl")[: len(frame)]))
    chosen = read(text, "choose")
    options = {"seed": 0, "limit": None, "vectors": vectors} | more
    candidates = Candidates(frame, chosen.ranks, chosen.arguments, **options)
    batches = list(chosen.choice.order(candidates))
    return "".join(frame["id"].gather(np.concatenate(batches)))


def hashed(ids: str, seed: int | str = "ties") -> str:
    names = pl.Series(list(ids))
    return "".join(names.gather(by_hash(names, seed)))


def test_rows_of_a_file_with_one_score_are_taken_in_its_order(tmp_path: Path) -> None:
    file = tmp_path / "scores.csv"
    ids = [f"row {number}" for number in np.random.default_rng(0).permutation(20_000)]
    scores = [float(place % 2) for place in range(len(ids))]
    pl.DataFrame({"id": ids, "score": scores}).write_csv(file)
    chosen = read(f"ids({file})", "choose")
    rows = pl.DataFrame({"id": sorted(ids)})
    candidates = Candidates(rows, (), chosen.arguments, seed=0, limit=None, vectors=NO_VECTORS)
    [taken] = chosen.choice.order(candidates)
    assert rows["id"].gather(taken).to_list() == ids[1::2] + ids[::2]


def test_low_and_top_parts_take_an_end_and_nothing_without_a_value_before_the_rest() -> None:
    rows = {"instruct_reward": [3.0, None, 1.0, 2.0]}
    assert order("part(instruct_reward, low)", rows) == "cdab"
    assert order("part(instruct_reward, top)", rows) == "adcb"
    assert order("top(instruct_reward)", rows, limit=2) == "ad"


def test_a_balanced_choice_takes_the_groups_in_the_order_of_their_labels() -> None:
    labels = pl.Series(["good", "poor", None, "good", "poor", "good"], dtype=pl.Enum(QUALITY))
    rows = {"input_quality": labels, "pair_score": [1.0, 4.0, 9.0, 3.0, 5.0, 2.0]}
    assert order("balanced(input_quality, pair_score)", rows) == "edbfac"
    groups = "".join("pg-"[0 if i in "be" else 2 if i == "c" else 1] for i in
                     order("balanced(input_quality)", rows))  # fmt: skip
    assert groups == "pgpgg-"


def test_a_sample_at_random_follows_the_seed_and_its_name() -> None:
    rows = {"input_quality": pl.Series(["good"] * 6, dtype=pl.Enum(QUALITY))}
    assert order("hash_order", rows, seed=3) == hashed("abcdef", 3)
    assert order("hash_order(b)", rows, seed=3) == hashed("abcdef", "3 b")
    assert order("random_balanced(input_quality)", rows, seed=3) == hashed("abcdef", 3)


def test_half_of_a_mix_lies_above_the_boundary_and_ends_with_the_smaller_half() -> None:
    hard = pl.Series(
        ["easy", "hard", "medium", None, "very easy", "easy"], dtype=pl.Enum(DIFFICULTY)
    )
    rows = {"difficulty": hard, "response_length": [1.0, 2.0, 3.0, 9.0, 5.0, 4.0]}
    assert order("difficulty_mix", rows) == "ecfb"
    assert order("difficulty_mix(medium)", rows) == "eb"


def test_of_rejected_preferences_the_high_the_long_and_the_close_survive() -> None:
    rng = np.random.default_rng(0)
    rows = {name: rng.normal(size=12).tolist() for name in RIP}
    rows["worst_reward"][4] = None
    columns = {name: np.array(values, dtype=float) for name, values in rows.items()}
    high = columns["worst_reward"] >= np.nanquantile(columns["worst_reward"], 0.3)
    long = columns["worst_length"] >= np.quantile(columns["worst_length"], 0.2)
    close = columns["reward_gap"] <= np.quantile(columns["reward_gap"], 0.8)
    kept = "".join(np.array(list("abcdefghijkl"))[high & long & close])
    assert 2 < len(kept) < 12
    assert order("rip(0.3, 0.2, 0.8)", rows) == hashed(kept)


def test_a_file_of_scores_is_followed_and_others_rows_in_it_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "scores.csv"
    path.write_text("id,score\nb,1\nz,9\nc,2\na,2\n")
    assert order(f"ids({path})", {"x": [0, 0, 0, 0]}) == "cab"


def embedded(ids: str, angles: list[float]) -> Vectors:
    at = dict(zip(ids, np.deg2rad(angles), strict=True))
    return Vectors(
        lambda names: np.array([[np.cos(at[i]), np.sin(at[i])] for i in names], np.float32)
    )


def test_deita_multiplies_the_label_counted_from_one_with_the_pair_score() -> None:
    labels = pl.Series(["very easy", "hard", "easy", None], dtype=pl.Enum(DIFFICULTY))
    rows = {
        "difficulty": labels,
        "difficulty_rank": [None, None, 2.5, 1.0],
        "pair_score": [5.0, 1.5, 3.0, None],
        "pair_score_rank": pl.Series([None] * 4, dtype=pl.Float64),
    }
    # 1 x 5, 4 x 1.5, 2.5 x 3; d has no score
    apart = embedded("abcd", [0, 90, 180, 270])
    assert order("deita", rows, apart) == "cba"
    assert order("deita(0.5)", rows, embedded("abcd", [0, 40, 180, 270])) == "cb"


def test_a_matched_sample_needs_the_arm_that_it_is_like() -> None:
    rows = {"response_length": [1.0, 2.0, None, 3.0]}
    with pytest.raises(ValueError, match="the arm that it controls"):
        order("random_length_matched(x)", rows)
    found = order("random_length_matched(x)", rows, like=pl.Series([2, 2]))
    assert found == "b"


def test_labels_are_worth_the_score_counted_from_one_and_never_less_than_nothing() -> None:
    texts = Vectors(lambda ids: np.zeros((len(ids), 1), np.float32),
                    lambda names: np.eye(len(names), dtype=np.float32))  # fmt: skip
    rows = {
        "intent": ["p", "q", "r", "s"],
        "pair_score": [2.0, 3.0, 1.0, None],
        "input_quality": pl.Series(["good", "very poor", None, "poor"], dtype=pl.Enum(QUALITY)),
    }
    assert order("mig(intent, pair_score)", rows, texts) == "bac"
    assert order("mig(intent, input_quality)", rows, texts) == "adb"
    with pytest.raises(UserError, match="must not be negative"):
        order("mig(intent, pair_score)", rows | {"pair_score": [2.0, -0.1, 1.0, 1.0]}, texts)
    order("mig(intent, pair_score)", rows | {"pair_score": [2.0, 0.0, 1.0, 1.0]}, texts)


def test_quality_counts_by_its_rank_from_none_to_all() -> None:
    # all alike, so that only the quality is left to tell them apart
    same = embedded("abcd", [0, 0, 0, 0])
    rows = {"instruct_reward": [5.0, None, 700.0, 6.0]}
    assert order("qdit(instruct_reward, 1)", rows, same) == "cda"
    assert kinds._ranked_from_one(pl.Series([1.5])).to_list() == [1.5]
