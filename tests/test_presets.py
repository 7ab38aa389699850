"""Judges by name, official judge prompts from the user's copies, and what is published."""

from __future__ import annotations

import os
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from core.errors import UserError
from core.files import file_digest
from eval.config import EvalConfig
from eval.judging import settle, templates
from eval.judging.official import prompts as official_prompts
from eval.judging.official import protocols as published
from eval.presets import judges
from eval.protocols import PAIRWISE, RATED, AlpacaProtocol, AnswersConfig, JudgeConfig
from recipes import schema
from recipes.report.sections.judges import asked_by
from tests import tiny
from tests.eval_files import CHATML, alpaca, duel
from tests.scripted_server import ScriptedServer
from tests.test_judges import _run as run

SHARED = Path(os.environ.get("MAGPIE_SHARED", Path(__file__).parents[2] / "shared")) / "data/eval"
needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason=f"the stored prompt is not at {SHARED}")


def recipe(**settings: Any) -> EvalConfig:
    return EvalConfig.model_validate({"alpaca": {}} | settings)


@pytest.mark.parametrize("name", judges.presets())
def test_every_preset_is_a_valid_judge_of_every_benchmark_and_still_lives(name: str) -> None:
    config = recipe(judge=f"preset:{name}", arena={}, wildbench={}, mtbench={})
    known = judges.preset(name)
    assert config.judge is not None and config.judge.model == known["judge"]["model"]
    assert known["sources"] and "model" not in known["judge"]["server"]
    for benchmark in ("alpaca", "arena"):
        assert config.protocol(benchmark).sampling == known[benchmark]["sampling"]
    for rated in ("wildbench", "mtbench"):
        assert config.rating(rated).sampling == known[rated]["sampling"]
    assert date.fromisoformat(known.get("until", "9999-01-01")) > date(2026, 11, 30)


def test_one_preset_is_hosted_with_prices_and_two_are_open_weights_without() -> None:
    hosted = [k for k in judges.presets().values() if "urls" in k["judge"]["server"]]
    weights = [k for k in judges.presets().values() if "urls" not in k["judge"]["server"]]
    assert hosted and all("prices" in k["judge"] for k in hosted)
    assert len(weights) == 2 and not any("prices" in k["judge"] for k in weights)


def test_what_a_recipe_says_itself_replaces_a_presets_setting() -> None:
    said = {"preset": "gpt-5.4", "budget": 5, "prices": {"input": 1, "output": 1}}
    config = recipe(judge=said, alpaca={"sampling": {"max_tokens": 3}, "order": "both"})
    protocol = config.protocol("alpaca")
    assert protocol.judge.budget == 5 and protocol.judge.prices.input == 1
    assert protocol.judge.model == judges.preset("gpt-5.4")["judge"]["model"]
    assert protocol.sampling == {"max_tokens": 3} and protocol.order == "both"
    two = recipe(alpaca={"judges": ["preset:qwen3-32b", "preset:gpt-4.1"]})
    assert [p.sampling["max_tokens"] for p in two.protocols("alpaca")] == [1, 1]
    assert [p.judge.preset for p in two.protocols("alpaca")] == ["qwen3-32b", "gpt-4.1"]
    with pytest.raises(ValueError, match=r"'gpt-5' is no preset of a judge.*did you mean"):
        recipe(judge="preset:gpt-5")


def test_the_chat_templates_arguments_are_the_judges_own_and_part_of_its_identity(
    tmp_path: Path,
) -> None:
    words = tiny.tokenizer()
    words.chat_template = CHATML + "{% if quiet %}<|im_end|>{% endif %}"
    shape = templates.Template("", (("user", "hello"),))
    loud = templates.token_ids(words, shape, {})
    assert templates.token_ids(words, shape, {}, template_kwargs={"quiet": True})[:-1] == loud
    nested = {"quiet": {"in": ["all", "turns"]}}
    assert templates.token_ids(words, shape, {}, template_kwargs=nested)[:-1] == loud
    asked = {}
    with ScriptedServer(lambda path, body: asked.update(body) or {}) as server:
        protocol = alpaca(server.url, {"chat_template_kwargs": {"enable_thinking": False}})
        with pytest.raises(UserError):
            run(protocol, duel(tmp_path, 1), tmp_path)
        plain = settle.determines(alpaca(server.url).judge, alpaca(server.url))
    assert asked["chat_template_kwargs"] == {"enable_thinking": False}
    determines = settle.determines(protocol.judge, protocol)
    assert determines.pop("chat_template_kwargs") == {"enable_thinking": False}
    assert determines == plain


