"""Models behind services that chat: what is asked, what an answer says, what it costs, and that
nothing is paid for twice."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError

from core import models
from core.errors import UserError
from core.sending import account, client
from core.sending.chat import Said, chat_body
from core.sending.purse import Bill, Ledger, Prices, Purse
from core.servers import Endpoint, Servers
from synth.config.models import ModelConfig
from synth.config.synthesis import SynthConfig
from synth.config.tags import NeighborsConfig
from synth.context import Context, Serving
from synth.duplicates import embeddings, kept_vectors, services
from synth.generate import ask
from synth.generate.single_turn import chat_responses
from tests.scripted_server import Fault, ScriptedServer, chat, refusal

PRICES = {"input": 1.0, "output": 1000.0}
SAMPLING = {"temperature": 0.0, "max_tokens": 10}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Back-off in milliseconds, small frames."""
    monkeypatch.setattr(client, "BACKOFF", (0.001, 0.005))


def rows(count: int) -> pl.DataFrame:
    ids = [f"row-{i}" for i in range(count)]
    return pl.DataFrame({"id": ids, "instruction": [f"say {i}" for i in range(count)]})


def hosted(url: str, **more: Any) -> ModelConfig:
    server = {"urls": [url], "max_in_flight": 4}
    given = {"model": "big-1", "api": "chat", "server": server, "prices": PRICES, **more}
    return ModelConfig.model_validate(given)


@pytest.fixture
def serving(tmp_path: Path, servers: Servers) -> Callable[[], Serving]:
    """What a run has to ask with; each call stands for a run of its own."""

    def fresh() -> Serving:
        servers.accounts.clear()
        return Context(tmp_path, models.resolve).serving(servers)

    return fresh


def answered(context: Serving, config: ModelConfig, count: int) -> pl.DataFrame:
    endpoint = context.serve(config).endpoint
    return pl.concat(chat_responses(rows(count), SAMPLING, endpoint))


def echo(path: str, body: dict[str, Any]) -> dict[str, Any]:
    assert path == "/v1/chat/completions"
    return chat(f"you said: {body['messages'][-1]['content']}")


def test_a_chat_carries_messages_and_sampling_verbatim_and_needs_no_tokenizer(
    serving: Callable[[], Serving],
) -> None:
    with ScriptedServer(echo) as server:
        made = answered(serving(), hosted(server.url), 20)
    assert {r["id"]: r["response"] for r in made.to_dicts()} == {
        f"row-{i}": f"you said: say {i}" for i in range(20)
    }
    assert server.requests[0].body == {
        "model": "big-1",
        "messages": [
            {"role": "user", "content": server.requests[0].body["messages"][0]["content"]}
        ],
        **SAMPLING,
    }


def test_refusals_filters_cut_offs_and_empty_answers_are_counted_by_reason(
    serving: Callable[[], Serving],
) -> None:
    said = {
        0: refusal(),
        1: refusal("Sorry, no."),
        2: chat("half", "content_filter"),
        3: chat("", "length"),
        4: chat("", "stop"),
        5: chat("the beginning of an ans", "length"),
        6: Fault("status", 400),
        7: chat("", message={"content": [{"type": "text", "text": "in parts"}]}),
        8: chat("x", message={"content": "yes", "reasoning_content": "let me think"}),
    }
    with ScriptedServer(lambda _, body: said[int(body["messages"][0]["content"][4:])]) as server:
        made = answered(serving(), hosted(server.url), 9).sort("id")
    assert Counter(made["reason"].drop_nulls()) == {
        "the model refused to answer": 2,
        "stopped by the service's content filter": 1,
        "cut off at max_tokens before any text": 1,
        "the answer holds no text": 1,
        "request failed: HTTP 400: scripted failure": 1,
    }
    good = {r["id"]: r for r in made.to_dicts() if r["status"] == "ok"}
    assert good["row-5"]["finish_reason"] == "length", "an answer that was cut off says so"
    assert good["row-7"]["response"] == "in parts"
    assert (good["row-8"]["response"], good["row-8"]["thinking"]) == ("yes", "let me think")
    assert made.filter(pl.col("id") == "row-0")["tokens"].item() == 0, "a refusal costs as well"


