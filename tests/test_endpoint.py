"""core.endpoint against a real HTTP server on loopback: nothing lost, nothing twice, and every way a server can misbehave."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from pydantic import ValidationError

from core import client, vllm_server
from core.endpoint import Endpoint, Request, Servers, ServerSpec
from core.errors import UserError
from core.models import Model, render, tokenizer
from core.tracking import Log
from tests.scripted_model import magpie
from tests.scripted_server import FAULTS, Fault, ScriptedServer, completion, flaky


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Back-off in milliseconds."""
    monkeypatch.setattr(client, "BACKOFF", (0.001, 0.005))


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our "own vLLM" is the scripted server, started, supervised and restarted as vLLM would be."""
    monkeypatch.setattr(vllm_server, "COMMAND", [sys.executable, "-m", "tests.scripted_server"])
    monkeypatch.chdir(Path(__file__).parents[1])


def ask(count: int, **body: object) -> Iterator[Request]:
    return (Request(f"row-{i}", {"prompt": [1, 2, i], "seed": i, "max_tokens": 8, **body}) for i in range(count))


def given(servers: Servers, server: ScriptedServer, **settings: object) -> Endpoint:
    return servers.serve(ServerSpec.model_validate({"model": "scripted", "urls": (server.url,), **settings}))


def server_processes(servers: Servers) -> list[psutil.Process]:
    """The processes of the own servers that are alive now, supervisor first."""
    supervisor = psutil.Process(servers._live[0]._process.pid)  # type: ignore[union-attr]
    return [supervisor, *supervisor.children(recursive=True)]


def test_each_request_gets_its_own_reply_once(servers: Servers) -> None:
    with ScriptedServer(lambda _, body: completion(f"seed {body['seed']}")) as server:
        replies = list(given(servers, server, max_in_flight=16).stream(ask(200)))
    assert {r.key: r.body["choices"][0]["text"] for r in replies if r.body} == {f"row-{i}": f"seed {i}" for i in range(200)}
    assert len(replies) == len(server.requests) == 200


def test_no_more_than_max_in_flight_requests_are_open_and_that_many_are(servers: Servers) -> None:
    with ScriptedServer(magpie, delay=0.05) as server:
        assert len(list(given(servers, server, max_in_flight=7).stream(ask(70)))) == 70
    assert server.high_water == 7


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


def test_the_model_name_is_filled_in_and_a_given_one_is_kept(servers: Servers) -> None:
    with ScriptedServer(magpie) as server:
        list(given(servers, server).stream([Request("a", {"prompt": [1]})]))
        list(given(servers, server, args={"served_model_name": "judge"}).stream([Request("b", {"prompt": [1]})]))
        list(given(servers, server).stream([Request("c", {"prompt": [1], "model": "adapter"})]))
    assert [r.body["model"] for r in server.requests] == ["scripted", "judge", "adapter"]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f"{f.kind}-{f.status}")
def test_a_fault_is_retried_and_the_row_is_answered(servers: Servers, fault: Fault) -> None:
    faults = [fault, fault]
    with ScriptedServer(lambda path, body: faults.pop() if faults else magpie(path, body)) as server:
        (reply,) = given(servers, server, timeout=0.3).stream(ask(1))
    assert reply.body is not None and reply.error is None and reply.attempts == 3


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f"{f.kind}-{f.status}")
def test_a_fault_that_stays_becomes_an_error_in_one_sentence(servers: Servers, fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "ATTEMPTS", 2)
    with ScriptedServer(lambda *_: fault) as server:
        (reply,) = given(servers, server, timeout=0.3).stream(ask(1))
    assert reply.body is None and reply.error and "\n" not in reply.error
    assert reply.attempts == len(server.requests) == 2


@pytest.mark.parametrize("body", [[], "text", {"choices": []}, {"choices": [{}]}, {"choices": [None]}, {"choices": {"text": "a"}}, {"error": "busy"}])
def test_a_body_of_another_form_is_not_taken_for_an_answer(servers: Servers, body: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "ATTEMPTS", 1)
    with ScriptedServer(lambda *_: body) as server:  # type: ignore[arg-type, return-value]
        (reply,) = given(servers, server).stream(ask(1))
    assert reply.error and "has not the form" in reply.error


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422, 301])
def test_a_refusal_is_not_sent_again(servers: Servers, status: int) -> None:
    with ScriptedServer(lambda *_: Fault("status", status)) as server:
        (reply,) = given(servers, server).stream(ask(1))
    assert reply.error == f"HTTP {status}: scripted failure" and len(server.requests) == 1


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


@pytest.mark.parametrize(("header", "wait"), [("3", 3), ("0.5", 0.5), ("99999999", 3600), ("-1", 0), ("soon", 0), ("nan", 0), (None, 0)])
def test_retry_after_in_seconds_is_bounded(header: str | None, wait: float) -> None:
    assert client._seconds(header) == wait


def test_retry_after_as_a_date_is_understood() -> None:
    from datetime import UTC, datetime, timedelta
    from email.utils import format_datetime

    assert 50 < client._seconds(format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)) <= 60


def test_with_a_fifth_of_all_calls_failing_every_row_is_answered_or_counted(servers: Servers) -> None:
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
    assert one.high_water <= 5 and two.high_water <= 5 and min(len(one.requests), len(two.requests)) >= 20


def test_closing_the_stream_early_cancels_what_is_in_flight_and_leaves_no_thread(servers: Servers) -> None:
    import threading

    with ScriptedServer(lambda path, body: magpie(path, body) if body["seed"] == 0 else Fault("hang")) as server:
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


def test_no_requests_start_no_server(servers: Servers, own: None) -> None:
    assert list(servers.serve(ServerSpec(model="m")).stream([])) == []
    assert servers._live == []


def test_the_key_is_sent_and_never_shown(servers: Servers, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("JUDGE_KEY", "sk-secret-123\n")
    with ScriptedServer(magpie, key="sk-secret-123") as server:
        (reply,) = given(servers, server, api_key_env="JUDGE_KEY").stream(ask(1))
        assert reply.body
    with ScriptedServer(magpie, key="another") as server:  # this server repeats the key that it was sent
        (reply,) = given(servers, server, api_key_env="JUDGE_KEY").stream(ask(1))
    assert reply.error == "HTTP 401: wrong key: Bearer ***"
    assert "sk-secret" not in "".join(capsys.readouterr())


def test_a_key_variable_that_is_not_set_is_one_sentence(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    with ScriptedServer(magpie) as server, pytest.raises(UserError, match=r"environment variable JUDGE_KEY .* is not set"):
        list(given(servers, server, api_key_env="JUDGE_KEY").stream(ask(1)))


@pytest.mark.parametrize("url", ["localhost:8000", "http://host/v1", "https://host/v1/completions", "ftp://host"])
def test_an_address_that_cannot_be_a_base_url_is_refused(url: str) -> None:
    with pytest.raises(ValidationError, match=r"must end before /v1|is not an http"):
        ServerSpec(model="m", urls=(url,))


def test_arguments_reach_the_command_line_verbatim() -> None:
    args = {"max_model_len": 2048, "enforce_eager": True, "enable_chunked_prefill": False, "hf_overrides": {"a": [1]}, "seed": None}
    args |= {"lora_modules": ["a=x", "b=y"]}
    assert vllm_server.command_line(args) == [
        *("--max-model-len", "2048", "--enforce-eager", "--no-enable-chunked-prefill", "--hf-overrides", '{"a": [1]}'),
        *("--lora-modules", "a=x", "b=y"),
    ]


@pytest.mark.parametrize("name", ["host", "port", "api_key", "model"])
def test_arguments_that_the_harness_decides_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=name):
        vllm_server.command_line({name: "x"})


def test_without_a_gpu_prompts_are_prefilled_whole_unless_the_user_says_otherwise() -> None:
    """A request with its own seed kills the CPU engine when its prompt is prefilled in chunks."""
    assert vllm_server.cpu_defaults({}) == {"enforce_eager": True, "enable_chunked_prefill": False, "max_num_batched_tokens": 8192}
    assert vllm_server.cpu_defaults({"max_model_len": 32768})["max_num_batched_tokens"] == 32768
    assert vllm_server.cpu_defaults({"enable_chunked_prefill": True})["enable_chunked_prefill"] is True


def test_replicas_get_gpus_of_their_own(tmp_path: Path) -> None:
    made = vllm_server.make_servers("m", {"tensor_parallel_size": 2}, {"CUDA_VISIBLE_DEVICES": "4,5,6,7"}, 2, lambda r: tmp_path / str(r))
    assert [server._environment()["CUDA_VISIBLE_DEVICES"] for server in made] == ["4,5", "6,7"]
    with pytest.raises(UserError, match="need 6 GPUs, but this machine shows 4"):
        vllm_server.make_servers("m", {"tensor_parallel_size": 2}, {"CUDA_VISIBLE_DEVICES": "4,5,6,7"}, 3, lambda r: tmp_path / str(r))


def test_replicas_on_a_cpu_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    assert vllm_server.cpu_shares(1, 1) == ["0,1,2,3"]
    assert vllm_server.cpu_shares(2, 1) == ["0,1", "2,3"]
    assert vllm_server.cpu_shares(5, 1) == ["nobind"] * 5
    assert vllm_server.cpu_shares(1, 2) == [None]


def test_an_own_server_gets_a_key_by_environment_and_nothing_secret_in_argv(servers: Servers, own: None) -> None:
    endpoint = servers.serve(ServerSpec(model="m"))
    replies = endpoint.stream(ask(50))
    next(replies)
    key = servers._live[0].key
    for process in server_processes(servers):
        assert key not in " ".join(process.cmdline())
    assert server_processes(servers)[1].environ()["VLLM_API_KEY"] == key
    assert len(list(replies)) == 49


def test_a_server_is_kept_for_an_equal_spec_and_swapped_for_another(servers: Servers, own: None) -> None:
    one, two = ServerSpec(model="one"), ServerSpec(model="two")
    list(servers.serve(one).stream(ask(1)))
    first = server_processes(servers)
    list(servers.serve(one.model_copy(update={"max_in_flight": 3, "timeout": 5})).stream(ask(1)))
    assert server_processes(servers) == first
    list(servers.serve(two).stream(ask(1)))
    assert not any(p.is_running() for p in first) and len(servers._live) == 1
    second = server_processes(servers)
    servers.release()
    assert not any(p.is_running() for p in second)
    assert next(iter(servers.serve(two).stream(ask(1)))).body, "a released server starts again when it is needed"


def test_a_server_released_under_an_open_stream_does_not_come_back(servers: Servers, own: None) -> None:
    replies = servers.serve(ServerSpec(model="m", max_in_flight=4, args={"behaviour": "slow"})).stream(ask(200))
    next(replies)
    live, processes = servers._live[0], server_processes(servers)
    servers.release()
    assert not any(p.is_running() for p in processes)
    assert all(r.error for r in list(replies)[-100:]) and not live.running


def test_servers_end_with_their_context(tmp_path: Path, own: None) -> None:
    with Servers(Log(), tmp_path) as servers:
        list(servers.serve(ServerSpec(model="m", replicas=2)).stream(ask(4)))
        processes = [p for server in servers._live for p in [psutil.Process(server._process.pid)]]  # type: ignore[union-attr]
        processes += [child for p in processes for child in p.children(recursive=True)]
        assert len(processes) == 4
    assert not any(p.is_running() for p in processes)


@pytest.mark.parametrize("victim", ["server", "supervisor"])
def test_a_server_killed_in_mid_run_is_restarted_and_nothing_is_lost_or_doubled(servers: Servers, own: None, victim: str) -> None:
    replies = servers.serve(ServerSpec(model="m", max_in_flight=8, args={"behaviour": "slow"})).stream(ask(60))
    got = [next(replies) for _ in range(10)]
    os.kill(server_processes(servers)[victim == "server"].pid, signal.SIGKILL)
    got += replies
    assert sorted(r.key for r in got) == sorted(f"row-{i}" for i in range(60))
    assert all(r.body for r in got) and servers._live[0].generation == 1


def test_the_other_replica_goes_on_while_one_is_restarted(servers: Servers, own: None) -> None:
    replies = servers.serve(ServerSpec(model="m", replicas=2, max_in_flight=8, args={"behaviour": "slow"})).stream(ask(100))
    got = [next(replies) for _ in range(10)]
    os.kill(server_processes(servers)[1].pid, signal.SIGKILL)
    got += replies
    assert len({r.key for r in got if r.body}) == 100
    assert [server.generation for server in servers._live] == [1, 0]


def test_a_server_that_died_between_two_streams_is_restarted(servers: Servers, own: None) -> None:
    endpoint = servers.serve(ServerSpec(model="m"))
    list(endpoint.stream(ask(1)))
    os.kill(server_processes(servers)[1].pid, signal.SIGKILL)
    assert all(r.body for r in endpoint.stream(ask(5)))


def test_a_server_that_dies_again_and_again_ends_the_run_with_its_last_words(servers: Servers, own: None) -> None:
    endpoint = servers.serve(ServerSpec(model="m", args={"behaviour": "deadly"}))
    with pytest.raises(UserError, match=r"died again and again: .*RuntimeError: CPU Generator does not use offset.*\.log"):
        list(endpoint.stream(ask(5)))
    assert servers._live[0].generation == client.RESTARTS


def test_a_server_that_ends_while_starting_is_reported_with_the_line_that_says_why(servers: Servers, own: None) -> None:
    with pytest.raises(UserError, match=r"ended while starting: .*invalid choice: 'typo'.*\(log: .*vllm-m-0\.log\)"):
        list(servers.serve(ServerSpec(model="m", args={"behaviour": "typo"})).stream(ask(1)))


def test_the_cause_is_found_in_a_vllm_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text(
        "(EngineCore pid=7) ERROR 11-22 13:14:15 [core.py:99] ValueError: The model's max seq len (8192) is larger than 4096.\n"
        "(APIServer pid=5) Traceback (most recent call last):\n"
        "(APIServer pid=5) RuntimeError: Engine core initialization failed. See root cause above.\n"
        "[rank0]:[W] destroy_process_group() was not called\n"
    )
    server = vllm_server.VllmServer("m", {}, {}, log, None, None)
    assert server.complaint() == "ValueError: The model's max seq len (8192) is larger than 4096."


@pytest.mark.stack
def test_real_vllm_answers_token_ids_seeds_choices_and_prompt_logprobs(teacher_endpoint: Endpoint, teacher: Model) -> None:
    words = tokenizer(teacher.path)
    ids = render(words, [{"role": "user", "content": "What is the capital of France?"}], add_generation_prompt=True)
    seeded = {"prompt": ids, "max_tokens": 24, "temperature": 1.0, "seed": 5}
    bodies = {
        "greedy": {"prompt": ids, "max_tokens": 40, "temperature": 0, "return_token_ids": True},
        "seed-1": seeded,
        "seed-2": seeded,
        "choice": {"prompt": ids, "max_tokens": 1, "structured_outputs": {"choice": ["m", "M"]}, "logprobs": 20},
        "scored": {"prompt": ids, "max_tokens": 1, "prompt_logprobs": 0},
        "too long": {"prompt": ids * 500, "max_tokens": 1},
    }
    replies = {r.key: r for r in teacher_endpoint.stream(Request(key, body) for key, body in bodies.items())}
    choices = {key: r.body["choices"][0] for key, r in replies.items() if r.body}
    assert "Paris" in choices["greedy"]["text"] and choices["greedy"]["finish_reason"] == "stop"
    assert choices["greedy"]["prompt_token_ids"] == ids, "the server must add no BOS of its own"
    assert choices["seed-1"]["text"] == choices["seed-2"]["text"]
    assert choices["choice"]["text"] in ("m", "M") and {"m", "M"} <= set(choices["choice"]["logprobs"]["top_logprobs"][0])
    assert [str(token) in entry for token, entry in zip(ids[1:], choices["scored"]["prompt_logprobs"][1:], strict=True)] == [True] * (len(ids) - 1)
    assert replies["too long"].error and replies["too long"].error.startswith("HTTP 400: ")
