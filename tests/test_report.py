"""The report: figures as pure functions, and the whole page in a real browser."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from benchmarks import bench_page
from core.errors import UserError
from recipes.report import page
from recipes.report.drawing import figures, marks
from recipes.report.sections import browser, tags
from recipes.report.verdicts import outcome, sentence
from synth.measures import QUALITY
from tests.fabricated_run import HOSTILE, fabricate

# -- figures and texts, without a browser ----------------------------------------------------------


def test_numbers_are_written_for_people() -> None:
    texts = [
        marks.number(v)
        for v in (
            None,
            float("nan"),
            0,
            7,
            1234567,
            1234.0,
            0.01234,
            12.345,
            -3.1,
            123456.7,
            0.00001,
        )
    ]
    assert texts == [
        "–",
        "–",
        "0",
        "7",
        "1,234,567",
        "1,234",
        "0.0123",
        "12.3",
        "−3.10",
        "123,457",
        "1.00e-05",
    ]


@pytest.mark.parametrize(
    ("low", "high", "texts"),
    [
        (0.0, 1.0, ["0.00", "0.25", "0.50", "0.75", "1.00"]),
        (34.0, 81.0, ["40", "60", "80"]),
        (-3.0, 2.0, ["−2", "0", "2"]),
        (5.0, 5.0, ["5"]),
    ],
)
def test_ticks_are_round_and_inside_the_range(low: float, high: float, texts: list[str]) -> None:
    assert marks.tick_texts(marks.ticks(low, high)) == texts


def test_an_interval_plot_puts_the_point_inside_its_whiskers_and_names_the_values() -> None:
    svg = str(
        figures.intervals(
            [figures.Interval("a & b", "s0", 60.0, 50.0, 70.0), figures.Interval("c", "s1", None)],
            "win rate",
            50.0,
        )
    )
    point = float(re.findall(r'<circle class="point" cx="([\d.]+)"', svg)[0])
    start, end = (
        float(x) for x in re.findall(r'class="whisker" x1="([\d.]+)" x2="([\d.]+)" y1="15', svg)[0]
    )
    assert start < point < end and point == pytest.approx((start + end) / 2, abs=0.02)
    assert "<title>a &amp; b: 60.0\ninterval 50.0 to 70.0</title>" in svg
    assert "not measured" in svg and 'class="reference"' in svg


def test_bars_are_as_long_as_their_share_and_carry_the_counts() -> None:
    svg = str(
        figures.bars(
            ["good", "<poor>"],
            [figures.Shares("pool", "pool", [30, 10]), figures.Shares("arm", "s0", [0, 5])],
            "quality",
        )
    )
    widths = [
        float(w) for w in re.findall(r'class="bar \w+" x="[\d.]+" y="[\d.]+" width="([\d.]+)"', svg)
    ]
    assert (
        widths[0] == pytest.approx(3 * widths[2], abs=0.03)
        and widths[1] == 0
        and widths[3] > widths[0]
    )
    assert "<title>&lt;poor&gt;\npool: 25.0 % (10)\narm: 100.0 % (5)</title>" in svg


def test_a_histogram_keeps_every_value_also_beyond_an_open_last_bin() -> None:
    values = pl.Series([float(v) for v in range(200)] + [100_000.0])
    edges, open_ended = tags.bin_edges(values)
    assert open_ended and edges[0] == 0 and edges[-1] < 300
    assert sum(tags._count(values, edges)) == 201


def test_a_histogram_of_few_whole_numbers_has_a_bin_for_each() -> None:
    values = pl.Series([0, 1, 1, 2, 5])
    edges, open_ended = tags.bin_edges(values)
    assert (edges, open_ended) == ([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0], False)
    assert tags._count(values, edges) == [1, 2, 1, 0, 0, 1]


def test_a_long_curve_is_thinned_and_keeps_its_last_point() -> None:
    svg = str(
        figures.curves(
            [figures.Curve("run", "s0", [(float(i), 1 / (i + 1)) for i in range(5000)])], "loss"
        )
    )
    assert svg.count("<title>") <= 242 and "step 4,999" in svg


def test_an_empty_figure_says_so() -> None:
    for figure in (
        figures.intervals([], "x"),
        figures.bars([], [], "x"),
        figures.curves([], "x"),
        figures.histogram([0.0, 1.0], [], "x"),
    ):
        assert "Nothing to draw" in figure


def test_tags_count_measured_failed_and_unmeasured_rows() -> None:
    pool = pl.DataFrame(
        {
            "id": list("abcdef"),
            "input_quality": pl.Series(
                ["good", "good", "poor", None, None, None], dtype=pl.Enum(QUALITY)
            ),
            "status:quality": ["ok", "ok", "ok", "failed", None, None],
            "quality_explanation": [f"text {i}" for i in range(6)],
            "top_p": [0.95] * 6,
            "instruct_reward": [None, None, None, None, None, None],
            "seed": range(6),
        },
        schema_overrides={"instruct_reward": pl.Float64},
    )
    cards, sentences = tags.cards(pool, {"mine": ("s0", ["a", "c", "elsewhere"])})
    assert [c["name"] for c in cards] == ["input_quality"]
    assert cards[0]["note"] == "measured on 3 of 6 rows, 1 failed, 2 not measured"
    assert ["good", "2 (66.7 %)", "1 (50.0 %)"] in cards[0]["rows"]
    assert sentences == [
        "The same for every row: top_p = 0.950.",
        "Without a value in this pool: instruct_reward.",
    ]


def test_embedded_json_reads_back_and_holds_no_character_that_html_knows() -> None:
    text = str(browser.embed({"answer": HOSTILE}))
    assert not set(text) & set("<>&\u2028\u2029")
    assert json.loads(text) == {"answer": HOSTILE}


def test_prompts_beyond_the_size_limit_are_left_out_and_counted(tmp_path: Path) -> None:
    inputs = fabricate(tmp_path)
    everything, none = browser.gather(inputs, {})
    some, left_out = browser.gather(inputs, {}, limit=30_000)
    assert (len(everything["prompts"]), none) == (24, 0)
    assert 0 < len(some["prompts"]) < 24 and len(some["prompts"]) + left_out == 24
    assert [p["id"] for p in some["prompts"]] == sorted(p["id"] for p in some["prompts"])


def test_a_benchmark_with_answers_of_its_own_keeps_them_apart(tmp_path: Path) -> None:
    def folder(name: str, file: str, rows: dict[str, Any]) -> Path:
        (tmp_path / name).mkdir()
        pl.DataFrame(rows).write_parquet(tmp_path / name / file)
        return tmp_path / name

    inputs = {
        "answers/untuned": folder(
            "a", "answers.parquet", {"id": ["1"], "prompt": ["Hi"], "answer": ["shared"]}
        ),
        "answers/untuned/arena": folder(
            "b", "answers.parquet", {"id": ["1"], "prompt": ["Hi"], "answer": ["arena's"]}
        ),
        "judge/alpaca/untuned": folder(
            "c", "judgments.parquet", {"item": ["1"], "label": ["m"], "category": ["Math"]}
        ),
        "judge/arena/untuned": folder(
            "d", "judgments.parquet", {"item": ["1"], "label": ["A>B"], "category": ["Hard"]}
        ),
    }
    data, _ = browser.gather(inputs, {})
    assert [r["name"] for r in data["runs"]] == ["untuned"]
    shown = [
        (p["category"], p["answers"][0]["text"], [g["label"] for g in p["answers"][0]["games"]])
        for p in data["prompts"]
    ]
    assert shown == [("Math", "shared", ["m"]), ("Hard", "arena's", ["A>B"])]


def difference(a: str, b: str, verdict: str, **more: Any) -> dict[str, Any]:
    value = 8.0 if "better" in verdict else 3.0
    return {
        "benchmark": "alpaca",
        "metric": "win_rate",
        "a": a,
        "b": b,
        "difference": value,
        "simultaneous_lower": value - 5,
        "simultaneous_upper": value + 5,
        "p_holm": 0.01,
        "detectable": 7.2,
        "n": 805,
        "verdict": verdict,
        "scope": "these filters",
        **more,
    }


def test_an_item_is_named_by_the_prompt_of_its_own_benchmark() -> None:
    def prompt(text: str, benchmark: str, *judged: str) -> dict[str, Any]:
        games = [{"benchmark": name} for name in judged]
        answer = {"games": games, "scores": [[judged[0], "m", 1.0, "ok"]] if judged else []}
        return {"id": "7", "prompt": text, "benchmark": benchmark, "answers": [None, answer]}

    shared, own = prompt("shared", "", "alpaca"), prompt("own", "wildbench", "wildbench")
    named = {}
    for benchmark in ("alpaca", "wildbench", "gsm8k"):
        row: dict[str, Any] = {"item": "7"}
        browser.name_prompts([row], [shared, own], benchmark)
        named[benchmark] = row.get("prompt")
    assert named == {"alpaca": "shared", "wildbench": "own", "gsm8k": None}
    row = {"item": "7"}
    browser.name_prompts([row], [shared, prompt("other", "", "alpaca")], "alpaca")
    assert "prompt" not in row


def test_the_headline_says_what_the_verdicts_say_and_what_could_have_been_found() -> None:
    compared = {
        "baseline": "untuned",
        "primary": "alpaca",
        "differences": [
            difference("x", "untuned", "x is better"),
            difference("y", "untuned", "cannot tell"),
            difference("x", "y", "x is better"),
        ],
    }
    assert sentence.answer(compared) == (
        "x won on alpaca (win_rate), the primary benchmark: "
        "x is better than untuned; y cannot be told from untuned."
    )
    assert outcome.lines(compared)[1] == (
        "y − untuned: +3.00, simultaneous 95 % interval −2.00 to +8.00, 805 items, "
        "p = 0.010 (Holm); a difference of 7.2 would be found 8 times in 10: cannot tell."
    )


def test_the_headline_keeps_to_checkpoints_where_there_is_one_seed() -> None:
    pair = difference("x", "y", "cannot tell", scope="these two checkpoints")
    told = sentence.answer({"baseline": None, "primary": "alpaca", "differences": [pair]})
    assert told == (
        "Nobody won on alpaca (win_rate), the primary benchmark: x and y cannot be told apart "
        "(one training seed: about these checkpoints, not about the filters)."
    )


def test_a_judge_that_follows_the_order_is_named_and_a_steady_one_is_not() -> None:
    counted = [("alpaca", 30, 0.2), ("alpaca", 10, 0.6), ("arena", 20, 0.9), ("one order", 0, None)]
    judges = [
        {"benchmark": b, "position_pairs": pairs, "position_consistency": share}
        for b, pairs, share in counted
    ]
    [warning] = outcome.judge_warnings(judges)
    assert warning.startswith("alpaca: ") and "in 30 % of 40 pairs" in warning


def test_a_matrix_turns_the_difference_round_with_its_interval() -> None:
    shared = {"overlap": 0.1, "overlap_instructions": 0.8}
    [matrix] = outcome.matrices(
        {"primary": "alpaca", "differences": [difference("x", "y", "x is better") | shared]},
        ["x", "y"],
    )
    (_, (_, right)), (_, (left, _)) = matrix["rows"]
    assert (right["difference"], right["lower"], right["upper"], right["verdict"]) == (
        "+8.00",
        "+3.00",
        "+13.0",
        "better",
    )
    assert (left["difference"], left["lower"], left["upper"], left["verdict"]) == (
        "−8.00",
        "−13.0",
        "−3.00",
        "worse",
    )
    assert right["shared"] == left["shared"] == "10 % of their rows and 80 % of their instructions"


# -- the whole page --------------------------------------------------------------------------------


def test_a_report_without_inputs_says_what_is_missing(tmp_path: Path) -> None:
    counts = page.build({}, tmp_path, {"name": "empty"})
    html = (tmp_path / "report.html").read_text()
    for said in (
        "No comparison was made",
        "No score was compared",
        "No pool was measured",
        "Nothing was trained",
        "No prompt was answered",
    ):
        assert said in html
    assert (counts["arms"], counts["prompts"]) == (0, 0)


def test_a_finished_model_alone_has_answers_and_no_funnel(tmp_path: Path) -> None:
    inputs = {
        k: v
        for k, v in fabricate(tmp_path).items()
        if k in ("answers/untuned/0", "scores/untuned/0")
    }
    page.build(inputs, tmp_path, {"name": "one"})
    html = (tmp_path / "report.html").read_text()
    assert "untuned: nothing was selected for this arm." in html and "Nothing was trained" in html


def test_a_broken_file_is_one_sentence_with_its_path(tmp_path: Path) -> None:
    (tmp_path / "comparison.json").write_text("{")
    with pytest.raises(UserError, match=r"comparison\.json is not valid JSON .*; remove"):
        page.build({"comparison": tmp_path}, tmp_path, {})


def test_the_same_results_give_the_same_page(tmp_path: Path) -> None:
    inputs = fabricate(tmp_path)
    for out in ("a", "b"):
        page.build(inputs, tmp_path / out, {"name": "demo"})
    assert (tmp_path / "a/report.html").read_bytes() == (tmp_path / "b/report.html").read_bytes()


Opened = tuple[Any, dict[str, list[str]]]
"""A page in a browser, and what the browser had to say: console errors and requests."""


@pytest.fixture(scope="module")
def tabs() -> Iterator[Callable[[Path], Opened]]:
    """Opens a file in headless Chromium."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium on PATH (apt-get install -y chromium)")
    sync_api = pytest.importorskip("playwright.sync_api")
    arguments = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_api.sync_playwright() as playwright:
        chrome = playwright.chromium.launch(executable_path=chromium, args=arguments)

        def tab_of(path: Path) -> Opened:
            seen: dict[str, list[str]] = {"errors": [], "requests": []}
            tab = chrome.new_page(viewport={"width": 1280, "height": 900})
            tab.on(
                "console",
                lambda message: (
                    seen["errors"].append(message.text)
                    if message.type in ("error", "warning")
                    else None
                ),
            )
            tab.on("pageerror", lambda error: seen["errors"].append(str(error)))
            tab.on("request", lambda request: seen["requests"].append(request.url))
            tab.goto(path.as_uri())
            return tab, seen

        yield tab_of
        chrome.close()


