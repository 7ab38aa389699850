"""Our own vLLM servers: how they are started, pinned, kept, swapped and restarted. A scripted
server stands where vLLM's command stands."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from core.errors import UserError
from core.models import Model, render, tokenizer
from core.sending import client
from core.servers import Endpoint, Servers
from core.serving import health, vllm_server
from core.tracking import Log
from core.wire import Request, ServerSpec


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
    return (
        Request(f"row-{i}", {"prompt": [1, 2, i], "seed": i, "max_tokens": 8, **body})
        for i in range(count)
    )


def server_processes(servers: Servers) -> list[psutil.Process]:
    """The processes of the own servers that are alive now, supervisor first."""
    supervisor = psutil.Process(servers._live[0]._process.pid)  # type: ignore[union-attr]
    return [supervisor, *supervisor.children(recursive=True)]


def test_no_requests_start_no_server(servers: Servers, own: None) -> None:
    assert list(servers.serve(ServerSpec(model="m")).stream([])) == []
    assert servers._live == []


def test_arguments_reach_the_command_line_verbatim() -> None:
    args = {
        "max_model_len": 2048,
        "enforce_eager": True,
        "enable_chunked_prefill": False,
        "hf_overrides": {"a": [1]},
        "seed": None,
    }
    args |= {"lora_modules": ["a=x", "b=y"]}
    assert vllm_server.command_line(args) == [
        *(
            "--max-model-len",
            "2048",
            "--enforce-eager",
            "--no-enable-chunked-prefill",
            "--hf-overrides",
            '{"a": [1]}',
        ),
        *("--lora-modules", "a=x", "b=y"),
    ]


@pytest.mark.parametrize("name", ["host", "port", "api_key", "model"])
def test_arguments_that_the_harness_decides_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=name):
        vllm_server.command_line({name: "x"})


def test_without_a_gpu_prompts_are_prefilled_whole_unless_the_user_says_otherwise() -> None:
    """A request with its own seed kills the CPU engine when its prompt is prefilled in chunks."""
    assert vllm_server.cpu_defaults({}) == {
        "enforce_eager": True,
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": 8192,
    }
    assert vllm_server.cpu_defaults({"max_model_len": 32768})["max_num_batched_tokens"] == 32768
    assert (
        vllm_server.cpu_defaults({"enable_chunked_prefill": True})["enable_chunked_prefill"] is True
    )


def test_replicas_get_gpus_of_their_own(tmp_path: Path) -> None:
    pairs = ServerSpec(
        model="m",
        replicas=2,
        args={"tensor_parallel_size": 2},
        env={"CUDA_VISIBLE_DEVICES": "4,5,6,7"},
    )
    servers = vllm_server.make_servers(pairs, lambda r: tmp_path / str(r))
    assert [s._environment()["CUDA_VISIBLE_DEVICES"] for s in servers] == ["4,5", "6,7"]
    too_many = pairs.model_copy(update={"replicas": 3})
    with pytest.raises(UserError, match="need 6 GPUs, but this machine shows 4"):
        vllm_server.make_servers(too_many, lambda r: tmp_path / str(r))


@pytest.mark.parametrize(("size", "replicas"), [(1, 8), (4, 2), (3, 2), (16, 1)])
def test_as_many_replicas_start_as_the_gpus_hold(size: int, replicas: int) -> None:
    visible = {"CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7"}
    silent = ServerSpec(model="m", args={"tensor_parallel_size": size}, env=visible)
    assert vllm_server.on_all_gpus(silent).replicas == replicas
    said = silent.model_copy(update={"replicas": 1})
    assert vllm_server.on_all_gpus(said).replicas == 1


def test_one_replica_starts_without_gpus() -> None:
    on_cpu = ServerSpec(model="m", env={"CUDA_VISIBLE_DEVICES": ""})
    assert vllm_server.on_all_gpus(on_cpu).replicas == 1


def test_replicas_on_a_cpu_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    assert vllm_server.cpu_shares(1, 1) == ["0,1,2,3"]
    assert vllm_server.cpu_shares(2, 1) == ["0,1", "2,3"]
    assert vllm_server.cpu_shares(5, 1) == ["nobind"] * 5
    assert vllm_server.cpu_shares(1, 2) == [None]


@pytest.mark.process
def test_an_own_server_gets_a_key_by_environment_and_nothing_secret_in_argv(
    servers: Servers, own: None
) -> None:
    endpoint = servers.serve(ServerSpec(model="m"))
    replies = endpoint.stream(ask(50))
    next(replies)
    key = servers._live[0].key
    for process in server_processes(servers):
        assert key not in " ".join(process.cmdline())
    assert server_processes(servers)[1].environ()["VLLM_API_KEY"] == key
    assert len(list(replies)) == 49


@pytest.mark.process
def test_a_server_is_kept_for_an_equal_spec_and_swapped_for_another(
    servers: Servers, own: None
) -> None:
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
    assert next(iter(servers.serve(two).stream(ask(1)))).body, (
        "a released server starts again when it is needed"
    )


@pytest.mark.process
def test_a_server_released_under_an_open_stream_does_not_come_back(
    servers: Servers, own: None
) -> None:
    replies = servers.serve(
        ServerSpec(model="m", max_in_flight=4, args={"behaviour": "slow"})
    ).stream(ask(200))
    next(replies)
    live, processes = servers._live[0], server_processes(servers)
    servers.release()
    assert not any(p.is_running() for p in processes)
    assert all(r.error for r in list(replies)[-100:]) and not live.running


@pytest.mark.process
def test_servers_end_with_their_context(tmp_path: Path, own: None) -> None:
    with Servers(Log(), tmp_path) as servers:
        list(servers.serve(ServerSpec(model="m", replicas=2)).stream(ask(4)))
        processes = [p for server in servers._live for p in [psutil.Process(server._process.pid)]]  # type: ignore[union-attr]
        processes += [child for p in processes for child in p.children(recursive=True)]
        assert len(processes) == 4
    assert not any(p.is_running() for p in processes)


@pytest.mark.process
@pytest.mark.parametrize("victim", ["server", "supervisor"])
def test_a_server_killed_in_mid_run_is_restarted_and_nothing_is_lost_or_doubled(
    servers: Servers, own: None, victim: str
) -> None:
    replies = servers.serve(
        ServerSpec(model="m", max_in_flight=8, args={"behaviour": "slow"})
    ).stream(ask(60))
    got = [next(replies) for _ in range(10)]
    os.kill(server_processes(servers)[victim == "server"].pid, signal.SIGKILL)
    got += replies
    assert sorted(r.key for r in got) == sorted(f"row-{i}" for i in range(60))
    assert all(r.body for r in got) and servers._live[0].generation == 1


@pytest.mark.process
def test_the_other_replica_goes_on_while_one_is_restarted(servers: Servers, own: None) -> None:
    replies = servers.serve(
        ServerSpec(model="m", replicas=2, max_in_flight=8, args={"behaviour": "slow"})
    ).stream(ask(100))
    got = [next(replies) for _ in range(10)]
    os.kill(server_processes(servers)[1].pid, signal.SIGKILL)
    got += replies
    assert len({r.key for r in got if r.body}) == 100
    assert [server.generation for server in servers._live] == [1, 0]


@pytest.mark.process
def test_a_server_that_died_between_two_streams_is_restarted(servers: Servers, own: None) -> None:
    endpoint = servers.serve(ServerSpec(model="m"))
    list(endpoint.stream(ask(1)))
    os.kill(server_processes(servers)[1].pid, signal.SIGKILL)
    assert all(r.body for r in endpoint.stream(ask(5)))


@pytest.mark.slow
def test_a_server_that_hangs_is_ended_and_started_again(
    servers: Servers, own: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "PATIENCE", 0.2)
    said: list[str] = []
    servers.say = said.append
    spec = ServerSpec(model="m", max_in_flight=4, timeout=0.5, args={"behaviour": "slow"})
    replies = servers.serve(spec).stream(ask(20))
    got = [next(replies)]
    hung = server_processes(servers)[1]
    hung.suspend()
    got += replies
    assert sorted(r.key for r in got if r.body) == sorted(f"row-{i}" for i in range(20))
    assert not hung.is_running() and "m hangs; starting it again" in " ".join(said)


@pytest.mark.process
def test_a_server_that_dies_again_and_again_ends_the_run_with_its_last_words(
    servers: Servers, own: None
) -> None:
    endpoint = servers.serve(ServerSpec(model="m", args={"behaviour": "deadly"}))
    with pytest.raises(
        UserError,
        match=r"died again and again: .*RuntimeError: CPU Generator does not use offset.*\.log",
    ):
        list(endpoint.stream(ask(5)))
    assert servers._live[0].generation == client.RESTARTS


@pytest.mark.process
def test_a_server_that_ends_while_starting_is_reported_with_the_line_that_says_why(
    servers: Servers, own: None
) -> None:
    with pytest.raises(
        UserError, match=r"ended while starting: .*invalid choice: 'typo'.*\(log: .*vllm-m-0\.log\)"
    ):
        list(servers.serve(ServerSpec(model="m", args={"behaviour": "typo"})).stream(ask(1)))


def test_the_cause_is_found_in_a_vllm_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text(
        "(EngineCore pid=7) ERROR 11-22 13:14:15 [core.py:99] "
        "ValueError: The model's max seq len (8192) is larger than 4096.\n"
        "(APIServer pid=5) Traceback (most recent call last):\n"
        "(APIServer pid=5) RuntimeError: Engine core initialization failed. See root cause above.\n"
        "[rank0]:[W] destroy_process_group() was not called\n"
    )
    server = vllm_server.VllmServer(ServerSpec(model="m"), log)
    assert server.complaint() == "ValueError: The model's max seq len (8192) is larger than 4096."


def test_a_pydantic_error_in_a_vllm_log_is_quoted_with_its_reason(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text(
        "(APIServer pid=5) pydantic_core._pydantic_core.ValidationError: "
        "1 validation error for ModelConfig\n"
        "(APIServer pid=5)   Value error, User-specified max_model_len (4096) is too large. "
        "[type=value_error, input_value=ArgsKwargs(())]\n"
        "(APIServer pid=5)     For further information visit https://errors.pydantic.dev/\n"
    )
    said = vllm_server.VllmServer(ServerSpec(model="m"), log).complaint()
    assert said.endswith(
        "1 validation error for ModelConfig Value error, "
        "User-specified max_model_len (4096) is too large."
    )


@pytest.mark.stack
def test_real_vllm_answers_token_ids_seeds_choices_and_prompt_logprobs(
    teacher_endpoint: Endpoint, teacher: Model
) -> None:
    words = tokenizer(teacher.path)
    ids = render(
        words,
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
    )
    seeded = {"prompt": ids, "max_tokens": 24, "temperature": 1.0, "seed": 5}
    bodies = {
        "greedy": {"prompt": ids, "max_tokens": 40, "temperature": 0, "return_token_ids": True},
        "seed-1": seeded,
        "seed-2": seeded,
        "choice": {
            "prompt": ids,
            "max_tokens": 1,
            "structured_outputs": {"choice": ["m", "M"]},
            "logprobs": 20,
        },
        "scored": {"prompt": ids, "max_tokens": 1, "prompt_logprobs": 0},
        "too long": {"prompt": ids * 500, "max_tokens": 1},
    }
    replies = {
        r.key: r
        for r in teacher_endpoint.stream(Request(key, body) for key, body in bodies.items())
    }
    choices = {key: r.body["choices"][0] for key, r in replies.items() if r.body}
    assert "Paris" in choices["greedy"]["text"] and choices["greedy"]["finish_reason"] == "stop"
    assert choices["greedy"]["prompt_token_ids"] == ids, "the server must add no BOS of its own"
    assert choices["seed-1"]["text"] == choices["seed-2"]["text"]
    assert choices["choice"]["text"] in ("m", "M") and {"m", "M"} <= set(
        choices["choice"]["logprobs"]["top_logprobs"][0]
    )
    assert [
        str(token) in entry
        for token, entry in zip(ids[1:], choices["scored"]["prompt_logprobs"][1:], strict=True)
    ] == [True] * (len(ids) - 1)
    assert replies["too long"].error and replies["too long"].error.startswith("HTTP 400: ")


def test_sampling_that_a_request_does_not_name_is_neutral_unless_the_models_own_is_wanted() -> None:
    neutral = vllm_server.sampling_defaults({"max_model_len": 2048})["override_generation_config"]
    assert (
        neutral["top_k"] == 0
        and neutral["repetition_penalty"] == 1.0
        and neutral["max_new_tokens"] is None
    )
    assert (
        vllm_server.sampling_defaults({"generation_config": "auto"})
        == {}
        == vllm_server.sampling_defaults({"runner": "pooling"})
    )


def test_the_installed_vllms_sampling_parameters_are_known_without_importing_it() -> None:
    known = vllm_server.completion_fields()
    assert {
        "temperature",
        "top_p",
        "min_p",
        "logit_bias",
        "stop_token_ids",
    } <= known and "temprature" not in known