@needs_data
def test_the_official_prompt_of_alpaca_eval_comes_from_the_users_copy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(official_prompts, "find_spec", lambda name: None)
    monkeypatch.delenv(official_prompts.VARIABLE, raising=False)
    with pytest.raises(UserError, match="set MAGPIE_OFFICIAL to your copy of alpaca_eval"):
        templates.template("alpaca_eval")
    monkeypatch.setenv(official_prompts.VARIABLE, f"{tmp_path}{os.pathsep}{SHARED / 'alpaca_eval'}")
    shape = templates.template("alpaca_eval", ("m", "M"))
    assert [role for role, _ in shape.messages] == ["system", "user"]
    stored = SHARED / "alpaca_eval" / "judge_prompt_alpaca_eval_clf.txt"
    assert shape.text == stored.read_text()


def test_arena_hards_prompts_come_from_its_files_and_nothing_of_them_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shown = "Q: {%s}\\nA: {%s}\\nB: {%s}"
    (tmp_path / "config").mkdir()
    (tmp_path / "utils").mkdir()
    old = shown % ("question_1", "answer_1", "answer_2")
    (tmp_path / "config" / "judge_config.yaml").write_text(
        f'system_prompt: "Judge old."\nprompt_template: ["{old}"]\n'
    )
    new = shown % ("QUESTION", "ANSWER_A", "ANSWER_B")
    (tmp_path / "config" / "arena-hard-v2.0.yaml").write_text(f'prompt_template: "{new}"\n')
    (tmp_path / "utils" / "judge_utils.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w')\n"
        'HARD = "Judge hard."\n'
        'JUDGE_SETTINGS = {"hard_prompt": {"baseline": "b", "system_prompt": HARD},\n'
        '  "creative_writing": {"system_prompt": "Judge art."}}\n'
    )
    monkeypatch.setenv(official_prompts.VARIABLE, str(tmp_path))
    systems = {}
    for name in ("arena-hard-v0.1", "arena-hard-v2.0", "arena-hard-v2.0-creative"):
        shape = templates.template(name)
        systems[name] = shape.messages[0][1]
        filled = templates.messages(
            shape, {"instruction": "why", "output_1": "one", "output_2": "two {answer_1}"}
        )
        assert filled[1]["content"] == "Q: why\nA: one\nB: two {answer_1}", name
    assert list(systems.values()) == ["Judge old.", "Judge hard.", "Judge art."]
    assert not (tmp_path / "ran").exists()


AS_PUBLISHED = {"temperature": 1, "max_tokens": 1, "top_logprobs": 5}


def published_alpaca(answers: dict[str, Any] | None = None, **settings: Any) -> AlpacaProtocol:
    said = {"prompts": "alpaca_eval", "baseline": "hub", "prompt": "alpaca_eval"}
    judge = JudgeConfig(model="gpt-4-1106-preview", server={"urls": ["http://127.0.0.1:1"]})
    said |= {"sampling": AS_PUBLISHED, "judge": judge} | settings
    return AlpacaProtocol(answers=AnswersConfig(**answers or {}), **said)


def test_a_recipe_says_which_published_protocol_it_is_or_that_it_is_none() -> None:
    assert published.sentence(published_alpaca()) == "alpaca is AlpacaEval 2 as published"
    other = published.sentence(published_alpaca(prompt="alpaca", order="both"), 48)
    assert other.startswith("alpaca is no published protocol")
    for said in ("prompt alpaca (alpaca_eval)", "order both (random)", "limit 48 (none)"):
        assert said in other
    config = recipe(judge="preset:gpt-4.1", arena={"prompts": "arena-hard-v2.0"})
    lines = asked_by(config)
    assert "gpt-4.1-2025-04-14 (gpt-4-1106-preview)" in lines[0] and "Arena-Hard v2.0" in lines[1]
    of_arena = lines[1].partition("it has")[2]
    assert "judge" not in of_arena, "a snapshot of the published judge"
    assert "sampling" not in of_arena, "the preset's is the published one"
    assert "is not measured" in lines[-1] and "2027-01-14" in lines[-1]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"sampling": AS_PUBLISHED | {"temperature": 1.5}}, "sampling.temperature 1.5 (1)"),
        ({"sampling": AS_PUBLISHED | {"logit_bias": {}}}, "sampling.logit_bias {} (none)"),
        ({"sampling": {"temperature": 1, "max_tokens": 1}}, "sampling.top_logprobs none (5)"),
        ({"share": (0, 3)}, "share (0, 3) (none)"),
        ({"answers": {"system": "Be brief."}}, "system Be brief. (none)"),
        (
            {"answers": {"answers_per_prompt": 2, "sampling": {"temperature": 1}}},
            "answers_per_prompt 2 (1)",
        ),
        ({"judge": {"model": "gpt-4-1106-preview-mini"}}, "judge gpt-4-1106-preview-mini (gpt-4"),
    ],
)
def test_one_setting_of_ones_own_is_no_published_protocol(
    settings: dict[str, Any], said: str
) -> None:
    sentence = published.sentence(published_alpaca(**settings))
    assert sentence.startswith("alpaca is no published protocol") and said in sentence


