"""What a stage tells the world while it works: progress, metrics, tables and lines, to the terminal
and to W&B.

A stage gets a `Log` and never imports wandb itself. `Tracker.stage(...)` yields one that draws a
progress bar (plain lines when stderr is no terminal) and writes to W&B: one group a recipe run, one
run a stage with its job type, the same run id after a resume. Without an API key W&B works offline
and says so; `wandb sync` uploads later. Trackio and TensorBoard are the trainer's own
(`train.trainer.report_to`).
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, cast

import polars as pl

from core.errors import UserError, nearest

TABLE_ROWS = 1000
"""Rows of a table that go to W&B; the files hold all of them."""


class Log:
    """Where a stage reports. This base form prints lines to stderr and remembers the last
    figures."""

    def __init__(self) -> None:
        self.seen: dict[str, float] = {}

    def say(self, text: str) -> None:
        """One line for the person watching."""
        print(text, file=sys.stderr, flush=True)

    def progress(self, done: int, total: int | None, unit: str = "rows") -> None:
        """`done` of `total` units of this stage are finished (total None: unknown)."""

    def metrics(self, values: dict[str, float], step: int | None = None) -> None:
        """Figures of this moment (loss, rates, counts)."""
        self.seen.update(values)

    def table(self, name: str, rows: pl.DataFrame) -> None:
        """A table worth looking at (rows kept and dropped, judgments)."""

    def trainer_env(self) -> dict[str, str]:
        """Environment for a child process whose HF Trainer reports to the same W&B run (empty:
        tracking is off)."""
        return {}

    def finish(self, facts: Mapping[str, Any]) -> None:
        """The stage is done: its counts, its input and output digests."""


class Tracker:
    """All runs of one recipe: the W&B group, and where offline files go."""

    def __init__(
        self, mode: Literal["wandb", "none"], *, project: str, group: str, folder: Path
    ) -> None:
        self.project, self.group, self.folder = project, group, folder
        self.mode: WandbMode = wandb_mode() if mode == "wandb" else "off"
        self.said = False

    @contextmanager
    def stage(
        self,
        name: str,
        job_type: str,
        key: str,
        config: Mapping[str, Any],
        *,
        trainer: bool = False,
    ) -> Iterator[StageLog]:
        """The log of one stage. `key` makes the run id, so that a continued stage
        continues its run; `trainer`: a child process writes the metrics."""
        if self.mode == "offline" and not self.said:
            self.said = True
            print(
                f"W&B: no API key, so runs are written offline below {self.folder / 'wandb'} (upload later with `wandb sync`)",
                file=sys.stderr,
            )
        log = StageLog(self, name, job_type, key, config, trainer)
        failed = True
        try:
            yield log
            failed = False
        finally:
            log.close(failed)


WandbMode = Literal["online", "offline", "disabled", "shared", "off"]


def wandb_mode() -> WandbMode:
    """online, offline or disabled: WANDB_MODE if set, else online only where an API key is at
    hand."""
    asked = os.environ.get("WANDB_MODE", "")
    if asked:
        if asked not in ("online", "offline", "disabled", "shared"):
            raise UserError(
                f"WANDB_MODE is '{asked}' in the environment{nearest(asked, ('online', 'offline', 'disabled', 'shared'))}."
            )
        return cast(WandbMode, asked)
    netrc = Path(os.environ.get("NETRC") or Path.home() / ".netrc")
    known = bool(os.environ.get("WANDB_API_KEY")) or (
        netrc.is_file() and "wandb" in netrc.read_text()
    )
    return "online" if known else "offline"


class StageLog(Log):
    """The log of one running stage; the W&B run opens with the first thing that is written to
    it."""

    def __init__(
        self,
        tracker: Tracker,
        name: str,
        job_type: str,
        key: str,
        config: Mapping[str, Any],
        trainer: bool,
    ) -> None:
        super().__init__()
        self.tracker, self.name, self.job_type, self.config, self.trainer = (
            tracker,
            name,
            job_type,
            dict(config),
            trainer,
        )
        self.run_id = f"{job_type}-{key[:12]}"
        self._run: Any = None
        self._bar: Any = None
        self._task: Any = None
        self._said = 0.0
        self._done = 0
        self._began: tuple[float, int] | None = None

    def progress(self, done: int, total: int | None, unit: str = "rows") -> None:
        if (
            self._began is None or done < self._done
        ):  # a stage may count several things, one after the other
            self._began = (time.monotonic(), done)
        self._done = done
        if sys.stderr.isatty():
            self._draw(done, total, unit)
        elif time.monotonic() - self._said > 10 or done == total:
            self._said = time.monotonic()
            seconds, rate = self._rate(done)
            left = (
                f", {(total - done) / rate:.0f} s left" if total and rate and done < total else ""
            )
            super().say(
                f"{self.name}: {done}{f' of {total}' if total else ''} {unit} in {seconds:.0f} s ({rate:.1f}/s{left})"
            )

    def _rate(self, done: int) -> tuple[float, float]:
        began, first = self._began or (time.monotonic(), done)
        seconds = time.monotonic() - began
        return seconds, (done - first) / seconds if seconds > 0 else 0.0

    def _draw(self, done: int, total: int | None, unit: str) -> None:
        if self._bar is None:
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                MofNCompleteColumn,
                Progress,
                TextColumn,
                TimeElapsedColumn,
                TimeRemainingColumn,
            )

            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=Console(stderr=True))
            self._bar.start()
            self._task = self._bar.add_task(self.name, total=total, rate="")
        self._bar.update(
            self._task, completed=done, total=total, rate=f"{self._rate(done)[1]:.1f} {unit}/s"
        )

    def say(self, text: str) -> None:
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            super().say(text)

    def metrics(self, values: dict[str, float], step: int | None = None) -> None:
        super().metrics(values, step)
        if not self.trainer and (run := self._open()) is not None:
            run.log(values, step=step)

    def table(self, name: str, rows: pl.DataFrame) -> None:
        if (run := self._open()) is not None:
            import wandb

            shown = rows.head(TABLE_ROWS)
            run.log(
                {
                    name: wandb.Table(
                        columns=shown.columns,
                        data=[list(map(_cell, row)) for row in shown.iter_rows()],
                    )
                }
            )

    def trainer_env(self) -> dict[str, str]:
        if self.tracker.mode == "off":
            return {}
        return {
            "WANDB_PROJECT": self.tracker.project,
            "WANDB_RUN_GROUP": self.tracker.group,
            "WANDB_JOB_TYPE": self.job_type,
            "WANDB_NAME": self.name,
            "WANDB_RUN_ID": self.run_id,
            "WANDB_RESUME": "allow",
            "WANDB_MODE": self.tracker.mode,
            "WANDB_DIR": str(self._folder()),
            "WANDB_SILENT": "true",
        }

    def finish(self, facts: Mapping[str, Any]) -> None:
        if (run := self._open()) is not None:
            run.config.update(
                {k: v for k, v in facts.items() if k != "counts"}, allow_val_change=True
            )
            for name, value in dict(facts.get("counts", {})).items():
                run.summary[name] = value

    def close(self, failed: bool) -> None:
        """End the bar and the W&B run."""
        if self._bar is not None:
            self._bar.stop()
        if self._run is not None:
            self._run.finish(exit_code=int(failed))

    def _folder(self) -> Path:
        self.tracker.folder.mkdir(parents=True, exist_ok=True)
        return self.tracker.folder

    def _open(self) -> Any:
        if self.tracker.mode == "off":
            return None
        if self._run is None:
            try:
                import wandb
            except ImportError as error:
                raise UserError(
                    "`track: wandb` needs the wandb package; install it or say `track: none`."
                ) from error
            settings = wandb.Settings(
                silent=True,
                console="off",
                disable_git=True,
                x_disable_stats=True,
                x_disable_machine_info=True,
            )
            self._run = wandb.init(
                project=self.tracker.project,
                group=self.tracker.group,
                job_type=self.job_type,
                name=self.name,
                id=self.run_id,
                resume="allow",
                mode=self.tracker.mode,
                dir=str(self._folder()),
                config=self.config,
                settings=settings,
            )
        return self._run


def _cell(value: Any) -> Any:
    return value if value is None or isinstance(value, (str, int, float, bool)) else str(value)
