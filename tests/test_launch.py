"""`magpie launch` of trainings: the scripts that it writes (golden files), what shellcheck says of
them, what is refused. Real jobs are in test_launch_slurm.py."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from core.errors import UserError
from recipes import schema
from recipes.blocks.stated import LaunchConfig
from recipes.cli import app
from recipes.launching import launch as launching
from recipes.launching import scripts
from recipes.stages import graph
from tests import small_recipe

GOLDEN = Path(__file__).parent / "data" / "launch"
SBATCH = {"partition": "gpu", "time": "24:00:00", "cpus-per-task": 96, "exclusive": True}
SKY = {"resources": {"accelerators": "H100", "cloud": "kubernetes"}, "volumes": {"/store": "pvc"}}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_recipe.model(tmp_path_factory.mktemp("model") / "llama")


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing in the environment that a script would take over."""
    for name in scripts.environment():
        if name != "PATH":
            monkeypatch.delenv(name)


def recipe(folder: Path, llama: Path, **changes: Any) -> Path:
    given = {"train__seeds": [0, 1], "arms__same": None, "train__num_processes": None}
    given |= {"train__tokens_per_step": 4096, "launch": {"sbatch": SBATCH, "sky": SKY}}
    return small_recipe.recipe(folder, llama, "http://127.0.0.1:9", train=True, **given | changes)


