"""What a judge's reply is under the rules of its protocol, from the reply alone."""

from __future__ import annotations

import math
from typing import Any

import pytest

from eval.judging import verdicts
from eval.judging.asking.journal import Draft
from eval.judging.verdicts import NoLogprobs, Written, read
from eval.protocols import AlpacaConfig, ArenaConfig, MTBenchConfig, WildBenchConfig

CODES = {"<m>": "m", "<M>": "M"}


def written(text: str = "", draft: Draft | None = None, **choice: Any) -> Written:
    return Written(choice, text, draft or Draft(), CODES)


def first_token(**top: float) -> dict[str, Any]:
    """A reply of the chat API with these probabilities of its first token."""
    listed = [{"token": token, "logprob": math.log(p)} for token, p in top.items()]
    return {"logprobs": {"content": [{"top_logprobs": listed}, {"top_logprobs": []}]}}


def test_the_verdicts_probability_is_the_first_codes_share_of_both() -> None:
    found = read(AlpacaConfig(), written(**first_token(m=0.6, M=0.2, x=0.1)))
    assert isinstance(found, dict)
    assert (found["first"], found["mass"]) == (pytest.approx(0.75), pytest.approx(0.8))
    assert (found["label"], found["status"], found["reason"]) == ("m", "ok", None)
    second = read(AlpacaConfig(), written(**first_token(m=0.1, M=0.3)))
    assert isinstance(second, dict)
    assert second["first"] == pytest.approx(0.25) and second["label"] == "M"


def test_a_verdict_in_the_middle_prefers_none() -> None:
    even = {"logprobs": {"top_logprobs": [{"<m>": -1.0, "<M>": -1.0}]}}
    found = read(AlpacaConfig(), written(**even))
    assert isinstance(found, dict) and (found["first"], found["label"]) == (0.5, None)


def test_tokens_that_are_the_codes_by_another_name_count_as_them() -> None:
    named = {"logprobs": {"top_logprobs": [{"<m>": math.log(0.9), "M": math.log(0.1)}]}}
    found = read(AlpacaConfig(), written(**named))
    assert isinstance(found, dict) and found["first"] == pytest.approx(0.9)


def test_a_mass_beyond_all_by_rounding_is_all() -> None:
    assert verdicts.verdict_mass({"m": 1e-9, "M": -50.0}, ("m", "M"))[1] == 1.0


def test_candidates_without_either_code_are_no_verdict_and_counted() -> None:
    found = read(AlpacaConfig(), written(**first_token(x=0.6, y=0.3)))
    assert isinstance(found, dict) and found["first"] is None and found["status"] == "failed"
    assert found["reason"] == "neither m nor M is among the judge's first 2 candidates"
    assert found["mass"] == 0.0


@pytest.mark.parametrize("logprobs", [None, {}, {"content": []}, {"content": None}])
def test_a_reply_without_log_probabilities_says_so(logprobs: Any) -> None:
    with pytest.raises(NoLogprobs):
        read(AlpacaConfig(), written(logprobs=logprobs))


@pytest.mark.parametrize(
    ("text", "first"), [("M", 0.0), (' "m". ', 1.0), ("m or M", None), ("", None)]
)
def test_a_written_code_is_the_whole_verdict(text: str, first: float | None) -> None:
    found = read(AlpacaConfig(mode="text"), written(text))
    assert isinstance(found, dict) and found["first"] == first and found["mass"] is None
    assert (found["reason"] is None) == (first is not None)


@pytest.mark.parametrize(
    ("version", "text", "label"),
    [
        ("v0.1", "[[A>B]] and so [[A>B]]", "A>B"),
        ("v0.1", "[[A]]", None),
        ("v2.0", "[[A>B]] no, [[b<<a]]", "A>>B"),
        ("v2.0", "[[A>B]] no, [B>A]", "A>B"),
        ("v2.0", "I say [b=a].", "A=B"),
        ("v2.0", "[[A]]", None),
    ],
)
def test_a_label_is_read_by_its_versions_rules(version: Any, text: str, label: str | None) -> None:
    found = read(ArenaConfig(version=version), written(text, Draft("continue", "Hm.")))
    assert isinstance(found, dict) and found["label"] == label
    assert found["verdict"] == f"Hm.\n{text}" and found["constrained"] is False
    if label is not None:
        assert found["first"] == {"A>B": 1.0, "A>>B": 1.0, "A=B": 0.5}[label]


