"""What a recipe says to other libraries is judged by them, once for each value and version."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from core.errors import UserError
from recipes import schema
from recipes.checks import libraries, questions
from recipes.checks.answering import ACCEPTED
from recipes.checks.libraries import Library
from recipes.checks.questions import Question
from tests import small_recipe
from tests.test_refused import BASE
from train.config import TrainConfig

JUDGE = libraries.judge
"""As it is where no fixture stands in its place."""


@pytest.fixture
def loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> schema.Loaded:
    monkeypatch.setenv("MAGPIE_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "recipe.yaml"
    path.write_text(BASE)
    return schema.load(path)


def _resolved(model: str, revision: str | None) -> Any:
    return type("Model", (), {"path": "/nowhere"})()


def _asked(loaded: schema.Loaded, *overrides: str) -> list[Question]:
    recipe = schema.load(loaded.source.path, overrides).recipe
    return questions.of_recipe(recipe, _resolved)


def test_every_distinct_value_is_one_question(loaded: schema.Loaded) -> None:
    kinds = [(each.library, each.kind) for each in _asked(loaded)]
    assert kinds.count(("vllm", "engine")) == 1  # teacher, judge and checkpoint are served alike
    assert kinds.count(("trl", "training")) == kinds.count(("lm_eval", "tasks")) == 1
    places = {each.place for each in _asked(loaded) if each.kind == "sampling"}
    assert ("eval", "answers", "sampling") in places and ("eval", "alpaca", "sampling") in places


def test_what_changes_no_answer_asks_nothing_anew(loaded: schema.Loaded) -> None:
    more = ("train.seeds=[7]", "train.grace=9", "synth.rows=99", "name=other", "gpu_hours=3")
    assert _asked(loaded) == _asked(loaded, *more)
    assert _asked(loaded) != _asked(loaded, "train.trainer.max_length=7")


def test_servers_of_others_are_not_asked_about(loaded: schema.Loaded) -> None:
    where = "server.urls=['http://x']"
    blocks = ("synth.teacher", "eval.judge", "eval.answers")
    asked = _asked(loaded, *(f"{block}.{where}" for block in blocks))
    assert {each.library for each in asked} == {"trl", "lm_eval"}


def _judged(
    loaded: schema.Loaded,
    monkeypatch: pytest.MonkeyPatch,
    says: str | None,
    told: Callable[[str], object] = str,
) -> list[int]:
    """How many questions were asked of libraries that all say `says`."""
    asked: list[int] = []

    def answers(open_: list[Question]) -> list[str | None]:
        asked.append(len(open_))
        return [says for _ in open_]

    monkeypatch.setattr(libraries, "answers", answers)
    JUDGE(loaded.recipe, loaded.source, _resolved, told)
    return asked


def test_what_was_accepted_is_not_asked_again_until_a_version_changes(
    loaded: schema.Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = _judged(loaded, monkeypatch, ACCEPTED)
    assert first[0] >= 6 and _judged(loaded, monkeypatch, ACCEPTED) == []
    monkeypatch.setattr(libraries, "_version", lambda names: f"{names[0]} 99")
    assert _judged(loaded, monkeypatch, ACCEPTED) == first


def test_a_check_that_fails_itself_refuses_nothing_is_said_and_made_again(
    loaded: schema.Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    first = _judged(loaded, monkeypatch, None, told.append)
    assert _judged(loaded, monkeypatch, None) == first
    assert told[-1].startswith("not checked, because the check itself failed: server arguments")


def test_a_library_that_is_not_here_is_named_and_not_asked(
    loaded: schema.Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(libraries, "_version", lambda names: "" if names[0] == "vllm" else "1")
    assert _judged(loaded, monkeypatch, ACCEPTED, told.append) == [2]
    assert told[0] == "not installed here, so not checked: server arguments and sampling (vLLM)"
    assert "trainings (TRL), tasks (lm-eval)" in told[1] and "vLLM" not in told[1]


def test_what_was_refused_is_asked_again_and_names_its_place(
    loaded: schema.Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):
        with pytest.raises(UserError, match=r"recipe\.yaml:\d+: no such thing \(and \d+ more like"):
            _judged(loaded, monkeypatch, "no such thing.")


@pytest.mark.process
@pytest.mark.parametrize(
    ("sentence", "said"),
    [
        ("train.trainer.max_length: needs 1 or more (it is -5)", "command line"),
        ("train.trainer: no 'learning_rat' is known", "command line"),
        ("train.trainer.bf16: needs true or false (it is 'maybe')", "r.yaml:7"),
        ("train.trainer: no 'bf17' is known", "r.yaml:6"),
        ("it fails", "r.yaml:6"),
    ],
)
def test_what_is_refused_is_where_it_was_written_itself(sentence: str, said: str) -> None:
    block, told = ("train", "trainer"), ("command line", 1)
    lines = {block: ("r.yaml", 6), (*block, "bf16"): ("r.yaml", 7)}
    lines |= {(*block, "max_length"): told, (*block, "learning_rat"): told}
    source = schema.Source(Path("r.yaml"), lines)
    assert source.where(sentence, block) == said


@pytest.mark.process
def test_libraries_answer_in_processes_of_their_own_and_one_that_fails_says_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here = Library("tests.a_checker", (("pydantic",),), "here", "things")
    broken = Library("tests.no_checker", (("pydantic",),), "broken", "things")
    named = {"here": here, "broken": broken}
    monkeypatch.setattr(libraries, "LIBRARIES", named)
    asked = [
        Question(library, "kind", ("a", "b"), {"value": value})
        for value in (1, 2)
        for library in ("here", "broken")
    ]
    said = libraries.answers(asked)
    assert said == ["a.b: 1 is odd", None, ACCEPTED, None]


SOUND: list[tuple[str, str, dict[str, Any]]] = [
    ("vllm", "engine", {"args": {"max_model_len": 2048, "tensor_parallel_size": 8}, "model": None}),
    ("vllm", "engine", {"args": {"gpu_memory_utilization": 0.9}, "model": None}),
    ("vllm", "sampling", {"api": "completions", "sampling": {"temperature": 1.0, "top_k": 5}}),
    ("vllm", "sampling", {"api": "chat", "sampling": {"max_tokens": 99}}),
    ("trl", "training", {"trainer": {"learning_rate": 1e-5, "lr_scheduler_type": "cosine"}}),
    ("lm_eval", "tasks", {"tasks": ["everyday-science", {"group": "mmlu", "num_fewshot": 5}]}),
    ("lm_eval", "tasks", {"tasks": ["open-llm-leaderboard-v1"], "evaluate": {"limit": 0.1}}),
]
POOR = re.compile(
    r"Value error|Input should|validation error|\[type=|https?://|<function|pydantic|Names\b|\?\.|"
    r"\w+Config\b (has|is)|refused by \w+Config|is no \w+(Type|Names|Strategy)\b"
)
"""What only authors of libraries know."""
WRONG_TASKS: list[tuple[dict[str, Any], str]] = [
    ({"model_args": {"zzz": 1}}, "model 'hf' takes no 'zzz'"),
    ({"model_args": {"max_lenght": 1}, "base": None}, "did you mean 'max_length'?"),
    ({"model_args": {"dtype": "float17"}}, "no number format 'float17'; did you mean 'float16'?"),
    ({"model_args": {"backend": "zzz"}}, "needs one of default, causal, seq2seq (it is 'zzz')"),
    ({"backend": "local-completions", "model_args": {"zzz": 1}}, "takes no 'zzz'"),
    ({"backend": "local-completions", "model_args": {"num_concurrent": "x"}}, "a whole number"),
    ({"evaluate": {"apply_chat_template": 5}}, "needs true or false or a text (it is 5)"),
    ({"evaluate": {"gen_kwargs": 5}}, "gen_kwargs: needs a text or a mapping (it is 5)"),
    ({"evaluate": {"random_seed": "x"}}, "random_seed: needs a whole number (it is 'x')"),
    ({"evaluate": {"fewshot_as_multiturn": "maybe"}}, "needs true or false (it is 'maybe')"),
    ({"evaluate": {"samples": 5}}, "samples: needs a mapping (it is 5)"),
    ({"tasks": [{"task": "boolq", "metric_list": 5}]}, "metric_list: needs a list (it is 5)"),
    ({"tasks": [{"task": "boolq", "output_type": "zzz"}]}, "needs one of loglikelihood, "),
    ({"tasks": [{"task": "boolq", "repeats": -1}]}, "needs a whole number of 1 or more"),
    ({"tasks": [{"task": "boolq", "generation_kwargs": "x"}]}, "needs a mapping (it is 'x')"),
]
SOUND_TASKS: list[dict[str, Any]] = [
    {"model_args": {"dtype": "half", "max_length": 2048, "attn_implementation": "sdpa"}},
    {"model_args": {"load_in_4bit": True, "bnb_4bit_compute_dtype": "bfloat16"}},
    {"model_args": {"a_field_of_its_configuration": 1}, "base": None},
    {"backend": "local-completions", "model_args": {"base_url": "http://x", "timeout": 0.5}},
    {"backend": "local-completions", "model_args": {"tokenizer_backend": None}},
    {"evaluate": {"apply_chat_template": "chatml", "random_seed": None, "device": "cuda:0"}},
    {"evaluate": {"gen_kwargs": {"temperature": 0.5}, "batch_size": "auto:4"}},
    {"tasks": [{"task": "boolq", "doc_to_target": 0, "output_type": "multiple_choice"}]},
    {"tasks": [{"task": "boolq", "metric_list": [{"metric": "acc"}], "repeats": 2}]},
]
WRONG_ENGINES: list[tuple[dict[str, Any], str]] = [
    ({"load_format": "zzz"}, "load_format: there is no 'zzz'; valid names are auto, "),
    ({"tokenizer_mode": "zzz"}, "tokenizer_mode: there is no 'zzz'"),
    (
        {"reasoning_parser": "qwen33"},
        "reasoning_parser: there is no 'qwen33'; did you mean 'qwen3'?",
    ),
    ({"tool_call_parser": "hermess"}, "did you mean 'hermes'?"),
    ({"attention_backend": "zzz"}, "attention_backend: there is no 'zzz'"),
    ({"distributed_executor_backend": "zzz"}, "there is no 'zzz'; valid names are external_"),
    ({"generation_config": "/no/such"}, "the folder /no/such does not exist"),
    ({"generation_config": "vlm"}, "did you mean 'vllm'?"),
    ({"chat_template": "/no/such"}, "chat_template: /no/such does not exist"),
    ({"hf_overrides": 5}, "hf_overrides: needs a mapping (it is 5)"),
    ({"speculative_config": {"methd": 1}}, "unknown key `methd`; did you mean 'method'?"),
    ({"compilation_config": {"zzz": 1}}, "compilation_config: unknown key `zzz`"),
    ({"compilation_config": 3}, "compilation_config: needs a mapping"),
    ({"limit_mm_per_prompt": "x"}, "limit_mm_per_prompt: needs a mapping (it is 'x')"),
    ({"max_model_len": True}, "max_model_len: needs a whole number (or 8k, or auto)"),
]
SOUND_ENGINES: list[dict[str, Any]] = [
    {"load_format": "AUTO", "tokenizer_mode": "mistral", "generation_config": "org/model"},
    {"reasoning_parser": "mine", "reasoning_parser_plugin": "/x.py", "max_model_len": -1},
    {"tool_call_parser": "hermes", "enable_auto_tool_choice": True, "max_model_len": "8k"},
    {"attention_backend": "flashinfer", "distributed_executor_backend": "my.module.Executor"},
    {"attention_backend": "auto", "distributed_executor_backend": "ray", "seed": 5},
    {"chat_template": "{{ messages }}", "hf_overrides": '{"a": 1}', "generation_config": "vllm"},
    {"speculative_config": {"method": "ngram", "num_speculative_tokens": 3}, "dtype": "half"},
    {"compilation_config": {"mode": 3}, "limit_mm_per_prompt": {"image": 1}, "max_logprobs": -1},
]
WRONG: list[tuple[str, str, dict[str, Any], str]] = [
    ("vllm", "engine", {"args": {"max_modle_len": 5}}, "did you mean 'max_model_len'"),
    ("vllm", "engine", {"args": {"max_model_len": -5}}, "max_model_len: needs -1 or more"),
    ("vllm", "engine", {"args": {"max_model_len": "x"}}, "max_model_len: needs a whole number"),
    ("vllm", "engine", {"args": {"gpu_memory_utilization": 1.7}}, "needs 1 or less (it is 1.7)"),
    ("vllm", "engine", {"args": {"enable_prefix_caching": "maybe"}}, "needs true or false"),
    ("vllm", "engine", {"args": {"runner": "polling"}}, "runner: needs one of 'auto'"),
    ("vllm", "engine", {"args": {"quantization": "awk"}}, "did you mean 'awq'"),
    ("vllm", "engine", {"args": {"max_model_len": 99_999}, "model": "here"}, "is greater than"),
    ("vllm", "sampling", {"api": "chat", "sampling": {"logit_bias": "x"}}, "needs a mapping"),
    ("vllm", "sampling", {"sampling": {"repetition_penalty": -1}}, "must be greater than zero"),
    ("trl", "training", {"trainer": {"learning_rat": 1}}, "did you mean 'learning_rate'"),
    ("trl", "training", {"trainer": {"learning_rate": "hot"}}, "needs a number (it is 'hot')"),
    ("lm_eval", "tasks", {"tasks": ["nosuchtask"]}, "lm-eval knows no task 'nosuchtask'"),
    ("lm_eval", "tasks", {"tasks": ["helaswag"]}, "did you mean 'hellaswag'"),
    ("lm_eval", "tasks", {"tasks": [{"task": "boolq", "fewshot": 1}]}, "no setting 'fewshot'"),
    ("lm_eval", "tasks", {"tasks": [], "evaluate": {"limitt": 1}}, "did you mean 'limit'"),
    ("lm_eval", "tasks", {"tasks": [], "evaluate": {"batch_size": "x"}}, "or auto"),
    ("lm_eval", "tasks", {"tasks": [], "backend": "hff"}, "did you mean 'hf'"),
    *(("lm_eval", "tasks", *each) for each in WRONG_TASKS),
    *(("vllm", "engine", {"args": args}, said) for args, said in WRONG_ENGINES),
    ("trl", "training", {"trainer": {"optim": "adamm"}}, "trainer.optim: there is no 'adamm'"),
]


def _question(library: str, kind: str, value: dict[str, Any], model: str) -> Question:
    """A question with what the checker also reads filled in."""
    if library == "trl":
        config = TrainConfig(base=model, chat_template_path="chatml", trainer=value["trainer"])
        value = {"block": "train", "config": config.model_dump(mode="json")}
    elif library == "lm_eval":
        value = {"tasks": [], "backend": None, "evaluate": {}, "base": model, **value}
    else:
        value = {"api": "completions", "model": None, **value}
        value["model"] = model if value["model"] else None
    return Question(library, kind, ("place",), value)


@pytest.mark.slow
def test_vllm_trl_and_lm_eval_judge_what_is_theirs(tmp_path: Path) -> None:
    model = str(small_recipe.model(tmp_path / "model"))
    sound = [*SOUND, *(("lm_eval", "tasks", each) for each in SOUND_TASKS)]
    sound += [("vllm", "engine", {"args": each}) for each in SOUND_ENGINES]
    asked = [*sound, *(case[:3] for case in WRONG)]
    said = libraries.answers([_question(*case, model) for case in asked])
    assert said[: len(sound)] == [ACCEPTED] * len(sound)
    wrong = [*zip(WRONG, said[len(sound) :], strict=True)]
    assert [(case, told) for case, told in wrong if case[3] not in (told or "")] == []
    assert [told for told in said if told and POOR.search(told)] == []


def test_a_sampling_parameter_on_the_command_line_is_refused_there() -> None:
    block = ("eval", "answers", "sampling")
    source = schema.Source(
        Path("r.yaml"), {block: ("r.yaml", 6), (*block, "zzz"): ("command line", 1)}
    )
    sentence = "eval.answers.sampling: vLLM knows no sampling parameter 'zzz'."
    assert str(source.sentence(UserError(sentence))) == f"command line: {sentence}"