def test_a_small_model_of_the_published_judges_name_is_another_judge() -> None:
    url = {"urls": ["http://127.0.0.1:1"]}
    of_arena = {"prompts": "arena-hard-v2.0", "version": "v2.0"}
    for model, same in (("gpt-4.1", True), ("gpt-4.1-2025-04-14", True), ("gpt-4.1-mini", False)):
        judge = {"model": model, "server": url}
        config = EvalConfig.model_validate({"judge": judge, "arena": of_arena})
        assert ("judge" not in asked_by(config)[0].partition("it has")[2]) is same, model


def test_a_mean_over_judges_is_no_published_figure() -> None:
    assert published.sentence(published_alpaca(), None, 2).endswith("it has 2 judges (one)")


@needs_data
def test_wildbench_is_published_with_its_own_prompt_alone() -> None:
    said = {"judge": {"model": "gpt-4o-2024-05-13"}, "wildbench": {}}
    (line,) = asked_by(EvalConfig.model_validate(said))
    assert line.endswith("it has prompt wildbench (eval_template.score.v2.md)")
    said["wildbench"] = {"prompt": str(SHARED / "wildbench" / "eval_template.score.v2.md")}
    assert asked_by(EvalConfig.model_validate(said)) == [
        "wildbench is WildBench v2 (WB-Score) as published"
    ]


def test_every_judged_block_says_which_published_protocol_it_is_or_that_it_is_none() -> None:
    said: dict[str, Any] = {"judge": {"model": "gpt-4o-2024-05-13"}}
    blocks = {name: {} for name in (*PAIRWISE, *RATED)}
    blocks["wildbench"] = {"references": {"haiku": "haiku.json"}}
    lines = asked_by(EvalConfig.model_validate(said | blocks))
    figures = [*PAIRWISE, *RATED, published.REWARD]
    assert sorted(line.partition(" is ")[0] for line in lines) == sorted(figures)
    assert all("is no published protocol" in line for line in lines)


def test_the_second_figure_of_wildbench_has_a_judge_and_rivals_of_its_own(tmp_path: Path) -> None:
    rivals = ("gpt-4-turbo-2024-04-09", "claude-3-haiku-20240307", "Llama-2-70b-chat-hf")
    block = {"references": dict.fromkeys(rivals, "x.json"), "margin": 500}
    said = {"judge": {"model": "gpt-4-turbo-2024-04-09"}, "wildbench": block}
    of_score, of_reward = asked_by(EvalConfig.model_validate(said))
    assert "judge gpt-4-turbo-2024-04-09 (gpt-4o-2024-05-13)" in of_score
    assert of_reward.endswith(
        "it has reward_prompt wildbench-reward (eval_template.pairwise.v2.md)"
    )
    assert "WB-Reward, margin 500" in of_reward


@needs_data
def test_the_published_template_of_wb_reward_is_known_by_its_text() -> None:
    path = SHARED / "wildbench" / published.WILDBENCH_REWARD
    assert file_digest(path) == published.WILDBENCHS[published.WILDBENCH_REWARD]


def test_the_shipped_recipes_name_no_judge_that_is_gone() -> None:
    for path in schema.shipped():
        loaded = schema.load(str(path)).recipe
        for protocol in (
            loaded.eval.protocols("alpaca") if loaded.eval and loaded.eval.alpaca else ()
        ):
            assert protocol.judge.model != "gpt-4-1106-preview", path
