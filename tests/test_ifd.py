"""Instruction-following difficulty: the ratio of perplexities, from the log-probabilities that a
server gives of a prompt."""

from __future__ import annotations

import math
from typing import Any

import polars as pl
import pytest

from core.models import Model, resolve
from core.models import tokenizer as tokenizer_of
from core.servers import Endpoint
from synth.chat.encoding import encode_conversation, encode_text
from synth.tags.scores.ifd import ifd
from tests import tiny
from tests.scripted_server import Fault, completion

ROWS = pl.DataFrame(
    {
        "id": ["a"],
        "instruction": ["Name a river of Germany."],
        "response": ["The Elbe is a river <|im_end|> of Germany."],
    }
)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tokenizer_of(resolve("embedded/SmolLM2-135M-Instruct").path)


def scored(conversation: float, alone: float, opens: int) -> Any:
    """A server that gives every token of a prompt one log-probability: of a conversation, which has
    the control token `opens`, or of an answer."""

    def answer(path: str, body: dict[str, Any]) -> Any:
        ids = body["prompt"]
        value = conversation if opens in ids else alone
        given = [
            None,
            *({str(i): {"logprob": value, "rank": 1, "decoded_token": "x"}} for i in ids[1:]),
        ]
        made = completion("x")
        made["choices"][0]["prompt_logprobs"] = given
        return made | {"usage": {"prompt_tokens": len(ids), "completion_tokens": 1}}

    return answer


def test_ifd_is_the_ratio_of_the_perplexities(serve: Any, tokenizer: Any) -> None:
    opens = tokenizer.convert_tokens_to_ids("<|im_start|>")
    endpoint, server = serve(scored(-1.0, -1.5, opens))
    (made,) = pl.concat(ifd(ROWS, tokenizer, endpoint)).to_dicts()
    assert made["ifd"] == pytest.approx(math.exp(1.0) / math.exp(1.5)) and made["status"] == "ok"
    assert made["tokens"] == 2 and made["prompt_tokens"] == sum(
        len(r.body["prompt"]) for r in server.requests
    )


def test_both_prompts_end_with_the_same_tokens_of_the_answer_and_none_is_a_control_token(
    serve: Any, tokenizer: Any
) -> None:
    endpoint, server = serve(scored(-1.0, -1.5, tokenizer.convert_tokens_to_ids("<|im_start|>")))
    list(ifd(ROWS, tokenizer, endpoint))
    given, alone = (r.body["prompt"] for r in server.requests)
    answer = encode_text(tokenizer, ROWS["response"][0])
    assert (
        alone == answer
        and given[-len(answer) :] == answer
        and tokenizer.convert_tokens_to_ids("<|im_end|>") not in answer
    )
    asked = [{"role": "user", "content": ROWS["instruction"][0]}]
    assert given[: -len(answer)] == encode_conversation(
        tokenizer, asked, add_generation_prompt=True
    )
    assert all(
        r.body["max_tokens"] == 1 and r.body["prompt_logprobs"] == 0 for r in server.requests
    )


def test_the_answer_alone_stands_after_bos_where_the_tokenizer_writes_one(serve: Any) -> None:
    llama = tiny.tokenizer("llama3")
    llama.chat_template = (
        "{{ bos_token }}{% for m in messages %}"
        "<|start_header_id|>{{ m['content'] }}<|end_header_id|>{% endfor %}"
    )
    endpoint, server = serve(scored(-1.0, -1.0, llama.convert_tokens_to_ids("<|start_header_id|>")))
    (made,) = pl.concat(ifd(ROWS.with_columns(response=pl.lit("a")), llama, endpoint)).to_dicts()
    assert server.requests[1].body["prompt"] == [
        llama.bos_token_id,
        *encode_text(llama, "a"),
    ] and made["ifd"] == pytest.approx(1.0)


def test_an_answer_with_no_token_that_can_be_scored_is_a_failed_cell(
    serve: Any, tokenizer: Any
) -> None:
    endpoint, server = serve(scored(-1.0, -1.0, 1))
    (made,) = pl.concat(
        ifd(ROWS.with_columns(response=pl.lit("a")), tokenizer, endpoint)
    ).to_dicts()
    assert (
        made["status"] == "failed"
        and "none that can be scored" in made["reason"]
        and server.requests == []
    )