@pytest.fixture(scope="module")
def opened(tabs: Callable[[Path], Opened], tmp_path_factory: pytest.TempPathFactory) -> Opened:
    """The fabricated run's page."""
    root = tmp_path_factory.mktemp("report")
    page.build(
        fabricate(root),
        root,
        {"name": "demo", "note": HOSTILE},
        notes=["A small judge says little."],
    )
    return tabs(root / "report.html")


def cells(tab: Any, selector: str) -> list[str]:
    return [" ".join(text.split()) for text in tab.locator(selector).all_inner_texts()]


@pytest.mark.stack
def test_the_page_shows_headline_scores_funnel_and_ledger(
    opened: tuple[Any, dict[str, list[str]]],
) -> None:
    tab, _ = opened
    tab.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    assert tab.locator("h1").inner_text() == "demo"
    assert (
        tab.locator("#headline")
        .inner_text()
        .split(" on ", 1)[1]
        .startswith("alpaca (win_rate), the primary benchmark: ")
    )
    assert cells(tab, "#score-table thead th") == [
        "Benchmark",
        "magpie",
        "random",
        "untuned baseline",
    ]
    magpie = cells(tab, "#score-table tbody tr:first-child td")[0]
    assert re.fullmatch(r"\d\d\.\d \d\d\.\d to \d\d\.\d n 23 · 1 unjudged", magpie)
    funnel = cells(tab, ".funnel >> nth=0 >> tr")
    assert (
        any(re.fullmatch(r"input_quality >= 'good' \d+ \d+", row) for row in funnel)
        and "chosen hash_order (budget 64 rows) 64" in funnel
    )
    assert cells(tab, "#judges tbody tr:first-child td")[:2] == [
        "46 of 48 (2 unjudged)",
        "68 % of 22 pairs",
    ]
    assert cells(tab, "#notes li")[-1] == "A small judge says little."
    assert (
        "8,216 27 % of the 30,533 that tagging and answering every row first would take"
        in cells(tab, ".tiles dd")
    )
    ledger = cells(tab, "#ledger tbody tr")
    assert "loss tokens 17,202 17,202" in ledger and "dropped: no assistant turn 2 2" in ledger
    assert "0 in every run: truncated rows." in cells(tab, "#training p")
    assert (
        cells(tab, "#tags .cards figcaption")[3]
        == "incomplete measured on "
        + cells(tab, "#tags .cards figcaption")[3].split("measured on ")[1]
    )


