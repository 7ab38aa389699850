"""`magpie export`: a file, or an arm of a finished recipe, in a published form, with a dataset
card; pushed to the hub when asked."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import polars as pl

from core.errors import UserError
from core.files import replacing
from core.pretrained.hub import Kind, refusal, require
from recipes.exchange import card, import_data, recipe_rows
from recipes.exchange.other_rows import Export
from recipes.stages.environment import environment
from synth.published.forms import Form
from synth.published.rows import read

_CONVERSATION = {
    "id",
    "instruction",
    "response",
    "messages",
    "status",
    "reason",
    "failed_tags",
    "source_columns",
    "source_conversations",
}
"""Columns that every form holds."""


@dataclass(frozen=True)
class Target:
    """Where an export goes and how: a file, or a folder with shards and a card; a data set
    repository of the hub; or both."""

    out: Path | None
    form: str
    licence: str | None = None
    push: str | None = None
    private: bool = False

    def check(self, token: str) -> None:
        """Raises UserError for a target that cannot be. `token`: the hub's, "" for none."""
        if self.push and not token:
            raise UserError(
                "--push needs the hub's token in the environment variable HF_TOKEN; "
                "export a write token in it."
            )
        if self.out is None and not self.push:
            raise UserError("nothing to do: give --out FILE_OR_FOLDER, or --push REPO, or both.")
        if self.out is not None and self.out.suffix in (".parquet", ".jsonl") and self.push:
            raise UserError(
                "--push sends a folder with a card; "
                f"give a folder as --out in place of {self.out}, or no --out."
            )


def main(
    source: str, target: Target, *, arm: str | None = None, seed: int | None = None
) -> dict[str, Any]:
    """Write `source`, or what an arm of a recipe chose, to its target, and say what was done, which
    is returned too."""
    form = import_data.checked(target.form)
    token = os.environ.get("HF_TOKEN", "").strip()
    target.check(token)
    with ExitStack() as stack:
        folder = target.out or Path(stack.enter_context(TemporaryDirectory())) / "export"
        export = _opened(source, arm, seed)
        if target.out is not None:
            for data in (source, *export.reads):
                import_data.spare(data, target.out)
        figures = card.Figures()
        if folder.suffix:
            rows = import_data.write(figures.watch(export.frames), folder, form)
        else:
            rows = _folder(export, figures, folder, form, target.licence)
        failed = f"; {figures.failed:,} failed rows left out" if figures.failed else ""
        print(f"{rows:,} rows in the form {form} written to {folder}{failed}")
        others = sorted({*figures.columns} - _CONVERSATION)
        if form not in ("sharegpt", "messages"):
            others = []
        if others:
            print(f"this form holds the conversation only; left out: {', '.join(others)}")
        licences = [*card.licences(card.writers(figures, export.provenance))]
        for line in licences:
            print(f"licence of the teacher, to be checked before publishing: {line}")
        where = None
        if target.push:
            where = pushed(folder, target.push, token, private=target.private)
            print(f"pushed to {where}")
    return {
        "written": rows,
        "failed": figures.failed,
        "form": form,
        "out": str(target.out) if target.out else None,
        "columns_left_out": others,
        "licences": licences,
        "pushed": where,
    }


def _opened(source: str, arm: str | None, seed: int | None) -> Export:
    """A recipe by its file or shipped name; anything else is data."""
    from recipes import schema

    path = Path(source)
    shipped = not path.exists() and source in {p.stem for p in schema.shipped()}
    if path.suffix in (".yaml", ".yml") or shipped:
        return recipe_rows.of_recipe(schema.load(source), arm, seed)
    if arm is not None or seed is not None:
        raise UserError(
            f"--arm and --seed choose rows of a recipe; {source} is no recipe (a .yaml file)."
        )
    provenance = {
        "source": path.name if path.exists() else source,
        "git commit of the software": environment()["git"],
    }
    name = path.name.partition(".")[0] or source
    return Export(name, read(source), provenance)


def _folder(
    export: Export, figures: card.Figures, folder: Path, form: Form, licence: str | None
) -> int:
    """Shards below data/ and the card; the folder appears when it is whole."""
    import_data.check_new(folder)
    with replacing(folder) as work:
        data = work / "data"
        frames = figures.watch(export.frames)
        rows = import_data.shards(frames, data, form, "train-{:05d}.parquet")
        columns = pl.scan_parquet(next(data.iterdir()), glob=False).collect_schema()
        stated = list(export.licences)
        if licence is None and len(stated) == 1 and export.licences[stated[0]] == rows:
            licence = stated[0]
        text = card.render(
            figures,
            export.provenance,
            name=export.name,
            form=form,
            columns=columns,
            licence=licence,
        )
        (work / "README.md").write_text(text)
    return rows


def pushed(folder: Path, repo: str, token: str, *, private: bool, kind: str = "dataset") -> str:
    """Create the repository (`kind`: dataset or model) where there is none and upload the folder in
    one commit; returns its address.

    `token`: the hub's write token. HF_ENDPOINT names another hub. Raises UserError with the hub's
    own words when it refuses.
    """
    from huggingface_hub import HfApi

    require(f"--push {repo}")
    hub = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None, token=token)
    try:
        hub.create_repo(repo, repo_type=kind, private=private, exist_ok=True)
        what = "data set" if kind == "dataset" else kind
        done = hub.upload_folder(
            repo_id=repo, repo_type=kind, folder_path=folder, commit_message=f"Upload {what}"
        )
    # The hub's errors have no common class, and its HTTP library's are among them.
    except Exception as error:
        said: Kind = "dataset" if kind == "dataset" else "model"
        text = refusal(error, repo, said).replace(token, "HF_TOKEN")
        raise UserError(f"the hub did not take {repo}: {text}") from error
    return str(done)
