"""Rewards of conversations by sequence-classification models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from core.errors import UserError
from core.models import tokenizer as tokenizer_of
from core.servers import Servers
from core.wire import ServerSpec
from synth.tags.reward import REWARD_MODELS, check, known, reward
from tests.scripted_server import Fault

PAIR = pl.DataFrame(
    {
        "id": ["a"],
        "instruction": ["Write a poem about {curly} braces."],
        "response": ["A curly poem."],
    }
)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from core.models import resolve

    return tokenizer_of(resolve("embedded/SmolLM2-135M-Instruct").path)


def test_reward_is_the_logit_of_the_conversation(serve: Any, tokenizer: Any) -> None:
    endpoint, server = serve(
        lambda path, body: {"data": [{"index": 0, "probs": [-11.5]}], "usage": {"prompt_tokens": 9}}
    )
    made = pl.concat(reward(PAIR, tokenizer, endpoint)).to_dicts()[0]
    assert (made["instruct_reward"], made["prompt_tokens"], made["status"]) == (-11.5, 9, "ok")
    request = server.requests[0]
    assert request.path == "/classify" and request.body["use_activation"] is False
    assert tokenizer.decode(request.body["input"]).endswith(
        "<|im_start|>assistant\nA curly poem.<|im_end|>\n"
    )


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ({"data": [{"probs": [0.1, 0.9]}]}, "2 outputs"),
        ({"data": [{"probs": ["NaN"]}]}, "not a finite number"),
        ({"data": [{"nothing": 1}]}, "no score"),
        (Fault("status", 400), "request failed"),
    ],
)
def test_reward_that_is_no_single_finite_number_is_a_failed_cell(
    serve: Any, tokenizer: Any, reply: Any, reason: str
) -> None:
    endpoint, _ = serve(lambda path, body: reply)
    made = pl.concat(reward(PAIR, tokenizer, endpoint)).to_dicts()[0]
    assert made["status"] == "failed" and reason in made["reason"]


def test_a_conversation_longer_than_the_server_takes_is_a_failed_cell_that_is_not_sent(
    serve: Any, tokenizer: Any
) -> None:
    many = pl.DataFrame(
        {"id": ["a", "b"], "instruction": ["short", "x " * 600], "response": ["yes", "no"]}
    )
    endpoint, server = serve(
        lambda path, body: {"data": [{"index": 0, "probs": [1.0]}]}, args={"max_model_len": 100}
    )
    made = {row["id"]: row for row in pl.concat(reward(many, tokenizer, endpoint)).to_dicts()}
    assert made["a"]["status"] == "ok" and len(server.requests) == 1
    assert (
        made["b"]["status"] == "failed" and "longer than max_model_len 100" in made["b"]["reason"]
    )


def test_a_model_that_vllm_cannot_serve_is_refused_unless_the_servers_are_the_users() -> None:
    with pytest.raises(UserError, match=r"vLLM cannot serve RLHFlow/ArmoRM-Llama3-8B-v0\.1"):
        check("rlhflow/armorm-llama3-8b-v0.1", own_server=True)
    check("RLHFlow/ArmoRM-Llama3-8B-v0.1", own_server=False)
    check("somebody/unknown-rm", own_server=True)


def test_only_the_papers_reward_model_has_a_published_threshold() -> None:
    assert {m.name: m.tau1 for m in REWARD_MODELS if m.tau1 is not None} == {
        "sfairXC/FsfairX-LLaMA3-RM-v0.1": -12.0
    }
    assert known("sfairXC/FsfairX-LLaMA3-RM-v0.1") is REWARD_MODELS[0]


def test_doctor_warns_of_a_threshold_that_belongs_to_another_reward_model(tmp_path: Path) -> None:
    from recipes.schema import load
    from recipes.verbs.readiness.doctor import thresholds

    text = (
        "name: x\nstore: {store}\n"
        "synth: {{teacher: {{model: m}}, rows: 10, tags: {{reward: {{model: {rm}}}}}}}\n"
        "arms:\n  pro: {{strategy: magpie-pro, {more}}}\n"
    )

    def warned(rm: str, more: str = "") -> list[str]:
        (tmp_path / "r.yaml").write_text(text.format(store=tmp_path / "s", rm=rm, more=more))
        return [check.what for check in thresholds(load(tmp_path / "r.yaml").recipe)]

    assert (
        warned("sfairXC/FsfairX-LLaMA3-RM-v0.1")
        == []
        == warned("Skywork/Skywork-Reward-V2-Qwen3-0.6B", "params: {tau1: 3}")
    )
    assert "compares instruct_reward with -12" in warned("Skywork/Skywork-Reward-V2-Qwen3-0.6B")[0]


@pytest.mark.slow
@pytest.mark.stack
@pytest.mark.parametrize(
    "model", {m.architecture: m for m in REWARD_MODELS}.values(), ids=lambda m: m.architecture
)
def test_vllm_serves_the_named_architectures_as_said(model: Any, tmp_path: Path) -> None:
    """vLLM's own resolution of each architecture, without weights: a classifier where the table has
    arguments, else refused."""
    import json

    from transformers import LlamaConfig, Qwen3Config
    from vllm.config import ModelConfig

    sizes = {
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_labels": 1,
    }
    config = (Qwen3Config if model.architecture.startswith("Qwen3") else LlamaConfig)(
        **sizes, num_key_value_heads=2
    ).to_dict()
    (tmp_path / "config.json").write_text(
        json.dumps(config | {"architectures": [model.architecture]})
    )

    def resolved() -> Any:
        return ModelConfig(model=str(tmp_path), runner="pooling", skip_tokenizer_init=True)

    if model.args is None:
        with pytest.raises(ValueError, match="are not supported"):
            resolved()
    else:
        assert resolved().convert_type == "classify"


@pytest.mark.slow
@pytest.mark.stack
def test_reward_of_a_real_pooling_server_is_the_models_own_logit(
    vllm: Servers, tmp_path: Path
) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForSequenceClassification

    from synth.chat.encoding import encode_conversation
    from tests import tiny

    made = tiny.tokenizer()
    made.chat_template = (
        "{% for m in messages %}"
        "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
        "{% endfor %}"
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=512,
        num_labels=1,
        pad_token_id=made.eos_token_id,
        initializer_range=0.5,
    )
    model = LlamaForSequenceClassification(config).eval()
    model.save_pretrained(tmp_path / "reward")
    made.save_pretrained(tmp_path / "reward")
    tokenizer = tokenizer_of(str(tmp_path / "reward"))
    pairs = pl.DataFrame(
        {
            "id": ["a", "b", "c"],
            "instruction": ["the river", "why", "x " * 600],
            "response": ["a stone counts", "blue", "no"],
        }
    )
    endpoint = vllm.serve(
        ServerSpec(
            model=str(tmp_path / "reward"),
            args={"runner": "pooling", "max_model_len": 512, "dtype": "float32"},
        )
    )
    got = {r["id"]: r for r in pl.concat(reward(pairs, tokenizer, endpoint)).to_dicts()}
    for row in pairs.head(2).to_dicts():
        talk = [
            {"role": "user", "content": row["instruction"]},
            {"role": "assistant", "content": row["response"]},
        ]
        ids = encode_conversation(tokenizer, talk, add_generation_prompt=False)
        with torch.no_grad():
            logit = float(model(torch.tensor([ids])).logits[0, 0])
        assert got[row["id"]]["instruct_reward"] == pytest.approx(logit, abs=0.02)
    assert min(got["a"]["instruct_reward"], got["b"]["instruct_reward"]) < 0  # a sigmoid never is
    assert got["c"]["status"] == "failed" and "longer than max_model_len 512" in got["c"]["reason"]
