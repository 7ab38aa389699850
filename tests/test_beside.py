"""What lies beside the page: the same numbers as tables, the same figures as files."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import polars as pl
import pytest
from markupsafe import Markup
from PIL import Image

from core.sending.purse import Bill, Ledger
from recipes.report import beside, page, tables
from recipes.report.drawing import figures, marks, raster, standalone
from recipes.report.sections import browser, nearest
from tests.fabricated_run import fabricate
from tests.test_verdicts import AGAIN, shuffled

FILLED = "{http://www.w3.org/2000/svg}"


PEOPLE: dict[str, Any] = {
    "differences": [
        {
            "a": "magpie",
            "b": "random",
            "labelled": 40,
            "prompts": 24,
            "worth": 52.0,
            "difference": {"value": 4.0, "lower": -2.0, "upper": 10.0},
            "labels_alone": {"value": 5.0, "lower": -4.0, "upper": 14.0},
        }
    ],
    "agreement": {"accuracy": 0.7, "lower": 0.6, "upper": 0.8, "n": 40},
    "people": {"pairwise": 0.8},
}
PART = {
    "name": "own",
    "from": "pool",
    "share": 1.0,
    "asked": 9,
    "amount": 9,
    "short": 0,
    "twice": 0,
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a fabricated run that has all that a page can show, with what lies beside it."""
    out = tmp_path_factory.mktemp("beside")
    inputs = fabricate(out, seeds=("0", "1"))
    path = inputs["comparison"] / "comparison.json"
    compared = json.loads(path.read_text())
    duel = {**compared["differences"][0], "a": "random", "b": "magpie"}
    again = AGAIN | {"ties": True, "verdict": "cannot tell"}
    shares = shuffled(0.3, 1.0, verdict="random is better", negative=[again])
    for row in shares["shuffled"]:
        row["detected"] = row["share"] > 0.5
    overlap = {
        "pairs": [{"a": "magpie", "b": "random", "jaccard": 0.2}],
        "near": [{"measured_on": "alpaca", "run": "magpie/0", "of": 24, "near": 2, "examples": []}],
    }
    compared["arms"] += [{"name": arm, "seeds": ["0"]} for arm in ("again", "s0.3", "s1.0")]
    more = {"head_to_head": [duel], "controls": [shares], "overlap": overlap}
    path.write_text(json.dumps(compared | more))
    inputs["people"] = out / "people.json"
    inputs["people"].write_text(json.dumps(PEOPLE))
    inputs["spent"] = out / "spent"
    Ledger(inputs["spent"]).add("judge", Bill(3, 100, 20, 0.25))
    mixture = {"chosen": 9, "unit": "rows", "sources": [{**PART, "licences": {"mit": 9}}]}
    (inputs["select/random"] / "mixture.json").write_text(json.dumps(mixture))
    page.build(inputs, out, {"name": "demo"})
    return out


def test_every_table_and_figure_of_the_page_is_a_file_beside_it(made: Path) -> None:
    html = (made / "report.html").read_text()
    for kind, folder, ending in (("table", "tables", "csv"), ("figure", "figures", "svg")):
        there = {path.stem for path in (made / folder).glob(f"*.{ending}")}
        tags = re.findall(rf"<{kind}\b[^>]*>", html)
        named = [re.search(r'data-file="([^"]+)"', tag) for tag in tags]
        assert tags and all(named)
        assert {name[1] for name in named if name} <= there
    marked = set(re.findall(r'data-file="([^"]+)"', html))
    beside_tables = {"controls", "head_to_head", "labels", "nearest", "judges", "mixtures"}
    assert beside_tables | {"controls-alpaca-win_rate"} <= marked
    assert beside_tables | {"overlap", "near_duplicates", "agreement"} <= {
        path.stem for path in (made / "tables").glob("*.parquet")
    }


