"""What a stage tells the world while it works: progress, metrics, tables and lines, to the terminal
and to W&B.

A stage gets a `Log` and never imports wandb itself. `Tracker.stage(...)` yields one that draws a
progress bar (plain lines when stderr is no terminal) and writes to W&B: one group a recipe run, one
run a stage with its job type, the same run id after a resume. Without an API key W&B works offline
and says so; `magpie track sync` uploads later. Trackio and TensorBoard are the trainer's own
(`train.trainer.report_to`).
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import polars as pl

from core.errors import UserError, first_line, nearest, shown
from core.sending.pace import Pace, clock
from core.sending.wandb_address import netrc_key, unreachable

TABLE_ROWS = 1000
"""Rows of a table that go to W&B; the files hold all of them."""


@dataclass(frozen=True)
class Made:
    """A result as W&B's lineage has it: the name and kind of its stage, its key, and the digest of
    its content."""

    name: str
    kind: str
    key: str
    digest: str


class Log:
    """Where a stage reports. This base form prints lines to stderr and remembers the last
    figures."""

    def __init__(self) -> None:
        self.seen: dict[str, float] = {}
        self.reused: dict[str, int] = {}

    def say(self, text: str) -> None:
        """One line for the person watching."""
        print(shown(text), file=sys.stderr, flush=True)

    def step(self, name: str, state: str, why: str) -> None:
        """A stage is reused or run. In a terminal what is reused is one line for all of a kind in
        a row, and what runs for no other reason than that it is new is told by its bar."""
        if not sys.stderr.isatty():
            self.say(f"{name}: {state}{f' ({why})' if why else ''}")
            return
        if state == "reuse" and not why:
            kind = name.partition("/")[0]
            self.reused[kind] = self.reused.get(kind, 0) + 1
            return
        self.tell_reused()
        if why != "not made yet":
            self.say(f"{name}: {state} ({why})")

    def tell_reused(self) -> None:
        """Say what was reused since this was last said."""
        if self.reused:
            self.say("reused: " + ", ".join(f"{n} {kind}" for kind, n in self.reused.items()))
            self.reused.clear()

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

    def finish(
        self, facts: Mapping[str, Any], made: Made | None = None, of: Sequence[Made] = ()
    ) -> None:
        """The stage is done: its counts, its input and output digests; what was `made` `of`
        what."""


class Tracker:
    """All runs of one recipe: the W&B group, and where offline files go."""

    def __init__(
        self, mode: Literal["wandb", "none"], *, project: str, group: str, folder: Path
    ) -> None:
        self.project, self.group, self.folder = project, group, folder
        self.mode: WandbMode = wandb_mode() if mode == "wandb" else "off"
        self._checked = False

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
        """The log of one stage. `key` makes the run id, so that a continued stage continues its
        run; `trainer`: a child process writes the metrics."""
        run_id = f"{job_type}-{key[:12]}"
        log = StageLog(self, _Stage(name, job_type, run_id, dict(config), trainer))
        failed = True
        if sys.stderr.isatty():
            log.draw()
        try:
            yield log
            failed = False
        finally:
            log.close(failed)

    def begin(self) -> WandbMode:
        """The mode that runs are written in, once there is something to write: without a key, or
        where W&B does not answer or refuses the key, offline, which is said once."""
        if not self._checked:
            self._checked = True
            if self.mode == "offline" and not os.environ.get("WANDB_MODE"):
                self.lost("no API key")
            elif self.mode == "online" and (why := unreachable()):
                self.lost(why)
        return self.mode

    def lost(self, why: str) -> None:
        """From now on runs are written offline: W&B is no reason to end one."""
        self.mode = "offline"
        print(
            f"W&B: {why}, so runs are written offline below {self.folder / 'wandb'} "
            f"(upload later with `magpie track sync {self.folder}`)",
            file=sys.stderr,
        )


WandbMode = Literal["online", "offline", "disabled", "shared", "off"]
_ASKED_FOR = get_args(WandbMode)[:-1]


def wandb_mode() -> WandbMode:
    """online, offline or disabled: WANDB_MODE if set, else online only where an API key is at
    hand. Raises UserError for another value."""
    asked = os.environ.get("WANDB_MODE", "")
    if asked in _ASKED_FOR:
        return cast(WandbMode, asked)
    if asked:
        hint = nearest(asked, _ASKED_FOR)
        raise UserError(f"WANDB_MODE is '{asked}' in the environment{hint}.")
    if os.environ.get("WANDB_API_KEY"):
        return "online"
    return "online" if netrc_key("wandb") else "offline"


@dataclass(frozen=True)
class _Stage:
    """What W&B is told of a stage when its run opens."""

    name: str
    job_type: str
    run_id: str
    config: dict[str, Any]
    trainer: bool
    """Whether a child process writes the metrics."""


class StageLog(Log):
    """The log of one running stage; the W&B run opens with the first thing that is written to
    it."""

    def __init__(self, tracker: Tracker, stage: _Stage) -> None:
        super().__init__()
        self._tracker, self._stage, self.run_id = tracker, stage, stage.run_id
        self._run: Any = None
        self._bar: Any = None
        self._task: Any = None
        self._given_up = False
        self._last_line = 0.0
        self._pace = Pace()

    def progress(self, done: int, total: int | None, unit: str = "rows") -> None:
        """Move the bar of a terminal; elsewhere a line every ten seconds, and one at the end."""
        now = time.monotonic()
        self._pace.count(done, unit, now)
        of = f" of {total:,}" if total else ""
        pace = self._pace.words(done, total, now)
        if sys.stderr.isatty():
            self.draw(done, total, f"{done:,}{of} {unit}{pace}")
        elif now - self._last_line > 10 or done == total:
            self._last_line = now
            took = clock(self._pace.seconds(now))
            super().say(f"{self._stage.name}: {done:,}{of} {unit} in {took}{pace}")

    def draw(self, done: int = 0, total: int | None = None, words: str = "") -> None:
        """Move the stage's bar, opened now if need be; it fits a terminal of 80 columns."""
        if self._bar is None:
            from rich import progress
            from rich.console import Console
            from rich.table import Column

            names = Column(no_wrap=True, overflow="ellipsis", max_width=24)
            whole = Column(no_wrap=True)
            self._bar = progress.Progress(
                progress.TextColumn("{task.description}", markup=False, table_column=names),
                progress.BarColumn(bar_width=10),
                progress.TimeElapsedColumn(table_column=whole),
                progress.TextColumn("{task.fields[words]}", markup=False, table_column=whole),
                console=Console(stderr=True),
            )
            self._bar.start()
            self._task = self._bar.add_task(self._stage.name, total=total, words="")
        self._bar.update(self._task, completed=done, total=total, words=words)

    def say(self, text: str) -> None:
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            super().say(text)

    def metrics(self, values: dict[str, float], step: int | None = None) -> None:
        super().metrics(values, step)
        if not self._stage.trainer:
            with self._tracked() as run:
                if run:
                    run.log(values, step=step)

    def table(self, name: str, rows: pl.DataFrame) -> None:
        with self._tracked() as run:
            if run:
                import wandb
                from wandb.sdk.data_types._private import MEDIA_TMP

                # made when wandb was loaded, perhaps by a run of this process that has ended and
                # taken its temporary folder along
                Path(MEDIA_TMP.name).mkdir(parents=True, exist_ok=True)
                shown = rows.head(TABLE_ROWS)
                cells = [list(map(_cell, row)) for row in shown.iter_rows()]
                run.log({name: wandb.Table(columns=shown.columns, data=cells)})

    def trainer_env(self) -> dict[str, str]:
        if self._tracker.begin() == "off":
            return {}
        return {
            "WANDB_PROJECT": self._tracker.project,
            "WANDB_RUN_GROUP": self._tracker.group,
            "WANDB_JOB_TYPE": self._stage.job_type,
            "WANDB_NAME": self._stage.name,
            "WANDB_RUN_ID": self.run_id,
            **({"WANDB_RESUME": "allow"} if self._continues() else {}),
            "WANDB_MODE": self._tracker.mode,
            "WANDB_DIR": self._folder(),
            "WANDB_SILENT": "true",
        }

    def finish(
        self, facts: Mapping[str, Any], made: Made | None = None, of: Sequence[Made] = ()
    ) -> None:
        with self._tracked() as run:
            if not run:
                return
            counts = facts.get("counts", {})
            rest = {name: fact for name, fact in facts.items() if name != "counts"}
            run.config.update(rest, allow_val_change=True)
            run.summary.update(counts)
            # Offline the digests in the config say the same: an artifact's files would have to lie
            # on the machine that uploads.
            if made is not None and self._tracker.mode in ("online", "shared"):
                lineage(run, made, of)

    def close(self, failed: bool) -> None:
        """End the bar and the W&B run."""
        if self._bar is not None:
            if not failed:  # what was never counted is as done as what was
                whole = self._bar.tasks[0].total or 1
                self._bar.update(self._task, total=whole, completed=whole)
            self._bar.stop()
        if self._run is not None:
            with self._tracked() as run:
                if run:
                    run.finish(exit_code=int(failed))

    @contextmanager
    def _tracked(self) -> Iterator[Any]:
        """The W&B run to write to (None: there is none). What W&B raises is said once, and the
        stage goes on without it."""
        run = None
        if not self._given_up:
            try:
                run = self._open()
            except UserError:
                raise
            except Exception as error:  # W&B has many kinds
                self._give_up(error)
        try:
            yield run
        except Exception as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._given_up = True
        self.say(
            f"W&B: {self._stage.name} is not tracked any further ({first_line(error)}); the run "
            "goes on."
        )

    def _continues(self) -> bool:
        """Whether W&B may find this run begun. Offline that is so where an earlier attempt's files
        lie here, written offline or online: files that begin a run are uploaded to the run's start
        however often, so that an upload that was killed can be repeated; those that continue one
        are added to its end."""
        if self._tracker.mode != "offline":
            return True
        earlier = (self._tracker.folder / "wandb").glob(f"*run-*-{self.run_id}")
        return next(earlier, None) is not None

    def _folder(self) -> str:
        self._tracker.folder.mkdir(parents=True, exist_ok=True)
        return str(self._tracker.folder)

    def _open(self) -> Any:
        """The W&B run, opened now if need be; None when tracking is off."""
        if self._run is None and self._tracker.begin() != "off":
            try:
                import wandb
            except ImportError as error:
                raise UserError(
                    "`track: wandb` needs the wandb package; install it or say `track: none`."
                ) from error
            try:
                self._run = self._begun(wandb)
            except wandb.errors.Error as error:
                if self._tracker.mode != "online":
                    raise
                self._tracker.lost(f"no run can be opened ({first_line(error)})")
                self._run = self._begun(wandb)
        return self._run

    def _begun(self, wandb: Any) -> Any:
        """A W&B run in the tracker's mode."""
        settings = wandb.Settings(
            silent=True,
            console="off",
            disable_git=True,
            x_disable_stats=True,
            x_disable_machine_info=True,
            init_timeout=60,
            finish_timeout=120,  # what is not sent by then is kept, and sent by `track sync`
        )
        return wandb.init(
            project=self._tracker.project,
            group=self._tracker.group,
            job_type=self._stage.job_type,
            name=self._stage.name,
            id=self.run_id,
            resume="allow" if self._continues() else None,
            mode=self._tracker.mode,
            dir=self._folder(),
            config=self._stage.config,
            settings=settings,
        )


def lineage(run: Any, made: Made, of: Sequence[Made]) -> None:
    """Record in a W&B run what was made of what, as artifacts that hold no data: each is a file
    with the result's key and digest, so that the same result is the same version, whoever names
    it."""
    for parent in of:
        run.use_artifact(_artifact(parent))
    run.log_artifact(_artifact(made))


def _artifact(made: Made) -> Any:
    import wandb

    named = re.sub(r"[^\w.-]+", "-", made.name)[:120]
    artifact = wandb.Artifact(named, type=made.kind, metadata=asdict(made))
    with artifact.new_file("result.json") as file:
        file.write(json.dumps(asdict(made), indent=1))
    return artifact


def _cell(value: Any) -> Any:
    return value if value is None or isinstance(value, (str, int, float, bool)) else str(value)
