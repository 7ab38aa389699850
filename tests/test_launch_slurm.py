"""`magpie launch --on slurm` on a real Slurm of two nodes: trainings over both nodes by srun, a
rank killed, a job requeued, and the evaluation that depends on them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from recipes import schema
from recipes.stages import graph
from tests import slurm_cluster, small_recipe, wandb_file
from tests.scripted_server import ScriptedServer
from tests.slurm_cluster import SlurmCluster
from tests.waiting import GUARD, until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.stack,
    pytest.mark.skipif(slurm_cluster.why_not() is not None, reason=str(slurm_cluster.why_not())),
]
STEPS = 400
"""As many as leave time to kill one between two checkpoints."""
RUNS = ("good/0", "good/1", "random/0", "random/1")


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[SlurmCluster]:
    folder = tmp_path / "slurm"
    folder.mkdir()
    with SlurmCluster(folder) as running:
        yield running


@pytest.fixture
def recipe(tmp_path: Path) -> Iterator[Path]:
    """Two arms and two seeds of a tiny Llama; a scripted server is teacher, judge, and serves the
    checkpoints."""
    llama = small_recipe.model(tmp_path / "llama")
    trainer = {
        "max_length": 128,
        "max_steps": STEPS,
        "per_device_train_batch_size": 1,
        "learning_rate": 1e-3,
        "save_steps": 40,
    }
    with ScriptedServer(small_recipe.answer) as server:
        yield small_recipe.recipe(
            tmp_path,
            llama,
            server.url,
            train=True,
            arms__same=None,
            train__seeds=[0, 1],
            train__trainer=trainer,
            train__zero_stage=2,
            train__num_processes=None,
            train__tokens_per_step=300,
            track="wandb",
            launch__sbatch={"partition": "main", "time": "01:00:00"},
        )


def launch(path: Path, cluster: SlurmCluster, *more: str) -> str:
    """What the launch said."""
    command = [sys.executable, "-m", "recipes.cli", "launch", str(path), "--on", "slurm"]
    done = subprocess.run(
        [*command, *more],
        env={**cluster.environment, "WANDB_MODE": "offline", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=GUARD,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def ranks(store: Path) -> list[psutil.Process]:
    """The training processes of a store that run now, their launchers left out."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or []
        ours = "train.sft" in line and any(word.startswith(str(store)) for word in line)
        if ours and not any("accelerate" in word for word in line):
            found.append(process)
    return found


def saved(store: Path) -> bool:
    """Whether a training that runs now has a whole checkpoint."""
    marks = "results/train/*.partial/scratch/checkpoint-*/complete.json"
    return any(store.glob(marks))


def logs(store: Path) -> str:
    return "\n".join(f"{p}:\n{p.read_text()[-3000:]}" for p in sorted(store.rglob("logs/*.log")))


def test_an_array_over_two_nodes_with_a_rank_killed_ends_in_one_comparison(
    recipe: Path, nodes: SlurmCluster
) -> None:
    loaded = schema.load(recipe)
    store = Path(loaded.recipe.store)
    said = launch(recipe, nodes, "--nodes", "2", "--gpus", "0")
    assert said.count("job ") == 3
    until(lambda: saved(store) and ranks(store), f"a checkpoint ({nodes.folder})")
    ranks(store)[-1].kill()
    jobs = nodes.wait()
    states = [state for state, _ in jobs.values()]
    assert states == ["COMPLETED"] * 6, (jobs, logs(store))
    assert nodes.restarts() == 1

    attempts = {p.name for p in store.rglob("launch/*/logs/*.log")}
    assert {"prepare.0.log", "evaluate.0.log"} <= attempts and len(attempts) == 7
    again = next(name for name in attempts if name.endswith(".1.log"))
    first = next(store.rglob(f"launch/*/logs/{again.removesuffix('.1.log')}.0.log"))
    assert "a training process was killed (signal 9)" in first.read_text()
    resumed = [
        p
        for p in store.glob("results/train/*/trainer.log")
        if "resuming from step" in p.read_text(errors="replace")
    ]
    assert len(resumed) == 1 and "srun --nodes=2 --ntasks=2" in resumed[0].read_text()

    steps = {step.name: step.state for step in graph.plan(loaded).steps}
    assert {steps[f"train/{run}"] for run in RUNS} == {"reuse"}, "the head finds what landed"
    result = graph.plan(loaded).results["compare"]
    comparison = json.loads((result.path / "comparison.json").read_text())
    seeds = {arm["name"]: arm["seeds"] for arm in comparison["arms"]}
    assert seeds == {"good": ["0", "1"], "random": ["0", "1"], "untuned": []}
    tracked = [wandb_file.read(path) for path in (store / "wandb").glob("offline-run-*")]
    losses = [run for run in tracked if "loss" in str(run)]
    assert len(losses) >= len(RUNS), "the metrics of every run are tracked from the nodes"


def test_a_job_that_is_told_its_time_is_over_saves_and_goes_on(
    recipe: Path, nodes: SlurmCluster
) -> None:
    loaded = schema.load(recipe)
    store = Path(loaded.recipe.store)
    launch(recipe, nodes, "--nodes", "2", "--gpus", "0", "--arm", "good", "--seed", "0")
    until(lambda: saved(store), f"a checkpoint ({nodes.folder})")
    job = next(name for name, (state, _) in nodes.jobs().items() if state == "RUNNING")
    nodes.command("scancel", "--batch", "--signal=USR1", job)
    jobs = nodes.wait()
    assert nodes.restarts() == 1, (jobs, logs(store))
    first = next(store.rglob("launch/*/logs/good-0.0.log")).read_text()
    assert "is saved after step" in first and "queued again after attempt 0" in first
    text = next(store.glob("results/train/*/trainer.log")).read_text(errors="replace")
    assert "resuming from step" in text
    lines = next(store.glob("results/train/*/log.jsonl")).read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, STEPS + 1))