def test_controls_labels_and_duels_are_tables_with_the_pages_numbers(made: Path) -> None:
    def read(name: str, *columns: str) -> list[tuple[Any, ...]]:
        return pl.read_parquet(made / f"tables/{name}.parquet").select(columns).rows()

    ends = ("difference", "simultaneous_lower", "simultaneous_upper")
    assert read("controls", "metric", "arm", "of", "share", *ends, "detected") == [
        ("win_rate", "again", "random", 0.0, 2.0, 1.0, 3.0, False),
        ("win_rate", "s0.3", "random", 0.3, -0.1, -1.0, 0.8, False),
        ("win_rate", "s1.0", "random", 1.0, -0.1, -1.0, 0.8, True),
    ]
    assert read("labels", "a", "labels_alone_upper", "difference_lower", "worth") == [
        ("magpie", 14.0, -2.0, 52.0)
    ]
    assert read("overlap", "a", "b", "jaccard") == [("magpie", "random", 0.2)]
    pairs = pl.read_parquet(made / "tables/differences.parquet")
    own = pl.col("metric") == "win_rate", pl.col("a") == "magpie", pl.col("b") == "random"
    [(size, low)] = pairs.filter(*own).select(*ends[:2]).rows()
    [duel] = read(
        "head_to_head", "a", "over_baseline_difference", "over_baseline_simultaneous_upper"
    )
    assert duel == ("random", pytest.approx(-size), pytest.approx(-low))