def test_a_conversation_longer_than_the_server_takes_is_a_failed_cell_that_is_not_sent(
    serve: Any, tokenizer: Any
) -> None:
    endpoint, server = serve(scored(-1.0, -1.0, 1), args={"max_model_len": 100})
    rows = pl.concat([ROWS, ROWS.with_columns(id=pl.lit("b"), response=pl.lit("word " * 200))])
    made = {r["id"]: r for r in pl.concat(ifd(rows, tokenizer, endpoint)).to_dicts()}
    assert made["a"]["status"] == "ok" and len(server.requests) == 2
    assert made["b"]["status"] == "failed" and "max_model_len 100" in made["b"]["reason"]


@pytest.mark.parametrize("broken", ["first", "second"])
def test_a_reply_without_log_probabilities_is_a_failed_cell_whichever_it_is(
    serve: Any, tokenizer: Any, broken: str
) -> None:
    opens = tokenizer.convert_tokens_to_ids("<|im_start|>")
    good = scored(-1.0, -1.5, opens)
    endpoint, server = serve(
        lambda path, body: (
            completion("x")
            if (opens in body["prompt"]) == (broken == "first")
            else good(path, body)
        )
    )
    (made,) = pl.concat(ifd(ROWS, tokenizer, endpoint)).to_dicts()
    assert (
        made["status"] == "failed"
        and "no log-probabilities" in made["reason"]
        and made["ifd"] is None
    )
    assert len(server.requests) == (1 if broken == "first" else 2)


def test_a_failed_request_costs_only_its_own_row(serve: Any, tokenizer: Any) -> None:
    good = scored(-1.0, -1.5, tokenizer.convert_tokens_to_ids("<|im_start|>"))
    asked = [f"number {i} please" for i in range(40)]
    rows = pl.DataFrame(
        {"id": [str(i) for i in range(40)], "instruction": asked, "response": ["here it is"] * 40}
    )
    endpoint, _ = serve(
        lambda path, body: (
            Fault("status", 400)
            if "number 7 " in tokenizer.decode(body["prompt"])
            else good(path, body)
        )
    )
    made = pl.concat(ifd(rows, tokenizer, endpoint))
    assert len(made) == 40 and made.filter(status="failed")["id"].to_list() == ["7"]


@pytest.mark.stack
def test_ifd_of_a_real_server_is_that_of_transformers_own_log_probabilities(
    teacher_endpoint: Endpoint, teacher: Model
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    tokenizer = tokenizer_of(teacher.path)
    rows = pl.DataFrame(
        {
            "id": ["a", "b", "c"],
            "instruction": [
                "What is the capital of France?",
                "Name three primary colours.",
                "Why is the sky blue?",
            ],
            "response": [
                "The capital of France is Paris.",
                "Red, blue and <|im_end|> yellow.",
                "Because my cat likes to sleep in a box.",
            ],
        }
    )
    got = dict(pl.concat(ifd(rows, tokenizer, teacher_endpoint)).select("id", "ifd").iter_rows())
    model = AutoModelForCausalLM.from_pretrained(teacher.path, dtype=torch.float32).eval()

    def loss(before: list[int], answer: list[int]) -> float:
        ids = torch.tensor([before + answer])
        with torch.no_grad():
            chances = torch.log_softmax(model(ids).logits[0, :-1], dim=-1)
        picked = chances.gather(1, ids[0, 1:, None])[:, 0]
        return -float(picked[len(before) :].mean())  # the answer's tokens but its first

    for row in rows.iter_rows(named=True):
        asked = encode_conversation(
            tokenizer, [{"role": "user", "content": row["instruction"]}], add_generation_prompt=True
        )
        answer = encode_text(tokenizer, row["response"])
        assert got[row["id"]] == pytest.approx(
            math.exp(loss(asked, answer) - loss([], answer)), rel=0.05
        )
    assert got["a"] < got["c"]
