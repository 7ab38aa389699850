"""The exported checkpoint: weights, stop tokens, templates, merged adapters; and a real vLLM that
stops where a turn ends."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from core.errors import UserError
from core.models import render
from core.servers import Servers
from core.wire import Request, ServerSpec
from tests import tiny
from train import chat
from train.config import TrainConfig
from train.export import export, verify
from train.sizes.shapes import shapes


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama-3-style base model: eos <|end_of_text|>, no chat template, no pad token."""
    return tiny.llama(tmp_path_factory.mktemp("models") / "base", "llama3")


@pytest.fixture(scope="module")
def template(base: Path) -> chat.Chat:
    return chat.choose(
        TrainConfig(base=str(base), chat_template_path="llama3"), tiny.tokenizer("llama3")
    )


@pytest.fixture(scope="module")
def exported(base: Path, template: chat.Chat, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exported") / "checkpoint"
    export(base, out, base=str(base), revision=None, chat=template, dtype="bfloat16")
    return out


def test_every_weight_is_there_in_the_wanted_format(base: Path, exported: Path) -> None:
    before, after = shapes(base), shapes(exported)
    assert {name: shape for name, (_, shape) in before.items()} == {
        name: shape for name, (_, shape) in after.items()
    }
    assert {kind for kind, _ in after.values()} == {"BF16"}
    assert json.loads((exported / "config.json").read_text())["dtype"] == "bfloat16"


def test_the_end_of_turn_is_the_first_stop_token_and_the_bases_own_the_second(
    exported: Path,
) -> None:
    from transformers import AutoTokenizer, GenerationConfig

    words = AutoTokenizer.from_pretrained(exported)
    turn, text = (words.convert_tokens_to_ids(t) for t in ("<|eot_id|>", "<|end_of_text|>"))
    assert GenerationConfig.from_pretrained(exported).eos_token_id == [turn, text]
    assert json.loads((exported / "config.json").read_text())["eos_token_id"] == turn
    assert (words.eos_token, words.pad_token) == ("<|eot_id|>", "<|end_of_text|>")


def test_the_exported_template_renders_what_was_trained(
    exported: Path, template: chat.Chat
) -> None:
    from transformers import AutoTokenizer

    words = AutoTokenizer.from_pretrained(exported)
    assert "generation" not in words.chat_template.replace("add_generation_prompt", "")
    for messages in chat.PROBES:
        assert (
            render(words, messages, add_generation_prompt=False)
            == chat.encode(words, [messages], template.training)[0][0]
        )


def test_weights_that_are_not_finite_are_refused(
    base: Path, template: chat.Chat, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(base, tmp_path / "saved")
    weights = load_file(tmp_path / "saved" / "model.safetensors")
    weights["model.norm.weight"][3] = float("nan")
    save_file(weights, tmp_path / "saved" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"model.norm.weight is not finite .* diverged"):
        export(
            tmp_path / "saved",
            tmp_path / "out",
            base=str(base),
            revision=None,
            chat=template,
            dtype="bfloat16",
        )
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_that_lacks_a_weight_is_refused(exported: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(exported, tmp_path / "harmed")
    weights = load_file(tmp_path / "harmed" / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, tmp_path / "harmed" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks 1 weights \(model.norm.weight"):
        verify(tmp_path / "harmed", "bfloat16")


def test_an_adapter_is_merged_into_its_base_and_kept_beside_it(
    base: Path, template: chat.Chat, tmp_path: Path
) -> None:
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    adapted = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base),
        LoraConfig(r=4, init_lora_weights=False, task_type="CAUSAL_LM"),
    )
    adapted.save_pretrained(tmp_path / "final")
    export(
        tmp_path / "final",
        tmp_path / "out",
        base=str(base),
        revision=None,
        chat=template,
        dtype="float32",
    )
    ids = torch.arange(5, 30)[None]
    kept = tmp_path / "out" / "adapter"
    beside = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(kept))
    with torch.no_grad():
        assert torch.equal(beside.eval()(ids).logits, adapted.eval()(ids).logits)
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out")(ids).logits
        assert torch.allclose(merged, adapted.eval()(ids).logits, atol=1e-4)
        assert not torch.allclose(
            merged, AutoModelForCausalLM.from_pretrained(base)(ids).logits, atol=1e-2
        )


@pytest.mark.stack
@pytest.mark.slow
def test_vllm_stops_at_the_end_of_turn(
    base: Path, template: chat.Chat, tmp_path: Path, vllm: Servers
) -> None:
    """A model made to say nothing but <|eot_id|>: one that keeps its base's eos would go on to
    max_tokens."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        for parameter in model.model.layers.parameters():
            parameter.zero_()  # only the embedding reaches the head
        model.model.embed_tokens.weight.fill_(1.0)
        model.lm_head.weight.zero_()
        model.lm_head.weight[template.end_of_turn] = 1.0
    model.save_pretrained(tmp_path / "saved")
    export(
        tmp_path / "saved",
        tmp_path / "checkpoint",
        base=str(base),
        revision=None,
        chat=template,
        dtype="bfloat16",
    )
    endpoint = vllm.serve(
        ServerSpec(model=str(tmp_path / "checkpoint"), args={"max_model_len": 256})
    )
    messages = [{"role": "user", "content": "why is a river great"}]
    asked = [
        Request(
            "stop",
            {"messages": messages, "max_tokens": 16, "temperature": 0},
            "/v1/chat/completions",
        )
    ]
    asked += [Request("on", {**asked[0].body, "ignore_eos": True}, "/v1/chat/completions")]
    replies = {reply.key: reply.body for reply in endpoint.stream(asked)}
    stopped, went_on = replies["stop"], replies["on"]
    assert stopped is not None and went_on is not None
    assert (stopped["choices"][0]["finish_reason"], stopped["usage"]["completion_tokens"]) == (
        "stop",
        1,
    )
    assert (went_on["choices"][0]["finish_reason"], went_on["usage"]["completion_tokens"]) == (
        "length",
        16,
    )