@pytest.mark.stack
def test_the_browser_lists_searches_and_walks_the_prompts(
    opened: tuple[Any, dict[str, list[str]]],
) -> None:
    from playwright.sync_api import expect

    tab, _ = opened
    tab.reload()
    assert (
        tab.locator("#entries li").count() == 24 and tab.locator("#place").inner_text() == "1 of 24"
    )
    assert tab.locator("#entry .run").count() == 3
    assert (
        "game 2 · this answer shown first · preferred 0."
        in tab.locator("#entry .run").first.inner_text()
    )
    tab.locator("#next").click()
    assert tab.locator("#place").inner_text() == "2 of 24"
    tab.locator("#find").fill("Answer 17 of RANDOM")
    expect(tab.locator("#entries li")).to_have_count(1)
    assert "Question 17" in tab.locator("#entry .prompt").inner_text()
    tab.locator("#find").fill("nothing holds this")
    expect(tab.locator("#entries li")).to_have_count(0)
    assert "No prompt matches" in tab.locator("#entry").inner_text()
    tab.locator("#find").fill("")
    tab.locator("#category").select_option("Planning")
    expect(tab.locator("#entries li")).to_have_count(2)


@pytest.mark.stack
def test_what_models_wrote_stays_text(opened: tuple[Any, dict[str, list[str]]]) -> None:
    tab, seen = opened
    tab.reload()
    for place in (1, 23):  # hostile answers and verdicts; a hostile prompt
        tab.locator("#entries button").nth(place).click()
        for summary in tab.locator("#entry summary").all():
            summary.click()
        assert "<script>window.pwned=1</script>" in tab.locator("#entry").inner_text()
    tab.locator("#provenance summary").last.click()
    assert "window.pwned" in tab.locator("#provenance pre").last.inner_text()
    assert tab.evaluate("window.pwned") is None
    assert tab.evaluate("[document.scripts.length, document.images.length]") == [2, 0]
    assert seen["errors"] == []
    assert {url.split(":")[0] for url in seen["requests"]} == {"file"}


