"""A synthesis on many machines: a real Ray of two nodes and a real Slurm of two nodes on this one,
a node lost in the middle included."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from core import columns
from core.errors import UserError
from core.models import Model, resolve
from recipes import schema
from recipes.launching import launch as launching
from recipes.launching import synthesis as cluster
from recipes.launching import synthesis_task as cluster_task
from recipes.stages import graph
from recipes.stages.walk import Arms
from synth.pool.draw import mine
from tests import slurm_cluster, small_recipe
from tests.ray_cluster import RayCluster
from tests.scripted_server import ScriptedServer
from tests.slurm_cluster import SlurmCluster
from tests.waiting import GUARD, exit_code, until

SLURM = {"time": "00:05:00", "partition": "main", "mem_per_cpu_gb": 1}
RAY = {"mem_per_cpu_gb": 1}
needs_slurm = pytest.mark.skipif(
    slurm_cluster.why_not() is not None, reason=str(slurm_cluster.why_not())
)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_recipe.model(tmp_path_factory.mktemp("model") / "llama")


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer(small_recipe.answer, delay=0.05) as running:
        yield running


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, llama: Path) -> Path:
    """The small recipe, run by one process: what every cluster must arrive at."""
    with ScriptedServer(small_recipe.answer) as running:
        path = small_recipe.recipe(tmp_path_factory.mktemp("alone"), llama, running.url)
        graph.run(schema.load(path), "select")
    return path


def recipe(folder: Path, llama: Path, server: ScriptedServer, **changes: Any) -> Path:
    return small_recipe.recipe(
        folder, llama, server.url, launch__slurm=SLURM, launch__ray=RAY, **changes
    )


def store(path: Path) -> Path:
    return Path(schema.load(path).recipe.store)


def cells(path: Path) -> dict[str, pl.DataFrame]:
    """Every column of a recipe's store as a reader sees it, by id."""
    found: dict[str, pl.DataFrame] = {}
    for folder in sorted((store(path) / "columns").glob("*/*")):
        parts = [pl.read_parquet(p) for p in sorted(folder.glob("part-*.parquet"))]
        if parts:
            found[str(folder.relative_to(store(path)))] = (
                pl.concat(parts).unique("id", keep="first", maintain_order=True).sort("id")
            )
    return found


def twice(path: Path) -> int:
    """How many cells the parts hold more than once."""
    return sum(
        sum(len(pl.read_parquet(p, columns=["id"])) for p in folder.glob("part-*.parquet"))
        - len(cells(path)[str(folder.relative_to(store(path)))])
        for folder in (store(path) / "columns").glob("*/*")
        if list(folder.glob("part-*.parquet"))
    )


def selections(path: Path) -> set[str]:
    return {p.parent.name for p in (store(path) / "results" / "select").glob("*/manifest.json")}


def assert_same(path: Path, reference: Path) -> None:
    """Same ids, same cells, same selections."""
    found, expected = cells(path), cells(reference)
    assert found.keys() == expected.keys()
    for name, frame in expected.items():
        assert found[name].equals(frame), name
    assert selections(path) == selections(reference) != set()


def launch(
    path: Path, on: str, environment: dict[str, str], tasks: int = 2
) -> subprocess.Popen[bytes]:
    command = [
        sys.executable,
        "-m",
        "recipes.cli",
        "launch",
        str(path),
        "--stage",
        "synth",
        "--on",
        on,
        "--tasks",
        str(tasks),
    ]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def ended(process: subprocess.Popen[bytes]) -> str:
    """What a launch printed, once it ended well."""
    said = process.communicate(timeout=GUARD)[0].decode()
    assert process.returncode == 0, said[-4000:]
    return said


def pool_of(path: Path) -> Any:
    loaded = schema.load(path)
    recipe = loaded.recipe
    return graph.pool_of(recipe, Arms.of(recipe), resolve, store(path), planning=True)