def test_items_that_nobody_was_asked_stand_in_the_tables_with_their_first_message(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As held-out conversations, of which the page's browser knows no prompt."""
    asked = pl.read_parquet(made / "tables/nearest.parquet").select("item", "prompt").unique()
    texts = dict(asked.iter_rows())
    monkeypatch.setattr(browser, "name_prompts", lambda *_: None)
    monkeypatch.setattr(nearest, "first_messages", lambda *_: texts)
    inputs = fabricate(tmp_path, seeds=("0", "1"))
    page.build(inputs, tmp_path, {"name": "demo"})
    for name, column in (("nearest", "prompt"), ("disagreements", "text")):
        table = pl.read_parquet(tmp_path / f"tables/{name}.parquet")
        assert dict(table.select("item", column).iter_rows()).items() <= texts.items()
        assert table.height


def test_each_table_is_there_in_three_formats_that_hold_the_same(made: Path) -> None:
    names = {path.stem for path in (made / "tables").iterdir()}
    assert {"leaderboard", "scores", "differences", "seeds", "costs", "judges"} <= names
    for name in names:
        path = made / "tables" / name
        read = pl.read_parquet(path.with_suffix(".parquet"))
        assert len(pl.read_csv(path.with_suffix(".csv"), infer_schema_length=None)) == len(read)
        assert pl.read_json(path.with_suffix(".json"))[read.columns[0]].to_list() == (
            read[read.columns[0]].to_list()
        )


def test_the_leaderboards_table_has_the_comparisons_numbers(made: Path) -> None:
    board = pl.read_parquet(made / "tables/leaderboard.parquet")
    pairs = pl.read_parquet(made / "tables/differences.parquet")
    own = pairs.filter((pl.col("metric") == "win_rate") & (pl.col("a") == "magpie"))
    against = own.filter(pl.col("b") == "untuned").row(0, named=True)
    shown = board.filter(pl.col("arm") == "magpie").row(0, named=True)
    for name in ("difference", "simultaneous_lower", "simultaneous_upper"):
        assert shown[name] == against[name]


def test_a_cell_that_a_spreadsheet_would_run_is_quoted(tmp_path: Path) -> None:
    beside.write(tmp_path, {"t": pl.DataFrame({"arm": ["=cmd()", "-x", "fine-name"]})}, {})
    shown = pl.read_csv(tmp_path / "tables/t.csv")["arm"].to_list()
    assert shown == ["'=cmd()", "'-x", "fine-name"]
    assert pl.read_parquet(tmp_path / "tables/t.parquet")["arm"][0] == "=cmd()"


def test_a_table_leaves_out_drawings_and_columns_without_a_value() -> None:
    rows = [{"a": 1, "figure": "<svg>", "none": None}, {"a": 2.5, "list": ["x"]}]
    assert tables.table(rows).to_dict(as_series=False) == {"a": [1, 2.5], "list": [None, '["x"]']}


def test_every_figure_is_there_as_svg_and_png(made: Path) -> None:
    drawn = sorted(path.name for path in (made / "figures").iterdir())
    stems = {Path(name).stem for name in drawn}
    assert {"leaderboard", "lengths", "loss", "score-heldout-loss", "map-magpie"} <= stems
    assert len(drawn) == 2 * len(stems)


def figure() -> Markup:
    rows = [figures.Interval("a", "s0", 60.0, 50.0, 70.0, [("0", 55.0)])]
    return figures.intervals(rows, "label", 52.0)


def test_a_figure_of_its_own_has_colours_in_place_of_classes() -> None:
    root = standalone.svg(figure(), [("a <b>", "s0")])
    assert root is not None
    text = standalone.text_of(root)
    assert 'class="' not in text and "currentColor" not in text
    assert standalone.colours()["s0"] in text and "a &lt;b&gt;" in text
    assert len(list(ElementTree.fromstring(text).iter(f"{FILLED}circle"))) == 2


def test_every_class_of_a_mark_has_its_paint() -> None:
    css = standalone.STYLE.read_text()
    for name in standalone.PAINTS:
        assert f".{name}" in css or name == "tick"


def test_what_stands_in_place_of_a_figure_is_no_file() -> None:
    assert standalone.svg(marks.nothing("no value")) is None


def test_an_image_has_its_marks_where_the_figure_has_them(tmp_path: Path) -> None:
    drawn = Markup(
        '<svg width="40" height="20"><rect class="bar s0" x="10" y="5" width="10" height="10"/>'
        '<path class="cloud s1" d="M30,10h0"/></svg>'
    )
    root = standalone.svg(drawn)
    assert root is not None
    raster.png(root, tmp_path / "x.png")
    image = Image.open(tmp_path / "x.png")
    assert image.size == (80, 40)
    blue, white, dot = (image.getpixel(at) for at in ((30, 20), (50, 20), (60, 20)))
    assert blue == (0x1F, 0x6F, 0xD0) and white == (255, 255, 255)
    assert isinstance(dot, tuple) and dot[0] > 200 and dot[2] < 120


def test_a_dashed_line_has_gaps_and_goes_on_round_a_corner() -> None:
    parts = list(raster._dashed([(0, 0), (10, 0), (10, 10)], [4, 3]))
    assert parts[0] == [(0, 0), (4, 0)] and parts[1] == [(7, 0), (10, 0)]
    assert parts[2] == [(10, 0), (10, 1)] and parts[3] == [(10, 4), (10, 8)]


def test_a_page_that_is_made_anew_leaves_nothing_of_the_last_beside_it(tmp_path: Path) -> None:
    for name, held in (("one", ("a", "b")), ("two", ("b",))):
        made = tmp_path / name
        beside.write(made, {file: pl.DataFrame({"x": [name]}) for file in held}, {})
        (tmp_path / "shown").mkdir(exist_ok=True)
        beside.copy(made, tmp_path / "shown")
    names = {path.name for path in (tmp_path / "shown/tables").iterdir()}
    assert names == {"b.csv", "b.json", "b.parquet"}
    assert pl.read_csv(tmp_path / "shown/tables/b.csv")["x"].to_list() == ["two"]


def test_two_figures_of_one_name_are_two_files() -> None:
    empty = {"arms": [], "funnels": [], "trainings": [], "board": {}, "lengths": {}, "map": {}}
    scores = [{"benchmark": "a/b", "metric": "m", "figure": figure()}] * 2
    shown = {**empty, "controls": [], "scores": scores, "cards": [], "curves": ""}
    assert list(beside.figures(shown)) == ["score-a-b-m", "score-a-b-m~2"]
