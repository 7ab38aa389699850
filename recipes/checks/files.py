"""The files that a recipe names: each is there, and its beginning is what it should be. Looked at
before anything is spent; what a whole file holds is judged where it is read."""

from __future__ import annotations

import difflib
import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import IO

from core.errors import UserError, first_line, nearest
from core.files import DEEP, RepeatedKeyError, each_once, read_json
from recipes.checks.sampled import asked_tags
from recipes.schema import Recipe, with_random
from synth.filters.arm import Choosing, PartConfig
from train.config import SHIPPED_TEMPLATES

TEMPLATES = (".jinja", ".jinja2", ".j2")


def check(recipe: Recipe) -> None:
    """Raise UserError, beginning with the place in the recipe, for the first file that is not there
    or not what it should be."""
    for place, path, judge in [
        *_of_training(recipe),
        *_of_synthesis(recipe),
        *_of_arms(recipe),
        *_of_evaluation(recipe),
    ]:
        file = Path(path).expanduser()
        if not file.exists():
            shipped = SHIPPED_TEMPLATES if place.endswith("_template") or "chat_" in place else ()
            raise UserError(f"{place}: {path} does not exist{_beside(file, shipped)}.")
        if not (file.is_file() or file.is_dir()):  # reading one may never end
            raise UserError(f"{place}: {path} is a pipe or a device; name a file.")
        try:
            judge(file)
        except UserError as error:
            raise UserError(f"{place}: {error}") from error
        except OSError as error:
            raise UserError(f"{place}: {path} cannot be read ({error.strerror}).") from error
    store = Path(recipe.store)
    if store.exists() and not store.is_dir():
        raise UserError(f"store: {store} is a file; name a folder.")


Named = Iterator[tuple[str, str, Callable[[Path], None]]]
"""(place, path, what judges the file) of what a recipe names."""


def _beside(file: Path, shipped: Sequence[str]) -> str:
    """A hint for a mistyped name: of a file there, or of what is `shipped`."""
    if shipped and file.name == str(file):
        return nearest(file.name, shipped)
    if not file.parent.is_dir():
        return f" (there is no folder {file.parent})"
    there = islice(file.parent.iterdir(), 1000)
    names = [each.name for each in there if each.name != file.name]  # a link that leads nowhere
    close = difflib.get_close_matches(file.name, names, n=1, cutoff=0.75)
    return f"; did you mean '{close[0]}'?" if close else ""


def _of_training(recipe: Recipe) -> Named:
    for block in (recipe.train, recipe.dpo):
        if block is None:
            continue
        for name in ("chat_template_path", "inference_template"):
            given = getattr(block, name)
            if given is not None and given not in SHIPPED_TEMPLATES:
                yield f"{block.block}.{name}", given, template
        if isinstance(block.deepspeed, str):
            yield f"{block.block}.deepspeed", block.deepspeed, _json_object
    if recipe.launch.template is not None:
        yield "launch.template", recipe.launch.template, template


def _of_synthesis(recipe: Recipe) -> Named:
    """Prompts, templates and data that the rows and their tags name."""
    synth = recipe.synth
    for number, prompt in enumerate(synth.system_prompts):
        if prompt.file is not None:
            yield f"synth.system_prompts.{number}.file", prompt.file, text
    for place, tag in asked_tags(synth.tags):
        if tag.prompt is not None:
            yield f"{place}.prompt", tag.prompt, template
    for name in ("teacher", "responder"):
        model = getattr(synth, name)
        if model is not None and model.chat_template is not None:
            yield f"synth.{name}.chat_template", model.chat_template, template
    if synth.tags.decontaminate.file is not None:
        yield "synth.tags.decontaminate.file", synth.tags.decontaminate.file, data
    if not isinstance(synth.rows, int) and _is_data(synth.rows.import_):
        yield "synth.rows.import", synth.rows.import_, data


def _of_arms(recipe: Recipe) -> Named:
    for name, arm in recipe.arms.items():
        parts: dict[str, Choosing] = {f"arms.{name}": arm}
        for part, config in (arm.mix or {}).items():
            if isinstance(config, PartConfig):
                parts[f"arms.{name}.mix.{part}"] = config
        for place, each in parts.items():
            if each.data is not None and _is_data(each.data):
                yield f"{place}.data", each.data, data


