"""What a terminal shows: tables that fit, words that stay whole, lines that a program reads, and
the end of a run."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import pytest

from eval.comparing.shown.scales import scale, shown
from eval.comparing.shown.table import figures, values
from recipes.report import ending
from recipes.report.verdicts import sentence, words
from recipes.verbs import terminal

HEAD = ["arm", "score", "against random", "verdict"]
ROWS = [
    ["shuffled-100", "0.7637 [0.6581, 0.8693]", "+0.000571 [-0.00217, +0.00331]", "cannot tell"],
    ["random", "0.7631 [0.6573, 0.8689]", "", "baseline"],
]


def drawn(width: int, head: list[str] = HEAD, rows: list[list[str]] = ROWS) -> list[str]:
    return list(terminal.fitted(head, rows, width))


@pytest.mark.parametrize("width", [200, 100, 80, 60, 40, 30])
def test_a_table_is_never_wider_than_the_terminal(width: int) -> None:
    assert max(map(len, drawn(width))) <= width


@pytest.mark.parametrize("width", [200, 80, 60, 40, 30])
def test_no_word_and_no_interval_is_torn_apart(width: int) -> None:
    text = "\n".join(drawn(width))
    for whole in ("shuffled-100", "[0.6581, 0.8693]", "+0.000571", "[-0.00217, +0.00331]"):
        assert whole in text


def test_a_table_that_fits_has_a_line_a_row() -> None:
    assert len(drawn(100)) == 2 + len(ROWS)


def test_a_column_of_words_gives_way_before_rows_are_stacked() -> None:
    lines = drawn(40, ["state", "why"], [["run", "the first of these words and several others"]])
    assert lines[1].startswith("───") and len(lines) == 4


def test_what_does_not_fit_side_by_side_is_stacked_with_the_columns_names() -> None:
    lines = drawn(40)
    assert lines[0] == "shuffled-100" and "  score: 0.7637 [0.6581, 0.8693]" in lines
    assert not any(line.startswith("  against") for line in lines[lines.index("random") :])


def test_a_line_is_filled_to_its_width_and_no_further() -> None:
    _, _, *lines = drawn(16 + 2 + 3, ["why", "n"], [["aaaa bbbb cccccc dddd e", "1,0"]])
    assert lines == ["aaaa bbbb cccccc  1,0", "dddd e"]
    _, _, *lines = drawn(15 + 2 + 3, ["why", "n"], [["aaaa bbbb cccccc dddd e", "1,0"]])
    assert lines == ["aaaa bbbb        1,0", "cccccc dddd e"]


def test_letters_of_east_asia_count_twice() -> None:
    _, _, wide, narrow = drawn(60, ["a", "b"], [["漢字", "x"], ["abcd", "x"]])
    assert wide.index("x") + 2 == narrow.index("x")


def test_a_pipe_gets_the_header_and_the_rows_with_tabs(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.table(["a", "b"], [[1, None], ["x\ty\n", 2.5]], "what this is")
    assert capsys.readouterr().out == "# what this is\na\tb\n1\t\nx y \t2.5\n"


def test_what_a_model_wrote_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    hostile = "\x1b[2J\x1b]0;title\x07 \x9b31m \u202eabc\r\b"
    terminal.table(["a"], [[hostile]])
    terminal.say(hostile)
    out = capsys.readouterr().out
    assert not set(out) & set("\x1b\x07\x9b\u202e\r\b") and "abc" in out


def test_a_sentence_wraps_behind_its_bullet_and_keeps_a_unit_with_its_number() -> None:
    lines = terminal.wrapped("It is 95 % of all the rows that were made here", 20, "- ", "  ")
    assert lines[0].startswith("- ") and all(line.startswith("  ") for line in lines[1:])
    assert "95 %" in "\n".join(lines) and max(map(len, lines)) <= 20
    assert terminal.wrapped("aaaa bbbb cccc d 95 %", 20)[-1] == "95 %"


# -- comparisons -----------------------------------------------------------------------------------


def score(arm: str, value: float, half: float, **more: Any) -> dict[str, Any]:
    return {
        "benchmark": "alpaca",
        "metric": "win_rate",
        "arm": arm,
        "value": value,
        "standard_error": half / 2,
        "lower": value - half,
        "upper": value + half,
        "n": 20,
        "unjudged": 0,
        "primary": True,
        **more,
    }


def pair(a: str, b: str, verdict: str, difference: float = 4.0) -> dict[str, Any]:
    return {
        "benchmark": "alpaca",
        "metric": "win_rate",
        "a": a,
        "b": b,
        "difference": difference,
        "simultaneous_lower": difference - 3,
        "simultaneous_upper": difference + 3,
        "detectable": 3.5,
        "n": 20,
        "verdict": verdict,
        "scope": "these filters; exploratory",
    }


def comparison(*differences: dict[str, Any], **more: Any) -> dict[str, Any]:
    arms = [{"name": name, "seeds": ["0"]} for name in ("a", "b", "c")]
    return {
        "baseline": "c",
        "primary": "alpaca",
        "arms": arms,
        "scores": [score("a", 54.0, 3.0), score("b", 2.0, 6.0), score("c", 50.0, 0.0)],
        "differences": list(differences),
        "notes": [],
        **more,
    }


def test_who_is_better_than_every_other_has_won() -> None:
    told = comparison(pair("a", "c", "a is better"), pair("b", "a", "a is better", -2.0))
    assert sentence.winner(told) == "a" and sentence.answer(told).startswith(
        "a won on alpaca (win_rate)"
    )


def test_who_beats_only_one_has_not_won() -> None:
    told = comparison(pair("a", "c", "a is better"), pair("a", "b", "cannot tell"))
    assert sentence.winner(told) == ""
    assert sentence.answer(told).startswith("No arm won against all others on ")


def test_nobody_has_won_where_nothing_can_be_told() -> None:
    finer = pair("b", "c", "cannot tell") | {"detectable": 2.5}
    told = comparison(pair("a", "c", "cannot tell"), finer)
    assert sentence.answer(told).startswith("Nobody won on ")
    assert words.told(told) == ([], ["a and c", "b and c"]) and words.smallest(told) == 3.5


def test_a_loser_is_named_behind_the_winner() -> None:
    found, _ = words.told(comparison(pair("a", "c", "c is better", -4.0)))
    assert found == ["c is better than a"]


def test_a_bounded_score_keeps_its_interval_inside_its_scale() -> None:
    told = shown(score("b", 2.0, 6.0))
    assert (told["lower"], told["upper"]) == (0.0, 8.0)
    assert scale("mmlu acc,none") == (0.0, 1.0) and scale("loss")[0] == 0.0
    assert shown(score("b", 2.0, 6.0, metric="loss"))["lower"] == 0.0


def test_a_value_on_another_scale_keeps_its_interval() -> None:
    told = shown(score("b", 140.0, 6.0))
    assert (told["lower"], told["upper"]) == (134.0, 146.0)


def test_what_others_are_judged_against_is_a_reference_and_a_measured_50_is_none() -> None:
    assert shown(score("c", 50.0, 0.0))["reference"]
    assert not shown(score("c", 50.0, 1.0))["reference"]
    assert not shown(score("c", 50.0, 0.0, metric="acc"))["reference"]


def test_the_reference_has_no_interval_in_the_table() -> None:
    [figure] = figures(comparison(pair("a", "c", "a is better")))
    assert [row["score"] for row in figure.rows] == ["54 [51, 57]", "2 [0, 8]", "50 (reference)"]


@pytest.mark.parametrize(
    ("winner", "said"), [("a", "better"), ("c", "worse"), ("b", "b is better")]
)
def test_a_verdict_is_told_as_seen_from_the_row_s_own_arm(winner: str, said: str) -> None:
    [figure] = figures(comparison(pair("a", "c", f"{winner} is better")))
    assert [row["verdict"] for row in figure.rows] == [said, "", "baseline"]


def test_a_difference_that_is_told_the_other_way_round_turns_its_interval() -> None:
    row = next(
        each for each in values(comparison(pair("c", "a", "c is better"))) if each["against"]
    )
    ends = (row["simultaneous_lower"], row["simultaneous_upper"])
    assert (row["arm"], row["difference"], ends) == ("a", -4.0, (-7.0, -1.0))


def test_a_control_stands_beside_the_arm_that_it_is_made_of() -> None:
    row = {**pair("again", "c", "cannot tell"), "arm": "again", "of": "c"}
    control = {"benchmark": "alpaca", "metric": "win_rate", "negative": [row], "shuffled": []}
    told = comparison(controls=[control])
    told["scores"].append(score("again", 51.0, 3.0))
    assert values(told)[-1]["verdict"] == "cannot tell" and values(told)[-1]["against"] == "c"


def test_a_score_whose_judge_looks_at_the_order_is_called_unusable() -> None:
    [figure] = figures(comparison(), {"alpaca": "the judge kept its verdict in 30 % of 9 pairs"})
    assert "UNUSABLE: the judge kept its verdict in 30 %" in figure.title


def test_an_answer_by_a_judge_that_looks_at_the_order_begins_with_that() -> None:
    told, why = comparison(pair("a", "c", "a is better")), "the judge kept its verdict in 30 %"
    assert ending.answer(told, {})[0].startswith("a won on alpaca")
    first = ending.answer(told, {"alpaca": why})[0]
    assert first.startswith(f"Not to be believed ({why}): a won on alpaca")
    assert ending.answer(told, {"mtbench": why}) == ending.answer(told, {}), "it decides nothing"


def test_a_comparison_in_a_terminal_is_a_table_a_figure_and_in_a_pipe_one_of_values(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    told = comparison(pair("a", "c", "a is better"))
    told["scores"].append(score("a", 1.0, 0.1, benchmark="mtbench", primary=False))
    terminal.of_comparison(told)
    head, *lines = capsys.readouterr().out.splitlines()
    rows = [dict(zip(head.split("\t"), line.split("\t"), strict=True)) for line in lines]
    assert [row["arm"] for row in rows] == ["a", "b", "c", "a"]
    assert float(rows[0]["simultaneous_lower"]) == 1.0
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr(os, "get_terminal_size", lambda *_: os.terminal_size((80, 24)))
    monkeypatch.delenv("COLUMNS", raising=False)
    terminal.of_comparison(told)
    shown_as = capsys.readouterr().out
    assert "\t" not in shown_as and "alpaca win_rate (primary" in shown_as
    assert "mtbench win_rate (exploratory" in shown_as
    assert max(map(len, shown_as.splitlines())) <= 80
    json.dumps(values(told))
