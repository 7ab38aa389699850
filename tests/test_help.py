"""The command line as a whole: its help, its version, completion, and what it imports."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from recipes import cli
from recipes.commands import options

GROUPS = ("Experiment", "Make data", "Compare", "Look", "Cluster")


def shown(*words: str, width: int = 80) -> str:
    result = CliRunner(env={"COLUMNS": str(width), "TERMINAL_WIDTH": str(width)}).invoke(
        cli.app, list(words)
    )
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_help_has_its_groups_in_order() -> None:
    text = shown("--help")
    places = [text.index(f" {group} ") for group in GROUPS]
    assert places == sorted(places)
    assert "--debug" in text and "--version" in text and "--install-completion" in text


def test_each_verb_is_one_line_of_eighty_columns() -> None:
    commands = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
    text = shown("--help")
    for name, command in commands.items():
        first = (command.help or "").split("\n\n")[0]
        assert len(first) <= 62 and "\n" not in first, name
        assert first in text, name


def test_the_help_of_a_verb_breaks_lines_only_where_the_terminal_ends() -> None:
    assert cli._flowing("One\n    two.\n\n    Three\n    four.\n    ") == "One two.\n\nThree four."
    assert "\n What is made already is reused, and the same command continues what was" in (
        shown("run", "--help")
    )


def test_the_version_is_the_packages() -> None:
    from importlib.metadata import version

    assert shown("--version").split() == ["magpie-harness", version("magpie-harness")]


@pytest.mark.parametrize(
    ("words", "light"),
    [
        (["template", "model"], True),
        (["filter", "x", "--tokens", "5"], True),
        (["filter", "x", "--tokens=5"], True),
        (["filter", "x", "--rows", "5"], False),
        (["filter", "x", "--tokens", "5", "--embedding", "m"], False),
        (["filter", "x", "--tokens", "5", "--embedding=m"], False),
        (["filter", "x", "--tokens", "5", "--choose", "rds(q.jsonl)"], False),
        (["filter", "x", "--tokens", "5", "--strategy", "rds"], False),
        (["run", "template"], False),
    ],
)
def test_torch_is_left_out_where_only_a_tokenizer_is_needed(words: list[str], light: bool) -> None:
    assert cli._only_tokenizes(words) is light


def test_the_shell_completes_recipes_by_name_and_by_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "own.yaml").write_text("")
    (tmp_path / "mine" / "notes.txt").write_text("")
    (tmp_path / "demonstration.yaml").write_text("")
    assert options.recipe_names("dem") == ["demo", "demonstration.yaml"]
    assert options.recipe_names("mi") == ["mine/"]
    assert options.recipe_names("mine/") == ["mine/own.yaml"]
    assert options.recipe_names("mine/o") == ["mine/own.yaml"]
    assert options.recipe_names("nowhere/") == []