@pytest.mark.stack
def test_long_and_failed_answers_are_cut_and_named(
    opened: tuple[Any, dict[str, list[str]]],
) -> None:
    tab, _ = opened
    tab.reload()
    tab.locator("#entries button").nth(2).click()
    text = tab.locator("#entry .run .text").first
    assert text.evaluate("e => e.textContent.length") == 1501
    tab.get_by_role("button", name="show all 100,000 characters").first.click()
    assert text.evaluate("e => e.textContent.length") == 100_000
    tab.locator("#entries button").nth(3).click()
    failed = tab.locator("#entry .run").first.inner_text()
    assert (
        "failed: the server closed the connection" in failed
        and "not judged: no verdict in 3 tries" in failed
    )


@pytest.mark.stack
def test_a_figure_shows_its_values_on_hover(opened: tuple[Any, dict[str, list[str]]]) -> None:
    tab, _ = opened
    tab.reload()
    hit = tab.locator("#scores .hit").first
    hit.scroll_into_view_if_needed()
    hit.hover()
    assert re.match(r"magpie: \d\d\.\d\ninterval", tab.locator("#tip").inner_text())


@pytest.mark.stack
def test_nothing_is_wider_than_a_phone(opened: tuple[Any, dict[str, list[str]]]) -> None:
    tab, _ = opened
    tab.set_viewport_size({"width": 400, "height": 800})
    assert tab.evaluate("document.documentElement.scrollWidth") <= 400


