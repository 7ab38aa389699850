"""core.servers against a real HTTP server on loopback: nothing lost, nothing twice, and every way a
server can misbehave."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from pydantic import ValidationError

from core.errors import UserError
from core.sending import client
from core.servers import Endpoint, Servers
from core.wire import Reply, Request, ServerSpec, Target
from tests.scripted_model import magpie
from tests.scripted_server import FAULTS, Fault, ScriptedServer, completion, flaky


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Back-off in milliseconds."""
    monkeypatch.setattr(client, "BACKOFF", (0.001, 0.005))


def ask(count: int, **body: object) -> Iterator[Request]:
    return (
        Request(f"row-{i}", {"prompt": [1, 2, i], "seed": i, "max_tokens": 8, **body})
        for i in range(count)
    )


def given(servers: Servers, server: ScriptedServer, **settings: object) -> Endpoint:
    return servers.serve(
        ServerSpec.model_validate({"model": "scripted", "urls": (server.url,), **settings})
    )


def test_each_request_gets_its_own_reply_once(servers: Servers) -> None:
    with ScriptedServer(lambda _, body: completion(f"seed {body['seed']}")) as server:
        replies = list(given(servers, server, max_in_flight=16).stream(ask(200)))
    assert {r.key: r.body["choices"][0]["text"] for r in replies if r.body} == {
        f"row-{i}": f"seed {i}" for i in range(200)
    }
    assert len(replies) == len(server.requests) == 200


def test_no_more_than_max_in_flight_requests_are_open_and_that_many_are(servers: Servers) -> None:
    with ScriptedServer(magpie, delay=0.05) as server:
        assert len(list(given(servers, server, max_in_flight=7).stream(ask(70)))) == 70
    assert server.high_water == 7


def test_max_in_flight_is_of_each_server_that_is_started_and_of_all_urls_together(
    servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ServerSpec(model="m", urls=("http://a", "http://b"), max_in_flight=4).in_flight == 4
    with ScriptedServer(magpie, delay=0.05) as one, ScriptedServer(magpie, delay=0.05) as two:

        @contextmanager
        def started(_: ServerSpec) -> Iterator[list[Target]]:
            yield [Target(one.url), Target(two.url)]

        monkeypatch.setattr(servers, "targets", started)
        endpoint = servers.serve(ServerSpec(model="m", replicas=2, max_in_flight=4))
        assert len(list(endpoint.stream(ask(60)))) == 60
        assert one.high_water == two.high_water == 4


def test_requests_are_pulled_only_when_there_is_room(servers: Servers) -> None:
    pulled: list[str] = []

    def counted() -> Iterator[Request]:
        for request in ask(1000):
            pulled.append(request.key)
            yield request

    with ScriptedServer(magpie) as server:
        replies = given(servers, server, max_in_flight=4).stream(counted())
        for _ in range(10):
            next(replies)
        assert len(pulled) <= 10 + 4 + 4  # taken by us, waiting for us, in flight
        replies.close()


def test_a_chain_goes_on_at_once_in_its_own_place_and_only_its_last_reply_is_yielded(
    servers: Servers,
) -> None:
    seen: dict[str, list[int]] = {}

    def then(reply: Reply) -> Request | None:
        assert reply.body is not None
        so_far = seen.setdefault(reply.key, [])
        so_far.append(int(reply.body["choices"][0]["text"]))
        return (
            Request(reply.key, {"prompt": [1], "seed": so_far[-1] + 1000})
            if len(so_far) < 3
            else None
        )

    with ScriptedServer(lambda _, body: completion(str(body["seed"]))) as server:
        replies = list(given(servers, server, max_in_flight=5).stream(ask(40), then))
    assert (
        sorted(r.key for r in replies) == sorted(seen)
        and len(replies) == 40
        and server.high_water <= 5
    )
    assert seen == {f"row-{i}": [i, i + 1000, i + 2000] for i in range(40)}


def test_the_model_name_is_filled_in_and_a_given_one_is_kept(servers: Servers) -> None:
    with ScriptedServer(magpie) as server:
        list(given(servers, server).stream([Request("a", {"prompt": [1]})]))
        list(
            given(servers, server, args={"served_model_name": "judge"}).stream(
                [Request("b", {"prompt": [1]})]
            )
        )
        list(given(servers, server).stream([Request("c", {"prompt": [1], "model": "adapter"})]))
    assert [r.body["model"] for r in server.requests] == ["scripted", "judge", "adapter"]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f"{f.kind}-{f.status}")
