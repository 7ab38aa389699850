"""What becomes of rows before they are trained on, piece by piece, against plain lists."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from core.errors import UserError
from train.config import DpoConfig
from train.data import pairs, parts, tokens, tools
from train.data.order import Steps, accumulation_of_pairs, steps
from train.data.packs import Packs, pack, split

RNG = np.random.default_rng(0)


# -- pairs -----------------------------------------------------------------------------------------


def test_an_answer_begins_where_the_prompts_differ_or_the_assistant_does_and_ends_supervised() -> (
    None
):
    # a system turn, an earlier answer in the prompt, then the two answers; 9 is written behind
    chosen = [1, 2, 50, 3, 4, 60, 61, 9], [0, 0, 1, 0, 0, 1, 1, 0]
    rejected = [1, 2, 50, 3, 4, 70, 9], [0, 0, 1, 0, 0, 1, 0]
    assert pairs._split(chosen, rejected, 1) == ([1, 2, 50, 3, 4], [60, 61], [70])
    # text that merges with the last token of the prompt
    merged = [1, 2, 50, 3, 5, 70, 9], [0, 0, 1, 0, 0, 1, 0]
    assert pairs._split(chosen, merged, 1) == ([1, 2, 50, 3], [4, 60, 61], [5, 70])
    # answers that begin alike are still answers
    alike = [1, 2, 50, 3, 4, 60, 70], [0, 0, 1, 0, 0, 1, 1]
    assert pairs._split(chosen, alike, 1) == ([1, 2, 50, 3, 4], [60, 61], [60, 70])
    # no answer at all
    silent = [1, 2, 9], [0, 0, 0]
    assert pairs._split(silent, silent, 0) == ([1, 2, 9], [], [])


def cut(prompt: int, chosen: int, rejected: int, length: int | None, same: bool = False) -> tuple:  # type: ignore[type-arg]
    """What is kept of a pair of so many tokens, and what it counts for."""
    first, second = list(range(100, 100 + chosen)), list(range(200, 200 + rejected))
    if same:
        second[: len(first)] = first[: len(second)]
    kept, counts = pairs._cut((list(range(prompt)), first, second), length)
    return kept and [len(each) for each in kept.values()], dict(+counts)


@pytest.mark.parametrize("length", [None, 9, 10])
def test_a_pair_that_fits_counts_whole(length: int | None) -> None:
    kept, counts = cut(3, 6, 4, length)
    assert kept == [3, 6, 4]
    assert counts == {
        "rows": 1, "tokens": 16, "loss_tokens": 10, "longest": 9, "trained_rows": 1,
        "trained_tokens": 16, "trained_loss_tokens": 10, "attended": 9 * 10 // 2 + 7 * 8 // 2,
    }  # fmt: skip


def test_a_pair_that_is_too_long_is_cut_at_the_end_and_counted() -> None:
    kept, counts = cut(3, 6, 4, 8)
    assert kept == [3, 5, 4]
    assert (counts["truncated_rows"], counts["truncated_tokens"]) == (1, 1)
    assert (counts["trained_tokens"], counts["trained_loss_tokens"]) == (15, 9)
    assert counts["attended"] == 8 * 9 // 2 + 7 * 8 // 2 and counts["longest"] == 9


@pytest.mark.parametrize(
    ("sizes", "length", "reason"),
    [
        ((3, 0, 4), None, pairs.NO_ANSWER),
        ((3, 4, 4), 3, pairs.FULL),
        ((3, 4, 4), 1, pairs.FULL),
        ((3, 4, 4), 7, pairs.ALIKE),
        ((3, 5, 9), 8, pairs.ALIKE),  # what is left of them is the same
    ],
)
def test_a_pair_without_a_difference_is_dropped_with_its_reason(
    sizes: tuple[int, int, int], length: int | None, reason: str
) -> None:
    kept, counts = cut(*sizes, length, same=reason == pairs.ALIKE)
    total = 2 * sizes[0] + sizes[1] + sizes[2]
    assert kept is None
    assert (counts["rows"], counts["dropped_rows"]) == (1, 1)
    assert counts["tokens"] == counts["dropped_tokens"] == total
    assert counts[reason] == 1 and "trained_rows" not in counts


@pytest.mark.parametrize(
    ("pairs_per_step", "devices", "passes"), [(None, 4, 3), (24, 4, 3), (24, 12, 1), (8, 4, 1)]
)
def test_passes_bring_the_wanted_pairs_to_a_step(
    pairs_per_step: int | None, devices: int, passes: int
) -> None:
    trainer = {"per_device_train_batch_size": 2}
    if pairs_per_step is None:
        trainer["gradient_accumulation_steps"] = 3
    config = DpoConfig(pairs_per_step=pairs_per_step, trainer=trainer)
    assert accumulation_of_pairs(config, devices) == passes


def test_devices_that_would_do_for_pairs_are_named() -> None:
    config = DpoConfig(pairs_per_step=24, trainer={"per_device_train_batch_size": 2})
    with pytest.raises(UserError, match="use one of 1, 2, 3, 4, 6, 12 devices"):
        accumulation_of_pairs(config, 5)


# -- steps -----------------------------------------------------------------------------------------


def test_devices_near_those_that_leave_too_much_idle_are_named_or_a_smaller_batch() -> None:
    with pytest.raises(UserError) as refused:
        steps(320, 32_000, 3200, (19, 3, 1))
    fitting = [n for n in range(1, 39) if Steps(320, 32, n, 3).waste <= 0.25]
    nearest = sorted(sorted(fitting, key=lambda n: (abs(n - 19), n))[:4])
    smaller = max(b for b in (1, 2) if Steps(320, 32, 19, b).waste <= 0.25) if any(
        Steps(320, 32, 19, b).waste <= 0.25 for b in (1, 2)) else None  # fmt: skip
    assert f"rain on {', '.join(map(str, nearest))} device(s)" in str(refused.value)
    assert (f"batch_size to {smaller}" in str(refused.value)) == (smaller is not None)


def test_a_quarter_idle_is_the_most() -> None:
    assert steps(320, 32_000, 300, (4, 1, 1)).waste == 0.25
    with pytest.raises(UserError, match="40% of the work"):
        steps(320, 32_000, 300, (5, 1, 1))


# -- packs -----------------------------------------------------------------------------------------


def written(packs: Packs) -> list[list[tuple[int, int, int]]]:
    """(document, first token, tokens) of the pieces of each pack."""
    every = list(zip(packs.documents.tolist(), packs.starts.tolist(), packs.lengths.tolist(),
                     strict=True))  # fmt: skip
    return [every[packs.pieces(at)] for at in range(len(packs))]


@pytest.mark.parametrize("trial", range(20))
def test_wrapped_documents_are_one_run_of_tokens_cut_at_the_capacity(trial: int) -> None:
    rng = np.random.default_rng(trial)
    lengths, room = rng.integers(1, 12, rng.integers(1, 15)), int(rng.integers(1, 10))
    run = [(document, at) for document, n in enumerate(lengths) for at in range(n)]
    expected = []
    for top in range(0, len(run), room):
        held = [list(each) for _, each in itertools.groupby(run[top : top + room], lambda t: t[0])]
        expected.append([(own[0][0], own[0][1], len(own)) for own in held])
    assert written(pack(lengths, room, "wrapped")) == expected


def test_without_a_capacity_the_longest_document_is_one() -> None:
    lengths = np.array([3, 7, 4])
    assert written(pack(lengths, None, "bfd")) == [[(1, 0, 7)], [(2, 0, 4), (0, 0, 3)]]
    assert written(pack(lengths, None, "alone")) == [[(0, 0, 3)], [(1, 0, 7)], [(2, 0, 4)]]
    assert written(pack(lengths, 4, "alone")) == [[(0, 0, 3)], [(1, 0, 4)], [(2, 0, 4)]]
    assert len(pack(np.array([], dtype=np.int64), None, "bfd")) == 0


@pytest.mark.parametrize(("room", "full"), [(8, 7 / 8), (None, 7 / 8), (4, 7 / 8)])
def test_packs_are_as_full_as_their_tokens_of_their_room(
    room: int | None, full: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a room it is the longest document's: two packs of 4, one of them with 3."""
    monkeypatch.setattr(tokens, "_write", lambda *_: None)
    config: Any = SimpleNamespace(max_length=room, trainer={"packing": True})
    documents: Any = SimpleNamespace(input_ids=[[1] * 3, [1] * 4])
    monkeypatch.setattr(tokens, "_strategy", lambda _: "bfd")
    assert tokens._packed(config, documents, tmp_path, 0)["packing_efficiency"] == full


