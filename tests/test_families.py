"""Model families: names find their data, `tested` claims no more than the tests hold, and `magpie
template` says all of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from core.errors import UserError
from core.models import Model, resolve
from synth.chat.describe import described
from synth.chat.families import _data, family_of, system_prompt_of, thinking_style
from synth.config.synthesis import SynthConfig
from synth.context import Context
from synth.generate import turns
from synth.pool.columns import PoolColumns

RECORDED = {
    f["family"]: f
    for f in json.loads((Path(__file__).parent / "data" / "magpie_families.json").read_text())
}

MODELS = {
    "meta-llama/Llama-2-7b-chat-hf": "Llama-2",
    "meta-llama/Meta-Llama-3-8B-Instruct": "Llama-3",
    "meta-llama/Meta-Llama-3-70B-Instruct": "Llama-3",
    "meta-llama/Meta-Llama-3.1-8B-Instruct": "Llama-3.1",
    "meta-llama/Llama-3.1-405B-Instruct": "Llama-3.1",
    "meta-llama/Llama-3.2-3B-Instruct": "Llama-3.2",
    "meta-llama/Llama-3.3-70B-Instruct": "Llama-3.3",
    "Qwen/Qwen1.5-7B-Chat": "Qwen1.5",
    "Qwen/Qwen2-72B-Instruct": "Qwen2",
    "Qwen/Qwen2-Math-7B-Instruct": "Qwen2-Math",
    "Qwen/Qwen2.5-3B-Instruct": "Qwen2.5",
    "Qwen/Qwen2.5-Coder-32B-Instruct": "Qwen2.5-Coder",
    "Qwen/Qwen2.5-Math-72B-Instruct": "Qwen2.5-Math",
    "Qwen/Qwen3-8B": "Qwen3",
    "google/gemma-1.1-7b-it": "Gemma-1.1",
    "google/gemma-2-27b-it": "Gemma-2",
    "google/gemma-2-9b-it": "Gemma-2",
    "google/gemma-2b-it": "Gemma-1.1",
    "google/gemma-3-4b-it": "Gemma-3",
    "microsoft/Phi-3-mini-128k-instruct": "Phi-3",
    "microsoft/Phi-3-medium-128k-instruct": "Phi-3",
    "microsoft/Phi-3-small-128k-instruct": "Phi-3-small",
    "microsoft/Phi-3.5-mini-instruct": "Phi-3.5",
    "mistralai/Mistral-7B-Instruct-v0.3": "Mistral-7B",
    "lmsys/vicuna-7b-v1.5": "Vicuna-1.5",
    "NousResearch/Nous-Hermes-llama-2-7b": "Nous-Hermes-Llama-2",
    "01-ai/Yi-1.5-34B-Chat": "Yi-1.5",
    "deepseek-ai/DeepSeek-Coder-V2-Lite-Instruct": "DeepSeek-Coder-V2",
    "deepseek-ai/DeepSeek-R1-Distill-Llama-8B": "DeepSeek-R1",
    "openai/gpt-oss-20b": "gpt-oss",
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": "SmolLM2",
    "embedded/SmolLM2-135M-Instruct": "SmolLM2",
    "HuggingFaceTB/SmolLM3-3B": "SmolLM3",
}


@pytest.mark.parametrize(("model", "name"), MODELS.items())
def test_a_models_name_finds_its_family(model: str, name: str) -> None:
    found = family_of(model)
    assert found is not None and found.name == name


def test_every_family_is_reached_by_some_model_and_only_in_its_turn() -> None:
    assert {f.name for f in _data()[0]} == {*MODELS.values(), "DeepSeek-V3"}


def test_an_unknown_model_has_no_family() -> None:
    assert family_of("/data/my-own-model") is None


def test_a_folder_is_known_by_its_own_name_and_not_by_the_folders_it_lies_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def name(model: str) -> str | None:
        found = family_of(model)
        return found.name if found else None

    folder = tmp_path / "vicuna-exp" / "m"
    folder.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert [
        name(m)
        for m in (
            "./vicuna-exp/m",
            "vicuna-exp/m",
            str(folder),
            "/data/vicuna-exp/absent",
            "~/vicuna/m/",
        )
    ] == [None] * 5
    assert system_prompt_of("./vicuna-exp/m", None) is None
    assert name("/data/vicuna-exp/SmolLM2-135M-Instruct/") == "SmolLM2"
    assert name("/hub/models--Qwen--Qwen2.5-7B-Instruct/snapshots/0a1b") == "Qwen2.5"
    (tmp_path / "Qwen2.5-7B-Instruct").mkdir()
    monkeypatch.chdir("Qwen2.5-7B-Instruct")
    assert name(".") == "Qwen2.5"


def test_recorded_means_that_a_string_of_the_original_is_in_the_tests() -> None:
    names = {
        "Vicuna-1.5": "vicuna-7b-v1.5",
        "Nous-Hermes-Llama-2": "Nous-Hermes-llama-2-7b",
        "Mistral-7B": "Mistral-7B-v0.3",
    }
    for found in _data()[0]:
        recorded = RECORDED.get(names.get(found.name, found.name), {})
        assert ("original_text" in recorded) == (
            found.tested == "recorded string of the original"
        ) or found.tested == "golden token ids", found.name
    golden = {f.name for f in _data()[0] if f.tested == "golden token ids"}
    assert golden == {"SmolLM2", "Gemma-3", "Mistral-7B", "Llama-3", "Llama-3.1", "Qwen3"}, (
        "those whose real tokenizers test_templates.py and test_golden_ids.py load"
    )


def test_a_default_system_prompt_stays_where_the_family_needs_it() -> None:
    assert system_prompt_of("Qwen/Qwen2.5-7B-Instruct", None) == "default"
    assert system_prompt_of("Qwen/Qwen2.5-7B-Instruct", "") == ""
    assert system_prompt_of("Qwen/Qwen2.5-7B-Instruct", "Be brief.") == "Be brief."
    assert system_prompt_of("meta-llama/Meta-Llama-3-8B-Instruct", None) is None


@pytest.mark.parametrize(
    ("model", "rules"),
    [("meta-llama/Llama-3.3-70B-Instruct", "llama-3"), ("google/gemma-2-9b-it", "gemma")],
)
def test_advice_to_sanitize_is_a_setting_that_a_recipe_takes(model: str, rules: str) -> None:
    found = family_of(model)
    assert found is not None and f"`synth.sanitize: {rules}`" in (found.advice or "")
    assert (
        SynthConfig.model_validate({"teacher": {"model": model}, "sanitize": rules}).sanitize
        == rules
    )


def test_thinking_is_recognised_by_the_vocabulary_or_the_template() -> None:
    assert thinking_style({"<think>", "</think>", "a"}, None) is not None
    assert thinking_style({"a"}, "{{ '<think>' }}{{ x.split('</think>') }}") is not None
    assert thinking_style({"<think>"}, "{{ '[INST]' }}") is None


def test_the_embedded_teacher_is_described_whole() -> None:
    shown = described("embedded/SmolLM2-135M-Instruct")
    assert (shown["text"], shown["token_ids"], shown["stop_token_ids"]) == (
        "<|im_start|>user\n",
        [1, 4093, 198],
        [0, 1, 2],
    )
    assert (shown["family"], shown["tested"], shown["source"]) == (
        "SmolLM2",
        "golden token ids",
        "the tokenizer's chat template",
    )
    assert (
        shown["system_prompt_is"] == "left out"
        and shown["overridden"] == []
        and "thinking" not in shown
    )
    assert described("embedded/SmolLM2-135M-Instruct", "Be brief.")["system_prompt_is"] == "given"
    json.dumps(shown)


def test_a_chat_template_of_ones_own_is_described_as_overridden_and_a_renamed_model_as_untested(
    tmp_path: Path,
) -> None:
    own = tmp_path / "own.jinja"
    own.write_text(
        "{% for m in messages %}<|im_start|>{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant: <think>{% endif %}{# </think> #}"
    )
    folder = tmp_path / "my-own-model"
    folder.symlink_to(resolve("embedded/SmolLM2-135M-Instruct").path)
    with pytest.raises(UserError, match="does not exist"):
        described(str(folder), chat_template=str(tmp_path / "absent.jinja"))
    shown = described(str(folder), chat_template=str(own))
    assert shown["text"] == "<|im_start|>user: " and shown["overridden"] == ["chat_template"]
    assert (shown["family"], shown["tested"]) == (None, "against nothing real")
    assert shown["thinking"] == {
        "open": "<think>",
        "close": "</think>",
        "opened_by_the_prompt": True,
    }


def test_tested_speaks_of_the_models_own_template_with_its_familys_system_prompt_only(
    tmp_path: Path,
) -> None:
    teacher, own = "embedded/SmolLM2-135M-Instruct", tmp_path / "own.jinja"
    own.write_text(
        "{% for m in messages %}<|im_start|>{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}"
    )
    assert described(teacher, "")["tested"] == "golden token ids", (
        "left out, as the family's recipes leave it"
    )
    assert described(teacher, chat_template=str(own))["tested"] == "against nothing real"
    assert described(teacher, "Be brief.")["tested"] == "against nothing real"


def test_a_chat_template_file_that_is_no_valid_jinja_is_named_with_its_line(tmp_path: Path) -> None:
    own = tmp_path / "own.jinja"
    own.write_text("{# one #}\n{% for m in messages %}\n{{ m.content }\n{% endfor %}")
    with pytest.raises(
        UserError, match=r"own\.jinja, line 3: this chat template is no valid Jinja: unexpected '}'"
    ):
        described("embedded/SmolLM2-135M-Instruct", chat_template=str(own))


@pytest.mark.parametrize(
    ("teacher", "moved"), [("lmsys/vicuna-7b-v1.5", True), ("Qwen/Qwen2-7B-Instruct", False)]
)
def test_only_a_family_with_plain_headers_has_its_stop_strings_in_its_keys(
    tmp_path: Path, teacher: str, moved: bool
) -> None:
    context = Context(tmp_path, lambda name, _: Model(name, name, "r1"))
    config = SynthConfig(teacher={"model": teacher}, turns=2)
    drawn, talks = PoolColumns(config, context).determines["instruction"], turns.cell
    assert ("stop_strings" in drawn) == moved
    assert ("stop_strings" in (talks(config, context) or {})) == moved
