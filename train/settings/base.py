"""The model that is fine-tuned, as a folder: a base on the hub is downloaded once, at the commit
that its key names, and no training process asks the hub for it."""

from __future__ import annotations

from pathlib import Path

from core.errors import UserError, first_line
from core.files import read_json
from core.models import UNRESOLVED, Model

PARTS = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.md", "LICENSE*", "NOTICE*")
"""What is downloaded: configuration, tokenizer, weights, and what the licence says; no other format
of the weights, and no code."""

INDEX = "model.safetensors.index.json"


def snapshot(model: Model) -> Path:
    """The folder of a resolved model, downloaded now where it is on the hub and not in its cache.

    What an earlier call has downloaded is not asked for again, so a machine without a network finds
    it. Raises UserError when the hub cannot be reached, refuses, or what came is not whole.
    """
    if Path(model.path).is_dir():
        return Path(model.path)
    from huggingface_hub import snapshot_download

    by_hand = f"run `hf download {model.path}` where there is a network"
    if model.revision == UNRESOLVED:
        raise UserError(
            f"the hub cannot be reached and its cache does not hold {model.name}: {by_hand}, "
            "with the same HF_HOME, or give a folder."
        )
    commit, parts = model.revision, list(PARTS)
    # The hub is asked even for what is whole here, and a machine without a network waits for it.
    try:
        here = snapshot_download(
            model.path, revision=commit, allow_patterns=parts, local_files_only=True
        )
        if lacks(Path(here)) is None:
            return Path(here)
    except OSError:  # nothing of it is here yet
        pass
    try:
        folder = Path(snapshot_download(model.path, revision=commit, allow_patterns=parts))
    # The hub's errors have no common class, and its HTTP library's are among them.
    except Exception as error:
        raise UserError(
            f"{model.name} at {model.revision[:12]} cannot be downloaded ({first_line(error)}); "
            f"check HF_TOKEN and the licence, or {by_hand}."
        ) from error
    if missing := lacks(folder):
        raise UserError(
            f"{model.name} at {model.revision[:12]} lacks {missing} after its download; "
            "a base needs config.json, a tokenizer and *.safetensors weights."
        )
    return folder


def lacks(folder: Path) -> str | None:
    """The first file that a model's folder lacks, or None when it is whole: its configuration, a
    tokenizer, and every shard that its index names."""
    if not (folder / "config.json").is_file():
        return "config.json"
    if not any(folder.glob("*token*")):
        return "a tokenizer"
    index = folder / INDEX
    if not index.is_file():
        return None if any(folder.glob("*.safetensors")) else "*.safetensors weights"
    shards: dict[str, str] = read_json(index)["weight_map"]
    gone = (name for name in sorted(set(shards.values())) if not (folder / name).is_file())
    return next(gone, None)
