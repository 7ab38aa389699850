"""What the page says beside its figures: who won, where it comes from, what was declared, what it
cost, how the judge was asked, what can be looked for."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from core.store import MANIFEST
from recipes.report import page
from recipes.report.drawing import figures
from recipes.report.sections import costs, judge_card, origins, training
from recipes.report.sources import Run
from recipes.report.verdicts import duels
from tests.fabricated_run import fabricate
from tests.test_terminal import comparison, pair

ASKED = {
    "judge": {"model": "qwen-judge", "revision": None},
    "alpaca": {
        "kind": "alpaca",
        "judge": None,
        "judges": None,
        "mode": "logprob",
        "order": "both",
        "prompt": "alpaca",
        "sampling": {"temperature": 0, "max_tokens": 1},
    },
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The text of a page with everything that can be beside the figures."""
    root = tmp_path_factory.mktemp("page")
    inputs = fabricate(root)
    history = [
        {
            "when": "2026-01-02 10:00 UTC",
            "scores": 0,
            "declared": {"primary": "alpaca", "seeds": [0, 1]},
        }
    ]
    inputs["declared"] = root / "declared.json"
    inputs["declared"].write_text(json.dumps(history))
    people = {"differences": [], "agreement": None, "people": {"pairwise": 0.8}}
    inputs["people"] = root / "people.json"
    inputs["people"].write_text(json.dumps(people))
    inputs["made/overlap"] = inputs["train/magpie/0"]
    for name in [name for name in inputs if name.startswith("judge/")]:
        manifest = json.loads((inputs[name] / MANIFEST).read_text())
        manifest["counts"] |= {"position_consistency": 0.3, "tokens": 12, "asked": 40}
        (inputs[name] / MANIFEST).write_text(json.dumps(manifest))
    funnel = inputs["select/magpie"] / "funnel.json"
    told = json.loads(funnel.read_text()) | {"cut_off": 16}
    funnel.write_text(json.dumps(told))
    path = inputs["comparison"] / "comparison.json"
    compared = json.loads(path.read_text())
    duel = {**compared["differences"][0], "a": "magpie", "b": "random"}
    path.write_text(json.dumps(compared | {"head_to_head": [duel]}))
    page.build(inputs, root, {"name": "demo", "eval": ASKED})
    return (root / "report.html").read_text()


def text(html: str, start: str, end: str) -> str:
    """What a reader sees between two places."""
    part = html[html.index(start) : html.index(end, html.index(start))]
    return " ".join(re.sub(r"<[^>]+>", " ", part).split())


def test_the_headline_begins_with_why_its_judge_is_not_believed_then_who_won(made: str) -> None:
    said = text(made, 'id="headline">', "</p>")
    why = r"the judge kept its verdict in 30 % of [\d,]+ pairs when the answers changed places"
    assert re.match(rf'id="headline">Not to be believed \({why}\): (no\w+|\w+) (arm )?won', said)


def test_what_was_declared_stands_below_the_answer(made: str) -> None:
    said = text(made, 'id="declared">', "</p>")
    assert "Declared on 2026-01-02 10:00 UTC, before the first score" in said
    assert "primary alpaca" in said and "seeds 0, 1" in said


def test_head_to_head_and_peoples_labels_are_shown(made: str) -> None:
    said = text(made, 'id="beside"', "</div>")
    assert "magpie against random" in said and "over the baseline" in said
    assert "people agree with each other in 0.800" in said


def test_scores_of_a_judge_that_looks_at_the_order_are_marked_beside_each_number(made: str) -> None:
    start = made.index('<table id="score-table"')
    table = made[start : made.index("</table>", start)]
    alpaca, heldout = table.split('<th scope="row">')[1:]
    if "loss" in alpaca:
        alpaca, heldout = heldout, alpaca
    assert alpaca.count("unusable") == 2 and "unusable" not in heldout
    assert alpaca.count(">reference<") == 1


def test_the_judges_card_says_how_it_was_asked_and_what_it_cost(made: str) -> None:
    said = text(made, '<section id="judging">', "</dl>")
    for fact in (
        "model qwen-judge",
        "mode logprob",
        "order of the answers both",
        "prompt alpaca",
        "sampling temperature 0, max_tokens 1",
        "24 generated",
        "80 calls",
        "nothing was paid",
    ):
        assert fact in said


def test_the_share_of_chosen_answers_that_were_cut_is_in_the_funnel(made: str) -> None:
    assert "25 % of the answers cut off" in text(made, '<section id="funnel">', "</section>")


def test_what_a_filter_reads_comes_first_among_the_tags(made: str) -> None:
    cards = made[made.index('<section id="tags">') : made.index('<section id="training">')]
    names = re.findall(r"<figcaption>([a-z_]+)( <span class=\"tag\">a filter)?", cards)
    marked = [bool(mark) for _, mark in names]
    assert {name for name, mark in names if mark} == {"input_quality", "min_neighbor_distance"}
    assert marked == sorted(marked, reverse=True)


def test_tags_without_a_figure_are_folded(made: str) -> None:
    folded = text(made, '<details class="more" id="no-figure">', "</details>")
    assert "temperature = 0.800" in folded


def test_the_provenance_names_results_that_no_section_shows(made: str) -> None:
    said = text(made, '<section id="provenance">', "</section>")
    assert " overlap " in said and "made/" not in said


def test_totals_stand_on_the_page(made: str) -> None:
    said = text(made, 'id="totals">', "</dl>")
    assert "hours of machines" in said and "money 0.00" in said


# -- sections --------------------------------------------------------------------------------------


