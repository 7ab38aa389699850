"""Recipes that cannot be meant: each is one sentence before anything is spent, the whole of it in
tests/data/refused.txt (overrides, a tab, the sentence)."""

from __future__ import annotations

import copy
import gzip
from pathlib import Path

import polars as pl
import pytest
import zstandard
from typer.testing import CliRunner

from core.errors import UserError
from recipes import schema
from recipes.checks import files, sampled
from recipes.cli import app
from recipes.stages import graph
from recipes.stages.walk import Arms

BASE = """\
name: small
store: nowhere
synth:
  teacher: {model: embedded/SmolLM2-135M-Instruct}
  rows: 10
  heldout: 0.1
arms:
  good:
    where: "input_quality >= 'good'"
    budget: {rows: 3}
train:
  base: embedded/SmolLM2-135M-Instruct
  trainer: {learning_rate: 2e-5}
eval:
  judge: {model: embedded/SmolLM2-135M-Instruct}
  alpaca: {}
  tasks: {}
"""
ZST = zstandard.ZstdCompressor().compress
LINES = (Path(__file__).parent / "data" / "refused.txt").read_text().splitlines()
INTERNAL = ("Value error", "Input should", "Config", "pydantic", "?.", "command line:1")


def refusal(path: Path, overrides: list[str]) -> str:
    """What is said of a recipe before anything is spent; "" where it may run."""
    try:
        loaded = schema.load(path, overrides)
        try:
            Arms.of(loaded.recipe)
            sampled.check(loaded.recipe.synth, loaded.recipe.eval)
            files.check(loaded.recipe)
        except UserError as error:
            raise loaded.source.sentence(error) from error
    except UserError as error:
        return str(error)
    return ""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(BASE)
    return path


def test_what_cannot_be_meant_is_refused_with_its_sentence(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, lines = schema._read(recipe)
    monkeypatch.setattr(schema, "_read", lambda _: (copy.deepcopy(data), lines))
    wrong = []
    for line in LINES:
        overrides, expected = line.split("\t")
        said = refusal(recipe, overrides.split(" ;; ")).replace(str(recipe), "recipe.yaml")
        if said != expected:
            wrong.append((overrides, said, expected))
    assert wrong == [] and len(LINES) > 400


def test_no_sentence_names_what_only_its_authors_know() -> None:
    sentences = [line.split("\t")[1] for line in LINES]
    assert [s for s in sentences if any(word in s for word in INTERNAL)] == []
    assert [s for s in sentences if len(s) > 420 or s[-1] not in ".?"] == []


def test_the_recipe_without_a_mistake_is_accepted(recipe: Path) -> None:
    assert refusal(recipe, []) == ""
    assert schema.load(recipe).recipe.train.trainer == {"learning_rate": 2e-5}  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "override",
    [
        "synth.teacher.server.args={trust_remote_code: false, hf_overrides: {rope_theta: 1e6}}",
        "synth.teacher.server.env={VLLM_LOGGING_LEVEL: INFO}",
        "synth.tags.fit.server={replicas: 2, args: {max_model_len: 2048}}",
        "eval.tasks.model_args={trust_remote_code: false, dtype: bfloat16}",
        "eval.tasks.evaluate={system_instruction: 'Never set trust_remote_code in a script.'}",
    ],
)
def test_settings_that_let_no_model_run_code_are_accepted(recipe: Path, override: str) -> None:
    assert refusal(recipe, [override]) == ""


def test_the_number_of_the_readme_is_a_number(recipe: Path) -> None:
    loaded = schema.load(recipe, ["train.trainer.learning_rate=1e-5"]).recipe
    assert loaded.train is not None and loaded.train.trainer["learning_rate"] == 1e-5


def test_an_override_reaches_into_a_list_and_into_a_preset(recipe: Path) -> None:
    changes = ["train.seeds=[4, 5]", "train.seeds.1=6", "eval.judge=preset:gpt-4.1"]
    loaded = schema.load(recipe, [*changes, "eval.judge.budget=5"]).recipe
    assert loaded.train is not None and loaded.train.seeds == (4, 6)
    assert loaded.eval is not None and loaded.eval.judge is not None
    assert (loaded.eval.judge.preset, loaded.eval.judge.budget) == ("gpt-4.1", 5)
    with pytest.raises(UserError, match="there stands a list of 2; name its entry by a number"):
        schema.load(recipe, ["train.seeds=[4, 5]", "train.seeds.2=6"])