def written(path: Path, *arguments: str) -> Path:
    """The script that a dry run prints the path of."""
    called = ["launch", str(path), *arguments, "--dry-run"]
    result = CliRunner().invoke(app, called, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return Path(result.stdout.strip())


def plain(script: Path, tmp_path: Path) -> str:
    """A script without what differs from one machine and one moment to the next."""
    text = script.read_text()
    # BIN first: an environment may lie below the working directory
    named = {str(Path(sys.executable).parent): "BIN", str(script.parent): "LAUNCH"}
    for found, name in {**named, str(tmp_path): "HERE", str(Path.cwd()): "CWD"}.items():
        text = text.replace(found, name)
    return re.sub(r"small-[0-9a-f]{8}", "small-GROUP", text)


@pytest.mark.parametrize(
    ("on", "arguments", "golden"),
    [
        ("slurm", ("--nodes", "2", "--gpus", "8"), "slurm.sh"),
        ("slurm", ("--gpus", "0", "--arm", "good", "--seed", "1"), "slurm-one.sh"),
        ("print", ("--nodes", "2", "--gpus", "8"), "machines.sh"),
        ("print", ("--gpus", "8"), "machine.sh"),
        ("local", (), "local.sh"),
        ("sky", ("--nodes", "2", "--gpus", "8", "store=/store"), "sky.yaml"),
    ],
)
def test_scripts_are_what_they_were(
    tmp_path: Path, llama: Path, bare: None, on: str, arguments: tuple[str, ...], golden: str
) -> None:
    """`python -m pytest tests/test_launch.py` after a change of a template: the file that a failure
    names beside the golden one is what it is now."""
    path = recipe(tmp_path, llama)
    if on == "sky":
        arguments = (*arguments[:-1], f"store={tmp_path}/store")
    found = plain(written(path, "--on", on, *arguments), tmp_path)
    (tmp_path / golden).write_text(found)
    assert found == (GOLDEN / golden).read_text(), f"it is {tmp_path / golden} now"


@pytest.mark.process
@pytest.mark.parametrize("golden", [p.name for p in sorted(GOLDEN.glob("*.sh"))])
def test_scripts_are_sound_shell(tmp_path: Path, golden: str) -> None:
    subprocess.run(["bash", "-n", str(GOLDEN / golden)], check=True)
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed (apt-get install shellcheck)")
    found = subprocess.run(["shellcheck", str(GOLDEN / golden)], capture_output=True, text=True)
    assert found.stdout == ""


@pytest.mark.process
def test_what_a_sky_task_runs_is_sound_shell(tmp_path: Path) -> None:
    task = yaml.safe_load((GOLDEN / "sky.yaml").read_text())
    script = tmp_path / "run.sh"
    script.write_text("#!/bin/bash\n" + task["run"])
    subprocess.run(["bash", "-n", str(script)], check=True)
    if shutil.which("shellcheck"):
        found = subprocess.run(["shellcheck", str(script)], capture_output=True, text=True)
        assert found.stdout == ""


def test_a_dry_run_makes_nothing_but_its_folder(tmp_path: Path, llama: Path) -> None:
    script = written(recipe(tmp_path, llama), "--on", "slurm", "--gpus", "8")
    assert not (tmp_path / "store" / "results").exists()
    assert sorted(p.name for p in script.parent.iterdir()) == ["logs", "recipe.yaml", "train.sh"]


def test_what_the_cluster_trains_is_what_the_users_recipe_finds(
    tmp_path: Path, llama: Path
) -> None:
    """Keys of trainings hold no number of machines, so `magpie run` on the head finds them."""
    path = recipe(tmp_path, llama)
    launched = written(path, "--on", "slurm", "--nodes", "2", "--gpus", "8").parent / "recipe.yaml"
    mine, theirs = (schema.load(each).recipe for each in (path, launched))
    assert mine.train is not None and theirs.train is not None
    assert (theirs.train.num_machines, theirs.train.num_processes) == (2, 16)
    from recipes.stages.training import determines

    assert determines(mine.train) == determines(theirs.train)


def test_a_resolved_recipe_plans_as_the_users_does(tmp_path: Path, llama: Path) -> None:
    path = recipe(tmp_path, llama)
    launched = written(path, "--on", "slurm", "--nodes", "2", "--gpus", "8").parent / "recipe.yaml"
    mine, theirs = (graph.plan(schema.load(each)).steps for each in (path, launched))
    assert [step.name for step in mine] == [step.name for step in theirs]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--on", "slurm"), r"--on slurm needs --gpus, how many GPUs each node has"),
        (("--on", "slrum", "--gpus", "8"), r"--on slrum: .* did you mean 'slurm'"),
        (("--nodes", "2"), r"--nodes 2 with --on local: this is one machine"),
        (("--on", "slurm", "--gpus", "8", "--arm", "goood"), r"--arm goood: .* mean 'good'"),
        (("--on", "slurm", "--gpus", "8", "--seed", "7"), r"--seed 7: no seed of that name"),
        (("--tasks", "2"), r"--tasks goes with --stage synth"),
        (("--stage", "synth", "--on", "slurm", "--gpus", "8"), r"--gpus goes with --stage train"),
        (
            ("--on", "slurm", "--gpus", "8", "train.num_processes=4"),
            r"train\.num_processes is 4, and --nodes 1 --gpus 8 are 8",
        ),
        (
            ("--on", "slurm", "--gpus", "8", "train.tokens_per_step=null"),
            r"train has no tokens_per_step, so what a step holds would follow from the number of",
        ),
        (
            ("--on", "slurm", "--gpus", "8", "launch.sbatch.nodes=3"),
            r"launch\.sbatch\.nodes is not for a recipe to say: use --nodes",
        ),
        (
            ("--on", "slurm", "--gpus", "8", "launch.sbatch.time=72000"),
            r"launch\.sbatch\.time is the number 72000; put it in quotes",
        ),
        (("--on", "sky", "--gpus", "8"), r"the store outlives its machines only on storage"),
        (
            ("--on", "sky", "--gpus", "8", "launch.sky.resources={}", "store=/store"),
            r"SkyPilot needs to know which GPU: say launch\.sky\.resources\.accelerators=H100",
        ),
    ],
)
def test_what_cannot_be_launched_is_a_sentence(
    tmp_path: Path, llama: Path, arguments: tuple[str, ...], sentence: str
) -> None:
    path = recipe(tmp_path, llama)
    relative = path.read_text().replace(str(tmp_path / "store"), "relative/store")
    if arguments[:2] == ("--on", "sky"):
        path.write_text(relative)
    with pytest.raises(UserError, match=sentence):
        written(path, *arguments)


