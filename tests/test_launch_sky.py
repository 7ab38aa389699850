"""The task that `magpie launch --on sky` writes, judged by SkyPilot itself, in an environment of
its own: its requirements (click, uvicorn) exclude ours."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

GOLDEN = Path(__file__).parent / "data" / "launch" / "sky.yaml"
READ = """
import sys, sky, yaml
config = yaml.safe_load(open(sys.argv[1]))
secrets = [(name, "given") for name in config.get("secrets", {})]
task = sky.Task.from_yaml_config(config, secrets_overrides=secrets or None)
print(task.num_nodes, task.resources)
"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter that has SkyPilot."""
    folder = tmp_path_factory.mktemp("skypilot")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    install = ["-m", "pip", "install", "-q", "--disable-pip-version-check", "skypilot==0.14.1"]
    done = subprocess.run(
        [str(folder / "bin" / "python"), *install], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"skypilot cannot be installed here: {done.stderr.strip()[-300:]}")
    return folder / "bin" / "python"


def judged(python: Path, folder: Path, **changes: Any) -> subprocess.CompletedProcess[str]:
    """What SkyPilot says of the golden task, on this machine's folders and with `changes`."""
    here = GOLDEN.read_text().replace("LAUNCH/recipe.yaml", str(GOLDEN)).replace("CWD", str(folder))
    (folder / "task.yaml").write_text(yaml.safe_dump(yaml.safe_load(here) | changes))
    env = {**os.environ, "HOME": str(folder)}
    env.pop("PYTHONPATH", None)  # a folder of ours would stand before a package of its own
    return subprocess.run(
        [str(python), "-c", READ, str(folder / "task.yaml")],
        env=env,
        cwd=folder,
        capture_output=True,
        text=True,
    )


def test_skypilot_takes_the_task(python: Path, tmp_path: Path) -> None:
    done = judged(python, tmp_path, secrets={"WANDB_API_KEY": None})
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("2 ") and "'H100': 8" in done.stdout


def test_skypilot_refuses_what_is_none(python: Path, tmp_path: Path) -> None:
    assert judged(python, tmp_path, num_nodez=2).returncode != 0
