"""README.md and the pages in docs/: every command runs as it stands there (those that need GPUs or
the hub: their options are read), every recipe block loads, every link leads somewhere, and the
pages of fields are what the schema says."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import typer
import yaml
from typer.testing import CliRunner

from core.models import resolve
from recipes import schema
from recipes.cli import app
from recipes.stages import graph
from tests import recipe_fields, small_recipe
from tests.scripted_server import ScriptedServer
from tests.test_published import row25

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
IN_ORDER = (
    "launch",
    "data",
    "generation",
    "answers",
    "duplicates",
    "tags",
    "filters",
    "arms",
    "files",
)
"""Pages of which a command reads what one on an earlier page wrote."""
PAGES = {
    "README": (ROOT / "README.md").read_text(),
    **{page: (DOCS / f"{page}.md").read_text() for page in IN_ORDER},
    **{path.stem: path.read_text() for path in sorted(DOCS.glob("*.md"))},
}
BESIDE = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "README.md")
LINKED = [*(ROOT / name for name in BESIDE), *sorted(DOCS.rglob("*.md"))]
TEXT = "\n".join(PAGES.values())
SHELL = re.findall(r"```sh\n(.*?)```", TEXT, re.S)
COMMANDS = [line for block in SHELL for line in block.splitlines() if line.startswith("magpie ")]
BLOCKS = re.findall(r"```yaml\n(.*?)```", TEXT, re.S)
NAMED = {name: block for block in BLOCKS for name in re.findall(r"\A# ([\w-]+\.yaml)\n", block)}
"""Recipes that commands name: blocks whose first line is their file's name."""
TEN_MINUTES = 2_300
"""Words of English that a person reads in ten minutes."""
ELSEWHERE = ("# needs GPUs", "# needs the hub")


OVERRIDE = re.compile(r"[a-z_.]+=.*")


def words(command: str) -> list[str]:
    """What a shell gives `magpie` of a line: a `#` begins a comment where a word begins."""
    return shlex.split(re.split(r"\s#", command)[0])[1:]