def test_a_fault_is_retried_and_the_row_is_answered(servers: Servers, fault: Fault) -> None:
    faults = [fault, fault]
    with ScriptedServer(
        lambda path, body: faults.pop() if faults else magpie(path, body)
    ) as server:
        (reply,) = given(servers, server, timeout=0.3).stream(ask(1))
    assert reply.body is not None and reply.error is None and reply.attempts == 3


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f"{f.kind}-{f.status}")
def test_a_fault_that_stays_becomes_an_error_in_one_sentence(
    servers: Servers, fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "ATTEMPTS", 2)
    with ScriptedServer(lambda *_: fault) as server:
        (reply,) = given(servers, server, timeout=0.3).stream(ask(1))
    assert reply.body is None and reply.error and "\n" not in reply.error
    assert reply.attempts == len(server.requests) == 2


@pytest.mark.parametrize(
    "body",
    [
        [],
        "text",
        {"choices": []},
        {"choices": [{}]},
        {"choices": [None]},
        {"choices": {"text": "a"}},
        {"error": "busy"},
    ],
)
def test_a_body_of_another_form_is_not_taken_for_an_answer(
    servers: Servers, body: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "ATTEMPTS", 1)
    with ScriptedServer(lambda *_: body) as server:  # type: ignore[arg-type, return-value]
        (reply,) = given(servers, server).stream(ask(1))
    assert reply.error and "has not the form" in reply.error


def test_a_body_nested_beyond_what_python_reads_is_no_answer(
    servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "ATTEMPTS", 1)
    with ScriptedServer(lambda *_: Fault("nested")) as server:
        (reply,) = given(servers, server).stream(ask(1))
    assert reply.error and "the body is not JSON" in reply.error


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422, 301])
def test_a_refusal_is_not_sent_again(servers: Servers, status: int) -> None:
    with ScriptedServer(lambda *_: Fault("status", status)) as server:
        (reply,) = given(servers, server).stream(ask(1))
    assert str(reply.error).startswith(f"HTTP {status}: scripted failure")
    assert len(server.requests) == 1


def test_retry_after_is_waited_for(servers: Servers) -> None:
    waits: list[float] = []
    limited = [Fault("status", 429, 0.2)]

    def answer(path: str, body: dict[str, object]) -> dict[str, object] | Fault:
        import time

        waits.append(time.monotonic())
        return limited.pop() if limited else magpie(path, body)

    with ScriptedServer(answer) as server:
        (reply,) = given(servers, server).stream(ask(1))
    assert reply.body and waits[1] - waits[0] >= 0.2  # at least: the server's wish, not our speed


@pytest.mark.parametrize(
    ("header", "wait"),
    [("3", 3), ("0.5", 0.5), ("99999999", 3600), ("-1", 0), ("soon", 0), ("nan", 0), (None, 0)],
)
def test_retry_after_in_seconds_is_bounded(header: str | None, wait: float) -> None:
    assert client._seconds(header) == wait


def test_retry_after_as_a_date_is_understood() -> None:
    from datetime import UTC, datetime, timedelta
    from email.utils import format_datetime

    assert (
        50
        < client._seconds(format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True))
        <= 60
    )


def test_with_a_fifth_of_all_calls_failing_every_row_is_answered_or_counted(
    servers: Servers,
) -> None:
    with ScriptedServer(flaky(magpie, 0.2)) as server:
        replies = list(given(servers, server, max_in_flight=64, timeout=1).stream(ask(400)))
    assert sorted(r.key for r in replies) == sorted(f"row-{i}" for i in range(400))
    assert all((r.body is None) == (r.error is not None) for r in replies)
    assert sum(r.attempts for r in replies) == len(server.requests) > 400


def test_a_server_that_is_not_there_is_an_error_for_each_row(servers: Servers) -> None:
    with ScriptedServer(magpie) as server:
        pass
    replies = list(given(servers, server).stream(ask(3)))
    assert len(replies) == 3 and all(r.error and "connection" in r.error for r in replies)