@pytest.mark.stack
@pytest.mark.slow
def test_five_thousand_prompts_open_in_three_seconds(tmp_path: Path) -> None:
    inputs = bench_page.run(tmp_path, prompts=5000, arms=2, seeds=1, characters=350)
    counts = page.build(inputs, tmp_path, {"name": "many"})
    assert (counts["prompts"], counts["prompts_left_out"]) == (5000, 0)
    assert min(bench_page.opened(tmp_path / "report.html", 3)) < 3


@pytest.mark.stack
@pytest.mark.parametrize(
    ("media", "scheme", "width"),
    [("screen", "dark", 1280), ("print", "light", 760), ("screen", "light", 400)],
)
def test_the_example_is_whole_in_the_dark_on_paper_and_on_a_phone(
    tabs: Callable[[Path], Opened], media: str, scheme: str, width: int
) -> None:
    example = Path(__file__).parents[1] / "docs/example/report.html"
    tab, seen = tabs(example)
    tab.set_viewport_size({"width": width, "height": 900})
    tab.emulate_media(media=media, color_scheme=scheme)
    tab.reload()
    tab.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    assert tab.locator("#leaderboard tbody tr").count() > 1
    background = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    dark = sum(map(int, re.findall(r"\d+", background)[:3])) < 3 * 100
    assert dark == (scheme == "dark")
    # set down whole: nothing is wider than the window
    root = "document.documentElement"
    assert tab.evaluate(f"{root}.scrollWidth <= {root}.clientWidth")
    assert seen == {"errors": [], "requests": [example.as_uri()] * 2}
    tab.close()