def tagged(context: Serving, config: ModelConfig, count: int) -> pl.DataFrame:
    schema = {"type": "object", "properties": {"label": {"type": "string"}}}

    def body(row: dict[str, Any]) -> dict[str, Any]:
        return chat_body([{"role": "user", "content": row["instruction"]}], SAMPLING, schema)

    def read(answer: Said) -> dict[str, Any]:
        return {"label": json.loads(answer.text)["label"]}

    endpoint = context.serve(config).endpoint
    return pl.concat(ask.chats(rows(count), body, read, endpoint, {"label": pl.String}))


def test_structured_outputs_are_asked_for_where_a_service_offers_them(
    serving: Callable[[], Serving],
) -> None:
    with ScriptedServer(lambda *_: chat('{"label": "good"}')) as server:
        made = tagged(serving(), hosted(server.url), 5)
    assert made["label"].to_list() == ["good"] * 5
    form = server.requests[0].body["response_format"]
    assert form["type"] == "json_schema" and form["json_schema"]["strict"] is True


def test_a_service_without_structured_outputs_is_asked_without_them(
    serving: Callable[[], Serving],
) -> None:
    def old(_: str, body: dict[str, Any]) -> dict[str, Any] | Fault:
        known = "response_format" not in body
        return chat('{"label": "good"}') if known else Fault("status", 400, words="response_format")

    with ScriptedServer(old) as server:
        made = tagged(serving(), hosted(server.url), 40)
    assert made["label"].to_list() == ["good"] * 40
    assert 41 <= len(server.requests) <= 44, "learned at once: only what was in flight asked twice"


def test_what_every_answer_cost_is_in_the_ledger_across_runs(
    tmp_path: Path, serving: Callable[[], Serving]
) -> None:
    with ScriptedServer(echo) as server:
        answered(serving(), hosted(server.url), 10)
        answered(serving(), hosted(server.url), 20)
    # one prompt token and four generated ones a reply, as the scripted server counts
    bill = Ledger(tmp_path / "spent").bills()["big-1"]
    assert bill[:3] == (30, 30, 120) and bill.money == pytest.approx(30 * (1 + 4 * 1000) / 1e6)


def test_the_budget_stops_new_requests_and_what_was_bought_is_kept(
    tmp_path: Path, serving: Callable[[], Serving]
) -> None:
    made: list[pl.DataFrame] = []
    budget = 0.05
    with ScriptedServer(echo, delay=0.01) as server:
        endpoint = serving().serve(hosted(server.url, budget=budget)).endpoint
        with pytest.raises(UserError, match=r"the budget of big-1 is reached: .* is spent"):
            made.extend(chat_responses(rows(100), SAMPLING, endpoint))
        spent = Ledger(tmp_path / "spent").bills()["big-1"].money
        # a reply costs 0.004; what a request may cost at most, 0.01, must still fit
        assert budget - 0.0101 < spent <= budget
        assert len(pl.concat(made)) == len(server.requests) == round(spent / 0.004)
        done = pl.concat(made)["id"]
        rest = rows(100).filter(~pl.col("id").is_in(done.implode()))
        again = serving().serve(hosted(server.url, budget=1.0)).endpoint
        more = pl.concat(chat_responses(rest, SAMPLING, again))
    assert len(server.requests) == 100 and len(more) == 100 - len(done)


