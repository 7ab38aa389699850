"""People's labels of a recipe's own answers: written blind, read back, and what they say."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from core.cells.seals import with_seal
from core.errors import UserError
from eval.judging.people import against_people
from eval.judging.people import labelled as said_by_people
from eval.judging.people.prediction_powered import powered
from eval.prompt_sets import samples
from eval.scoring import of_checkpoint
from recipes import schema
from recipes.comparisons import labelled, labels
from recipes.stages import graph
from tests import small_recipe
from tests.scripted_server import ScriptedServer
from tests.test_recipe_annotations import models_only

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)> =1+1 \u202e"


# the statistics


def drawn(rng: np.random.Generator, n: int, more: int, right: float) -> tuple[Any, Any, Any]:
    """Labels of n items and predictions of all, which hold `right` of what people see."""
    truth = rng.choice([-100.0, 0.0, 100.0], n + more, p=[0.3, 0.2, 0.5])
    predicted = right * truth / 100 + rng.normal(0, 0.6, n + more) + 3
    return truth[:n], predicted[:n], predicted[n:]


def test_the_interval_covers_what_people_would_say_of_all_prompts() -> None:
    rng = np.random.default_rng(0)
    hit, sharper = 0, 0
    for _ in range(500):
        found = powered(*drawn(rng, 40, 400, 1.0))
        hit += found.estimate.lower <= 20 <= found.estimate.upper
        sharper += found.estimate.standard_error < found.labels_alone.standard_error
    assert 0.92 <= hit / 500 <= 0.975
    assert sharper > 480


def test_a_judge_that_sees_nothing_costs_next_to_nothing_and_a_good_one_is_worth_labels() -> None:
    rng = np.random.default_rng(1)
    blind = [powered(*drawn(rng, 200, 2000, 0.0)) for _ in range(100)]
    good = [powered(*drawn(rng, 200, 2000, 1.0)) for _ in range(100)]
    assert 0.97 <= np.mean([b.worth / 200 for b in blind]) <= 1.05
    # corr(label, prediction)^2 = r2; the variance falls by r2 * N / (n + N)
    r2 = (0.87**2) / (0.87**2 + 0.36)
    assert np.mean([g.worth / 200 for g in good]) == pytest.approx(1 / (1 - r2 / 1.1), rel=0.08)
    spread = np.std([g.estimate.value for g in good])
    assert np.mean([g.estimate.standard_error for g in good]) == pytest.approx(spread, rel=0.15)


def test_the_weight_is_the_one_that_makes_the_error_smallest() -> None:
    truth, mine, others = drawn(np.random.default_rng(2), 60, 60, 1.0)
    found = powered(truth, mine, others)

    def variance(weight: float) -> float:
        both = np.var(truth - weight * mine, ddof=1) + weight**2 * np.var(mine, ddof=1)
        return float(both / 60)

    assert min(np.linspace(0, 200, 4001), key=variance) == pytest.approx(found.weight, abs=0.1)


def test_too_few_labels_and_a_prediction_that_is_always_the_same_are_said_or_passed_over() -> None:
    with pytest.raises(UserError, match="9 labelled pairs say nothing"):
        powered(np.ones(9), np.arange(9.0), np.arange(9.0))
    labels_only = powered(np.arange(12.0), np.ones(12), np.ones(50))
    assert labels_only.estimate == labels_only.labels_alone and labels_only.weight == 0


# a recipe


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> schema.Loaded:
    """A finished recipe of two models whose answers are hostile."""

    def answer(path: str, body: dict[str, Any]) -> Any:
        said = small_recipe.answer(path, body)
        if body.get("max_tokens") == 30 and "return_tokens_as_token_ids" not in body:
            for choice in said["choices"]:
                choice["text"] = f"={choice['text']} {HOSTILE} {Path(str(body['model'])).name}"
        return said

    with ScriptedServer(answer) as server:
        made = schema.load(models_only(tmp_path_factory.mktemp("labels"), server.url))
        graph.run(made, "score")
    return made


def written(loaded: schema.Loaded, folder: Path, count: int = 50) -> list[dict[str, str]]:
    labels.write(loaded, labels.Asked(count=count), folder)
    with (folder / "labels.csv").open(newline="") as handle:
        return list(csv.DictReader(handle))


def filled(path: Path, rows: list[dict[str, str]], label: Any) -> Path:
    with path.open("w", newline="") as handle:
        out = csv.writer(handle)
        out.writerow(["pair", "label"])
        out.writerows([row["pair"], label(number, row)] for number, row in enumerate(rows))
    return path


def test_pairs_are_blind_and_hostile_text_stays_text(loaded: schema.Loaded, tmp_path: Path) -> None:
    rows = written(loaded, tmp_path)
    key = json.loads((tmp_path / "key.json").read_text())
    assert len(rows) == 12 == len(key["pairs"]) and {p["a"] for p in key["pairs"]} == {"two"}
    sides = {p["a_first"] for p in key["pairs"]}
    assert sides == {True, False}
    for row in rows:
        for cell in (row["prompt"], row["answer_A"], row["answer_B"]):
            assert not cell.startswith(labels.FORMULA), cell
        assert row["answer_A"].startswith("'=") and HOSTILE in row["answer_A"]
        assert row["label"] == ""
    page = (tmp_path / "labels.html").read_text()
    assert HOSTILE not in page and "alert(1)</script>" not in page.partition("application/json")[2]
    assert page.count("<script") == 2 and "http" not in page.replace("http-equiv", "")
    assert "default-src 'none'" in page and "'unsafe-inline'" not in page
    first = rows[0]["pair"]
    mine = next(p for p in key["pairs"] if p["id"] == first)
    assert rows[0]["answer_A"].endswith("two") == mine["a_first"]
    # the names of arms are in the key alone
    del key["pairs"]
    assert '"a":' not in (tmp_path / "labels.csv").read_text()


def test_the_same_pairs_come_out_again_and_others_never_over_a_key(
    loaded: schema.Loaded, tmp_path: Path
) -> None:
    first = written(loaded, tmp_path, 6)
    assert written(loaded, tmp_path, 6) == first
    with pytest.raises(UserError, match="holds the key of other pairs"):
        written(loaded, tmp_path, 7)


def test_a_key_that_was_damaged_is_a_sentence_and_never_guessed(tmp_path: Path) -> None:
    pair = {"id": "p", "item": "i", "a": "x", "b": "y", "seeds": ["0", "0"], "a_first": True}
    whole = with_seal({"recipe": "r", "benchmark": "alpaca", "pairs": [pair]})
    path = tmp_path / "key.json"
    text = json.dumps(whole)
    path.write_text(text)
    assert labelled._key(path)["pairs"] == [pair]
    turned = text.replace('"a_first": true', '"a_first": false')
    unsealed = json.dumps({"recipe": "r", "benchmark": "alpaca", "pairs": [pair | {"a": 5}]})
    for bad in (turned, unsealed, text[:-9], "", "null", "[]", '{"recipe": "r"}', "\x00" * 9):
        path.write_text(bad)
        with pytest.raises(UserError, match=r"key\.json .*; restore it from a copy"):
            labelled._key(path)
    path.unlink()
    with pytest.raises(UserError, match="does not exist; labels are read beside their key"):
        labelled._key(path)


def test_labels_give_the_judges_agreement_and_the_difference_that_people_see(
    loaded: schema.Loaded, tmp_path: Path
) -> None:
    rows = written(loaded, tmp_path)
    key = json.loads((tmp_path / "key.json").read_text())
    of = {pair["id"]: pair for pair in key["pairs"]}
    score = graph.plan(loaded).results["score/two"].path / "scores.parquet"
    values = pl.read_parquet(score).filter(pl.col("metric") == "win_rate")
    judge = dict(values.select("item", "value").iter_rows())

    def agrees(number: int, row: dict[str, str]) -> str:
        """As the judge, but for the first two."""
        pair = of[row["pair"]]
        two = (judge[pair["item"]] > 50) != (number < 2)
        return "A" if two == pair["a_first"] else "b "

    one = filled(tmp_path / "one.csv", rows, agrees)
    other = filled(
        tmp_path / "other.csv", rows, lambda n, row: "tie" if n == 11 else agrees(n, row)
    )
    said = labelled.write(loaded, [one, other], tmp_path / "key.json")
    assert (said["pairs"], said["labels"]) == (12, 24)
    assert said["agreement"]["accuracy"] == pytest.approx(9 / 11)  # two wrong, one pair tied
    assert said["agreement"]["no_majority"] == 1
    assert said["people"]["pairwise"] == pytest.approx(11 / 12)
    (row,) = said["differences"]
    votes = [
        1 if (judge[of[r["pair"]]["item"]] > 50) != (n < 2) else -1 for n, r in enumerate(rows)
    ]
    votes[11] = votes[11] / 2  # type: ignore[call-overload]
    assert row["labels_alone"]["value"] == pytest.approx(100 * np.mean(votes))
    assert row["judge"]["value"] == pytest.approx(np.mean(list(judge.values())) - 50)
    assert row["prompts"] == row["labelled"] == 12
    # all that belongs to the recipe finds it again
    lines = said_by_people.find(loaded.recipe.folder)
    assert lines == said_by_people.sentences(said) and "of this recipe's own answers" in lines[1]
    (protocol,) = loaded.recipe.eval.protocols("alpaca")
    known = against_people.find(protocol, Path(loaded.recipe.store))
    assert [k["dataset"] for k in known] == ["small-own-answers"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pair,label\nX,A\n", "row 1: the pair 'X' is none of the key's"),
        ("pair,label\nP,C\n", "row 1: the label 'C' is none of A, B and tie"),
        ("pair,label\nP,A\nP,B\n", "row 2: the pair P is labelled a second time"),
        ("pair,label\nP,\n", "has a label yet"),
        ("a,b\n1,2\n", "has the columns pair and label"),
    ],
)
def test_labels_that_cannot_be_are_one_sentence(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "labels.csv"
    path.write_text(text)
    pair = {"id": "P", "item": "i", "a": "x", "b": "y", "seeds": ["", ""], "a_first": True}
    with pytest.raises(UserError, match=message):
        labels.read([path], {"pairs": [pair]})


def test_arms_are_named_two_by_two(loaded: schema.Loaded, tmp_path: Path) -> None:
    assert labels.two_arms(["a:b"]) == [("a", "b")]
    for text in ("a", "a:", "a:a"):
        with pytest.raises(UserError, match="name two different arms"):
            labels.two_arms([text])
    with pytest.raises(UserError, match="nobody has no answers in alpaca"):
        labels.write(loaded, labels.Asked(arms=[("nobody", "one")]), tmp_path)


def test_what_a_program_checks_is_no_answer_to_a_prompt_and_no_seed(
    loaded: schema.Loaded, tmp_path: Path
) -> None:
    results = dict(graph.plan(loaded).results)
    known = labels._answers(loaded.recipe, results, "alpaca", "two")
    other = results["answers/two/arena"]
    for name in ("answers/one/checks", "answers/two/checks", "answers/good/0/checks"):
        results[name] = other
    assert len(labels.pairs(loaded.recipe, results, "alpaca", ("two", "one"))) == 12
    (tmp_path / "trained").mkdir()
    path = small_recipe.recipe(tmp_path, tmp_path / "trained", "http://127.0.0.1:1", train=True)
    trained = schema.load(path).recipe
    assert labels._answers(trained, results, "alpaca", "good") == {}
    results["answers/good/0"] = results["answers/two"]
    found = labels._answers(trained, results | {"answers/good/0/checks": other}, "alpaca", "good")
    assert found == {"0": known[""]}


def test_arms_that_always_answer_alike_leave_nothing_to_label(
    loaded: schema.Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = graph.plan(loaded)
    results = dict(planned.results)
    results["answers/two"] = results["answers/one"]
    monkeypatch.setattr(graph, "plan", lambda _: replace(planned, results=results))
    with pytest.raises(UserError, match="no prompt of alpaca has two different answers by two and"):
        labels.write(loaded, labels.Asked(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def first_pair(loaded: schema.Loaded, results: labels.Results) -> labels.Pair:
    return labels.pairs(loaded.recipe, results, "alpaca", ("two", "one"))[0]


def test_only_whom_the_other_was_judged_against_scores_by_definition(
    loaded: schema.Loaded,
) -> None:
    results = graph.plan(loaded).results
    pair = first_pair(loaded, results)
    values = labelled._scores(results["score/two"].path, "alpaca")
    assert values is not None and (mine := values.values[pair.item]) is not None
    judge = labelled._judge(loaded.recipe, results, "alpaca")
    assert labelled.judge_says(judge, pair) == pytest.approx(mine - 50)
    turned = replace(pair, a="one", b="two")
    assert labelled.judge_says(judge, turned) == pytest.approx(50 - mine)
    # beside an arm without judgments, and another training of the rival than it was judged against
    assert labelled.judge_says(judge, replace(pair, b="three")) is None
    assert labelled.judge_says(judge, replace(pair, seeds=("", "1"))) is None
    # with answers but no judgments, and where the rival is a file or there is none
    left = {name: r for name, r in results.items() if name not in ("score/two", "judge/alpaca/two")}
    assert labelled.judge_says(replace(judge, results=left), pair) is None
    assert labelled.judge_says(replace(judge, rival=None), pair) is None
    assert labelled._judge(loaded.recipe, results, "wildbench").rival is None


@pytest.mark.parametrize("benchmark", ["alpaca", "arena"])
def test_the_judge_speaks_of_the_answer_that_people_saw(
    loaded: schema.Loaded, tmp_path: Path, benchmark: str
) -> None:
    results = dict(graph.plan(loaded).results)
    pair = first_pair(loaded, results)
    judge = labelled._judge(loaded.recipe, results, benchmark)
    of_one = labelled.judge_says(judge, pair)
    judged = results[f"judge/{benchmark}/two"]
    folder = tmp_path / "judgments"
    shutil.copytree(judged.path, folder)
    games = pl.read_parquet(folder / "judgments.parquet")
    # A second answer to each prompt that loses every game.
    lost = {
        "preference": pl.lit(0.0),
        "label": pl.when(order="model").then(pl.lit("B>A")).otherwise(pl.lit("A>B")),
    }
    changed = [
        lost[name].cast(kind).alias(name) for name, kind in games.schema.items() if name in lost
    ]
    again = games.with_columns(pl.col("item") + samples.MARK + "2", *changed)
    pl.concat([games, again]).write_parquet(folder / "judgments.parquet")
    of_checkpoint.run({f"judgments-{benchmark}": folder}, tmp_path / "score")
    results[f"judge/{benchmark}/two"] = replace(judged, path=folder)
    results["score/two"] = replace(results["score/two"], path=tmp_path / "score")
    mean = labelled._scores(tmp_path / "score", benchmark)
    assert mean is not None and mean.of_several
    assert (mean.values[pair.item] or 0) - 50 != pytest.approx(of_one)
    found = labelled.judge_says(replace(judge, results=results), pair)
    assert found == pytest.approx(of_one)
    del results[f"judge/{benchmark}/two"]
    assert labelled.judge_says(replace(judge, results=results), pair) is None


def test_an_answer_of_any_length_may_stand_in_the_table(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    pair = {"id": "P", "item": "i", "a": "x", "b": "y", "seeds": ["", ""], "a_first": True}
    path.write_text(f"pair,answer_A,label\nP,{'x' * 200_000},A\n")
    assert labels.read([path], {"pairs": [pair]})["votes"].to_list() == [[1]]


@pytest.mark.stack
def test_a_person_labels_in_a_browser_that_loads_nothing_and_runs_no_answer(
    tmp_path: Path,
) -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium on PATH (apt-get install -y chromium)")
    sync_api = pytest.importorskip("playwright.sync_api")
    shown = [
        labels.Pair(f"p{i}", f"i{i}", f"Ask {i} {HOSTILE}", "x", "y", ("", ""), i % 2 == 0,
                    (f"{HOSTILE} x{i}", f"y{i} {HOSTILE}"))
        for i in range(3)
    ]  # fmt: skip
    (tmp_path / "labels.html").write_text(labels.page(shown))
    heard: list[str] = []
    with sync_api.sync_playwright() as playwright:
        arguments = ["--headless", "--no-sandbox", "--disable-gpu"]
        chrome = playwright.chromium.launch(executable_path=chromium, args=arguments)
        tab = chrome.new_page(viewport={"width": 1280, "height": 800})
        tab.on("console", lambda message: heard.append(message.text))
        tab.on("pageerror", lambda error: heard.append(str(error)))
        tab.on("dialog", lambda dialog: (heard.append("dialog"), dialog.dismiss()))
        asked: list[str] = []
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto((tmp_path / "labels.html").as_uri())
        assert tab.locator("#A").text_content() == f"{HOSTILE} x0"
        assert tab.locator("img").count() == 0
        tab.keyboard.press("2")
        assert tab.locator("#B").text_content() == f"{HOSTILE} x1"
        tab.locator("text=A is better").click()
        tab.keyboard.press("0")
        assert tab.locator("#count").inner_text() == "pair 3, 3 of 3 labelled"
        tab.reload()
        assert tab.locator("#count").inner_text().endswith("3 of 3 labelled")
        with tab.expect_download() as download:
            tab.locator("#save").click()
        download.value.save_as(tmp_path / "labels.csv")
        chrome.close()
    assert heard == [] and all(url.startswith(("file:", "blob:")) for url in asked)
    assert (tmp_path / "labels.csv").read_text() == "pair,label\np0,B\np1,A\np2,tie\n"
    known = {"pairs": [asdict(pair) for pair in shown]}
    votes = labels.read([tmp_path / "labels.csv"], known).select("id", "votes").rows()
    assert votes == [("p0", [-1]), ("p1", [-1]), ("p2", [0])]
