"""What is written in a recipe and in overrides: numbers as people write them, and what readers of
YAML disagree about refused with its line."""

from __future__ import annotations

from typing import Any

import pytest

from core.errors import UserError
from recipes.blocks.written import read


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("1e-5", 1e-5),
        ("2E4", 2e4),
        ("1.5e3", 1500.0),
        (".5", 0.5),
        ("1.", 1.0),
        ("-3", -3),
        ("+3", 3),
        ("1_000", 1000),
        ("0x1f", 31),
        ("0o17", 15),
        ("0", 0),
        ("0.5", 0.5),
        ("12:30:00", "12:30:00"),
        ("2024-01-01", "2024-01-01"),
        ("1e", "1e"),
        ("1.2.3", "1.2.3"),
        ("'yes'", "yes"),
        ("y", "y"),
        ("'010'", "010"),
        ("true", True),
        ("FALSE", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("{a: &x [1], b: *x}", {"a": [1], "b": [1]}),
    ],
)
def test_a_value_is_what_a_person_means(text: str, meant: Any) -> None:
    found = read(f"key: {text}", "here")[0]["key"]
    assert found == meant and type(found) is type(meant)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("yes", "`yes` is read in two ways; write true or false"),
        ("NO", "`NO` is read in two ways"),
        ("on", "`on` is read in two ways"),
        ("Off", "`Off` is read in two ways"),
        ("010", "`010` is read in two ways; write it without the leading 0"),
        ("-007", "`-007` is read in two ways"),
        (".inf", "`.inf` is not a finite number"),
        ("-.Inf", "`-.Inf` is not a finite number"),
        (".nan", "`.nan` is not a finite number"),
        ("1e999", "`1e999` is not a finite number"),
        ("9223372036854775808", "is too large a number"),
        ("1" * 5000, "is no number that can be read"),
        ("{a: 1, a: 2}", "`key.a` is written twice"),
        ("[{a: 1, a: 2}]", "`key.0.a` is written twice"),
        ("{1: x}", "the key `1` is no text"),
        ("{yes: x}", "`yes` is read in two ways"),
        ("{[1]: x}", "a key is one word"),
        ("!!python/name:os.system x", "is no tag for a recipe"),
        ("!own x", "`!own` is no tag for a recipe"),
        ("&a [*a]", "an alias (*) stands inside what it names"),
        ("*nothing", "not valid YAML (found undefined alias 'nothing')"),
        ('"\\0"', "a character that no file can hold"),
        ('"\\ud800"', "a character that no file can hold"),
        ("\x07", "the character U+0007 cannot stand in YAML"),
        ("[", "not valid YAML"),
        ("a: b: c", "not valid YAML (mapping values are not allowed here)"),
        ("[" * 5000, "values nested 100 deep"),
        ("x" * 500_001, "at most 500,000 characters"),
        ("1\n---\nkey: 2", "expected a single document"),
    ],
    ids=range(29),
)
def test_what_is_read_in_two_ways_or_fits_no_file_is_refused(text: str, says: str) -> None:
    with pytest.raises(UserError) as error:
        read(f"# recipe\nkey: {text}", "file.yaml")
    assert says in str(error.value) and str(error.value).startswith("file.yaml:")
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


def test_blocks_nested_too_deep_are_refused() -> None:
    blocks = "\n".join(" " * depth + f"k{depth}:" for depth in range(150))
    with pytest.raises(UserError, match="nested more than 100 deep"):
        read(blocks, "file.yaml")


def test_aliases_of_aliases_do_not_grow_without_bound() -> None:
    levels = [f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 10)}]" for n in range(1, 10)]
    with pytest.raises(UserError, match="more than 100,000 values"):
        read("\n".join(["l0: &l0 [1]", *levels]), "file.yaml")


def test_each_key_has_its_line_also_below_lists() -> None:
    lines = read("a:\n- b: 1\n- c: 2\nd: 3", "file.yaml")[1]
    assert lines == {("a",): 1, ("a", "0", "b"): 2, ("a", "1", "c"): 3, ("d",): 4}
