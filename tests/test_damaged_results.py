"""Result files, prompts and labels that nobody here wrote: any value in any field, and any damage
to a file, is a figure or one sentence that names the file, and never a defect."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from core.errors import UserError
from eval.files import reading
from eval.files.judgments import LengthControl
from eval.judging.people import agreement
from eval.prompt_sets import prompts
from eval.scoring import alpaca, length_control, of_files, wildbench
from recipes.comparisons import labels

Row = dict[str, Any]
ITEMS = 6


def annotation(at: int, **other: Any) -> Row:
    texts = {"instruction": f"q{at}", "output_1": "aa", "output_2": "bbb"}
    names = {"generator_1": "base", "generator_2": "m", "preference": 1.9}
    return {**texts, **names, **other}


def judgment(at: int, **other: Any) -> Row:
    games = [{"score": "A>B"}, {"score": "B>A"}]
    return {"question_id": f"q{at}", "model": "m", "judge": "j", "games": games, **other}


def rated(at: int, **other: Any) -> Row:
    named = {"session_id": f"s{at}", "model_test": "m"}
    return {**named, "score": "7", "model_output": "text", **other}


def value(at: int, **other: Any) -> Row:
    return {"item": f"i{at}", "value": 0.5, **other}


def sample(at: int, **other: Any) -> Row:
    digests = {"doc_hash": "h", "prompt_hash": "p"}
    asked = {"doc_id": at, "doc": {}, "filtered_resps": ["x"], "filter": "none"}
    return {**asked, **digests, "acc": 1.0, "metrics": ["acc"], **other}


def prompt(at: int, **other: Any) -> Row:
    return {"id": f"p{at}", "prompt": f"ask {at}", **other}


def labelled(at: int, **other: Any) -> Row:
    return {"id": f"h{at}", "prompt": "q", "answer_1": "a", "answer_2": "b", "human": 1, **other}


def compared(path: Path) -> object:
    """The file compared with itself under another name."""
    return reading.read([f"a={path}", f"b={path}"], reading.Asked(LengthControl(False)))


KINDS: dict[str, tuple[Callable[..., Row], tuple[str, ...], Callable[[Path], object]]] = {
    "alpaca": (annotation, tuple(annotation(0)), lambda path: of_files.score_alpaca([path])),
    "arena": (judgment, tuple(judgment(0)), lambda path: of_files.score_arena([path])),
    "wildbench": (rated, tuple(rated(0)), lambda path: of_files.score_wildbench([path])),
    "values": (value, ("item", "value", "cluster"), compared),
    "samples": (sample, tuple(sample(0)), compared),
    "prompts": (prompt, ("id", "prompt", "history", "category"), lambda p: prompts.prompts(str(p))),
    "people": (labelled, (*labelled(0), "annotators"), lambda p: agreement.pairs(p.name, p.parent)),
}
ODD = (None, 5, True, [], {}, [None], "", "\ud800", "a\0b", math.nan, math.inf, 10**400, -1)


def saved(path: Path, rows: list[Row]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_any_value_in_any_field_is_a_figure_or_a_sentence(tmp_path: Path, kind: str) -> None:
    make, fields, use = KINDS[kind]
    readers = (use, compared) if kind in ("alpaca", "arena", "wildbench") else (use,)
    refused = 0
    for field in fields:
        for odd in ODD:
            path = saved(tmp_path / "a.jsonl", [make(0, **{field: odd}), *map(make, range(1, 4))])
            for reader in readers:
                try:
                    reader(path)
                except UserError as error:
                    refused += 1
                    assert "Traceback" not in str(error) and len(str(error)) < 1000
    assert refused > 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("a.jsonl", lambda text: b""),
        ("a.json", lambda text: b"[]"),
        ("a.json", lambda text: b"null"),
        ("a.jsonl", lambda text: text[:-9]),
        ("a.jsonl", lambda text: text + b'{"a": "\xe9"}'),
        ("a.jsonl", lambda text: text.decode().encode("utf-16")),
        ("a.jsonl", lambda text: text + b"[" * 20_000),
        ("a.jsonl", lambda text: b"1\n2\n"),
        ("a.jsonl.gz", lambda text: gzip.compress(text)[:-9]),
        ("a.jsonl.gz", lambda text: b"no gzip"),
        ("a.parquet", lambda text: b"PAR1 no parquet PAR1"),
    ],
    ids=["empty", "list", "null", "cut", "latin", "utf16", "deep", "numbers", "gz", "no gz", "pq"],
)
def test_a_damaged_file_is_one_sentence(
    tmp_path: Path, kind: str, name: str, damage: Callable[[bytes], bytes]
) -> None:
    make, _, use = KINDS[kind]
    path = saved(tmp_path / name, [make(at) for at in range(ITEMS)])
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=r"a\."):
        use(path)


@pytest.mark.parametrize("output", ["output_1", "output_2"])
@pytest.mark.parametrize("odd", [None, 5, ["text"]])
def test_an_annotation_of_an_output_that_is_no_text_is_unjudged(
    tmp_path: Path, output: str, odd: Any
) -> None:
    rows = [annotation(0, **{output: odd}), *map(annotation, range(1, ITEMS))]
    [model] = alpaca.read(saved(tmp_path / "a.jsonl", rows))
    assert alpaca.win_rate(model)["n_unjudged"] == 1 and math.isnan(model.preference[0])


def test_an_annotation_that_does_not_hold_the_outputs_counts(tmp_path: Path) -> None:
    bare = annotation(0)
    del bare["output_1"], bare["output_2"]
    [model] = alpaca.read(saved(tmp_path / "a.jsonl", [bare]))
    assert model.preference.tolist() == [1.9]


@pytest.mark.parametrize("odd", [None, 5])
def test_a_rating_of_an_output_that_is_no_text_is_unjudged(tmp_path: Path, odd: Any) -> None:
    path = saved(tmp_path / "a.jsonl", [rated(0, model_output=odd), rated(1), rated(2)])
    [row] = of_files.score_wildbench([path])
    assert (row["total"], row["unjudged"]) == (2, 1)
    assert wildbench.rating_of(rated(0)) == 7


def test_half_a_character_is_spelled_out_and_no_reason_to_stop(tmp_path: Path) -> None:
    [first, *_] = prompts.records(saved(tmp_path / "a.jsonl", [{"a": ["\ud800", {"\udfff": 1}]}]))
    assert first == (1, {"a": ["\\ud800", {"\\udfff": 1}]})
    [first] = prompts.records(saved(tmp_path / "a.jsonl", [{"a": "\U0001f600 \\ud800"}]))
    assert first == (1, {"a": "\U0001f600 \\ud800"})


@pytest.mark.parametrize(
    "use",
    [
        lambda path, data: of_files.score_alpaca([path], data),
        lambda path, data: of_files.score_arena([path], data),
        lambda path, data: of_files.score_wildbench([path], data),
        lambda path, data: reading.read(
            [f"a={path}", f"b={path}"], reading.Asked(LengthControl(True, data))
        ),
        lambda path, data: agreement.pairs("pandalm", data),
    ],
    ids=["alpaca", "arena", "wildbench", "compare", "agreement"],
)
def test_a_folder_of_data_that_does_not_exist_is_refused(
    tmp_path: Path, use: Callable[[Path, Path], object]
) -> None:
    path = saved(tmp_path / "a.jsonl", [value(0)])
    with pytest.raises(UserError, match=r"--data .*nowhere is no folder"):
        use(path, tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("difficulties", "gamed"),
    [
        ("", "std_delta_len,instruction_difficulty,preference\n1,1,1\n"),
        ("a\n", "std_delta_len,instruction_difficulty,preference\n1,1,1\n"),
        (",b\n-1,0.5\n", "std_delta_len,instruction_difficulty,preference\n1,1,1\n"),
        (",b\n99999999999,0.5\n", "std_delta_len,instruction_difficulty,preference\n1,1,1\n"),
        (",b\nx,0.5\n", "std_delta_len,instruction_difficulty,preference\n1,1,1\n"),
        (",b\n0,high\n", "std_delta_len,instruction_difficulty,preference\n1,1,1\n"),
        (",b\n0,0.5\n", ""),
        (",b\n0,0.5\n", "std_delta_len,preference\n1,1\n"),
        (",b\n0,0.5\n", "std_delta_len,instruction_difficulty,preference\n1,hard,1\n"),
    ],
)
def test_damaged_tables_of_length_control_are_refused(
    tmp_path: Path, difficulties: str, gamed: str
) -> None:
    (tmp_path / "instruction_difficulty.csv").write_text(difficulties)
    (tmp_path / "df_gamed.csv").write_text(gamed)
    outputs = [{"instruction": "q", "output": "a", "generator": alpaca.BASELINE}]
    (tmp_path / "outputs.json").write_text(json.dumps(outputs))
    with pytest.raises(UserError, match=r"\.csv"):
        length_control.load_reference(tmp_path)


KEY = {"id": "x", "item": "p", "a": "one", "b": "two", "seeds": ["0", "0"], "a_first": True}


@pytest.mark.parametrize(
    "content",
    [b"", b"\0\0", b"pair,label\nx,C\n", b"pair,label\ny,A\n", b"\xff\xfe", b"pair\nx\n", b'"'],
)
def test_damaged_labels_are_one_sentence(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "labels.csv"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"labels\.csv"):
        labels.read([path], {"pairs": [KEY]})
