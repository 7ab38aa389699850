"""Selection strategies of the field on a pool of 2,000 rows: each equals a plain loop over numpy
arrays that follows its definition, row by row."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from core.errors import UserError
from synth.filters.arm import ArmConfig
from synth.filters.choosing import facility, label_gain
from synth.filters.choosing.candidates import Vectors
from synth.filters.choosing.facility import qdit
from synth.filters.choosing.label_gain import labels_of
from synth.filters.choosing.lazy import lazily
from synth.filters.choosing.near_queries import in_turns
from synth.filters.orders import by_hash, by_nearness, hash_rank, matched
from synth.filters.rule import Rule, linked, resolve
from synth.filters.schedule import Selection, remarks, select, wanted
from synth.measures import CATEGORY, MEASURES, QUALITY
from tests.test_choose import unit

N = 2_000
Floats = NDArray[np.floating]


def pool() -> pl.DataFrame:
    """2,000 rows with everything measured."""
    dice = np.random.default_rng(0)
    ids = [f"{n:016x}" for n in dice.integers(2**63, size=N)]
    subjects = [f"subject {n}" for n in range(60)]
    held = dice.choice(subjects, (N, 4)).tolist()
    categories = np.array(CATEGORY)[dice.choice(4, N, p=[0.6, 0.3, 0.08, 0.02])]
    finish = np.where(dice.random(N) < 0.1, "length", "stop")
    frame = pl.DataFrame(
        {
            "id": ids,
            "task_category": pl.Series(categories, dtype=pl.Enum(CATEGORY)),
            "input_quality": pl.Series(dice.choice(QUALITY, N), dtype=pl.Enum(QUALITY)),
            "instruct_reward": dice.normal(-10, 3, N).round(1),
            "response_length": np.exp(dice.normal(6, 1, N)).round(),
            "response_finish_reason": finish,
            "knowledge": [", ".join(each[: 1 + n % 4]) for n, each in enumerate(held)],
            "heldout": [False] * N,
            "reserved": [False] * N,
        }
    )
    measured = [pl.lit("ok").alias(f"status:{name}") for name in MEASURES]
    return frame.with_columns(measured)


POOL = pool()
EMBEDDED = unit(N, 16, 3)
PLACE = {name: at for at, name in enumerate(POOL["id"])}


def embedded(ids: pl.Series) -> NDArray[np.float32]:
    return EMBEDDED[[PLACE[name] for name in ids]]


def of_labels(names: Sequence[str]) -> NDArray[np.float32]:
    """Vectors of "subject N": those of three numbers in a row are near each other."""
    numbers = [int(name.split()[-1]) for name in names]
    groups, own = unit(60, 12, 5), unit(60, 12, 6)
    vectors = np.array([groups[n // 3] + 0.2 * own[n] for n in numbers])
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def rule(**arm: Any) -> Rule:
    return resolve("arm", ArmConfig.model_validate(arm))


def chosen(of: Rule, seed: int = 0, frame: pl.DataFrame = POOL) -> Selection:
    assert wanted(frame, [(of, (seed,))], vectors=vectors()) == {}
    return select(frame, of, seed, vectors=vectors())


def vectors() -> Vectors:
    return Vectors(embedded, of_labels)


def in_hash_order(seed: int | str = "ties") -> list[int]:
    """The pool's rows in the order that breaks ties, or that a seed draws."""
    return sorted(range(N), key=hash_rank(POOL["id"], seed).to_list().__getitem__)


def rows_of(selection: Selection) -> list[int]:
    return [PLACE[name] for name in selection.ids]


# -- random choices --------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 7])
def test_random_balanced_takes_turns_among_the_categories(seed: int) -> None:
    made = rows_of(chosen(rule(strategy="random-balanced", budget={"rows": 300}), seed))
    drawn = in_hash_order(seed)
    labels = POOL["task_category"].to_list()
    queues = [[row for row in drawn if labels[row] == name] for name in CATEGORY]
    expected: list[int] = []
    while len(expected) < 300:
        expected += [queue.pop(0) for queue in queues if queue]
    assert made == expected[:300]