def test_a_document_is_split_after_each_room_of_tokens() -> None:
    documents, starts, lengths = split(np.array([4, 9, 8, 1]), 4)
    assert documents.tolist() == [0, 1, 1, 1, 2, 2, 3]
    assert starts.tolist() == [0, 0, 4, 8, 0, 4, 0]
    assert lengths.tolist() == [4, 4, 4, 1, 4, 4, 1]


@pytest.mark.parametrize("trial", range(10))
def test_best_fit_is_the_plain_search_for_the_fullest_pack(trial: int) -> None:
    rng = np.random.default_rng(trial)
    lengths = rng.integers(1, 21, 60)
    expected: list[list[int]] = []
    for document in np.argsort(-lengths, kind="stable").tolist():
        rooms = [20 - sum(int(lengths[d]) for d in each) for each in expected]
        fits = [room for room in rooms if room >= lengths[document]]
        if fits:
            last = max(at for at, room in enumerate(rooms) if room == min(fits))
            expected[last].append(document)
        else:
            expected.append([document])
    found = [[document for document, _, _ in each] for each in written(pack(lengths, 20, "bfd"))]
    # of packs with the same room it does not matter which is taken
    assert sorted(sum(lengths[d] for d in each) for each in found) == sorted(
        sum(lengths[d] for d in each) for each in expected
    )