def result_files(made: Path) -> None:
    """What `magpie compare` reads on its page: values by item, and an annotation file."""
    for number, name in enumerate(("base", "tuned", "a0", "a1", "b0", "b1")):
        rows = [{"item": i, "value": (i + number) % 3} for i in range(20)]
        (made / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = {"output_1": "x", "generator_1": "reference", "output_2": "yy", "generator_2": "mine"}
    rows = [{"instruction": f"q{i}", "preference": 1 + i % 2, **asked} for i in range(20)]
    (made / "annotations").mkdir()
    (made / "annotations" / "mine.json").write_text(json.dumps(rows))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the files that the page names: a published set, ShareGPT data, a model, a chat
    template, and a recipe that ran."""
    made = tmp_path_factory.mktemp("docs")
    labels = {
        "language": "EN",
        "input_quality": "excellent",
        "difficulty": "medium",
        "min_neighbor_distance": 0.5,
        "instruct_reward": -3.0,
    }
    rows = [row25(i, **labels) for i in range(60)]
    pl.from_dicts(rows, infer_schema_length=None).write_parquet(made / "set.parquet")
    talk = [
        {"from": "human", "value": "What is a lens?"},
        {"from": "gpt", "value": "Curved glass."},
    ]
    (made / "sharegpt.json").write_text(
        json.dumps([{"id": str(i), "conversations": talk} for i in range(5)])
    )
    (made / "dolly.csv").write_text(
        "instruction,context,response\nHow many?,Three lenses.,Three.\nWhy?,,Because.\n"
    )
    (made / "faq.csv").write_text("title,body,lang\nWhat is a lens?,Curved glass.,English\n")
    (made / "pairs.jsonl").write_text(
        json.dumps({"prompt": "Why?", "chosen": "Because.", "rejected": "No."}) + "\n"
    )
    result_files(made)
    llama = small_recipe.model(made / "my-model")
    (made / "own.jinja").write_text(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
        "{% endfor %}<|im_start|>assistant\n"
    )
    with ScriptedServer(small_recipe.answer) as server:
        where = {"model": str(llama), "server": {"urls": [server.url]}}
        arms = {
            "magpie-pro": {
                "where": "input_quality >= 'average'",
                "choose": "longest",
                "budget": {"rows": 10},
            },
            "random": {"choose": "hash_order", "budget": {"rows": 10}},
        }
        more = {
            "synth__preferences": {"k": 2, "reward": where},
            "launch": {"slurm": {"partition": "gpu", "time": "1:00:00"}},
        }
        path = small_recipe.recipe(made, llama, server.url, arms=arms, **more)
        graph.run(schema.load(path), "select")
        theirs = {"share": 0.3, "data": "set.parquet", "licence": "mit"}
        mixed = {"mix": {"magpie-pro": 0.7, "theirs": theirs}, "budget": {"rows": 10}}
        mixture = {"extends": "recipe.yaml", "arms": {"mixed": mixed}}
        (made / "mixture.yaml").write_text(yaml.safe_dump(mixture))
        for name, block in NAMED.items():
            (made / name).write_text(block)
        yield made


@pytest.mark.parametrize("page", [path for path in LINKED if path.parent != ROOT])
def test_a_page_is_read_in_ten_minutes(page: Path) -> None:
    assert len(page.read_text().split()) < TEN_MINUTES


def test_the_pages_have_commands_and_recipes() -> None:
    assert len(COMMANDS) > 40 and len(BLOCKS) > 25 and len(NAMED) == 3


def test_every_command_in_a_block_is_one_that_is_tried() -> None:
    """Blocks of another kind than `sh` hold none, and none is hidden behind a prompt."""
    inside = re.findall(r"^```\w*\n.*?^```", TEXT, re.S | re.M)
    said = [line for block in inside for line in block.splitlines() if "magpie " in line]
    shown = [line for line in said if re.match(r"\W*magpie [a-z]", line)]
    assert [line for line in shown if line not in COMMANDS and not line.startswith("#")] == []


def test_a_verb_that_a_page_names_exists_and_every_verb_has_a_line() -> None:
    verbs = set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    named = {verb for path in LINKED for verb in re.findall(r"`magpie ([a-z]+)", path.read_text())}
    assert named - verbs == set()
    assert set(re.findall(r"^\| `magpie ([a-z]+)", PAGES["verbs"], re.M)) == verbs


def anchors(text: str) -> set[str]:
    """Where a link into a page may lead: its headings as GitHub names them, and its own anchors."""
    heads = [re.sub(r"[^\w\- ]", "", head.lower()) for head in re.findall(r"^#+ (.*)", text, re.M)]
    return {head.replace(" ", "-") for head in heads} | set(re.findall(r'<a id="(.*?)">', text))


@pytest.mark.parametrize("page", LINKED, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_link_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)", page.read_text())
    for path, anchor in links:
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), path
        assert not anchor or anchor in anchors(target.read_text()), f"{path}#{anchor}"


def test_the_pages_of_fields_are_what_the_schema_says() -> None:
    """After a field or its docstring changed: `python -m tests.recipe_fields`."""
    written = {path.name: path.read_text() for path in recipe_fields.FOLDER.glob("*.md")}
    assert written == recipe_fields.pages()


def test_every_block_of_a_recipe_has_a_page() -> None:
    told = [block for _, held in recipe_fields.PAGES.values() for block in held]
    assert sorted(told) == sorted(recipe_fields.blocks(schema.json_schema()))


def test_the_commands_of_the_pages_run_in_order(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv(
        "MAGPIE_CACHE", str(Path(resolve("embedded/SmolLM2-135M-Instruct").path).parents[1])
    )
    for command in COMMANDS:
        if not any(mark in command for mark in ELSEWHERE):
            done = CliRunner(env={"COLUMNS": "200"}).invoke(app, words(command))
            assert done.exit_code == 0, f"{command}\n{done.output}\n{done.exception}"


@pytest.mark.parametrize("command", [c for c in COMMANDS if any(mark in c for mark in ELSEWHERE)])
def test_a_command_that_cannot_run_here_has_real_options(command: str) -> None:
    name, *given = words(command)
    verb = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
    if name in ("score", "track"):
        name, *given = given
        verb = verb.commands[name]
    assert verb.make_context(name, list(given)).params
    if given[0] in {path.stem for path in schema.shipped()}:
        schema.load(given[0], [word for word in given[1:] if OVERRIDE.fullmatch(word)])


@pytest.mark.parametrize("block", BLOCKS)
def test_a_recipe_block_loads(block: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    (folder / "prompts").mkdir(exist_ok=True)
    (folder / "prompts" / "law.txt").write_text("You help lawyers.")
    (folder / "gsm8k.jsonl").write_text('{"prompt": "How many apples are left?"}\n')
    around: dict[str, Any] = {
        "name": "block",
        "synth": {
            "teacher": {"model": "embedded/SmolLM2-135M-Instruct"},
            "tags": {"reward": {"model": "my-model"}},
        },
        "arms": {
            "magpie-pro": {"strategy": "magpie-pro"},
            "random": {"choose": "hash_order", "budget": {"rows": 10}},
        },
        "train": {"base": "my-model", "chat_template_path": "chatml"},
    }
    path = folder / "block.yaml"
    said = yaml.safe_load(block)
    whole = "name" in said
    path.write_text(block if whole else yaml.safe_dump(merged(around, said)))
    assert schema.load(path).recipe.name == (said["name"] if whole else "block")


def merged(base: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """`base` with the values of `more` put in, block by block."""
    out = dict(base)
    for key, value in more.items():
        out[key] = (
            merged(out[key], value)
            if isinstance(out.get(key), dict) and isinstance(value, dict)
            else value
        )
    return out


def test_the_readmes_ratios_are_those_of_the_benchmarks_page() -> None:
    rows = [line for line in PAGES["README"].splitlines() if "`bench_" in line and line[0] == "|"]
    on_page = [row for row in rows if "cost_per_kept" not in row and "standard error" not in row]
    assert len(on_page) >= 6
    for row in on_page:
        told = row.rpartition("| `bench_")[0].replace("1.5.3", "").replace("0.6.6", "")
        if "distilabel" in row:  # its ratio is of two benchmarks
            theirs, ours, ratio = map(float, re.findall(r"\d+\.\d+", told)[:3])
            assert ratio == pytest.approx(ours / theirs, abs=0.05)
            told = told.replace(str(ratio), "")
        for figure in re.findall(r"\d+\.\d+(?!e)", told):
            assert re.search(rf"\b{re.escape(figure)}\d*", PAGES["benchmarks"]), (
                f"{figure} of {row}"
            )
