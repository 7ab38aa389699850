"""A model of the hub as a folder: downloaded once, at one commit, whole or not at all; who loads it
(vLLM, TRL, a tokenizer) asks no hub."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from core.errors import UserError
from core.files import read_json
from core.pretrained import hub

TEXTS = ("*.json", "*.model", "*.txt", "*.jinja", "*.md", "LICENSE*", "NOTICE*")
"""What is downloaded for a tokenizer: everything but weights."""
PARTS = (*TEXTS, "*.safetensors")
"""What is downloaded of a model: no other format of the weights, and no code."""

INDEX = "model.safetensors.index.json"


def _silent(line: str) -> None:
    """Tells nobody."""


def snapshot(
    repo: str,
    commit: str,
    *,
    parts: Sequence[str] = PARTS,
    say: Callable[[str], None] = _silent,
) -> Path:
    """The folder of a model at a commit, downloaded now where it is not in the hub's cache.

    What an earlier call has downloaded is not asked for again, so a machine without a network finds
    it; `say` hears of a download. Raises HubError when the hub cannot be reached, refuses, or what
    came is not whole.
    """
    from huggingface_hub import snapshot_download

    lacks = lacks_of if parts is PARTS else lacks_texts
    # The hub is asked even for what is whole here, and a machine without a network waits for it.
    if (here := cached(repo, commit, parts)) is not None:
        return here
    by_hand = f"run `hf download {repo}` where there is a network, with the same HF_HOME"
    if (why := hub.out_of_reach()) is not None:
        raise hub.HubError(
            f"model {repo} at {commit[:12]} is not in the hub's cache, and the hub cannot be "
            f"reached ({why}): {by_hand}, or give a folder."
        )
    if parts is PARTS:
        size = size_of(repo, commit)
        say(f"downloading {repo} at {commit[:12]}" + (f", {size / 1e9:.1f} GB" if size else ""))
    try:
        folder = Path(snapshot_download(repo, revision=commit, allow_patterns=list(parts)))
    # The hub's errors have no common class, and its HTTP library's are among them.
    except Exception as error:
        raise hub.HubError(_failed(error, repo, commit, by_hand)) from error
    if missing := lacks(folder):
        raise hub.HubError(
            f"{repo} at {commit[:12]} lacks {missing} after its download; "
            "a model needs config.json, a tokenizer and *.safetensors weights."
        )
    return folder


def cached(repo: str, commit: str, parts: Sequence[str] = PARTS) -> Path | None:
    """The folder of a model at a commit, where it is whole in the hub's cache."""
    from huggingface_hub import snapshot_download

    lacks = lacks_of if parts is PARTS else lacks_texts
    with suppress(OSError):  # nothing of it is here yet
        here = Path(
            snapshot_download(
                repo, revision=commit, allow_patterns=list(parts), local_files_only=True
            )
        )
        return here if lacks(here) is None else None
    return None


def _failed(error: Exception, repo: str, commit: str, by_hand: str) -> str:
    """Why a download failed. A full disk says so itself."""
    full = next((e for e in hub.causes(error) if getattr(e, "errno", None) in (28, 30, 122)), None)
    if full is not None:
        return f"{repo} cannot be downloaded: {full}; free space, or set HF_HOME to another disk."
    why = f"{repo} at {commit[:12]} cannot be downloaded: {hub.refusal(error, repo).rstrip('.')}"
    refused = any(map(hub.status_of, hub.causes(error)))
    return f"{why}." if refused else f"{why}; run again, which goes on where it was, or {by_hand}."


def size_of(repo: str, commit: str) -> int | None:
    """Bytes of what is downloaded of a model, None where the hub does not say."""
    from huggingface_hub import HfApi
    from huggingface_hub.utils._paths import filter_repo_objects

    with suppress(Exception):  # a figure to be shown, no more
        said = (
            HfApi()
            .model_info(repo, revision=commit, files_metadata=True, timeout=hub.PATIENCE)
            .siblings
        )
        sizes = {each.rfilename: each.size or 0 for each in said or []}
        return sum(sizes[path] for path in filter_repo_objects(sizes, allow_patterns=list(PARTS)))
    return None


def lacks_texts(folder: Path) -> str | None:
    """What a tokenizer's folder lacks, None when nothing."""
    return None if any(folder.glob("*token*")) or any(folder.glob("*vocab*")) else "a tokenizer"


def lacks_of(folder: Path) -> str | None:
    """The first file that a model's folder lacks, or None when it is whole: its configuration, a
    tokenizer, and every shard that its index names."""
    if not (folder / "config.json").is_file():
        return "config.json"
    if missing := lacks_texts(folder):
        return missing
    index = folder / INDEX
    if not index.is_file():
        return None if any(folder.glob("*.safetensors")) else "*.safetensors weights"
    with suppress(UserError, KeyError, AttributeError):
        shards: dict[str, str] = read_json(index)["weight_map"]
        gone = (name for name in sorted(set(shards.values())) if not (folder / name).is_file())
        return next(gone, None)
    return f"a readable {INDEX}"
