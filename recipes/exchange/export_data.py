"""`magpie export`: a file, or an arm of a finished recipe, in a published form, with a dataset
card; pushed to the hub when asked."""

from __future__ import annotations

import os
import shutil
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import polars as pl

from core.errors import UserError
from core.files import fsync_folder
from recipes.exchange import card, import_data, recipe_rows
from recipes.exchange.recipe_rows import Export
from recipes.stages.session import environment
from synth.published import rows as published

DATA = "data/train-*.parquet"


def main(
    source: str,
    out: Path | None,
    *,
    arm: str | None,
    seed: int | None,
    form: str,
    licence: str | None,
    push: str | None,
    private: bool,
) -> None:
    """Write `source` to `out` (a file, or a folder with shards and a card), push it to the hub
    where asked, and say what was done."""
    checked = import_data.checked(form)
    token = os.environ.get("HF_TOKEN", "").strip()
    if push and not token:
        raise UserError(
            "--push needs the hub's token in the environment variable HF_TOKEN; export a write token in it."
        )
    if out is None and not push:
        raise UserError("nothing to do: give --out FILE_OR_FOLDER, or --push REPO, or both.")
    if out is not None and out.suffix in (".parquet", ".jsonl") and push:
        raise UserError(
            f"--push sends a folder with a card; give a folder as --out in place of {out}, or no --out."
        )
    with ExitStack() as stack:
        folder = (
            out if out is not None else Path(stack.enter_context(TemporaryDirectory())) / "export"
        )
        export = _opened(source, arm, seed)
        if out is not None:
            for read in filter(None, (source, export.reads)):
                import_data.spare(read, out)
        figures = card.Figures()
        if folder.suffix:
            rows = import_data.write(figures.watch(export.frames), folder, checked)
        else:
            rows = _folder(export, figures, folder, checked, licence)
        print(
            f"{rows:,} rows in the form {form} written to {folder}"
            + (f"; {figures.failed:,} failed rows left out" if figures.failed else "")
        )
        if checked in ("sharegpt", "messages"):
            print(
                f"this form holds the conversation only; left out: {', '.join(sorted(_others(figures.columns)))}"
            )
        for line in card.licences(card.writers(figures, export.provenance)):
            print(f"licence of the teacher, to be checked before publishing: {line}")
        if push:
            print(f"pushed to {pushed(folder, push, token, private=private)}")


def _others(columns: list[str]) -> set[str]:
    conversation = {
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
    return set(columns) - conversation


def _opened(source: str, arm: str | None, seed: int | None) -> Export:
    """A recipe by its file or shipped name; anything else is data."""
    from recipes import schema

    path = Path(source)
    if path.suffix in (".yaml", ".yml") or (
        not path.exists() and source in {p.stem for p in schema.shipped()}
    ):
        return recipe_rows.of_recipe(schema.load(source), arm, seed)
    if arm is not None or seed is not None:
        raise UserError(
            f"--arm and --seed choose rows of a recipe; {source} is no recipe (a .yaml file)."
        )
    return Export(
        path.name.partition(".")[0] or source,
        published.read(source),
        {
            "source": path.name if path.exists() else source,
            "git commit of the software": environment()["git"],
        },
    )


def _folder(
    export: Export, figures: card.Figures, folder: Path, form: published.Form, licence: str | None
) -> int:
    """Shards below data/ and the card; the folder appears when it is whole."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(
            f"{folder} exists already and is not an empty folder; give another --out, or remove it first."
        )
    work = folder.with_name(f".{folder.name}.export")
    shutil.rmtree(work, ignore_errors=True)
    try:
        work.mkdir(parents=True)
        rows = import_data.shards(
            figures.watch(export.frames), work / "data", form, "train-{:05d}.parquet"
        )
        columns = pl.read_parquet_schema(next((work / "data").iterdir()))
        text = card.render(
            figures,
            export.provenance,
            name=export.name,
            form=form,
            data=DATA,
            columns=columns,
            licence=licence,
        )
        (work / "README.md").write_text(text)
        if folder.exists():
            folder.rmdir()
        work.rename(folder)
        fsync_folder(folder.parent)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return rows


def pushed(folder: Path, repo: str, token: str, *, private: bool) -> str:
    """Create the data set repository where there is none and upload the folder in one commit;
    returns its address.

    `token`: the hub's write token. HF_ENDPOINT names another hub. Raises UserError with the hub's
    own words when it refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    hub = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None, token=token)
    try:
        hub.create_repo(repo, repo_type="dataset", private=private, exist_ok=True)
        done = hub.upload_folder(
            repo_id=repo, repo_type="dataset", folder_path=folder, commit_message="Upload data set"
        )
    except (HfHubHTTPError, OSError, ValueError) as error:
        text = str(error).replace(token, "HF_TOKEN").strip()
        raise UserError(f"the hub did not take {repo}: {' '.join(text.split())[:300]}") from error
    return str(done)
