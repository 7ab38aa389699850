"""Shapes of bases from their configurations alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from core.errors import UserError
from train.sizes import bases
from train.sizes.shapes import Shape, counted, shape_of

# Weights as the model cards and the safetensors indices on the hub count them.
PUBLISHED = {
    "meta-llama/Meta-Llama-3-8B": 8_030_261_248,
    "meta-llama/Llama-3.1-70B": 70_553_706_496,
    "meta-llama/Llama-3.2-1B": 1_235_814_400,
    "meta-llama/Llama-3.2-3B": 3_212_749_824,
    "Qwen/Qwen2.5-0.5B": 494_032_768,
    "Qwen/Qwen2.5-1.5B": 1_543_714_304,
    "Qwen/Qwen2.5-3B": 3_085_938_688,
    "Qwen/Qwen2.5-7B": 7_615_616_512,
    "Qwen/Qwen2.5-14B": 14_770_033_664,
    "Qwen/Qwen2.5-32B": 32_763_876_352,
    "Qwen/Qwen2.5-72B": 72_706_203_648,
    "Qwen/Qwen3-0.6B": 596_049_920,
    "Qwen/Qwen3-4B": 4_022_468_096,
    "Qwen/Qwen3-8B": 8_190_735_360,
    "Qwen/Qwen3-14B": 14_768_307_200,
    "Qwen/Qwen3-32B": 32_762_123_264,
    "mistralai/Mistral-7B-v0.1": 7_241_732_096,
    "mistralai/Mistral-7B-v0.3": 7_248_023_552,
    "mistralai/Mistral-Nemo-Base-2407": 12_247_782_400,
    "mistralai/Mistral-Small-24B-Base-2501": 23_572_403_200,
    "google/gemma-2-2b": 2_614_341_888,
    "google/gemma-2-9b": 9_241_705_984,
    "google/gemma-2-27b": 27_227_128_320,
    "google/gemma-3-270m": 268_098_176,
    "google/gemma-3-1b-pt": 999_885_952,
    "HuggingFaceTB/SmolLM2-135M": 134_515_008,
    "HuggingFaceTB/SmolLM2-360M": 361_821_120,
    "HuggingFaceTB/SmolLM2-1.7B": 1_711_376_384,
}


def of_table(name: str) -> Shape:
    config = bases.known(name)
    assert config is not None
    return counted(config, "table")


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_table_gives_the_published_number_of_weights(name: str) -> None:
    assert of_table(name).weights == PUBLISHED[name]


@pytest.mark.parametrize(
    "name",
    [
        "meta-llama/Llama-3.2-1B",
        "Qwen/Qwen2.5-7B",
        "Qwen/Qwen3-8B",
        "mistralai/Mistral-7B-v0.3",
        "google/gemma-2-9b",
        "google/gemma-3-1b-pt",
    ],
)
def test_arithmetic_counts_what_transformers_builds(name: str) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = of_table(name)
    config = AutoConfig.for_model(**shape.config)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    head = model.get_output_embeddings()
    layer = model.model.layers[0]
    linear = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not head]
    assert shape.weights == sum(w.numel() for w in model.parameters())
    assert shape.layer == sum(w.numel() for w in layer.parameters())
    assert shape.linear == sum(m.weight.numel() for m in linear)


def test_an_untied_input_embedding_does_not_multiply() -> None:
    shape = of_table("meta-llama/Meta-Llama-3-8B")
    assert shape.weights - shape.multiplying == 128256 * 4096
    tied = of_table("meta-llama/Llama-3.2-1B")
    assert tied.weights == tied.multiplying


@pytest.mark.parametrize(
    ("tuned", "base"),
    [
        ("meta-llama/Meta-Llama-3-8B-Instruct", "meta-llama/Meta-Llama-3-8B"),
        ("google/gemma-3-1b-it", "google/gemma-3-1b-pt"),
        ("Qwen/Qwen3-8B-Base", "Qwen/Qwen3-8B"),
    ],
)
def test_a_tuned_form_has_the_shape_of_its_base(tuned: str, base: str) -> None:
    assert bases.known(tuned) == bases.known(base)


def folder_with(path: Path, config: dict[str, Any]) -> str:
    (path / "config.json").write_text(json.dumps(config))
    return str(path)


def test_a_folder_without_weights_has_a_shape(tmp_path: Path) -> None:
    config = bases.known("HuggingFaceTB/SmolLM2-135M")
    assert config is not None
    shape = shape_of(folder_with(tmp_path, {**config, "num_hidden_layers": 2}))
    assert shape.source == "its folder"
    assert shape.weights == 134_515_008 - 28 * shape.layer


def test_an_architecture_without_arithmetic_is_built_and_counted(tmp_path: Path) -> None:
    config = {
        "model_type": "olmo2",
        "hidden_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "intermediate_size": 96,
        "vocab_size": 128,
        "tie_word_embeddings": False,
    }
    shape = shape_of(folder_with(tmp_path, config))
    matrices = 4 * 64 * 64 + 3 * 64 * 96
    assert shape.linear == 3 * matrices
    assert shape.weights == 3 * (matrices + 4 * 64) + 64 + 2 * 128 * 64
    assert shape.weights - shape.multiplying == 128 * 64


def test_an_unknown_architecture_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="type 'nonesuch'"):
        shape_of(folder_with(tmp_path, {"model_type": "nonesuch"}))


def test_a_base_that_nothing_knows_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="the shape of nobody/nothing-7B is not known"):
        shape_of("nobody/nothing-7B")


def test_a_usual_base_needs_no_hub() -> None:
    assert shape_of("meta-llama/Llama-3.3-70B-Instruct").weights == 70_553_706_496