def _of_evaluation(recipe: Recipe) -> Named:
    """Prompt sets, baselines, references and judges' templates."""
    config, arms = recipe.eval, with_random(recipe)
    if config is None:
        return
    for name in ("alpaca", "arena", "wildbench", "mtbench"):
        block = getattr(config, name)
        prompts = [*_texts(block, name, "prompt"), *_texts(block, name, "reward_prompt")]
        yield from ((place, each, template) for place, each in prompts if _is_template(each))
        for place, each in [*_texts(block, name, "prompts"), *_texts(block, name, "references")]:
            if _is_path(each) and each not in arms:
                yield place, each, data
        for place, each in _texts(block, name, "baseline"):
            if each not in (*arms, "hub"):
                yield place, each, data
    named = {"eval.prompts": config.prompts}
    if config.checks is not None:
        named["eval.checks.prompts"] = config.checks.prompts
    if config.heldout is not None and config.heldout.foreign is not None:
        named["eval.heldout.foreign.data"] = config.heldout.foreign.data
    yield from ((place, given, data) for place, given in named.items() if _is_path(given))


def _texts(block: object, name: str, key: str) -> list[tuple[str, str]]:
    """(place, text) of a key of a benchmark's block: one, or one a category."""
    value = getattr(block, key, None)
    if isinstance(value, dict):
        return [(f"eval.{name}.{key}.{each}", str(text)) for each, text in value.items()]
    return [(f"eval.{name}.{key}", value)] if isinstance(value, str) else []


def _is_template(name: str) -> bool:
    return name.endswith(TEMPLATES)


SUFFIXES = (".json", ".jsonl", ".parquet", ".csv", ".tsv", ".gz", ".zst", ".arrow", ".txt")


def _is_path(name: str) -> bool:
    """Whether a name is of a file or folder here, and not of a set on the hub or of an arm."""
    marked = name.startswith(("/", "./", "../", "~")) or name.lower().endswith(SUFFIXES)
    return marked or Path(name).exists()


def _is_data(name: str) -> bool:
    """Whether data are a file or folder here: those of the hub are called organisation/name."""
    return _is_path(name) or name.count("/") != 1


def template(file: Path) -> None:
    """Raise UserError for a text that is no Jinja template, or is empty."""
    from jinja2 import TemplateSyntaxError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"])
    text(file)
    source = _read(file)
    try:
        environment.parse(_without_markers(source))
    except TemplateSyntaxError as error:
        raise UserError(
            f"{file} is no Jinja template (line {error.lineno}: {error.message})."
        ) from error


def _without_markers(source: str) -> str:
    """A training template without the markers of what the assistant wrote, which are no Jinja."""
    return re.sub(r"\{%-?\s*(end)?generation\s*-?%\}", "", source)


def text(file: Path) -> None:
    """Raise UserError for a file that is no UTF-8 text, or is empty."""
    if not _read(file).strip():
        raise UserError(f"{file} is empty.")


def _read(file: Path) -> str:
    if file.is_dir():
        raise UserError(f"{file} is a folder; name a file in it.")
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is no UTF-8 text (byte {error.start}).") from error


def _json_object(file: Path) -> None:
    if file.is_dir():
        raise UserError(f"{file} is a folder; name a JSON file.")
    if not isinstance(read_json(file, "correct it"), dict):
        raise UserError(f"{file} holds no JSON object; DeepSpeed's configuration is one.")
    try:
        json.loads(_read(file), object_pairs_hook=each_once)
    except RepeatedKeyError as error:
        raise UserError(f"{file}: {error}; keep one of its values.") from error


def data(file: Path) -> None:
    """Raise UserError for data whose header or first record cannot be read; of a folder, the first
    of its files."""
    if file.is_dir():
        inside = sorted(p for p in file.rglob("*") if p.is_file() and p.suffix in SUFFIXES)
        if not inside:
            raise UserError(f"the folder {file} holds no file of data ({', '.join(SUFFIXES[:5])}).")
        file = inside[0]
    if file.stat().st_size == 0:
        raise UserError(f"{file} is empty.")
    kinds = {".parquet": _parquet, ".jsonl": _first_line, ".ndjson": _first_line, ".json": _json}
    kinds |= {".csv": _header, ".tsv": _header, ".arrow": _arrow}
    kind = file.with_suffix("") if file.suffix in MAGIC else file
    if file.suffix in MAGIC:
        _packed(file)
        if kind.suffix == ".json":
            return
    if kind.suffix in kinds:
        kinds[kind.suffix](file)