@pytest.mark.parametrize(
    ("name", "content", "place", "says"),
    [
        ("d.jsonl", b"", "arms.good.data", "is empty"),
        ("d.jsonl", b"\n\n", "arms.good.data", "holds no record"),
        ("d.jsonl", b"{not json", "arms.good.data", "its first record is not valid JSON"),
        ("d.jsonl", b"\xff\xfe{}", "arms.good.data", "is no UTF-8 text"),
        ("d.json", b"[1, 2", "arms.good.data", "is not valid JSON"),
        ("d.csv", b"\n1,2", "arms.good.data", "its first line names no columns"),
        ("d.csv", b"\xff\xfea", "arms.good.data", "is no UTF-8 text"),
        ("d.parquet", b"PAR1 and no more", "arms.good.data", "is no Parquet file"),
        ("d.jsonl.gz", b"{}", "arms.good.data", "is no gzip file"),
        ("d.jsonl.gz", gzip.compress(b"\n{not json\n"), "arms.good.data", "is not valid JSON"),
        (
            "d.jsonl.gz",
            gzip.compress(b'{"a": 1}' * 99)[:20],
            "arms.good.data",
            "cannot be unpacked",
        ),
        ("d.jsonl.zst", b"\x00\x01\x02\x03{}", "arms.good.data", "is no Zstandard file"),
        ("d.jsonl.zst", ZST(b"not json\n"), "arms.good.data", "is not valid JSON"),
        ("d.csv.gz", gzip.compress(b"\n1,2"), "arms.good.data", "first line names no columns"),
        ("d.json.gz", gzip.compress(b""), "arms.good.data", "is empty"),
        ("d.arrow", b"\x07\x08\x09 garbage", "arms.good.data", "save it as Parquet"),
        ("p.jsonl", b"{", "eval.prompts", "its first record is not valid JSON"),
        ("b.parquet", b"x", "eval.alpaca.baseline", "is no Parquet file"),
        ("t.jinja", b"{% for x %}", "train.chat_template_path", "is no Jinja template (line 1"),
        ("t.jinja", b"{{ output_1 }", "eval.alpaca.prompt", "is no Jinja template (line 1"),
        ("ds.json", b"[1]", "train.deepspeed", "holds no JSON object"),
        ("ds.json", b'{"a": 1,', "train.deepspeed", "is not valid JSON"),
        ("own.jinja", b"{% if %}", "synth.tags.quality.prompt", "is no Jinja template"),
        ("r.jsonl", b"[1", "synth.rows.import", "its first record is not valid JSON"),
        ("j.jinja", b"{% end %}", "launch.template", "is no Jinja template"),
    ],
)
def test_a_file_that_a_recipe_names_is_looked_at_first(
    recipe: Path, name: str, content: bytes, place: str, says: str
) -> None:
    file = recipe.parent / name
    file.write_bytes(content)
    value = f"{{import: {file}}}" if place == "synth.rows.import" else str(file)
    said = refusal(recipe, [f"{place.removesuffix('.import')}={value}"])
    assert said.startswith(f"command line: {place}: {file}") and says in said


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("d.jsonl.gz", gzip.compress(b'\xef\xbb\xbf\n{"instruction": "a"}\n')),
        ("d.jsonl.zst", ZST(b'{"instruction": "a"}\n')),
        ("d.json.zst", ZST(b'[{"instruction": "a"}]')),
        ("d.csv.gz", gzip.compress("instruction,réponse\n".encode())),
        ("d.tsv", b"instruction\tresponse\n"),
        ("d.jsonl", b'\xef\xbb\xbf{"instruction": "a"}\r\n'),
    ],
)
def test_packed_files_that_are_fine_are_accepted(recipe: Path, name: str, content: bytes) -> None:
    file = recipe.parent / name
    file.write_bytes(content)
    assert refusal(recipe, [f"arms.good.data={file}"]) == ""


def test_files_that_are_fine_are_accepted(recipe: Path) -> None:
    folder = recipe.parent
    (folder / "d.jsonl").write_text('{"instruction": "a"}\n')
    pl.DataFrame({"instruction": ["a"]}).write_parquet(folder / "d.parquet")
    template = "{% for m in messages %}{% generation %}{{ m }}{% endgeneration %}{% endfor %}"
    (folder / "t.jinja").write_text(template)
    (folder / "ds.json").write_text("{}")
    named = {"arms.good.data": "d.jsonl", "arms.x.data": "d.parquet", "train.deepspeed": "ds.json"}
    named["train.chat_template_path"] = "t.jinja"
    assert refusal(recipe, [f"{key}={folder / value}" for key, value in named.items()]) == ""


@pytest.mark.parametrize("verb", [["plan"], ["run"], ["launch", "--on", "local", "--dry-run"]])
def test_plan_run_and_launch_ask_the_libraries_first(
    recipe: Path, verb: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise UserError("train.trainer: refused by its library.")

    monkeypatch.setattr(graph.libraries, "judge", refuse)
    store = recipe.parent / "store"
    done = CliRunner().invoke(app, [verb[0], str(recipe), f"store={store}", *verb[1:]])
    assert str(done.exception).endswith("train.trainer: refused by its library.")
    assert not (store / "results").exists() and not (store / "columns").exists()
