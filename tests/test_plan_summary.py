"""The ten lines of `magpie plan`, and the difference that a design finds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from eval import compare
from eval.comparing.metrics import Declared
from eval.comparing.planning.before import Design
from recipes.schema import load
from recipes.stages import graph
from recipes.stages.session import Step
from recipes.stages.walk import Arms
from recipes.verbs.planning import plan as planning
from recipes.verbs.planning.detectable import design_of, of_recipe
from recipes.verbs.planning.grouped import groups
from recipes.verbs.planning.trainings import Hardware, trainings

EIGHT_B = "llama3-8b-magpie-pro-300k"


FOUR = ["eval.answers.answers_per_prompt=4", "eval.answers.sampling.temperature=0.7"]
JUDGES = "['preset:gpt-5.4', 'preset:qwen3-32b']"


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        store = tmp_path_factory.mktemp("store")
        loaded = load(EIGHT_B, [f"store={store}", "controls=true"])
        outcome = graph.plan(loaded)
        trained = trainings(loaded.recipe, outcome, Hardware())
        return planning.summary(loaded.recipe, outcome, trained)


def test_the_plan_of_the_8b_recipe_is_ten_lines_without_a_hub(told: dict[str, Any]) -> None:
    lines = list(planning.lines(told, Hardware()))
    assert 6 <= len(lines) <= 9, "the tenth says how to see the stages"
    assert lines[0].startswith("3 arms + 4 controls x 3 seeds: magpie-pro, random, instruct, ")
    assert max(map(len, lines)) < 320


def test_it_says_what_training_costs_over_all_arms_and_seeds(told: dict[str, Any]) -> None:
    training = told["training"]
    # the controls are random arms: 15 runs of two epochs of 143.4 million tokens, 3 of 216
    assert training["runs"] == 18
    assert training["tokens"] == pytest.approx(2 * (3 * 216_000_000 + 15 * 143_400_000), rel=0.01)
    assert training["gpu_hours"] > 100 and training["unknown"] == []


def test_it_says_what_the_judge_costs_though_no_prompt_is_downloaded(told: dict[str, Any]) -> None:
    (bill,) = told["judges"].values()
    # 19 runs of 805 prompts in AlpacaEval, and of 500 in Arena-Hard in two orders
    assert bill["calls"] == 19 * (805 + 2 * 500)
    assert told["money"] == bill["money"] > 0


def test_disk_counts_the_checkpoints_that_stay(told: dict[str, Any]) -> None:
    assert told["kept_disk_bytes"] == pytest.approx(18 * 16.06e9, rel=0.01)
    assert told["peak_disk_bytes"] > 350e9


def test_what_the_smallest_difference_rests_on_is_said(told: dict[str, Any]) -> None:
    found = told["detectable"]
    assert (found["prompts"], found["seeds"], found["pairs"]) == (805, 3, 3)
    assert found["difference"] == pytest.approx(32 / 805**0.5 * 3.2, rel=0.05)
    assert "66 pairs" in found["rests_on"]
    last = list(planning.lines(told, Hardware()))[-1]
    assert "points of win rate 8 times in 10" in last and "`expected.seed_sd`" in last


def test_stated_variances_come_first(tmp_path: Path) -> None:
    stated = ["expected.prompt_sd=16", "expected.seed_sd=2", f"store={tmp_path}"]
    recipe = load(EIGHT_B, stated).recipe
    found = of_recipe(recipe, Arms.of(recipe), 805)
    assert (found["prompt_sd"], found["seed_sd"]) == (16, 2)
    assert found["rests_on"] == "stated in `expected`"


def test_the_examples_say_beforehand_what_they_find(
    tmp_path: Path,
) -> None:
    """By what its own run measured (docs/example), as its form on another base does; where neither
    is stated nothing is known."""
    recipe = load("smollm2-filter-comparison", [f"store={tmp_path}"]).recipe
    found = of_recipe(recipe, Arms.of(recipe), 117)
    # of the three pairs that were compared 0.0043, 0.0053 and 0.0062 would have been
    assert found["difference"] == pytest.approx(0.0046, abs=0.0003)
    other = load("gemma3-270m-filter-comparison", [f"store={tmp_path}"]).recipe
    assert of_recipe(other, Arms.of(other), 117)["difference"] == pytest.approx(0.051, abs=0.001)
    other = load("gemma3-270m-filter-comparison", [f"store={tmp_path}", "expected=null"]).recipe
    assert of_recipe(other, Arms.of(other), 117)["difference"] is None


def test_an_earlier_comparison_says_how_much_the_metric_varies(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = []
    for arm in ("a", "b"):
        for seed in range(4):
            values = rng.normal(50 + rng.normal(0, 3), 20, 400)
            for item, value in enumerate(values):
                name = str(item)
                rows.append((arm, str(seed), "alpaca", "win_rate", name, name, float(value)))
    names = ["arm", "seed", "benchmark", "metric", "item", "cluster", "value"]
    items = pl.DataFrame(rows, schema=names, orient="row")
    seeds = {arm: [str(seed) for seed in range(4)] for arm in "ab"}
    folder = tmp_path / "results" / "compare" / "KEY"
    compare.of_items(items, seeds, folder, Declared("alpaca"))
    broken = tmp_path / "results" / "compare" / "NEWER"
    broken.mkdir()
    (broken / "comparison.json").write_text("{")
    recipe = load(EIGHT_B, [f"store={tmp_path}"]).recipe
    found = of_recipe(recipe, Arms.of(recipe), 805)
    # of one run 20 on each prompt, of three runs and two arms:
    assert found["prompt_sd"] == pytest.approx(20 * (2 / 3) ** 0.5, rel=0.1)
    assert 1.5 < found["seed_sd"] < 5
    assert found["rests_on"] == (
        "an earlier comparison, KEY (its win_rate, in place of length_controlled_winrate)"
    )


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        # AlpacaEval's baseline is a file; the instruct model is what no seed varies
        ([], Design(2, 805, 3, "finished", judged=False)),
        (["controls=true"], Design(2, 805, 3, "finished", judged=False, beside=4)),
        (["eval.alpaca.baseline=instruct"], Design(2, 805, 3, "finished", judged=True)),
        (["eval.alpaca.baseline=random"], Design(2, 805, 3, "trained", judged=True)),
        (["arms.instruct=null", "train.seeds=[4]"], Design(2, 805, 1, "none")),
        (FOUR, Design(2, 805, 3, "finished", answers=4)),
        ([f"eval.alpaca.judges={JUDGES}"], Design(2, 805, 3, "finished", judges=2)),
        (
            [f"eval.alpaca.judges={JUDGES}", "eval.alpaca.judges_share=true"],
            Design(2, 805, 3, "finished"),
        ),
        (["eval.judging=sequential"], Design(2, 805, 3, "finished", sequential=True)),
    ],
    ids=str,
)
def test_a_recipe_is_the_design_that_it_says(changes: list[str], expected: Design) -> None:
    recipe = load(EIGHT_B, changes).recipe
    assert design_of(recipe, Arms.of(recipe), "alpaca", 805) == expected


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (["eval.primary=tasks"], "no earlier comparison in the store has lm-eval's ifeval: run a"),
        (["eval.primary=arena"], "state `expected.prompt_sd`, or run a pilot"),
    ],
)
def test_what_is_not_known_is_said(tmp_path: Path, changes: list[str], says: str) -> None:
    recipe = load(EIGHT_B, [*changes, f"store={tmp_path}"]).recipe
    found = of_recipe(recipe, Arms.of(recipe), None if "tasks" in changes[0] else 500)
    assert found["difference"] is None and says in found["rests_on"]


def earlier(store: Path, *rows: dict[str, Any]) -> None:
    """Put a comparison into a store that knows these components."""
    none = dict.fromkeys(("seeds", "rest", "answers", "judges"))
    told = [{"benchmark": "alpaca", "clusters": 805, **none, **row} for row in rows]
    folder = store / "results/compare/BEFORE"
    folder.mkdir(parents=True)
    (folder / "comparison.json").write_text(json.dumps({"components": told}))


def found(store: Path, *changes: str, prompts: int | None = 805) -> dict[str, Any]:
    """What a plan of the 8B recipe says over this store."""
    recipe = load(EIGHT_B, [f"store={store}", *changes]).recipe
    return of_recipe(recipe, Arms.of(recipe), prompts)


@pytest.mark.parametrize(
    ("changes", "prompt_sd"),
    [
        ([], 20),  # AlpacaEval's prompts and baseline
        (["eval.alpaca.baseline=random"], 30),
        (["eval.prompts=magpie-48"], 30),
        (["eval.judging=sequential"], 30),
        (["eval.primary=alpaca/length_controlled_minimal"], 10),
    ],
)
def test_the_metric_that_will_decide_is_what_is_planned_for(
    tmp_path: Path, changes: list[str], prompt_sd: float
) -> None:
    sds = {
        "win_rate": 30,
        "length_controlled_minimal": 10,
        "length_controlled_winrate": 20,
    }
    earlier(tmp_path, *({"metric": name, "prompts": sd**2} for name, sd in sds.items()))
    assert found(tmp_path, *changes)["prompt_sd"] == pytest.approx(prompt_sd)


def test_answers_that_were_measured_make_a_difference_and_others_are_said_not_to(
    tmp_path: Path,
) -> None:
    stated = found(tmp_path, "expected.prompt_sd=20", *FOUR)
    assert stated["difference"] == found(tmp_path, "expected.prompt_sd=20")["difference"]
    assert "what 4 answers a prompt save is not known" in stated["rests_on"]
    measured = {"prompts": 100.0, "answers": 900.0, "rest": 0.0}
    earlier(tmp_path, {"metric": "length_controlled_winrate", **measured})
    four, one = found(tmp_path, *FOUR), found(tmp_path)
    assert "not known" not in four["rests_on"]
    # of two arms and three seeds: 100 + 2 * 900 / 3, and 100 + 2 * 225 / 3
    assert one["difference"] / four["difference"] == pytest.approx((700 / 250) ** 0.5, rel=0.02)


def test_judging_in_steps_finds_less_and_says_so(tmp_path: Path) -> None:
    whole = found(tmp_path, "expected.prompt_sd=20")
    steps = found(tmp_path, "expected.prompt_sd=20", "eval.judging=sequential")
    assert 1.07 < steps["difference"] / whole["difference"] < 1.16
    (line,) = planning._of_detectable(steps)
    assert "judged to the end, in steps, whose intervals are wider" in line


def test_lm_eval_has_the_clusters_and_the_variance_of_an_earlier_comparison(
    tmp_path: Path,
) -> None:
    tasks = {"benchmark": "tasks", "prompts": 0.25, "clusters": 541}
    other = {**tasks, "metric": "ifeval_other acc,none", "prompts": 9.0}
    earlier(tmp_path, other, {**tasks, "metric": "ifeval prompt_level_strict_acc,none"})
    told = found(tmp_path, "eval.primary=tasks", prompts=None)
    assert (told["prompts"], told["prompt_sd"]) == (541, 0.5)
    assert told["difference"] == pytest.approx(3.2 * 0.5 / 541**0.5, rel=0.05)
    gsm = found(tmp_path, "eval.primary=tasks/gsm8k exact_match,strict-match", prompts=None)
    assert "no earlier comparison in the store has lm-eval's gsm8k" in gsm["rests_on"]


def test_a_comparison_of_before_that_says_no_clusters_plans_no_lm_eval(tmp_path: Path) -> None:
    row = {"benchmark": "tasks", "prompts": 0.25, "clusters": None}
    earlier(tmp_path, {**row, "metric": "ifeval prompt_level_strict_acc,none"})
    told = found(tmp_path, "eval.primary=tasks", prompts=None)
    assert told["difference"] is None and "how many clusters ifeval has" in told["rests_on"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("llama3-8b-magpie-pro-300k-lora", "by eval.lora=served"),
        (EIGHT_B, ""),
    ],
)
def test_a_plan_proposes_one_server_for_all_adapters(name: str, said: str) -> None:
    recipe = load(name).recipe
    served = planning._served(recipe, Arms.of(recipe))
    assert (served is not None) == bool(said)
    if served is not None:
        line = planning._of_served(served)
        assert line.startswith("each of 6 trainings is answered by a server of its own: ")
        assert said in line


def test_a_kind_of_stages_is_one_line_with_the_reason_of_its_own() -> None:
    steps = [
        Step("select/a", "reuse", ""),
        Step("train/a/0", "waits", "depends on tokens"),
        Step("train/a/1", "run", "train.trainer.max_steps: 2 -> 3"),
        Step("train/b/0", "run", "not made yet"),
        Step("train/c/0", "reuse", ""),
        Step("score/a/0", "waits", "depends on heldout"),
    ]
    train, score = groups(steps)
    assert (train.kind, train.runs, train.reused) == ("train", 3, 1)
    assert train.why == "train.trainer.max_steps: 2 -> 3 (and 1 more)"
    assert (score.kind, score.why) == ("score", "depends on heldout")
    assert groups([Step("select/a", "reuse", "")]) == []