def test_what_was_paid_for_and_not_stored_is_never_bought_again(
    tmp_path: Path, serving: Callable[[], Serving], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(account, "SEGMENT", 8)
    monkeypatch.setattr(ask, "BATCH_ROWS", 5)
    with ScriptedServer(echo) as server:
        endpoint = serving().serve(hosted(server.url)).endpoint
        frames = chat_responses(rows(60), SAMPLING, endpoint)
        stored = [next(frames) for _ in range(4)]
        frames.close()  # the process ends while others are in flight
        asked, kept = len(server.requests), pl.concat(stored[:3])["id"]
        left = rows(60).filter(~pl.col("id").is_in(kept.implode()))
        again = pl.concat(
            chat_responses(left, SAMPLING, serving().serve(hosted(server.url)).endpoint)
        )
    assert sorted([*kept, *again["id"]]) == sorted(rows(60)["id"])
    assert len(server.requests) - asked <= 60 - len(pl.concat(stored))
    bill = Ledger(tmp_path / "spent").bills()["big-1"]
    assert bill.calls == len({*kept, *again["id"]}), "each paid once, the journal's replies too"
    assert not list(tmp_path.rglob("replies-*")), "all is stored: the journal is gone"


def test_a_full_file_of_the_journal_goes_as_soon_as_its_rows_are_stored(
    tmp_path: Path, serving: Callable[[], Serving], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(account, "SEGMENT", 4)
    monkeypatch.setattr(ask, "BATCH_ROWS", 4)
    with ScriptedServer(echo) as server:
        endpoint = serving().serve(hosted(server.url)).endpoint
        most = 0
        for _ in chat_responses(rows(200), SAMPLING, endpoint):
            most = max(most, len(list(tmp_path.rglob("replies-*.jsonl"))))
    assert 1 <= most <= 6, "of 50 files"


def test_a_429_waits_as_long_as_it_asks(serving: Callable[[], Serving]) -> None:
    faults = [Fault("status", 429, 0.3)]
    with ScriptedServer(lambda p, b: faults.pop() if faults else echo(p, b)) as server:
        made = answered(serving(), hosted(server.url), 1)
    first, second = (request.at for request in server.requests)
    assert made["status"].to_list() == ["ok"] and second - first >= 0.3


def test_a_purse_in_several_threads_and_a_ledger_cut_by_a_kill_count_right(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.add("m", Bill(1, 2, 3, 0.5))
    ledger.add("m", Bill(1, 2, 3, 0.5))
    with ledger.path.open("a") as file:
        file.write('{"model": "m", "calls": 1, "pro')
    assert Ledger(tmp_path).bills() == {"m": Bill(2, 4, 6, 1.0)}
    ledger.close()
    assert Ledger(tmp_path).bills() == {"m": Bill(2, 4, 6, 1.0)}
    purse = Purse(Prices(input=0, output=1e6), budget=3)
    assert [purse.reserve(key, 0, 1) for key in "abcd"] == [True, True, True, False]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"server": {}}, "give its address in `server.urls`"),
        ({"prices": None, "budget": 1}, "`budget` needs `prices`"),
        ({"chat_template": "x.jinja"}, "the service renders the conversation"),
    ],
)
def test_a_hosted_model_that_is_said_wrong_is_refused(
    change: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ValidationError, match=sentence):
        hosted("http://x", **change)


@pytest.mark.parametrize("place", ["teacher", "tags.reward", "tags.base", "tags.ifd"])
def test_what_needs_token_ids_refuses_a_service_that_chats(place: str) -> None:
    model = {"model": "m", "api": "chat", "server": {"urls": ["http://x"]}}
    synth: dict[str, Any] = {"teacher": {"model": "t"}}
    at = synth
    *above, last = place.split(".")
    for name in above:
        at = at.setdefault(name, {})
    at[last] = model
    with pytest.raises(ValidationError, match=f"`{place}` cannot have `api: chat`"):
        SynthConfig.model_validate(synth)


def test_a_service_without_raw_completions_is_told_in_one_sentence(servers: Servers) -> None:
    from core.wire import Request, ServerSpec

    with ScriptedServer(lambda *_: Fault("status", 404)) as server:
        endpoint = servers.serve(ServerSpec(model="m", urls=(server.url,)))
        with pytest.raises(UserError, match="Generating instructions needs raw completions"):
            list(endpoint.answers(Request(str(i), {"prompt": [1]}) for i in range(3)))


def spelled(path: str, body: dict[str, Any]) -> dict[str, Any] | Fault:
    """An embedding service: the counts of four letters; no text of more than 9,000 characters."""
    assert path == "/v1/embeddings"
    if any(len(text) > 9_000 for text in body["input"]):
        return Fault("status", 400, words="maximum context length exceeded")
    vectors = [[1.0 + text.count(letter) for letter in "aeio"] for text in body["input"]]
    data = [{"index": i, "embedding": vector} for i, vector in enumerate(vectors)]
    usage = {"prompt_tokens": len(vectors), "total_tokens": len(vectors)}
    return {"object": "list", "data": data[::-1], "model": "e", "usage": usage}


