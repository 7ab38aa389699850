"""What each malformed input is given to, and what must hold of it then: a sentence, or every row of
it accounted for."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import polars as pl
from hypothesis import strategies as st

from eval.files import reading
from eval.files.judgments import LengthControl
from eval.prompt_sets import prompts as prompt_sets
from eval.prompt_sets import rated_tasks
from eval.scoring import of_files
from recipes import schema
from recipes.exchange import import_data
from recipes.stages.walk import Arms
from synth.config.rows import Reading
from synth.duplicates.decontaminate import read_prompts
from synth.filters import choices, where
from synth.filters.arm import ArmConfig
from synth.filters.choosing.listed import read_listed
from synth.filters.rule import resolve
from synth.measures import SHIPPED
from synth.published import rows, tagged
from synth.published.rows import Counted
from synth.tags.scores.queries import read_queries
from tests.campaigns import malformed, sound
from tests.campaigns.malformed import File

Try = Callable[[Any, Path], str]
"""Gives a drawn input to what reads it, in an empty folder; returns what is wrong with what came of
it, "" for nothing. Raises UserError where the input is refused."""


@dataclass(frozen=True)
class Trial:
    """One kind of input: how it is drawn, and who reads it."""

    draw: st.SearchStrategy[Any]
    read: Try
    argv: Callable[[Any, Path], list[str]] | None = None
    """The same through the command line."""


def written(file: File, folder: Path) -> Path:
    """The file, in the folder."""
    path = folder / file.name
    path.write_bytes(file.data)
    return path


def expected(file: File) -> int | None:
    """How many rows a file holds, by the plainest reading of it; None where that cannot be said."""
    if file.rows is not None:
        return file.rows
    try:
        data = gzip.decompress(file.data) if file.name.endswith(".gz") else file.data
        if ".jsonl" in file.name:
            return sum(
                bool(line.strip()) for line in data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
            )
        if ".json" in file.name:
            held = json.loads(data.decode("utf-8-sig"))
            return len(held) if isinstance(held, list) else None
        if ".parquet" in file.name:
            path = StringIO()
            with redirect_stdout(path):
                return pl.read_parquet(data).height
    except (Exception, pl.exceptions.PanicException):
        return None
    return None


def all_there(file: File, counted: int, what: str = "rows") -> str:
    """A sentence where the rows of a file are not all accounted for."""
    wanted = expected(file)
    if wanted is None or wanted == counted:
        return ""
    return f"{wanted} rows in, {counted} {what}"


# -- recipes ---------------------------------------------------------------------------------------


def _recipe(data: bytes, folder: Path) -> str:
    path = folder / "recipe.yaml"
    path.write_bytes(data)
    return _resolved(schema.load(path).recipe)


def _override(texts: list[str], folder: Path) -> str:
    return _resolved(schema.load(_sound_recipe(folder), texts).recipe)


def _resolved(recipe: schema.Recipe) -> str:
    """What a plan makes of the arms before it looks at any file."""
    Arms.of(recipe)
    return ""


def _sound_recipe(folder: Path) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(sound.own()))
    return path


def _predicate(text: str, folder: Path) -> str:
    where.parse(text, SHIPPED.fields)
    return ""


def _choice(text: str, folder: Path) -> str:
    choices.read(text, "arms.a.choose", SHIPPED.fields)
    return ""


# -- rows ------------------------------------------------------------------------------------------


def _imported(file: File, folder: Path) -> str:
    """Every row comes out, those that failed too; the written file holds all of them, and the texts
    of sound rows are what they were."""
    path, out = written(file, folder), folder / "out.parquet"
    counted = Counted()
    frames = list(counted.watch(rows.read(path, prompts=None)))
    if wrong := all_there(file, counted.rows):
        return wrong
    if counted.rows:
        import_data.write(frames, out, "magpie")
        held = pl.read_parquet(out)
        if held.height != counted.rows:
            return f"{counted.rows} rows read, {held.height} written"
        return _altered(file, held)
    return ""


def _altered(file: File, held: pl.DataFrame) -> str:
    """A sentence where an instruction or a response is another than in the file."""
    if not file.name.endswith(".jsonl") or file.rows is None or not held.height:
        return ""
    given = [json.loads(line) for line in file.data.splitlines() if line.strip()]
    if len(given) != held.height:
        return ""
    for name in ("instruction", "response"):
        for at, (row, text) in enumerate(zip(given, held[name].to_list(), strict=True), 1):
            own = row.get(name)
            usual = isinstance(own, str) and own.strip() and _encodes(own)
            if usual and {"instruction", "response"} <= row.keys() and text not in (own, None):
                return f"row {at}: {name} {own[:40]!r} became {str(text)[:40]!r}"
    return ""


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _filtered(file: File, folder: Path) -> str:
    """Every row is in the frame, chosen or counted as out."""
    rule = resolve(
        "kept",
        ArmConfig(
            where="input_quality >= 'average' AND instruct_reward > -50",
            choose="longest",
            budget={"rows": 2},
            allow_short=True,
        ),
    )
    found = tagged.read(written(file, folder), [rule])
    return all_there(file, len(found.frame))


def _preferences(file: File, folder: Path) -> str:
    path, out = written(file, folder), folder / "out.jsonl"
    with redirect_stdout(StringIO()) as said:
        import_data.preferences(str(path), out, limit=None, how=Reading())
    read = int(said.getvalue().split(" rows read")[0].split()[-1].replace(",", ""))
    return all_there(file, read)


# -- result files ----------------------------------------------------------------------------------


def _compared(file: File, folder: Path) -> str:
    """A second arm stands beside, so that there is something to compare."""
    other = folder / "other"
    other.mkdir()
    asked = reading.Asked(LengthControl(wanted=False))
    reading.read([f"a={written(file, folder)}", f"b={written(file, other)}"], asked)
    return ""


def _alpaca(file: File, folder: Path) -> str:
    found = of_files.score_alpaca([written(file, folder)], folder)
    return all_there(file, sum(row["n_total"] + row["n_unjudged"] for row in found), "judgments")


def _arena(file: File, folder: Path) -> str:
    of_files.score_arena([written(file, folder)])
    return ""


def _wildbench(file: File, folder: Path) -> str:
    found = of_files.score_wildbench([written(file, folder)])
    told = [row["total"] + row.get("unjudged", 0) for row in found]
    return all_there(file, sum(told), "judgments")


def _values(file: File, folder: Path) -> str:
    from eval.files import values

    part = values.of_values(written(file, folder))
    return all_there(file, len(part.items), "values")


def _samples(file: File, folder: Path) -> str:
    from eval.files import lm_eval_samples

    lm_eval_samples.read([written(file, folder)], folder)
    return ""


# -- evaluation ------------------------------------------------------------------------------------


def _prompts(file: File, folder: Path) -> str:
    found = prompt_sets.prompts(str(written(file, folder)))
    prompt_sets.write_prompts(found, folder / "written.jsonl")
    return all_there(file, len(found), "prompts")


def _answers(file: File, folder: Path) -> str:
    known = prompt_sets.prompts(str(sound.files(folder)["prompts"]))
    counts = prompt_sets.baseline(str(written(file, folder)), known, folder / "out")
    return "" if counts["rows"] == len(known) else "a prompt lacks its row"


def _wild_tasks(file: File, folder: Path) -> str:
    found = rated_tasks.tasks("wildbench", str(written(file, folder)))
    prompt_sets.write_prompts(found, folder / "written.jsonl")
    _ = [task.shown() for task in found]
    return all_there(file, len(found), "tasks")


def _mtbench(file: File, folder: Path) -> str:
    found = rated_tasks.tasks("mtbench", str(written(file, folder)))
    prompt_sets.write_prompts(found, folder / "written.jsonl")
    return all_there(file, len(found), "tasks")


def _listed(file: File, folder: Path) -> str:
    read_listed(written(file, folder))
    return ""


def _queries(file: File, folder: Path) -> str:
    return all_there(file, len(read_queries(written(file, folder))), "queries")


def _overlap(file: File, folder: Path) -> str:
    return all_there(file, len(read_prompts(written(file, folder))), "prompts")


def _cli(*words: str) -> Callable[[Any, Path], list[str]]:
    """A command over a drawn file, which stands for FILE among the words."""

    def argv(file: File, folder: Path) -> list[str]:
        path = str(written(file, folder))
        return [word.replace("FILE", path) for word in words]

    return argv


def _plan_recipe(data: bytes, folder: Path) -> list[str]:
    (folder / "recipe.yaml").write_bytes(data)
    return ["plan", "recipe.yaml"]


def _plan_override(texts: list[str], folder: Path) -> list[str]:
    _sound_recipe(folder)
    # No text that a process can be given holds a NUL or a lone surrogate.
    fit = [text.replace("\x00", "").encode("utf-8", "replace").decode() for text in texts]
    return ["plan", "recipe.yaml", *(text for text in fit if not text.startswith("-"))]


_RECORDS = malformed.record_files
TRIALS: dict[str, Trial] = {
    "recipe": Trial(st.deferred(lambda: malformed.recipes(sound.recipes())), _recipe, _plan_recipe),
    "override": Trial(malformed.overrides([sound.own()]), _override, _plan_override),
    "where": Trial(malformed.texts(sound.PREDICATES), _predicate),
    "choose": Trial(malformed.texts(sound.CHOICES), _choice),
    "import": Trial(
        malformed.row_files(sound.layouts()),
        _imported,
        _cli("import", "FILE", "--out", "out.parquet"),
    ),
    "filter": Trial(
        malformed.row_files(sound.tagged()),
        _filtered,
        _cli(
            "filter",
            "FILE",
            "--where",
            "instruct_reward > -50",
            "--choose",
            "longest",
            "--rows",
            "2",
            "--allow-short",
        ),
    ),
    "preferences": Trial(
        malformed.row_files(sound.preferences()),
        _preferences,
        _cli("import", "FILE", "--as", "preferences", "--out", "out.jsonl"),
    ),
    "alpaca_eval annotations": Trial(
        _RECORDS(sound.alpaca(), "annotations"), _alpaca, _cli("score", "alpaca-eval", "FILE")
    ),
    "Arena-Hard judgments": Trial(
        _RECORDS(sound.arena(), "judgments"), _arena, _cli("score", "arena-hard", "FILE")
    ),
    "WildBench judgments": Trial(
        _RECORDS(sound.wildbench(), "judgments"), _wildbench, _cli("score", "wildbench", "FILE")
    ),
    "values": Trial(
        _RECORDS(sound.values(), "values"), _values, _cli("compare", "a=FILE", "b=FILE")
    ),
    "lm-eval samples": Trial(_RECORDS(sound.samples(), "samples_task"), _samples),
    "compared files": Trial(
        st.one_of(
            _RECORDS(known(), name)
            for known, name in (
                (sound.alpaca, "annotations"),
                (sound.arena, "judgments"),
                (sound.wildbench, "judgments"),
                (sound.values, "values"),
                (sound.samples, "samples_task"),
            )
        ),
        _compared,
        _cli("compare", "a=FILE", "b=FILE"),
    ),
    "prompts": Trial(_RECORDS(sound.prompts(), "prompts"), _prompts),
    "baseline answers": Trial(_RECORDS(sound.answers(), "answers"), _answers),
    "WildBench tasks": Trial(_RECORDS(sound.wild_tasks(), "tasks"), _wild_tasks),
    "MT-Bench questions": Trial(_RECORDS(sound.mtbench(), "question"), _mtbench),
    "listed ids": Trial(malformed.row_files(sound.listed()), _listed),
    "queries": Trial(_RECORDS(sound.queries(), "queries"), _queries),
    "prompts of overlap": Trial(_RECORDS(sound.prompts()[:1], "prompts"), _overlap),
}
