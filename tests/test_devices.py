"""GPUs are counted in one way, and a training gets the threads and the allocator that they want."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from core.serving import devices
from train.config import TrainConfig
from train.settings.machine import environment, processes


@pytest.fixture
def machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Path, pytest.MonkeyPatch]]:
    """A machine without GPUs: (its folder with bin/, dev/ and nodes/, what changes it)."""
    for name in ("bin", "dev", "nodes"):
        (tmp_path / name).mkdir()
    for name in (*devices.VISIBLE, "ROCR_VISIBLE_DEVICES", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(devices, "NVIDIA", tmp_path / "dev")
    monkeypatch.setattr(devices, "AMD", tmp_path / "nodes")
    forget()
    yield tmp_path, monkeypatch
    forget()


def forget() -> None:
    devices._nvidia.cache_clear()
    devices._amd.cache_clear()


def config(**changes: object) -> TrainConfig:
    return TrainConfig.model_validate({"base": "some/base", **changes})


Machine = tuple[Path, pytest.MonkeyPatch]


def add_amd(folder: Path, count: int) -> None:
    for index, units in enumerate([0, *[304] * count]):
        (folder / "nodes" / str(index)).mkdir()
        text = f"cpu_cores_count 0\nsimd_count {units}\n"
        (folder / "nodes" / str(index) / "properties").write_text(text)


def add_nvidia_smi(folder: Path, script: str) -> None:
    tool = folder / "bin" / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)


def test_a_machine_without_gpus_has_none(machine: Machine) -> None:
    assert devices.gpus() == [] and not devices.rocm()


def test_device_nodes_are_counted_without_the_drivers_tool(machine: Machine) -> None:
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (machine[0] / "dev" / name).touch()
    assert devices.gpus() == ["0", "1"]


@pytest.mark.process
def test_the_drivers_list_counts_more_than_the_device_nodes(machine: Machine) -> None:
    (machine[0] / "dev" / "nvidia3").touch()
    add_nvidia_smi(machine[0], "printf '0\\n1\\n'")
    assert devices.gpus() == ["0", "1"]


@pytest.mark.process
def test_a_tool_without_a_driver_lists_nothing(machine: Machine) -> None:
    add_nvidia_smi(machine[0], "echo 'NVIDIA-SMI has failed'; exit 9")
    assert devices.gpus() == []


def test_amd_gpus_are_gpus_and_cpu_nodes_are_none(machine: Machine) -> None:
    add_amd(machine[0], 8)
    assert devices.gpus() == [str(index) for index in range(8)] and devices.rocm()
    assert processes(config()) == 8


@pytest.mark.parametrize(
    ("name", "value", "visible"),
    [
        ("CUDA_VISIBLE_DEVICES", "4,5", ["4", "5"]),
        ("CUDA_VISIBLE_DEVICES", "GPU-7a,MIG-1b", ["GPU-7a", "MIG-1b"]),
        ("CUDA_VISIBLE_DEVICES", "2,-1,3", ["2"]),
        ("CUDA_VISIBLE_DEVICES", "", []),
        ("HIP_VISIBLE_DEVICES", "6,7", ["6", "7"]),
        ("ROCR_VISIBLE_DEVICES", "6,7", ["0", "1"]),
    ],
)
def test_a_variable_says_which_are_visible(
    machine: Machine, name: str, value: str, visible: list[str]
) -> None:
    add_amd(machine[0], 8)
    machine[1].setenv(name, value)
    assert devices.gpus() == visible


def test_a_server_is_pinned_by_every_variable_that_is_set() -> None:
    around = {"HIP_VISIBLE_DEVICES": "4,5", "CUDA_VISIBLE_DEVICES": "4,5"}
    assert devices.pinned(["5"], around) == dict.fromkeys(around, "5")
    assert devices.pinned(["0", "1"], {}) == {"CUDA_VISIBLE_DEVICES": "0,1"}


def test_a_training_on_gpus_has_all_cores_for_its_threads(machine: Machine) -> None:
    folder, monkeypatch = machine
    add_amd(folder, 8)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(96)))
    assert environment(config())["OMP_NUM_THREADS"] == "12"
    two = config(num_machines=2, main_process_ip="a")
    assert environment(two)["OMP_NUM_THREADS"] == "12", "the processes of one machine share it"
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert environment(config())["OMP_NUM_THREADS"] == "3", "the user's own word"


def test_expandable_segments_are_asked_for_on_nvidia_where_the_user_says_nothing(
    machine: Machine,
) -> None:
    folder, monkeypatch = machine
    monkeypatch.delenv("PYTORCH_ALLOC_CONF", raising=False)
    assert "PYTORCH_ALLOC_CONF" not in environment(config())
    (folder / "dev" / "nvidia0").touch()
    forget()
    assert environment(config())["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:64")
    assert "PYTORCH_ALLOC_CONF" not in environment(config())