# -- parts -----------------------------------------------------------------------------------------


def test_lists_of_tokens_come_back_as_they_were() -> None:
    arrays = [np.arange(n, dtype=np.int64) for n in (3, 0, 5)]
    held = parts.lists(arrays)
    assert held.type == pa.list_(pa.int32())
    assert held.to_pylist() == [each.tolist() for each in arrays]
    assert [view.tolist() for view in parts._views(held)] == [each.tolist() for each in arrays]
    assert parts.lists([]).to_pylist() == []


def test_processes_pay_from_sixty_thousand_rows_on_and_on_six_cores(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for cores, rows, expected in (
        (64, 59_999, 1),
        (64, 60_000, 6),
        (64, 99_999, 9),
        (6, 10**6, 6),
        (5, 10**6, 1),
        (64, 10**6, parts.MOST_PROCESSES),
    ):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, n=cores: set(range(n)))
        assert parts.processes_for(rows) == expected


# -- tool turns ------------------------------------------------------------------------------------


def test_calls_stand_in_the_message_of_the_assistant_who_makes_them() -> None:
    call = {"role": "tool_call", "content": '{"name": "clock", "arguments": {"zone": "CET"}}'}
    told = tools.as_templates_take(
        [
            {"role": "user", "content": "When?"},
            call,
            {"role": "tool_call", "content": '{"name": "now"}'},
            {"role": "tool", "content": "12:00"},
            {"role": "assistant", "content": "Let me see again."},
            call,
        ]
    )
    clock = {"type": "function", "function": {"name": "clock", "arguments": {"zone": "CET"}}}
    now = {"type": "function", "function": {"name": "now", "arguments": {}}}
    assert told == [
        {"role": "user", "content": "When?"},
        {"role": "assistant", "content": "", "tool_calls": [clock, now]},
        {"role": "tool", "content": "12:00"},
        {"role": "assistant", "content": "Let me see again.", "tool_calls": [clock]},
    ]


@pytest.mark.parametrize("text", ["look it up", "[1]", '{"arguments": {}}'])
def test_what_is_no_call_by_its_words_is_a_call_without_a_name(text: str) -> None:
    (turn,) = tools.as_templates_take([{"role": "tool_call", "content": text}])
    assert turn["tool_calls"][0]["function"] == {"name": "", "arguments": text}


def test_only_tool_turns_that_a_template_does_not_know_are_unfit() -> None:
    talk, plain = [{"role": "tool", "content": "x"}], [{"role": "user", "content": "x"}]
    assert tools.unfit(talk, False) == tools.UNKNOWN
    assert tools.unfit(talk, True) is None is tools.unfit(plain, False)