class Shares:
    """Which task's rows have been asked for so far, by the seeds in the requests."""

    def __init__(self, path: Path, server: ScriptedServer, world: int = 2) -> None:
        self.server, self.pool = server, pool_of(path)
        self.of = {
            seed: rank
            for rank in range(world)
            for seed in mine(self.pool.planned, (rank, world))["seed"].to_list()
        }

    def both_asked(self) -> bool:
        seen = [
            self.of[r.body["seed"]]
            for r in list(self.server.requests)
            if r.body.get("seed") in self.of
        ]
        return min(seen.count(0), seen.count(1)) >= 5

    def assert_both_unfinished(self) -> None:
        held = set(self.pool.instruction.read()["id"].to_list())
        for rank in (0, 1):
            assert set(mine(self.pool.planned, (rank, 2))["id"].to_list()) - held


# -- without a cluster -----------------------------------------------------------------------------


def test_shares_are_a_partition_that_does_not_depend_on_what_is_missing(
    tmp_path: Path, llama: Path, server: ScriptedServer
) -> None:
    planned = pool_of(recipe(tmp_path, llama, server)).planned
    shares = [mine(planned, (rank, 3))["id"].to_list() for rank in range(3)]
    assert sorted(i for share in shares for i in share) == sorted(planned["id"].to_list())
    assert all(len(share) > 20 for share in shares)
    assert mine(planned.tail(50), (1, 3))["id"].to_list() == [
        i for i in planned.tail(50)["id"].to_list() if i in shares[1]
    ]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"slurm": {**SLURM, "partitoin": "gpu"}},
            "knows no such argument; did you mean 'partition'?",
        ),
        (
            {"slurm": {**SLURM, "skip_completed": True}},
            "launch.slurm.skip_completed is not for a recipe to say: "
            "the store knows what is missing.",
        ),
        ({"slurm": {"partition": "main"}}, "SlurmPipelineExecutor needs launch.slurm.time."),
        ({"slurm": {**SLURM, "time": 72000}}, "put it in quotes (YAML reads 20:00:00 as 72000)."),
    ],
)
def test_arguments_are_checked_against_the_executor(
    tmp_path: Path, llama: Path, server: ScriptedServer, changes: dict[str, Any], sentence: str
) -> None:
    path = small_recipe.recipe(tmp_path, llama, server.url, launch=changes)
    with pytest.raises(UserError) as error:
        cluster.main(str(path), [], on="slurm", tasks=2, dry_run=True)
    assert sentence in str(error.value) and "recipe.yaml:" in str(error.value)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"stage": "synth"}, "--stage synth needs --on slurm or --on ray"),
        ({"stage": "synth", "on": "slrum"}, "--on slrum: no such cluster; did you mean 'slurm'?"),
        (
            {"stage": "synth", "on": "ray", "tasks": 0},
            "--tasks 0: at least one task has to do the work.",
        ),
        ({"stage": "synth", "on": "ray", "arm": "good"}, "--arm goes with --stage train"),
        ({"stage": "train", "on": "ray"}, "--on ray: trainings go nowhere of that name"),
        ({"stage": "sinth"}, "--stage sinth: no such stage to launch; did you mean 'synth'?"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UserError) as error:
        launching.main("demo", [], launching.Asked(**options), dry_run=True)
    assert sentence in str(error.value)


