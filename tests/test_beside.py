"""What lies beside the page: the same numbers as tables, the same figures as files."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import polars as pl
import pytest
from markupsafe import Markup
from PIL import Image

from recipes.report import beside, page, tables
from recipes.report.drawing import figures, marks, raster, standalone
from tests.fabricated_run import fabricate

FILLED = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a fabricated run, with what lies beside it."""
    out = tmp_path_factory.mktemp("beside")
    page.build(fabricate(out, seeds=("0", "1")), out, {"name": "demo"})
    return out


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
    shown = {**empty, "scores": scores, "cards": [], "curves": ""}
    assert list(beside.figures(shown)) == ["score-a-b-m", "score-a-b-m~2"]