def test_requests_are_spread_over_the_urls(servers: Servers) -> None:
    with ScriptedServer(magpie, delay=0.02) as one, ScriptedServer(magpie, delay=0.02) as two:
        spec = ServerSpec(model="m", urls=(one.url, two.url), max_in_flight=8)
        assert len(list(servers.serve(spec).stream(ask(80)))) == 80
    assert len(one.requests) + len(two.requests) == 80
    assert (
        one.high_water <= 5
        and two.high_water <= 5
        and min(len(one.requests), len(two.requests)) >= 20
    )


def test_closing_the_stream_early_cancels_what_is_in_flight_and_leaves_no_thread(
    servers: Servers,
) -> None:
    import threading

    with ScriptedServer(
        lambda path, body: magpie(path, body) if body["seed"] == 0 else Fault("hang")
    ) as server:
        endpoint = given(servers, server, max_in_flight=8)
        for reply in endpoint.stream(ask(100)):
            assert reply.key == "row-0"
            break
        else:
            pytest.fail("nothing came")
        del reply
        assert not [t for t in threading.enumerate() if t.name == "endpoint"]
        assert len(server.requests) <= 17


def test_an_error_in_the_callers_requests_reaches_the_caller(servers: Servers) -> None:
    def broken() -> Iterator[Request]:
        yield from ask(5)
        raise KeyError("row 5")

    with ScriptedServer(magpie) as server, pytest.raises(KeyError, match="row 5"):
        list(given(servers, server).stream(broken()))


def test_the_key_is_sent_and_never_shown(
    servers: Servers, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("JUDGE_KEY", "sk-secret-123\n")
    with ScriptedServer(magpie, key="sk-secret-123") as server:
        (reply,) = given(servers, server, api_key_env="JUDGE_KEY").stream(ask(1))
        assert reply.body
    with ScriptedServer(
        magpie, key="another"
    ) as server:  # this server repeats the key that it was sent
        (reply,) = given(servers, server, api_key_env="JUDGE_KEY").stream(ask(1))
    assert reply.error == "HTTP 401: wrong key: Bearer ***"
    assert "sk-secret" not in "".join(capsys.readouterr())


def test_a_key_variable_that_is_not_set_is_one_sentence(
    servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    with (
        ScriptedServer(magpie) as server,
        pytest.raises(UserError, match=r"environment variable JUDGE_KEY .* is not set"),
    ):
        list(given(servers, server, api_key_env="JUDGE_KEY").stream(ask(1)))


@pytest.mark.parametrize(
    "url", ["localhost:8000", "http://host/v1", "https://host/v1/completions", "ftp://host"]
)
def test_an_address_that_cannot_be_a_base_url_is_refused(url: str) -> None:
    with pytest.raises(ValidationError, match=r"must end before /v1|is not an http"):
        ServerSpec(model="m", urls=(url,))


@pytest.mark.parametrize("status", [401, 403, 404])
def test_answers_to_keep_end_at_once_where_access_is_refused(servers: Servers, status: int) -> None:
    with (
        ScriptedServer(lambda _, body: Fault("status", status)) as server,
        pytest.raises(UserError, match=f"HTTP {status}.*run again"),
    ):
        list(given(servers, server).answers(ask(50)))


def test_answers_to_keep_hold_no_failure_of_a_server_that_went_down(
    servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "ATTEMPTS", 2)
    kept: list[Reply] = []
    gone = ScriptedServer(
        lambda _, body: completion("fine") if body["seed"] < 30 else Fault("status", 503)
    )
    with gone as server, pytest.raises(UserError, match=r"503.*nothing was stored"):
        for reply in given(servers, server, max_in_flight=4).answers(ask(100)):
            kept.append(reply)
    assert [r.error for r in kept] == [None] * 30


def test_a_request_that_alone_gets_no_answer_is_its_own_failure(
    servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "ATTEMPTS", 2)
    with ScriptedServer(
        lambda _, body: completion("fine") if body["seed"] != 7 else Fault("status", 503)
    ) as server:
        replies = list(given(servers, server, max_in_flight=4).answers(ask(40)))
    assert len(replies) == 40 and [(r.key, r.fault) for r in replies if r.error] == [
        ("row-7", "server")
    ]


def test_a_malformed_request_is_an_answer_to_keep(servers: Servers) -> None:
    with ScriptedServer(lambda _, body: Fault("status", 400)) as server:
        replies = list(given(servers, server).answers(ask(30)))
    assert len(replies) == 30 and {r.fault for r in replies} == {"request"}