MAGIC = {".gz": (b"\x1f\x8b", "gzip"), ".zst": (b"\x28\xb5\x2f\xfd", "Zstandard")}
"""How packed files begin, and what they are called."""


def _packed(file: Path) -> None:
    """Raise UserError for a file that is not packed as its name says, or holds nothing."""
    magic, name = MAGIC[file.suffix]
    with file.open("rb") as handle:
        if not _begins(handle.read(len(magic)), magic, file.suffix):
            raise UserError(f"{file} is no {name} file, whatever its name says.")
    if not _inside(file, lambda handle: handle.read(1)):
        raise UserError(f"{file} is empty.")


def _begins(there: bytes, magic: bytes, suffix: str) -> bool:
    """Whether a packed file begins as it should; a Zstandard one may with a frame to skip."""
    skipped = suffix == ".zst" and there[1:] == b"\x2a\x4d\x18" and there[0] >> 4 == 5
    return there == magic or skipped


def _inside(file: Path, read: Callable[[IO[bytes]], bytes]) -> bytes:
    """What `read` reads of a file, unpacked where its name says that it is packed. Raises UserError
    where it is damaged, or cut off that early."""
    from synth.published.json_rows import opened

    try:
        with opened(file) as handle:
            return read(handle)
    except FAILURES as error:
        raise UserError(f"{file} cannot be unpacked ({first_line(error)}).") from error
    except Exception as error:
        if type(error).__name__ != "ZstdError":
            raise
        raise UserError(f"{file} cannot be unpacked ({first_line(error)}).") from error


FAILURES = (EOFError, zlib.error, gzip.BadGzipFile)
"""What is raised of a damaged gzip file, and of one that is cut off."""


def _arrow(file: Path) -> None:
    """Raise UserError: no reader of data takes one."""
    raise UserError(f"{file} is an Arrow file, which is not read here; save it as Parquet.")


def _parquet(file: Path) -> None:
    import polars as pl

    try:
        pl.scan_parquet(file, glob=False).collect_schema()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UserError(f"{file} is no Parquet file ({first_line(error)}).") from error


WHOLE = 20_000_000
"""Bytes of a JSON file up to which all of it is parsed here."""


def _json(file: Path) -> None:
    """Raise UserError for a file that is no JSON; of a large one only its beginning is looked
    at."""
    if file.stat().st_size <= WHOLE:
        read_json(file, "correct it")
        return
    with file.open("rb") as handle:
        beginning = handle.read(1000).lstrip(b"\xef\xbb\xbf \t\r\n")
    if beginning[:1] not in (b"[", b"{"):
        raise UserError(f"{file} is no JSON: it begins with neither [ nor {{.")


def _header(file: Path) -> None:
    """Raise UserError for a table without the names of its columns, and for one that is no text."""
    try:
        header = _inside(file, lambda handle: handle.readline()).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is no UTF-8 text (byte {error.start}).") from error
    if not header.strip() or "\0" in header:
        raise UserError(f"{file}: its first line names no columns.")


def _first_line(file: Path) -> None:
    """Raise UserError where the first line that is not blank is no JSON."""
    try:
        line = _inside(file, _first_said).decode("utf-8-sig")
        if not line.strip():
            raise UserError(f"{file} holds no record.")
        json.loads(line)
    except RecursionError as error:
        raise UserError(f"{file}: its first record is not valid JSON ({DEEP}).") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is no UTF-8 text ({first_line(error)}).") from error
    except ValueError as error:
        raise UserError(f"{file}: its first record is not valid JSON ({error}).") from error


def _first_said(handle: IO[bytes]) -> bytes:
    """The first line that holds more than blanks and the mark of UTF-8."""
    return next((line for line in handle if line.strip(b"\xef\xbb\xbf \t\r\n")), b"")
