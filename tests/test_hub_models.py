"""Models of a hub on loopback: which commit, whose access, downloads that fail, and what is done
without a network."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from core import models
from core.errors import UserError
from core.models import check_access, folder, resolve, text_folder
from core.pretrained import hub as asking
from core.serving.weights import local, spec_at
from core.wire import ServerSpec
from recipes.stages.training import served_path
from tests.loopback_hub import TOKEN, Fault, Hub, Repository, commit, point_at
from train.sizes import shapes

TEXTS = {
    "config.json": b"{}",
    "tokenizer.json": b"{}",
    "generation_config.json": b'{"eos_token_id": [7, 9]}',
}
OLD = {**TEXTS, "model.safetensors": b"old", "pytorch_model.bin": b"pickle"}
NEW = {**TEXTS, "model.safetensors": bytes(range(256)) * 512, "code.py": b"code"}
"""Its weights are an LFS file."""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub whose me/base has moved on from v1, with an empty cache here and nothing remembered."""
    repositories = {
        "me/base": Repository(NEW, {"v1": OLD}),
        "me/gated": Repository(OLD, gated=True),
        "me/mine": Repository(OLD, private=True),
    }
    with Hub(repositories, kind="models") as served:
        point_at(served.url, tmp_path, monkeypatch)
        yield served


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Nobody sleeps: the pauses that would have been made."""
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    return pauses


# -- which commit ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("revision", "files"), [(None, NEW), ("main", NEW), ("v1", OLD)])
def test_a_revision_is_the_commit_that_the_hub_says(
    hub: Hub, revision: str | None, files: dict[str, bytes]
) -> None:
    assert resolve("me/base", revision).commit == commit(files)


def test_a_process_sees_one_commit_and_asks_for_it_once(hub: Hub) -> None:
    first = resolve("me/base")
    hub.repositories["me/base"].files = OLD
    assert resolve("me/base") == first and hub.of("me/base", "/revision/") == 0
    assert sum(path == "/api/models/me/base" for _, path in hub.asked) == 1


@pytest.mark.parametrize(
    ("name", "revision", "sentence"),
    [
        ("me/nobody", None, "the hub knows no model me/nobody, or it is private"),
        ("me/mine", None, "the hub knows no model me/mine, or it is private"),
        ("me/base", "v9", "model me/base has no revision 'v9' on the hub"),
    ],
)
def test_what_the_hub_does_not_have_is_a_sentence(
    hub: Hub, name: str, revision: str | None, sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        resolve(name, revision)


def test_a_private_model_is_had_with_a_token(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert resolve("me/mine").commit == commit(OLD)


# -- access ----------------------------------------------------------------------------------------


def test_a_gated_model_says_where_to_ask(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    gated = resolve("me/gated")
    with pytest.raises(UserError, match=f"gated: ask for access at {hub.url}/me/gated, then set"):
        check_access(gated)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with pytest.raises(UserError, match="the account of HF_TOKEN has no access: ask for it at"):
        check_access(gated)
    with pytest.raises(UserError, match="the account of HF_TOKEN has no access: ask for it at"):
        folder(gated)
    hub.repositories["me/gated"].granted = True
    check_access(gated)
    assert (folder(gated) / "model.safetensors").read_bytes() == b"old"


def test_a_gated_model_that_is_here_is_not_asked_about(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.repositories["me/gated"].granted = True
    gated = resolve("me/gated")
    folder(gated)
    monkeypatch.delenv("HF_TOKEN")
    check_access(gated)
    assert hub.of("me/gated", "auth-check") == 0


def test_a_token_that_the_hub_does_not_know_is_a_sentence(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_stale")
    with pytest.raises(UserError, match="does not accept the token in HF_TOKEN") as refused:
        resolve("me/base")
    assert "hf_stale" not in str(refused.value)


# -- a hub that fails ------------------------------------------------------------------------------


def test_a_busy_hub_is_asked_again(hub: Hub, at_once: list[float]) -> None:
    hub.faults.append(Fault("/api/models/me/base", 503, times=2))
    assert resolve("me/base").commit == commit(NEW) and at_once == [1, 2]


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        (Fault("/api/", 503), r"the hub has a fault of its own \(503, model me/base\)"),
        (Fault("/api/", 429), r"takes no more questions for now \(429.*in some minutes"),
        (Fault("/api/", 429, headers={"Retry-After": "240"}), r"429.*try again in 240 s"),
        (
            Fault("/api/", 429, headers={"RateLimit": '"api";r=0;t=77'}),
            r"429.*try again in 77 s, or set HF_TOKEN",
        ),
        (Fault("/api/", 403, headers={"X-Error-Message": "No seat"}), r"forbids .*\(No seat\)"),
        (Fault("/api/", 418), r"refuses model me/base \(418"),
    ],
)
def test_a_hub_that_refuses_is_one_sentence_at_once(
    hub: Hub, at_once: list[float], fault: Fault, sentence: str
) -> None:
    hub.faults.append(fault)
    with pytest.raises(UserError, match=sentence) as refused:
        resolve("me/base")
    assert sum(at_once) <= 3 and "http" not in str(refused.value)


def test_what_a_hub_said_before_stands_while_it_fails(hub: Hub, at_once: list[float]) -> None:
    known = resolve("me/base")
    asking._commits.clear()
    hub.faults.append(Fault("/api/", 503))
    assert resolve("me/base") == known


def test_a_cut_download_goes_on_where_it_was(hub: Hub, at_once: list[float]) -> None:
    hub.faults.append(Fault("GET /lfs/", cut=100_000, times=1))
    here = folder(resolve("me/base"))
    assert (here / "model.safetensors").read_bytes() == NEW["model.safetensors"]
    assert hub.of("me/base", "/lfs/") >= 2


def test_a_download_that_is_cut_again_and_again_goes_on_with_the_next_command(
    hub: Hub, at_once: list[float]
) -> None:
    base = resolve("me/base")
    hub.faults.append(Fault("GET /lfs/", cut=0))
    with pytest.raises(UserError, match=r"cannot be downloaded: .*; run again, which goes on"):
        folder(base)
    hub.faults.clear()
    assert (folder(base) / "model.safetensors").read_bytes() == NEW["model.safetensors"]


def test_a_download_is_announced_with_its_size(hub: Hub) -> None:
    said: list[str] = []
    base = resolve("me/base")
    folder(base, said.append)
    folder(base, said.append)
    assert said == [f"downloading me/base at {base.revision[:12]}, 0.0 GB"]


def test_weights_in_other_formats_and_code_stay_on_the_hub(hub: Hub) -> None:
    assert {path.name for path in folder(resolve("me/base")).iterdir()} == NEW.keys() - {"code.py"}
    old = folder(resolve("me/base", "v1"))
    assert {path.name for path in old.iterdir()} == OLD.keys() - {"pytorch_model.bin"}


def test_a_tokenizer_needs_no_weights(hub: Hub) -> None:
    here = text_folder(resolve("me/base"))
    assert {path.name for path in here.iterdir()} == TEXTS.keys()
    assert (folder(resolve("me/base")) / "model.safetensors").is_file(), "and they can follow"


# -- no network ------------------------------------------------------------------------------------


def unplugged(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, hub: Hub) -> None:
    """The hub is gone, and a new process knows what this one has stored."""
    hub.__exit__(None, None, None)
    forgotten(monkeypatch)


def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "_commits", {})
    monkeypatch.setattr(asking, "_knocked", {})


def test_after_a_first_run_no_network_is_needed(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, old = resolve("me/base"), resolve("me/base", "v1")
    here = folder(base)
    unplugged(monkeypatch, tmp_path, hub)
    assert resolve("me/base") == base and resolve("me/base", "v1") == old
    assert folder(resolve("me/base")) == here
    check_access(old)


def test_after_a_first_run_the_hub_may_be_switched_off(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    base = resolve("me/base")
    here = folder(base)
    forgotten(monkeypatch)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    asked = len(hub.asked)
    assert folder(resolve("me/base")) == here and len(hub.asked) == asked
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
        folder(resolve("me/base", "v1"))


def test_what_is_not_here_without_a_network_is_one_sentence(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = resolve("me/base", "v1")
    unplugged(monkeypatch, tmp_path, hub)
    with pytest.raises(UserError, match=r"cannot be reached .*: run `hf download me/base`"):
        folder(old)
    assert resolve("me/other").revision == models.UNRESOLVED
    with pytest.raises(UserError, match=r"cannot be reached .*`hf download me/other`"):
        folder(resolve("me/other"))


def test_a_hub_that_never_answers_is_given_up_within_seconds_and_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        point_at(f"http://127.0.0.1:{silent.getsockname()[1]}", tmp_path, monkeypatch)
        monkeypatch.setattr(asking, "PATIENCE", 0.2)
        started = time.monotonic()
        for name in ("a", "b", "c"):
            assert resolve(f"me/{name}").revision == models.UNRESOLVED
        assert time.monotonic() - started < 3


def test_a_hub_that_is_there_but_answers_nothing_is_asked_once(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "PATIENCE", 0.3)
    hub.faults.append(Fault("/api/|/resolve/", wait=1.0))
    for name in ("base", "gated", "mine"):
        assert resolve(f"me/{name}").revision == models.UNRESOLVED
        check_access(resolve(f"me/{name}"))
    assert hub.of("me/gated", "") + hub.of("me/mine", "") == 0
    assert asking.out_of_reach()


def test_the_shapes_of_several_models_wait_once_for_a_silent_hub(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shapes, "PATIENCE", 0.3)
    hub.faults.append(Fault("/resolve/", wait=1.0))
    started = time.monotonic()
    for name in ("base", "gated", "mine"):
        with pytest.raises(UserError, match=r"the hub gives no config\.json"):
            shapes.shape_of(f"me/{name}")
    assert hub.of("me/gated", "") + hub.of("me/mine", "") == 0
    assert time.monotonic() - started < 20


def test_a_name_that_is_looked_up_for_ever_is_given_up_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    point_at("http://hub.invalid", tmp_path, monkeypatch)
    monkeypatch.setattr(asking, "PATIENCE", 0.1)
    ends = threading.Event()

    class Session:
        def head(self, *_: Any, **__: Any) -> None:
            ends.wait(30)

    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "get_session", Session)
    assert asking.out_of_reach() == "no answer within 0 s"
    ends.set()


# -- who loads what --------------------------------------------------------------------------------


def test_a_server_is_started_with_the_folder_of_the_commit_under_the_models_name(hub: Hub) -> None:
    old = resolve("me/base", "v1")
    spec = spec_at(old, {"args": {"max_model_len": 64}})
    assert spec.args == {"revision": commit(OLD), "max_model_len": 64}
    served = local(spec)
    assert (Path(served.model) / "model.safetensors").read_bytes() == b"old"
    assert served.args == {"served_model_name": "me/base", "max_model_len": 64}
    assert served.request_model == spec.request_model == "me/base"


def test_a_model_that_ray_spreads_keeps_its_id_and_commit(hub: Hub) -> None:
    ray = {"args": {"distributed_executor_backend": "ray"}}
    spec = spec_at(resolve("me/base"), ray)
    assert local(spec) == spec and spec.args["revision"] == commit(NEW)
    assert spec_at(resolve("me/base"), {"urls": ["http://x"]}).args == {}


def test_a_folder_is_served_as_it_is(tmp_path: Path) -> None:
    spec = ServerSpec(model=str(tmp_path))
    assert local(spec) is spec


def test_a_finished_model_is_evaluated_at_its_commit(hub: Hub) -> None:
    from recipes.stages.training import _finished

    made = _finished(resolve("me/base", "v1"))
    assert (Path(served_path(made.path)) / "model.safetensors").read_bytes() == b"old"


def test_a_judge_and_a_reward_model_are_served_at_their_commit(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    from eval.judging.asking.ask import Asker
    from eval.judging.reward_model import Scorer
    from eval.protocols import JudgeConfig

    monkeypatch.setattr(models, "tokenizer", lambda path, revision: (path, revision))
    for kind in (Asker, Scorer):
        asker = object.__new__(kind)
        asker.codes = ()  # type: ignore[misc]
        asker.judge = JudgeConfig(model="me/base", revision="v1")  # type: ignore[misc]
        assert asker._spec().args["revision"] == commit(OLD)
    assert asker.tokenizer == ("me/base", commit(OLD))


def test_end_tokens_are_those_of_the_commit(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from synth.chat.pre_query import _generation_ends

    newer = {**NEW, "generation_config.json": b'{"eos_token_id": 1}'}
    hub.repositories["me/base"] = Repository(newer, {"v1": OLD})
    assert _generation_ends(text_folder(resolve("me/base", "v1"))) == (7, 9)


def test_a_tokenizer_is_that_of_its_commit_and_keeps_the_hubs_name(
    hub: Hub, tmp_path: Path
) -> None:
    from tests import tiny

    tiny.tokenizer("chatml").save_pretrained(tmp_path / "old")
    tiny.tokenizer("llama3").save_pretrained(tmp_path / "new")
    old, new = (
        {path.name: path.read_bytes() for path in (tmp_path / each).iterdir()}
        for each in ("old", "new")
    )
    hub.repositories["me/words"] = Repository(new, {"v1": old})
    words = resolve("me/words", "v1")
    loaded = models.load_tokenizer(words.path, words.commit)
    assert loaded.bos_token == "<|endoftext|>" and loaded.name_or_path == "me/words"
    assert (models.files_of(loaded) / "tokenizer.json").read_bytes() == old["tokenizer.json"]
    assert models.load_tokenizer("me/words").bos_token == "<|begin_of_text|>"
