"""What a training is started with: the base as a folder of one commit, absolute paths, and a key
that holds what determines the weights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from core.errors import UserError
from core.models import Model, folder, resolve
from core.pretrained.snapshots import lacks_of
from core.tracking import Log
from recipes.stages.training import determines
from tests.loopback_hub import Hub, Repository
from train import launch
from train.config import TrainConfig
from train.settings.machine import environment

OLD = {
    "config.json": b"{}",
    "tokenizer.json": b"{}",
    "model.safetensors.index.json": json.dumps(
        {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    ).encode(),
    "model-1.safetensors": b"old 1",
    "model-2.safetensors": b"old 2",
    "pytorch_model.bin": b"pickle",
    "modeling.py": b"code",
}
NEW = {**OLD, "model-1.safetensors": b"new 1"}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub whose me/base has moved on from the tag v1, with an empty cache here."""
    from huggingface_hub import constants

    with Hub({"me/base": Repository(NEW, {"v1": OLD})}, kind="models") as served:
        template = served.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", served.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        yield served


def pinned() -> Model:
    """me/base at the commit that v1 is."""
    from tests.loopback_hub import commit

    return Model("me/base", "me/base", commit(OLD))


def test_a_base_is_downloaded_at_its_commit_without_code_or_pickles(hub: Hub) -> None:
    here = folder(pinned())
    assert (here / "model-1.safetensors").read_bytes() == b"old 1", "main has moved on"
    assert {path.name for path in here.iterdir()} == OLD.keys() - {
        "pytorch_model.bin",
        "modeling.py",
    }


def test_a_base_that_is_here_is_not_asked_for_again(hub: Hub) -> None:
    first = folder(pinned())
    asked = len(hub.asked)
    assert folder(pinned()) == first and len(hub.asked) == asked > 0


def test_a_download_that_was_cut_off_goes_on(hub: Hub) -> None:
    (folder(pinned()) / "model-2.safetensors").unlink()
    assert (folder(pinned()) / "model-2.safetensors").read_bytes() == b"old 2"


def test_a_base_that_cannot_be_had_is_one_sentence(hub: Hub) -> None:
    with pytest.raises(
        UserError, match=r"me/other at 0000.* cannot be downloaded: the hub knows no model"
    ):
        folder(Model("me/other", "me/other", "0" * 40))
    with pytest.raises(UserError, match=r"run `hf download me/base`"):
        folder(Model("me/base", "me/base", "unresolved"))


def test_a_base_of_files_of_code_alone_is_refused(hub: Hub) -> None:
    hub.repositories["me/bare"] = Repository({"config.json": b"{}", "tokenizer.json": b"{}"})
    bare = Model("me/bare", "me/bare", str(hub.repositories["me/bare"].at("main")[0]))  # type: ignore[index]
    with pytest.raises(UserError, match=r"lacks \*\.safetensors weights"):
        folder(bare)


def test_a_folder_is_its_own_folder(tmp_path: Path) -> None:
    from tests import tiny

    base = tiny.llama(tmp_path / "model")
    assert folder(resolve(str(base))) == base and lacks_of(base) is None


def test_the_training_processes_ask_no_hub() -> None:
    assert environment(config())["HF_HUB_OFFLINE"] == "1"


def config(**changes: Any) -> TrainConfig:
    return TrainConfig(**{"base": "some/base", "chat_template_path": "chatml", **changes})


def test_paths_of_a_training_are_absolute_where_it_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.json").write_text("{}")
    (tmp_path / "mine.jinja").write_text("")
    relative = config(
        deepspeed="mine.json", chat_template_path="mine.jinja", inference_template="llama3"
    )
    out = tmp_path / "out"
    with pytest.raises(UserError):  # the selection is not there: nothing starts
        launch.run(relative, {"selection": tmp_path}, out, base=str(tmp_path), seed=0, log=Log())
    written = json.loads((out / "train.json").read_text())["config"]
    assert written["deepspeed"] == str(tmp_path / "mine.json")
    assert written["chat_template_path"] == str(tmp_path / "mine.jinja")
    assert written["inference_template"] == "llama3", "a shipped name is no path"


@pytest.mark.parametrize(
    "changes",
    [
        {"num_processes": 4},
        {"num_processes": 8, "num_machines": 2, "main_process_ip": "a"},
        {"max_truncated_share": 0.5},
        {"trainer": {"logging_steps": 5}},
        {"trainer": {"save_steps": 100, "save_total_limit": 9}},
        {"trainer": {"dataloader_num_workers": 4}},
        {"grace": 60},
        {"spikes": "stop", "spike_threshold": 5},
    ],
)
def test_what_changes_no_weight_is_not_in_the_key(changes: dict[str, Any]) -> None:
    same = {"tokens_per_step": 4096}
    assert determines(config(**same, **changes)) == determines(config(**same))


def test_processes_are_in_the_key_where_they_say_what_a_step_holds() -> None:
    assert determines(config(num_processes=4)) != determines(config(num_processes=8))


def test_dropping_steps_is_in_the_key_and_from_where_on() -> None:
    keys = [determines(config(spikes="skip", spike_threshold=far)) for far in (5, 10)]
    assert keys[0] != keys[1] and determines(config()) not in keys


def test_what_changes_the_weights_is_in_the_key() -> None:
    changed = config(trainer={"learning_rate": 1e-3, "logging_steps": 5})
    assert determines(changed)["trainer"] == {"learning_rate": 1e-3}