@pytest.mark.parametrize(
    ("version", "constrain", "text", "next_turn"),
    [
        ("v0.1", False, "no label", "continue"),
        ("v0.1", False, "[[A>B]] or [[B>A]]", None),  # several: never asked again
        ("v0.1", True, "no label", "constrain"),
        ("v0.1", True, "[[A>B]] or [[B>A]]", None),
        ("v2.0", False, "no label", None),
        ("v2.0", True, "no label", "constrain"),
        ("v2.0", True, "[[A]]", "constrain"),
    ],
)
def test_a_first_text_without_a_verdict_gets_the_turn_that_its_rules_know(
    version: Any, constrain: bool, text: str, next_turn: str | None
) -> None:
    found = read(ArenaConfig(version=version, constrain=constrain), written(text))
    if next_turn is None:
        assert isinstance(found, dict) and found["status"] == "failed"
        assert found["reason"].startswith("no single verdict" if "[[" in text else "no verdict")
    else:
        assert found == Draft(next_turn, text)


def test_a_label_by_constrained_decoding_is_marked_so() -> None:
    found = read(ArenaConfig(constrain=True), written("B>>A", Draft("constrain", "Well.")))
    assert isinstance(found, dict) and (found["label"], found["constrained"]) == ("B>>A", True)
    assert found["verdict"] == "Well.\n\nMy verdict: [[B>>A]]" and found["first"] == 0.0


@pytest.mark.parametrize(
    ("text", "rating"),
    [("[[1]]", 1.0), ("[[10]].", 10.0), ("[[0.5]]", None), ("[[10.5]]", None), ("[[7]] or", None)],
)
def test_a_rating_is_from_1_to_10(text: str, rating: float | None) -> None:
    found = read(MTBenchConfig(), written(text))
    assert isinstance(found, dict) and found["rating"] == rating
    missed = "the judge's text does not end with a rating from 1 to 10"
    assert found["reason"] == (None if rating else missed)


def test_a_text_that_was_cut_has_no_rating() -> None:
    found = read(WildBenchConfig(), written('{"score": "7"}', finish_reason="length"))
    assert isinstance(found, dict)
    assert found["rating"] is None and "was cut off" in found["reason"]
    whole = read(WildBenchConfig(), written('{"score": "7"}', finish_reason="stop"))
    assert isinstance(whole, dict) and whole["rating"] == 7.0


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ('{"score": "7", "weaknesses": "two\nlines"}', 7.0),
        ('{"score": "7"} {"score": "8"}', 8.0),
        ('x {"score": "7", "why": "it"}', 7.0),
        ('{"score": "7", "why": "it"} said the answer', None),
    ],
)
def test_the_score_is_that_of_the_object_that_ends_the_text(text: str, score: float | None) -> None:
    assert verdicts.closing_score(text) == score


@pytest.mark.parametrize(
    ("label", "model_is_a", "expected"),
    [
        ("A++", True, (1, 2)),
        ("A++", False, (-1, 2)),
        (" B+ ", True, (-1, 1)),
        ("B++", False, (1, 2)),
        ("A=B", True, (0, 0)),
        ("C", True, None),
    ],
)
def test_a_choice_is_for_or_against_the_model(
    label: str, model_is_a: bool, expected: tuple[int, int] | None
) -> None:
    assert verdicts.choice(label, model_is_a=model_is_a) == expected
    if expected is not None:
        sign, extent = expected
        assert verdicts.worth(sign, extent, 5, 5) == sign * extent / 2


@pytest.mark.parametrize(
    ("label", "first"), [("A++", 1.0), ("A+", 1.0), ("A=B", 0.5), ("B+", 0.0), ("B++", 0.0)]
)
def test_a_closing_choice_says_which_of_the_two_is_better(label: str, first: float) -> None:
    found = verdicts.READ["wildbench-reward"](None, written(f'{{"choice": "{label}"}}'))
    assert isinstance(found, dict) and (found["first"], found["label"]) == (first, label)


@pytest.mark.parametrize(
    ("answer", "shown"),
    [
        ("<think>hm</think> So.", "So."),
        ("hm</think> So.", "So."),
        ("<think>cut", ""),
        ("It says <think> and </think>.", "It says <think> and </think>."),
        ("So.", "So."),
    ],
)
def test_of_an_answer_what_follows_its_thoughts_is_shown(answer: str, shown: str) -> None:
    assert verdicts.words_of(answer) == shown