def test_random_balanced_draws_another_sample_for_another_training_seed() -> None:
    arm = rule(strategy="random-balanced", budget={"rows": 100})
    assert arm.seeded and set(chosen(arm, 0).ids) != set(chosen(arm, 1).ids)


def control(of: dict[str, Any], **more: Any) -> tuple[Rule, Rule]:
    arms = {"of": of, "control": {"strategy": "random-length-matched", "params": {"arm": "of"}}}
    arms["control"] |= more
    rules = linked({n: resolve(n, ArmConfig.model_validate(arm)) for n, arm in arms.items()})
    return rules["of"], rules["control"]


BETTER = {"where": "input_quality >= 'good'", "choose": "longest", "budget": {"rows": 200}}


@pytest.mark.parametrize("seed", [0, 3])
def test_a_length_matched_control_is_random_within_each_bin_and_filled_as_its_arm(
    seed: int,
) -> None:
    of, like = control(BETTER)
    lengths = POOL["response_length"].to_numpy()
    arms = lengths[rows_of(chosen(of, seed))]
    edges = np.unique(np.quantile(arms, np.linspace(0, 1, 21)))

    def bin_of(length: float) -> int:
        for number in range(len(edges) - 1):
            last = number == len(edges) - 2
            if edges[number] <= length < edges[number + 1] or (last and length == edges[-1]):
                return number
        return -1

    cut = (POOL["response_finish_reason"] == "length").to_list()
    left = Counter(map(bin_of, arms))
    expected = set()
    for row in in_hash_order(seed):
        if not cut[row] and left[bin_of(lengths[row])] > 0:
            left[bin_of(lengths[row])] -= 1
            expected.add(row)
    made = chosen(like, seed)
    assert set(rows_of(made)) == expected and len(made.ids) == 200
    shared = len(set(made.ids) & set(chosen(of, seed).ids))
    assert made.funnel["like"] == {"arm": "of", "shared": shared} and 0 < shared < 200
    assert f"{shared} of 200 rows are those of 'of' itself" in remarks(made.funnel)[-1]


def test_every_prefix_of_a_matched_order_is_spread_alike() -> None:
    dice = np.random.default_rng(1)
    values, like = dice.normal(size=3000), dice.normal(0.5, 0.5, size=400)
    order = matched(values, like, bins=4)
    edges = np.quantile(like, [0, 0.25, 0.5, 0.75, 1])
    for size in (100, 400, 1000):
        counts = np.histogram(values[order[:size]], edges)[0]
        assert np.abs(counts - size / 4).max() <= 1
    full = np.histogram(values[order], edges)[0]
    assert len(order) == full.sum() and full.max() - full.min() <= 1
    assert full.min() == np.histogram(values, edges)[0].min(), "it ends where a bin is used up"


def test_a_control_without_enough_rows_of_a_length_says_so() -> None:
    _, like = control(BETTER, where="input_quality = 'very poor'")
    with pytest.raises(UserError, match="the budget asks for 200 rows but only"):
        chosen(like)


def test_a_control_takes_the_budget_of_its_arm_unless_it_has_its_own() -> None:
    assert control(BETTER)[1].budget == control(BETTER)[0].budget
    assert len(chosen(control(BETTER, budget={"rows": 50})[1]).ids) == 50


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("off", "no arm over the same rows is called 'off'; did you mean 'of'?"),
        ("control", "'control' is itself like another arm"),
    ],
)
def test_a_control_of_what_there_is_not_is_one_sentence(name: str, says: str) -> None:
    with pytest.raises(UserError) as error:
        control(BETTER, params={"arm": name})
    assert says in str(error.value)


# -- parts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["top", "middle", "low"])
def test_a_part_of_a_column_is_its_top_its_middle_or_its_low_end(part: str) -> None:
    made = rows_of(chosen(rule(choose=f"part(instruct_reward, {part})", budget={"rows": 101})))
    values, ties = POOL["instruct_reward"].to_list(), hash_rank(POOL["id"], "ties").to_list()
    falling = sorted(range(N), key=lambda row: (-values[row], ties[row]))
    middle = sorted(falling, key=lambda row: abs(falling.index(row) - (N - 1) / 2))
    rising = sorted(range(N), key=lambda row: (values[row], ties[row]))
    assert made == {"top": falling, "middle": middle, "low": rising}[part][:101]