def test_the_recipes_own_template_takes_the_place_of_the_shipped_one(
    tmp_path: Path, llama: Path
) -> None:
    own = tmp_path / "ours.sh.jinja"
    own.write_text("# {{ name }} on {{ nodes }} x {{ gpus }}: {{ runs | join(' ') }}\n")
    path = recipe(tmp_path, llama, launch={"template": str(own)})
    script = written(path, "--on", "slurm", "--nodes", "2", "--gpus", "8")
    assert script.read_text().endswith("# small on 2 x 8: good/0 good/1 random/0 random/1\n")


def test_a_template_that_asks_for_what_there_is_not_is_a_sentence(
    tmp_path: Path, llama: Path
) -> None:
    own = tmp_path / "ours.sh.jinja"
    own.write_text("{{ partition }}")
    path = recipe(tmp_path, llama, launch={"template": str(own)})
    with pytest.raises(UserError, match="'partition' is undefined; it is given again, attempts"):
        written(path, "--on", "slurm", "--gpus", "8")


def test_no_key_is_written_into_a_launch(
    tmp_path: Path, llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WANDB_API_KEY", "HF_TOKEN", "JUDGE_KEY"):
        monkeypatch.setenv(name, "very-secret-7431")
    path = recipe(tmp_path, llama, track="wandb", eval__judge__server__api_key_env="JUDGE_KEY")
    for on in ("slurm", "print", "sky"):
        script = written(path, "--on", on, "--gpus", "8")
        assert all(
            "very-secret" not in p.read_text() for p in script.parent.rglob("*") if p.is_file()
        )
    task = yaml.safe_load(script.read_text())
    assert task["secrets"] == {"WANDB_API_KEY": None, "JUDGE_KEY": None, "HF_TOKEN": None}


def test_a_submission_stops_at_what_sbatch_refuses(
    tmp_path: Path, llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[list[str]] = []

    def sbatch(arguments: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        calls.append(arguments)
        if len(calls) == 3:
            return subprocess.CompletedProcess(arguments, 1, "", "sbatch: error: no such partition")
        return subprocess.CompletedProcess(arguments, 0, f"{40 + len(calls)};cluster\n", "")

    monkeypatch.setattr(launching.subprocess, "run", sbatch)
    monkeypatch.setattr(launching.shutil, "which", lambda _: "/usr/bin/sbatch")
    asked = scripts.Asked("x", ("a/0", "a/1"), ("b/0", "b/1"), 2, 8, True, "preferences")
    with pytest.raises(UserError, match=r"no such partition\. Cancel .*: scancel 42\."):
        launching.submit(asked, scripts.Place(tmp_path, tmp_path), prepares=True)
    options = [[word for word in call if word.startswith("--")] for call in calls]
    assert options[0][:3] == ["--parsable", "--array=0", "--nodes=1"]
    assert options[1][1:] == ["--dependency=afterok:41", "--kill-on-invalid-dep=yes", "--array=0-1"]
    assert options[2][1:] == [
        "--dependency=afterany:42",
        "--kill-on-invalid-dep=yes",
        "--array=2-3",
    ]


def test_every_way_to_train_is_told_which_machine_it_runs_on(tmp_path: Path) -> None:
    of = scripts.Asked("r", ("a/0",), ("b/0",), 2, 8, False, "tokens", ("train", "dpo"))
    place = scripts.Place(tmp_path, tmp_path)
    text = scripts.by_hand(of, place, LaunchConfig(), "group", tmp_path)
    for block in ("train", "dpo"):
        assert f'{block}.machine_rank="$rank"' in text
        assert f'{block}.main_process_ip="$main"' in text


def test_a_script_for_this_machine_takes_what_gpus_it_has(tmp_path: Path, llama: Path) -> None:
    path = recipe(tmp_path, llama, train__num_processes=2)
    script = written(path)
    assert "num_processes: 2" in (script.parent / "recipe.yaml").read_text()
    assert "CUDA_VISIBLE_DEVICES" not in script.read_text()