def embedded(context: Serving, url: str, texts: list[str], **more: Any) -> Any:
    near = NeighborsConfig.model_validate(
        {"model": {"model": "e", "server": {"urls": [url]}, "prices": PRICES, **more}}
    )
    model, service = services.model_of(near, context), services.service_of(near, context)
    names = [f"row-{i}" for i in range(len(texts))]
    return embeddings.vectors(context.root, names, texts, model, service=service)


def test_a_service_embeds_what_no_call_before_has_embedded(
    tmp_path: Path, serving: Callable[[], Serving], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services, "BATCH", 8)
    texts = [f"{'aeio'[i % 4] * (i + 1)} {i}" for i in range(50)]
    with ScriptedServer(spelled) as server:
        made = embedded(serving(), server.url, texts[:30])
        more = embedded(serving(), server.url, texts)
    counted = np.array([[1.0 + text.count(letter) for letter in "aeio"] for text in texts])
    unit = (counted / np.linalg.norm(counted, axis=1, keepdims=True)).astype(np.float32)
    assert np.array_equal(more, unit) and np.array_equal(made, unit[:30])
    assert sum(len(r.body["input"]) for r in server.requests) == 50
    assert Ledger(tmp_path / "spent").bills()["e"].prompt_tokens == 50


def test_a_text_that_is_too_long_for_a_service_is_embedded_by_its_beginning(
    serving: Callable[[], Serving],
) -> None:
    texts = ["a short one", "a" * 20_000, "another"]
    with ScriptedServer(spelled) as server:
        made = embedded(serving(), server.url, texts)
    cut = np.array([8001.0, 1, 1, 1])
    assert np.allclose(made[1], cut / np.linalg.norm(cut))


def test_embeddings_that_were_paid_for_are_not_bought_again_after_a_kill(
    tmp_path: Path, serving: Callable[[], Serving], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services, "BATCH", 2)
    texts = [f"text {i}" for i in range(20)]
    with ScriptedServer(spelled) as server:
        with monkeypatch.context() as dying:
            dying.setattr(kept_vectors, "add_named", Path.rglob)  # no part can be written
            with pytest.raises(TypeError):
                embedded(serving(), server.url, texts)
        embedded(serving(), server.url, texts)
    assert len(server.requests) == 10 and not list(tmp_path.rglob("replies-*"))


def test_a_reply_that_states_no_usage_counts_as_the_most_it_may_have_cost(
    tmp_path: Path, serving: Callable[[], Serving]
) -> None:
    def silent(path: str, body: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in echo(path, body).items() if name != "usage"}

    with ScriptedServer(silent) as server:
        answered(serving(), hosted(server.url), 2)
    # "say 0" is five characters, about two tokens; max_tokens is 10
    assert Ledger(tmp_path / "spent").bills()["big-1"][:3] == (2, 4, 20)


@pytest.mark.stack
def test_a_real_vllm_answers_chats_and_keeps_to_a_schema(
    vllm: Servers,
    teacher_endpoint: Endpoint,
    serving: Callable[[], Serving],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with vllm.targets(teacher_endpoint.spec) as (target,):
        monkeypatch.setenv("A_KEY", target.key or "")
        server = {"urls": [target.address], "api_key_env": "A_KEY"}
        name = teacher_endpoint.spec.request_model
        config = ModelConfig.model_validate({"model": name, "server": server, "api": "chat"})
        endpoint = serving().serve(config).endpoint
        made = pl.concat(chat_responses(rows(3), SAMPLING, endpoint))
        labels = pl.concat(labelled(endpoint))
    assert set(made["status"]) == {"ok"} and 0 < made["tokens"].sum() <= 30
    assert set(labels["status"]) == {"ok"} and set(labels["label"]) <= {"good", "bad"}


def labelled(endpoint: Endpoint) -> Iterator[pl.DataFrame]:
    """One of two labels for each of three rows, as JSON of a schema."""
    schema = {
        "type": "object",
        "properties": {"label": {"type": "string", "enum": ["good", "bad"]}},
        "required": ["label"],
        "additionalProperties": False,
    }

    def body(row: dict[str, Any]) -> dict[str, Any]:
        return chat_body(
            [{"role": "user", "content": row["instruction"]}],
            {**SAMPLING, "max_tokens": 40},
            schema,
        )

    def read(answer: Said) -> dict[str, Any]:
        return {"label": json.loads(answer.text)["label"]}

    return ask.chats(rows(3), body, read, endpoint, {"label": pl.String})