def test_nothing_without_a_value_is_in_the_middle() -> None:
    values = pl.Series([5.0, None, 1.0, 3.0, None])
    order = by_nearness(values, pl.Series(list("abcde"))).tolist()
    assert order[:3] == [3, 0, 2] and set(order[3:]) == {1, 4}


# -- qdit ------------------------------------------------------------------------------------------


def plain_qdit(vectors: Floats, quality: Floats, alpha: float, count: int) -> list[int]:
    likeness = np.clip(vectors.astype(np.float64) @ vectors.astype(np.float64).T, 0, None)
    near, taken = np.zeros(len(vectors)), []
    for _ in range(count):
        gains = np.maximum(likeness - near[:, None], 0).sum(axis=0).round(3)
        score = (1 - alpha) * gains + alpha * quality
        score[taken] = -np.inf
        taken.append(int(score.argmax()))
        near = np.maximum(near, likeness[:, taken[-1]])
    return taken


@pytest.fixture(params=["in lists", "in tiles, then in lists", "in tiles"])
def comparing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How candidates and rows are compared: few rows in lists of pairs, many in tiles first."""
    if request.param != "in lists":
        smaller = {"TILE": 512, "HELD": 100, "BLOCK": 32, "ENTRIES": -1}
        for name, value in smaller.items():
            monkeypatch.setattr(facility, name, value)
    if request.param == "in tiles, then in lists":
        monkeypatch.setattr(facility, "ENTRIES", N * N // 20)
    return str(request.param)


@pytest.mark.parametrize("alpha", [0.0, 0.7, 1.0])
@pytest.mark.usefixtures("comparing")
def test_qdit_is_the_plain_greedy_choice(alpha: float) -> None:
    made = rows_of(
        chosen(rule(strategy="qdit", params={"alpha": alpha}, budget={"rows": 40})),
    )
    order = in_hash_order()
    rewards = POOL["instruct_reward"].to_numpy()[order]
    ranks = np.array([((rewards < r).sum() + (rewards <= r).sum() - 1) / 2 for r in rewards])
    picked = plain_qdit(EMBEDDED[order], ranks / (N - 1), alpha, 40)
    assert made == [order[at] for at in picked]


def test_qdit_goes_on_to_the_last_row_and_takes_each_once(
    comparing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors = unit(150, 4)
    vectors[100:] = vectors[:50]
    if comparing == "in tiles, then in lists":
        monkeypatch.setattr(facility, "ENTRIES", 200)
    order = np.concatenate(list(qdit(vectors, np.linspace(0, 1, 150), 0.5))).tolist()
    assert order == plain_qdit(vectors, np.linspace(0, 1, 150), 0.5, 150)


@pytest.mark.usefixtures("comparing")
def test_of_many_rows_that_are_alike_qdit_takes_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facility, "ENTRIES", -1)
    vectors = np.repeat(unit(3, 4), 100, axis=0)
    order = np.concatenate(list(qdit(vectors, np.zeros(300), 0.5))).tolist()
    assert order == plain_qdit(vectors, np.zeros(300), 0.5, 300)


def test_a_row_without_a_quality_is_never_taken() -> None:
    frame = POOL.with_columns(pl.when(pl.col("id") > "4").then("instruct_reward"))
    frame = frame.head(300)
    arm = rule(strategy="qdit", budget={"rows": 300}, allow_short=True)
    made = chosen(arm, frame=frame)
    assert set(made.ids) == set(frame.filter(pl.col("id") > "4")["id"])


# -- mig -------------------------------------------------------------------------------------------


def plain_mig(count: int, gain: str) -> list[int]:
    """The definition with dense matrices: phi(x) = (x + 1e-6)^0.8 over labels."""
    order = in_hash_order()
    names = sorted({label for text in POOL["knowledge"] for label in text.split(", ")})
    vectors = of_labels(names).astype(np.float64)
    links = np.where(vectors @ vectors.T >= 0.9, vectors @ vectors.T, 0)
    np.fill_diagonal(links, 1)
    links /= links.sum(axis=0)
    held = np.zeros((N, len(names)))
    scores = POOL["input_quality"].to_physical().to_list()
    for at, row in enumerate(order):
        labels = set(POOL["knowledge"][row].split(", "))
        for label in labels:
            held[at, names.index(label)] = (scores[row] + 1) / len(labels)
    spread = held @ links
    information = np.zeros(len(names))
    taken: list[int] = []
    for _ in range(count):
        if gain == "exact":
            gains = ((information + spread + 1e-6) ** 0.8 - (information + 1e-6) ** 0.8).sum(1)
        else:
            gains = spread @ (0.8 * (information + 1e-6) ** -0.2)
        gains = gains.round(12)
        gains[taken] = -np.inf
        taken.append(int(gains.argmax()))
        information += spread[taken[-1]]
    return [order[at] for at in taken]


@pytest.mark.parametrize("gain", ["exact", "gradient"])
def test_mig_is_the_plain_greedy_choice(gain: str) -> None:
    arm = rule(strategy="mig", params={"gain": gain}, budget={"rows": 150})
    assert rows_of(chosen(arm)) == plain_mig(150, gain)


def test_labels_of_a_text_are_what_stands_between_commas_semicolons_and_lines() -> None:
    texts = pl.Series(
        [
            "To solve this problem, the model needs to know algebra, Set Theory; and limits.",
            "- Python\n- python\n- SQL",
            None,
            "",
        ]
    )
    assert labels_of(texts).to_list() == [
        ["algebra", "set theory", "limits"],
        ["python", "sql"],
        [],
        [],
    ]
    lists = pl.Series([["Algebra", None, "algebra"], None, []], dtype=pl.List(pl.String))
    assert labels_of(lists).to_list() == [["algebra"], [], []]


def test_a_label_is_linked_with_itself_and_with_what_is_as_near_as_told() -> None:
    graph = label_gain.label_graph(labels_of(POOL["knowledge"]), of_labels, 0.9)
    links = graph.weights.toarray()
    near = of_labels(graph.names) @ of_labels(graph.names).T
    assert (links.diagonal() == 1).all() and np.allclose(links, links.T)
    apart = ~np.eye(len(links), dtype=bool)
    assert ((links > 0) == (near >= 0.9))[apart].all() and (links[apart] > 0).sum() > 20
    assert np.allclose(graph.spreading.toarray().sum(axis=0), 1)


def test_labels_beyond_the_most_frequent_are_linked_with_themselves_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(label_gain, "MOST_LABELS", 10)
    asked: list[int] = []

    def embed(names: Sequence[str]) -> NDArray[np.float32]:
        asked.append(len(names))
        return of_labels(names)

    graph = label_gain.label_graph(labels_of(POOL["knowledge"]), embed, 0.9)
    rest = graph.weights.toarray()[10:, :]
    assert asked == [10] and len(graph.names) == 60
    assert (rest.sum(axis=1) == 1).all()


@pytest.mark.parametrize(
    ("arm", "says"),
    [
        (
            {"params": {"score": "instruct_reward"}},
            "mig multiplies labels by `instruct_reward`, which must not be negative",
        ),
        ({"params": {"labels": "task_category"}}, "`task_category` holds no lists of labels"),
        ({"params": {"gain": "exakt"}}, "'exakt' is no gain; did you mean 'exact'?"),
        ({"params": {"cosine": 1.5}}, "'1.5' is no cosine between 0 and 1"),
    ],
)
def test_what_mig_cannot_go_by_is_one_sentence(arm: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError) as error:
        chosen(rule(strategy="mig", budget={"rows": 5}, **arm))
    assert says in str(error.value)


def test_mig_over_rows_without_labels_says_what_would_give_them() -> None:
    frame = POOL.with_columns(knowledge=pl.lit(None, pl.String))
    with pytest.raises(UserError, match="no row has a label; name a list column, or `knowledge`"):
        chosen(rule(strategy="mig", budget={"rows": 5}), frame=frame)


# -- greedy choices in general ---------------------------------------------------------------------


class Covering:
    """How many elements a set would add."""

    def __init__(self, sets: NDArray[np.bool_]) -> None:
        self.sets, self.covered = sets, np.zeros(sets.shape[1], bool)
        self.measured = 0

    def gains(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        self.measured += len(rows)
        return (self.sets[rows] & ~self.covered).sum(axis=1).astype(np.float64)

    def take(self, row: int) -> None:
        self.covered |= self.sets[row]


@pytest.mark.parametrize("block", [1, 5, 64, 500])
def test_lazy_greedy_takes_what_greedy_takes_with_the_first_of_equals(block: int) -> None:
    sets = np.random.default_rng(4).random((500, 300)) < 0.03
    lazy = Covering(sets)
    order = np.concatenate(list(lazily(lazy.gains(np.arange(500)), lazy, block))).tolist()
    plain, expected = Covering(sets), []
    for _ in range(500):
        gains = plain.gains(np.arange(500))
        gains[expected] = -1
        expected.append(int(gains.argmax()))
        plain.take(expected[-1])
    assert order == expected
    assert block > 5 or lazy.measured < plain.measured / 5


# -- rds -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [None, 3, 100])
def test_queries_take_turns_and_pass_over_what_another_took(limit: int | None) -> None:
    rows, queries = unit(N, 6, 1), unit(7, 6, 2)
    rows[500:700] = rows[:200]
    ranked = [sorted(range(N), key=lambda row: -(rows[row] @ q).item()) for q in queries]
    expected: list[int] = []
    for turn in range(N):
        expected += [each for each in (r[turn] for r in ranked) if each not in expected]
        if len(expected) > 300:
            break
    made = np.concatenate(list(in_turns(rows, queries, limit)))
    assert made[:300].tolist() == list(dict.fromkeys(expected))[:300]
    assert sorted(made) == list(range(N))


# -- ids -------------------------------------------------------------------------------------------


IDS = POOL["id"].to_list()


@pytest.mark.parametrize("ending", [".jsonl", ".parquet", ".csv"])
def test_a_file_of_scores_is_taken_by_falling_score(tmp_path: Path, ending: str) -> None:
    file = tmp_path / f"less{ending}"
    frame = pl.DataFrame({"id": [*IDS[:5], "gone"], "score": [1.0, 5.0, 3.0, 5.0, -2.0, 9.0]})
    {".jsonl": frame.write_ndjson, ".parquet": frame.write_parquet, ".csv": frame.write_csv}[
        ending
    ](file)
    arm = rule(strategy="ids", params={"file": str(file)}, budget={"rows": 4})
    made = chosen(arm)
    assert made.ids == [IDS[1], IDS[3], IDS[2], IDS[0]]
    assert made.scores is not None and made.scores["score"].to_list() == [5.0, 5.0, 3.0, 1.0]


@pytest.mark.parametrize("ending", [".txt", ".json", ".jsonl"])
def test_a_file_of_ids_is_taken_in_its_order(tmp_path: Path, ending: str) -> None:
    file = tmp_path / f"ids{ending}"
    ids = [IDS[7], IDS[2], IDS[7], IDS[9]]
    texts = {
        ".txt": "\n".join(ids) + "\n\n",
        ".json": json.dumps(ids),
        ".jsonl": "\n".join(json.dumps({"id": name}) for name in ids),
    }
    file.write_text(texts[ending])
    arm = rule(choose=f"ids({file})", budget={"rows": 3})
    assert chosen(arm).ids == [IDS[7], IDS[2], IDS[9]]


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.jsonl", '{"id": "x", "score": "high"}', "row 1: the score 'high' is no finite number"),
        ("a.jsonl", '{"score": 2}', "a.jsonl, line 1: no `id`"),
        ("a.csv", "name,score\nx,1\n", "has no column `id` (it has name, score)"),
        ("a.txt", "\n", "holds no ids"),
        ("a.jsonl", '{"id": "x", "score": NaN}', "row 1: the score nan is no finite number"),
        ("b.jsonl", None, "the file of ids"),
    ],
)
def test_a_file_that_holds_no_ids_or_scores_is_one_sentence(
    tmp_path: Path, name: str, text: str | None, says: str
) -> None:
    from synth.filters.choosing.listed import read_listed

    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError) as error:
        read_listed(tmp_path / name)
    assert says in str(error.value)


def test_a_strategy_that_needs_something_says_what() -> None:
    with pytest.raises(UserError, match="the strategy 'ids' needs `file`"):
        rule(strategy="ids", budget={"rows": 4})
    with pytest.raises(UserError, match="the file nowhere does not exist"):
        rule(choose="ids(nowhere)", budget={"rows": 4})


# -- answers that were cut off ---------------------------------------------------------------------


CUT = set(POOL.filter(pl.col("response_finish_reason") == "length")["id"])


@pytest.mark.parametrize(
    ("arm", "takes_cut"),
    [
        ({"choose": "longest"}, False),
        ({"strategy": "longest"}, False),
        ({"choose": "top(response_length)"}, False),
        ({"choose": "balanced(task_category, response_length)"}, False),
        ({"choose": "longest", "allow_cut": True}, True),
        ({"strategy": "magpie-pro"}, True),
        ({"strategy": "magpie-pro", "allow_cut": False}, False),
        ({"choose": "hash_order"}, True),
        ({"choose": "hash_order", "allow_cut": False}, False),
        ({"choose": "top(instruct_reward)"}, True),
    ],
)
def test_who_ranks_by_length_takes_no_answers_that_were_cut_off_unless_told_to(
    arm: dict[str, Any], takes_cut: bool
) -> None:
    frame = POOL.with_columns(min_neighbor_distance=pl.lit(0.5))
    made = chosen(rule(**arm, budget={"rows": 500}), frame=frame)
    cut = len(CUT & set(made.ids))
    assert (cut > 0) == takes_cut and made.funnel["cut_off"] == cut
    assert len(remarks(made.funnel)) == takes_cut
    assert made.funnel["failed"].get("answer cut off", 0) == (0 if takes_cut else len(CUT))


def test_where_nobody_knows_how_an_answer_ended_it_was_not_cut_off() -> None:
    frame = POOL.with_columns(response_finish_reason=pl.lit(None, pl.String))
    made = chosen(rule(choose="longest", budget={"rows": N}), frame=frame)
    assert len(made.ids) == N and remarks(made.funnel) == []
    without = chosen(
        rule(choose="longest", budget={"rows": N}), frame=POOL.drop("response_finish_reason")
    )
    assert without.ids == made.ids


def test_a_cut_answer_is_replaced_by_the_next_row_of_the_order() -> None:
    made = chosen(rule(choose="hash_order", allow_cut=False, budget={"rows": 50}))
    order = [IDS[at] for at in by_hash(POOL["id"], 0)]
    assert made.ids == [name for name in order if name not in CUT][:50]


def test_labels_are_linked_alike_however_they_are_cut_into_slices(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dice = np.random.default_rng(3)
    vectors = dice.normal(size=(8, 3)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    products = vectors @ vectors.T
    wanted = np.where(products >= 0.3, np.minimum(products, 1), 0)
    np.fill_diagonal(wanted, 1)
    monkeypatch.setattr(label_gain, "ROWS", 3)
    found = label_gain._linked(vectors, 8, 0.3).toarray()
    assert np.allclose(found, wanted, atol=1e-6)
    assert (wanted[3:, :3] > 0).any()


def test_labels_of_as_many_rows_stand_in_the_order_of_the_alphabet() -> None:
    labels = pl.Series([["b"], ["c", "a"], ["d"], ["d"]])
    graph = label_gain.label_graph(labels, lambda names: np.eye(len(names), dtype=np.float32), 0.9)
    assert list(graph.names) == ["d", "a", "b", "c"]
