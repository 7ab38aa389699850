"""Several answers a prompt, and judges that share the items."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import core.sending.client
from core.servers import Servers
from core.tracking import Log
from eval.checkpoint import answers
from eval.config import EvalConfig
from eval.judging import pairwise, settle, several_judges
from eval.prompt_sets import samples
from eval.protocols import AnswersConfig
from eval.scoring import items, of_checkpoint
from tests.eval_files import CHATML, answers_folder, chat_logprobs, judge, prompt_file, shown
from tests.scripted_server import ScriptedServer, completion
from tests.test_tasks import bare_model

K3 = {"sampling": {"temperature": 1.0, "max_tokens": 8, "seed": 7}, "answers_per_prompt": 3}


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core.sending.client, "BACKOFF", (0.01, 0.05))


def protocols(url: str, **settings: Any) -> Any:
    block = {"judge": judge(url), "answers": K3} | settings
    return EvalConfig.model_validate({"alpaca": block}).protocols("alpaca")


def judged(protocol: Any, inputs: dict[str, Path], folder: Path, name: str) -> pl.DataFrame:
    with Servers(Log(), folder / "logs") as servers:
        pairwise.run(protocol, inputs, folder / "store", folder / name, servers=servers, log=Log())
    return pl.read_parquet(folder / name / "judgments.parquet")


def three(folder: Path, count: int) -> dict[str, Path]:
    """`count` prompts, three answers of the model to each, one of the baseline."""
    names = [name for i in range(count) for name in samples.names(f"p{i}", 3)]
    return {
        "prompts": prompt_file(folder, count),
        "answers": answers_folder(folder / "answers", {name: f"Mine to {name}." for name in names}),
        "baseline": answers_folder(
            folder / "baseline", {f"p{i}": f"Base to p{i}." for i in range(count)}
        ),
    }


def test_an_answers_name_says_its_prompt_and_number_and_the_first_has_the_prompts_own() -> None:
    assert samples.names("a#answer-x", 3) == [
        "a#answer-x",
        "a#answer-x#answer-2",
        "a#answer-x#answer-3",
    ]
    named = samples.names("p", 12)[11]
    assert (samples.prompt_of(named), samples.number(named), samples.number("p")) == ("p", 11, 0)
    frame = pl.DataFrame({"item": ["p", named, "a#answer-x"]})
    assert frame.select(samples.prompts_of("item"))["item"].to_list() == ["p", "p", "a#answer-x"]


def test_each_answer_is_drawn_with_a_seed_of_its_own(tmp_path: Path) -> None:
    model = bare_model(tmp_path / "model")
    words = answers.models.tokenizer(str(model))
    words.chat_template = CHATML
    words.save_pretrained(model)
    with ScriptedServer(lambda path, body: completion(f"seed {body['seed']}")) as server:
        config = AnswersConfig(**K3, server={"urls": [server.url], "timeout": 5})
        with Servers(Log(), tmp_path / "logs") as servers:
            counts = answers.run(
                config,
                {"prompts": prompt_file(tmp_path, 2)},
                tmp_path,
                model=str(model),
                servers=servers,
                log=Log(),
            )
    rows = pl.read_parquet(tmp_path / "answers.parquet")
    assert rows["id"].to_list() == samples.names("p0", 3) + samples.names("p1", 3)
    assert rows["answer"].to_list() == ["seed 7", "seed 8", "seed 9"] * 2 and counts["rows"] == 6
    assert rows["prompt"].n_unique() == 2


def test_greedy_answers_cannot_be_several_and_mtbench_takes_one() -> None:
    with pytest.raises(ValueError, match=r"needs a `sampling.temperature` above 0"):
        AnswersConfig(answers_per_prompt=2)
    where = {"model": "m", "server": {"urls": ["http://127.0.0.1:1"]}}
    with pytest.raises(ValueError, match="MT-Bench takes one answer a question"):
        EvalConfig.model_validate({"answers": K3, "judge": where, "mtbench": {}})


def test_checks_refuse_several_answers_of_which_they_would_score_the_first() -> None:
    with pytest.raises(ValueError, match="`checks` scores one answer a prompt: give `checks`"):
        EvalConfig.model_validate({"answers": K3, "checks": {}})
    with pytest.raises(ValueError, match="`checks` scores one answer a prompt"):
        EvalConfig.model_validate({"checks": {"answers": K3}})
    assert EvalConfig.model_validate({"answers": K3, "checks": {"answers": {}}}).checks


def test_every_answer_is_judged_in_turns_of_order_and_a_prompts_are_one_cluster(
    tmp_path: Path,
) -> None:
    with ScriptedServer(
        lambda path, body: chat_logprobs(
            {"m": 0.9, "M": 0.1} if "p1" in shown(body) else {"M": 1.0}
        )
    ) as server:
        (protocol,) = protocols(server.url)
        frame = judged(protocol, three(tmp_path, 4), tmp_path, "out")
    assert frame["item"].to_list() == [n for i in range(4) for n in samples.names(f"p{i}", 3)]
    orders = frame["order"].to_list()
    for first, second, third in zip(orders[::3], orders[1::3], orders[2::3], strict=True):
        assert first == third != second
    of_checkpoint.run({"judgments-alpaca": tmp_path / "out"}, tmp_path / "scores")
    rows = pl.read_parquet(tmp_path / "scores" / "scores.parquet")
    assert rows["item"].to_list() == rows["cluster"].to_list() == [f"p{i}" for i in range(4)]
    assert rows["answers"].to_list() == [3] * 4
    alone = frame.group_by("item", maintain_order=True).agg(pl.col("preference").mean())
    drawn = 100 * alone["preference"].to_numpy().reshape(4, 3)
    assert rows["value"].to_numpy() == pytest.approx(drawn.mean(axis=1))
    assert rows["answer_variance"].to_numpy() == pytest.approx(drawn.var(axis=1, ddof=1))
    figure = json.loads((tmp_path / "scores" / "summary.json").read_text())["alpaca"]["win_rate"]
    assert figure["n"] == 4 and figure["value"] == pytest.approx(drawn.mean())
    assert figure["standard_error"] == pytest.approx(drawn.mean(axis=1).std(ddof=1) / 2)
    assert set(figure["components"]) == {"answers", "prompts"}


def test_the_components_are_those_that_made_the_values() -> None:
    rng = np.random.default_rng(1)
    prompts = rng.normal(50, 3, 3000)
    values = prompts[:, None] + rng.normal(0, 5, (3000, 4))
    rows = pl.DataFrame(
        {
            "value": values.mean(axis=1),
            "answers": [4] * 3000,
            "answer_variance": values.var(axis=1, ddof=1),
        }
    )
    found = items.answer_noise(rows)
    assert found["answers"] == pytest.approx(25, rel=0.05)
    assert found["prompts"] == pytest.approx(9, rel=0.1)
    assert items.answer_noise(rows.head(1)) == {"answers": None, "prompts": None}


def test_judges_that_share_judge_each_item_once_alike_for_all_arms(tmp_path: Path) -> None:
    inputs = three(tmp_path, 5)
    with ScriptedServer(lambda path, body: chat_logprobs({"m": 1.0})) as server:
        both = protocols(
            server.url,
            judge=None,
            judges=[judge(server.url), judge(server.url, revision="other")],
            judges_share=True,
        )
        assert [p.share for p in both] == [(0, 2), (1, 2)]
        folders = {}
        for number, protocol in enumerate(both):
            judged(protocol, inputs, tmp_path, f"judge-{number}")
            folders[f"judge-{number}"] = tmp_path / f"judge-{number}"
        counts = several_judges.combine(folders, tmp_path / "all")
        asked = len(server.requests)
    games = pl.read_parquet(tmp_path / "all" / "judgments.parquet")
    assert asked == 15 and sorted(games["item"]) == sorted(
        name for i in range(5) for name in samples.names(f"p{i}", 3)
    )
    for item, who in games.select("item", "judge").iter_rows():
        place = int(samples.prompt_of(item)[1:]) + samples.number(item)
        assert who == f"judge-{place % 2}", item
    assert (counts["judged"], counts["partly_judged"], counts["agreement_pairs"]) == (15, 0, 0)
    bills = [settle.estimate(protocol, [40] * 5) for protocol in both]
    assert [bill and bill.calls for bill in bills] == [9, 6]
    with pytest.raises(ValueError, match="`judges_share` needs `judges`"):
        protocols(server.url, judges_share=True)


def test_sharing_is_no_part_of_a_judgments_identity() -> None:
    alone = protocols("http://127.0.0.1:1")[0]
    shared = alone.model_copy(update={"share": (0, 2), "judges_share": True})
    assert settle.determines(alone.judge, alone) == settle.determines(shared.judge, shared)


def test_a_prompt_without_one_of_its_answers_has_the_mean_of_the_others_and_says_so(
    tmp_path: Path,
) -> None:
    inputs = three(tmp_path, 2)
    names = samples.names("p0", 3) + samples.names("p1", 3)
    said: dict[str, str | None] = {name: f"Mine to {name}." for name in names}
    answers_folder(tmp_path / "answers", said | {names[1]: None} | dict.fromkeys(names[3:]))
    with ScriptedServer(lambda path, body: chat_logprobs({"m": 1.0})) as server:
        judged(protocols(server.url)[0], inputs, tmp_path, "out")
    of_checkpoint.run({"judgments-alpaca": tmp_path / "out"}, tmp_path / "scores")
    rows = pl.read_parquet(tmp_path / "scores" / "scores.parquet")
    assert rows.select("item", "status", "answers").rows() == [
        ("p0", "ok", 2),
        ("p1", "unjudged", None),
    ]
    assert rows["reason"][0] == "1 of 3 answers have no value"
    assert rows["reason"][1].startswith("the model has no answer")


def test_what_judges_of_one_answer_vary_by_stands_beside_its_value(tmp_path: Path) -> None:
    inputs = three(tmp_path, 3)
    with ScriptedServer(
        lambda path, body: chat_logprobs(
            {"m": 0.9, "M": 0.1} if body["max_tokens"] == 1 else {"M": 1.0}
        )
    ) as server:
        one = protocols(server.url, answers=None)[0]
        other = protocols(server.url, answers=None, sampling={"max_tokens": 2})[0]
        for number, protocol in enumerate((one, other)):
            judged(protocol, inputs, tmp_path, f"judge-{number}")
    folders = {f"judge-{number}": tmp_path / f"judge-{number}" for number in range(2)}
    several_judges.combine(folders, tmp_path / "all")
    games = pl.read_parquet(tmp_path / "all" / "judgments.parquet")
    of_checkpoint.run({"judgments-alpaca": tmp_path / "all"}, tmp_path / "scores")
    rows = pl.read_parquet(tmp_path / "scores" / "scores.parquet")
    each = games.sort("judge").group_by("item", maintain_order=True).agg("preference")
    expected = [1e4 * np.var(own, ddof=1) for own in each["preference"].to_list()]
    assert rows["judge_variance"].to_list() == pytest.approx(expected)
    assert rows["judges"].to_list() == [2, 2, 2] and rows["answers"].null_count() == 3
    assert max(expected) > 1000