def test_several_commits_and_versions_are_all_named() -> None:
    made_at = [
        {"git": git * 40, "python": "3.11.7", "versions": {"trl": trl, "polars": "2"}, "cpus": 2}
        for git, trl in (("a", "1.0"), ("b", "1.1"), ("a", "1.0"))
    ]
    lines = origins.made_with([{"facts": {"environment": one}} for one in made_at])
    assert lines[0] == "git commit aaaaaaaaaa, bbbbbbbbbb" and lines[1] == "trl 1.0 and 1.1"
    assert origins.made_with([{"facts": {}}]) == []


def test_what_was_declared_when_scores_were_there_is_not_called_beforehand(tmp_path: Path) -> None:
    entries = [
        {"when": when, "scores": 3, "declared": {"primary": name}}
        for when, name in (("monday", "alpaca"), ("tuesday", "arena"))
    ]
    (tmp_path / "d.json").write_text(json.dumps(entries))
    told = origins.declared({"declared": tmp_path / "d.json"})
    assert (told["before"], told["when"], told["changed"]) == (False, "monday", "tuesday")
    assert told["facts"] == [("primary", "alpaca")] and origins.declared({}) == {}


def folder(path: Path, **manifest: Any) -> Path:
    path.mkdir()
    (path / MANIFEST).write_text(json.dumps(manifest))
    return path


@pytest.mark.parametrize(
    ("counts", "asked", "hours"),
    [({"devices": 8}, None, 16.0), ({}, 4, 8.0), ({}, None, 2.0)],
)
def test_device_hours_are_hours_times_devices(
    tmp_path: Path, counts: dict[str, int], asked: int | None, hours: float
) -> None:
    train = folder(tmp_path / "t", seconds=3600, counts={**counts, "training_seconds": 7200})
    (train / "train.json").write_text(json.dumps({"config": {"num_processes": asked}}))
    assert costs.costs({"train/a/0": train})["total"]["training_hours"] == hours


def test_the_revision_is_the_judgments_own(tmp_path: Path) -> None:
    spec = {"spec": {"cell": {"judge": {"revision": "0123456789abcdef"}}}}
    inputs = {"judge/alpaca/a/0": folder(tmp_path / "j", spec=spec, counts={"rows": 1})}
    [judging] = judge_card.judgings(inputs)
    said = dict(judge_card.asked({"eval": ASKED}, "alpaca", [judging]))
    assert said["revision"] == "0123456789ab"


def test_arena_is_asked_in_both_orders_and_what_is_not_said_is_left_out() -> None:
    block = {"kind": "arena", "version": "v2.0", "prompt": {"": "arena", "writing": "creative"}}
    said = dict(judge_card.asked({"eval": {"arena": block}}, "arena", []))
    assert said == {
        "mode": "v2.0",
        "order of the answers": "both, two games a prompt",
        "prompt": "arena, creative",
    }


def test_a_duel_stands_beside_the_way_over_the_baseline() -> None:
    told = comparison(pair("b", "a", "cannot tell", -1.0))
    told["head_to_head"] = [pair("a", "b", "a is better", 9.0), pair("a", "c", "cannot tell")]
    first, second = duels.duels(told)
    assert (first["direct"]["verdict"], first["direct"]["difference"]) == ("better", "+9.00")
    assert (first["over"]["difference"], first["over"]["tone"]) == ("+1.00", "untold")
    assert second["over"] is None


def test_the_held_out_loss_is_a_ring_after_the_last_step(tmp_path: Path) -> None:
    train = folder(tmp_path / "t")
    (train / "log.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 4, "loss": 1.0}\n')
    (train / training.VALIDATION).write_text('{"step": 2, "eval_loss": 1.5}\n')
    kept = folder(tmp_path / "h", counts={"token_loss": 1.25})
    inputs = {"train/a/0": train, "heldout/a/0": kept}
    shown = training.training(inputs, {"a": "s0"})
    assert shown["rings"] and shown["trainings"][0]["heldout"] == 1.25
    assert shown["curves"].count('class="ring s0"') == 2
    assert training.heldout({}, Run("a", "0")) is None
    bare = figures.curves([figures.Curve("a", "s0", [(1.0, 2.0)])], "x")
    assert "ring" not in bare


@pytest.mark.stack
def test_the_browser_finds_what_is_worth_a_look(tmp_path: Path) -> None:
    import shutil

    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium on PATH (apt-get install -y chromium)")
    sync_api = pytest.importorskip("playwright.sync_api")
    page.build(fabricate(tmp_path), tmp_path, {"name": "demo"})
    with sync_api.sync_playwright() as playwright:
        chrome = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        tab = chrome.new_page(viewport={"width": 390, "height": 800})
        tab.goto((tmp_path / "report.html").as_uri())
        options = tab.locator("#only option").all_inner_texts()
        assert [re.sub(r"\d+", "N", one) for one in options] == [
            "all prompts",
            "arms differ (N)",
            "judge inconsistent (N)",
            "cut off (N)",
        ]
        tab.select_option("#only", "cut")
        assert f"cut off ({tab.locator('#entries li').count()})" == options[3] != "cut off (24)"
        tab.select_option("#only", "order")  # each game twice with one preference
        assert options[2] == "judge inconsistent (0)"
        assert tab.evaluate("document.documentElement.scrollWidth") == 390, "a phone's width"
        for table in ("#leaderboard", "#score-table", ".matrix"):
            wide = f"document.querySelector('{table}').getBoundingClientRect().right"
            assert tab.evaluate(wide) <= 390
        chrome.close()