def test_dry_run_prints_recipe_and_scripts_of_a_chain(
    tmp_path: Path, llama: Path, server: ScriptedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    path = recipe(tmp_path, llama, server)
    cluster.main(
        str(path),
        ["launch.slurm.gpus_per_task=1", "launch.slurm.sbatch_args={account: me}"],
        on="slurm",
        tasks=8,
        dry_run=True,
    )
    said = capsys.readouterr().out
    scripts = said.split("\n# sbatch ")[1:]
    assert [s.partition("--job-name=small-")[2].split()[0] for s in scripts] == list(
        cluster_task.STAGES
    )
    assert [s.partition("--array=")[2].split()[0] for s in scripts] == [
        "0-7",
        "0-0",
        "0-7",
        "0-7",
        "0-0",
        "0-0",
    ]
    assert [s.splitlines()[0].partition("--dependency=")[2] for s in scripts] == [
        "",
        *(f"afterok:JOB{n}" for n in (1, 2, 3, 4, 5)),
    ]
    assert all(
        "#SBATCH --gpus=1\n" in s and "#SBATCH --account=me\n" in s and "#SBATCH --requeue\n" in s
        for s in scripts
    )
    written = yaml.safe_load(
        said.partition("# resolved recipe")[2].partition("\n")[2].partition("\n\n# sbatch")[0]
    )
    assert written["launch"]["slurm"]["gpus_per_task"] == 1
    assert server.requests == []


def test_dry_run_prints_the_calls_on_ray(
    tmp_path: Path, llama: Path, server: ScriptedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.main(
        str(recipe(tmp_path, llama, server)),
        ["launch.ray.gpus_per_task=1"],
        on="ray",
        tasks=4,
        dry_run=True,
    )
    calls = [
        line
        for line in capsys.readouterr().out.splitlines()
        if line.startswith("RayPipelineExecutor(")
    ]
    assert [c.partition("stage='")[2].partition("'")[0] for c in calls] == list(cluster_task.STAGES)
    assert all("skip_completed=False" in c and "gpus_per_task=1" in c for c in calls)


def test_nothing_secret_is_pickled_or_written(
    tmp_path: Path,
    llama: Path,
    server: ScriptedServer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("TEACHER_KEY", "sk-very-secret-7431")
    path = recipe(tmp_path, llama, server, synth__teacher__server__api_key_env="TEACHER_KEY")
    for on in ("slurm", "ray"):
        cluster.main(str(path), [], on=on, tasks=2, dry_run=True)
    assert b"sk-very-secret-7431" not in pickle.dumps(cluster_task.Task("recipe.yaml", ".", "tags"))
    files = [p for p in (store(path) / "recipes").rglob("*") if p.is_file()]
    assert {p.name for p in files} >= {
        "executor.pik",
        "executor.json",
        "recipe.yaml",
        "launch_script.slurm",
    }
    assert not [p for p in files if b"sk-very-secret-7431" in p.read_bytes()]
    assert "sk-very-secret-7431" not in capsys.readouterr().out


def test_workers_read_the_same_recipe_with_hub_models_at_their_commit(
    tmp_path: Path, llama: Path, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = recipe(
        tmp_path,
        llama,
        server,
        synth__responder={"model": "some/model"},
        synth__rows={"import": "rows.jsonl"},
    )
    loaded = schema.load(path)
    monkeypatch.setattr(
        "core.models.resolve",
        lambda m, r: Model(m, m, "c0ffee") if m == "some/model" else Model(m, str(llama), "folder"),
    )
    data = cluster.pinned(loaded)
    assert (
        data["synth"]["responder"]["revision"] == "c0ffee"
        and data["synth"]["teacher"]["revision"] is None
    )
    data["synth"]["responder"]["revision"] = None
    assert schema.Recipe.model_validate(yaml.safe_load(yaml.safe_dump(data))) == loaded.recipe


def test_a_launch_leaves_few_files_in_the_order_of_the_pool(
    tmp_path: Path, llama: Path, alone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(columns, "PART_ROWS", 4)
    most = 0
    with ScriptedServer(small_recipe.answer) as running:
        path = recipe(tmp_path, llama, running)
        loaded = schema.load(path)
        for stage in cluster_task.STAGES:
            world = 1 if stage in ("pool", "merge", "select") else 8
            for rank in range(world):
                counts = cluster_task.run(loaded, stage, rank, world)
            files = [len(list(f.glob("*.parquet"))) for f in store(path).glob("columns/*/*")]
            if stage == "answers":
                most = max(files)
            if stage == "merge":
                assert counts["merged"] < counts["files"] and max(files) == 1 < 8 <= most
    instruction = pool_of(path).instruction
    ids = [i for part in instruction.parts() for i in instruction.part(part)["id"]]
    assert ids == pool_of(path).drawn()["id"].to_list()
    assert_same(path, alone)


Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def task() -> Iterator[Start]:
    """Starts one task (recipe, stage, rank, world, environment) as a worker runs it."""
    started: list[subprocess.Popen[bytes]] = []

    def start(
        path: Path, stage: str, rank: int, world: int, environment: dict[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        made = f"Task({str(path)!r}, '.', {stage!r})"
        code = f"from recipes.launching.synthesis_task import Task; {made}(None, {rank}, {world})"
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", code], stderr=subprocess.DEVNULL, env=environment
            )
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_a_task_that_fails_says_why_and_logs_no_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("datatrove")
    from datatrove.executor.local import LocalPipelineExecutor

    def broken(*_: Any) -> None:
        key = "sk-" + "very-secret-7431"
        raise ValueError(f"no answer to {key[:2]}") from OSError("lost")

    monkeypatch.setattr(cluster_task, "run", broken)
    monkeypatch.setattr(schema, "load", lambda _: None)
    monkeypatch.setattr(cluster_task, "_end_with_parent", lambda: None)
    executor = LocalPipelineExecutor(
        pipeline=[cluster_task.Task("recipe.yaml", str(tmp_path), "tags")],
        logging_dir=str(tmp_path / "logs"),
    )
    with pytest.raises(RuntimeError, match="ValueError: no answer to sk"):
        executor._run_for_rank(0)
    logged = (tmp_path / "logs" / "logs" / "task_00000.log").read_text()
    assert "ValueError: no answer to sk" in logged
    assert "very-secret" not in logged


@pytest.mark.process
def test_two_tasks_on_one_machine_have_a_server_each(
    tmp_path: Path, llama: Path, server: ScriptedServer, alone: Path, task: Start
) -> None:
    stand_in = (
        tmp_path / "python" / "vllm" / "entrypoints" / "openai" / "api_server.py"
    )  # the scripted server where vLLM's module would be
    stand_in.parent.mkdir(parents=True)
    for package in (stand_in.parents[0], stand_in.parents[1], stand_in.parents[2]):
        (package / "__init__.py").touch()
    stand_in.write_text("from tests.scripted_server import main\nmain()\n")
    path = recipe(
        tmp_path,
        llama,
        server,
        synth__teacher={"model": str(llama), "server": {"max_in_flight": 16}},
    )
    environment = {**os.environ, "PYTHONPATH": f"{stand_in.parents[3]}:{Path(__file__).parents[1]}"}
    pair = [task(path, "instructions", rank, 2, environment) for rank in (0, 1)]
    assert [exit_code(p) for p in pair] == [0, 0]
    assert len(list((store(path) / "logs").glob("instructions-[01]/*.log"))) == 2
    assert server.requests == []
    columns = cells(path)
    assert {
        name: frame.equals(cells(alone)[name]) for name, frame in columns.items()
    } == dict.fromkeys(columns, True)
    assert len(columns) == 1 and twice(path) == 0


@pytest.mark.process
def test_two_tasks_that_make_the_same_cells_change_nothing(
    tmp_path: Path, llama: Path, server: ScriptedServer, alone: Path, task: Start
) -> None:
    path = recipe(tmp_path, llama, server)
    pair = [task(path, "instructions", 0, 1) for _ in range(2)]
    assert [exit_code(p) for p in pair] == [0, 0]
    assert twice(path) > 0
    graph.run(schema.load(path), "select")
    assert_same(path, alone)


@pytest.mark.process
def test_a_killed_task_continues_when_it_is_started_again(
    tmp_path: Path, llama: Path, alone: Path, task: Start
) -> None:
    with ScriptedServer(small_recipe.answer, delay=0.2) as server:
        path = recipe(tmp_path, llama, server, synth__teacher__server__max_in_flight=4)
        first = task(path, "instructions", 0, 2)
        until(lambda: len(server.requests) > 24, "requests")
        first.kill()
        first.wait()
        kept = len(pool_of(path).instruction.read())
        before = len(server.requests)
        server.delay = 0
        assert exit_code(task(path, "instructions", 0, 2)) == 0
        share = len(mine(pool_of(path).planned, (0, 2)))
        assert before - 2 * 4 <= kept < share
        assert len(server.requests) - before == share - kept
        graph.run(schema.load(path), "select")
        assert_same(path, alone)


@pytest.mark.process
def test_a_task_ends_with_the_process_that_started_it() -> None:
    code = "; ".join(
        [
            "import os, time, recipes.launching.synthesis_task as t",
            "os.fork() and time.sleep(60)",
            "t._end_with_parent()",
            "print(os.getpid(), flush=True)",
            "time.sleep(60)",
        ]
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()

    def gone() -> bool:
        status = Path(f"/proc/{child}/status")
        return not status.exists() or "zombie" in status.read_text()

    until(gone, "the child's end")


# -- Ray -------------------------------------------------------------------------------------------


@pytest.fixture
def ray_nodes() -> Iterator[RayCluster]:
    pytest.importorskip(
        "ray", reason="Ray is not installed (pip install 'magpie-harness[cluster]')"
    )
    with RayCluster() as running:
        yield running


@pytest.mark.slow
@pytest.mark.stack
def test_two_ray_nodes_make_what_one_process_makes(
    tmp_path: Path, llama: Path, server: ScriptedServer, ray_nodes: RayCluster
) -> None:
    apart = {"where": "min_neighbor_distance > 0", "choose": "longest", "budget": {"rows": 10}}
    reference = recipe(tmp_path / "alone", llama, server, arms__apart=apart)
    graph.run(schema.load(reference), "select")
    path = recipe(tmp_path / "cluster", llama, server, arms__apart=apart)
    said = ended(launch(path, "ray", ray_nodes.environment))
    assert "instructions, columns and selections are made" in said
    assert_same(path, reference)
    assert twice(path) == 0
    assert [name for name in cells(path) if name.startswith("columns/neighbors/")]


@pytest.mark.slow
@pytest.mark.stack
def test_a_ray_node_lost_in_the_middle_costs_time_only(
    tmp_path: Path, llama: Path, alone: Path, ray_nodes: RayCluster
) -> None:
    with ScriptedServer(small_recipe.answer, delay=0.4) as server:
        path = recipe(tmp_path, llama, server, synth__teacher__server__max_in_flight=2)
        shares = Shares(path, server)
        running = launch(path, "ray", ray_nodes.environment)
        try:
            until(shares.both_asked, "both tasks")
            shares.assert_both_unfinished()
            ray_nodes.lose_node()
            server.delay = 0.05
            ended(running)
        finally:
            running.kill()
    assert_same(path, alone)


# -- Slurm -----------------------------------------------------------------------------------------


@pytest.fixture
def slurm_nodes(tmp_path: Path) -> Iterator[SlurmCluster]:
    folder = tmp_path / "slurm"
    folder.mkdir()
    with SlurmCluster(folder) as running:
        yield running


@needs_slurm
@pytest.mark.slow  # the next test shows the same and more
@pytest.mark.stack
def test_a_slurm_chain_on_two_nodes_makes_what_one_process_makes(
    tmp_path: Path, llama: Path, server: ScriptedServer, alone: Path, slurm_nodes: SlurmCluster
) -> None:
    path = recipe(tmp_path, llama, server)
    ended(launch(path, "slurm", slurm_nodes.environment))
    jobs = slurm_nodes.wait()
    assert [state for state, _ in jobs.values()] == ["COMPLETED"] * 8, (
        jobs,
        slurm_nodes.logs(store(path)),
    )
    assert_same(path, alone)
    assert twice(path) == 0


@needs_slurm
@pytest.mark.stack
@pytest.mark.slow
def test_a_slurm_node_lost_in_the_middle_costs_time_only(
    tmp_path: Path, llama: Path, alone: Path, slurm_nodes: SlurmCluster
) -> None:
    with ScriptedServer(small_recipe.answer, delay=0.4) as server:
        path = recipe(tmp_path, llama, server, synth__teacher__server__max_in_flight=2)
        shares = Shares(path, server)
        ended(launch(path, "slurm", slurm_nodes.environment))
        until(shares.both_asked, "both tasks")
        shares.assert_both_unfinished()
        slurm_nodes.lose_node("n2")
        server.delay = 0.05
        until(lambda: slurm_nodes.restarts() == 1, "the task's second start")
        slurm_nodes.start_node("n2")  # for the rest of the chain
        jobs = slurm_nodes.wait()
        assert [state for state, _ in jobs.values()] == ["COMPLETED"] * 9, (
            jobs,
            slurm_nodes.logs(store(path)),
        )
        assert slurm_nodes.restarts() == 1
    assert_same(path, alone)
