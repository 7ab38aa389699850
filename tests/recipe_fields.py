"""Every field of a recipe as pages: docs/fields/*.md, written from the recipe's JSON schema.

python -m tests.recipe_fields       # after a field or its docstring changed

tests/test_docs.py compares the pages with the schema, so they cannot go stale.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from recipes.schema import json_schema

FOLDER = Path(__file__).parents[1] / "docs" / "fields"
Block = dict[str, Any]

PAGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "recipe": (
        "The recipe, its arms and its machines",
        ("Recipe", "ArmConfig", "PartConfig", "Budget", "Expected", "ExpectedRows", "LaunchConfig"),
    ),
    "synth": (
        "Rows and models",
        (
            "SynthConfig",
            "ModelConfig",
            "Prices",
            "ImportConfig",
            "GridCell",
            "SystemPromptConfig",
            "FirstTokenConfig",
            "ResponsesConfig",
            "PreferencesConfig",
        ),
    ),
    "tags": (
        "Tags",
        (
            "TagsConfig",
            "TagConfig",
            "OwnConfig",
            "SafetyConfig",
            "BaseConfig",
            "NeighborsConfig",
            "MinhashConfig",
            "DecontaminateConfig",
            "FitConfig",
        ),
    ),
    "train": ("Training", ("TrainConfig", "DpoConfig")),
    "eval": (
        "Evaluation",
        (
            "EvalConfig",
            "AnswersConfig",
            "HeldoutConfig",
            "ForeignConfig",
            "ChecksConfig",
            "TasksConfig",
        ),
    ),
    "judged": (
        "Judged benchmarks and judges",
        ("AlpacaConfig", "ArenaConfig", "WildBenchConfig", "MTBenchConfig", "JudgeConfig"),
    ),
}
"""File -> title and the blocks on it."""
TAKEN_OVER = (
    ("ArmConfig", "PartConfig"),
    ("ModelConfig", "SafetyConfig"),
    ("ModelConfig", "BaseConfig"),
    ("TrainConfig", "DpoConfig"),
    ("AlpacaConfig", "ArenaConfig"),
    ("WildBenchConfig", "MTBenchConfig"),
)
"""A block, and one that has fields of the same meaning: there they are named, not told again."""
WORDS = {
    "string": "text",
    "integer": "whole number",
    "number": "number",
    "boolean": "true or false",
    "object": "mapping",
}
BOUNDS = (
    ("minimum", "from"),
    ("exclusiveMinimum", "above"),
    ("maximum", "up to"),
    ("exclusiveMaximum", "below"),
)
LONG = 60
"""Characters of a default that a table has room for."""


def blocks(schema: Block) -> dict[str, Block]:
    """Name -> block, the recipe itself among them."""
    return {"Recipe": schema, **schema["$defs"]}


def inside(value: Block) -> list[tuple[str, str]]:
    """Blocks that a field's value may hold: (what is written behind the field, the block)."""
    if "$ref" in value:
        return [("", value["$ref"].rsplit("/", 1)[1])]
    found = [pair for one in value.get("anyOf", []) for pair in inside(one)]
    found += inside(value["items"]) if "items" in value else []
    named = [value.get("additionalProperties"), *value.get("patternProperties", {}).values()]
    for one in named:
        if isinstance(one, dict):
            found += [(f".NAME{behind}", block) for behind, block in inside(one)]
    return found


def places(schema: Block) -> dict[str, list[str]]:
    """Block -> where a recipe writes it (`synth.teacher`), outermost first."""
    known = blocks(schema)
    found: dict[str, list[str]] = {name: [] for name in known}
    waiting = [("", "Recipe")]
    while waiting:
        at, name = waiting.pop(0)
        for field, value in known[name].get("properties", {}).items():
            for behind, block in inside(value):
                place = f"{at}.{field}{behind}".lstrip(".")
                found[block].append(place)
                waiting.append((place, block))
    return found


def kind(value: Block, links: dict[str, str]) -> str:
    """What may be written, in words: `whole number from 1`, `a` or `b`, a link to a block."""
    if "$ref" in value:
        return links[value["$ref"].rsplit("/", 1)[1]]
    if "const" in value:
        return f"`{value['const']}`"
    if "enum" in value:
        return ", ".join(f"`{one}`" for one in value["enum"])
    if "anyOf" in value:
        said = [kind(one, links) for one in value["anyOf"] if one.get("type") != "null"]
        return " or ".join(dict.fromkeys(said))
    if value["type"] == "array":
        return array(value, links)
    bounds = [f"{word} {value[key]}" for key, word in BOUNDS if key in value]
    named = [block for _, block in inside(value)]
    if named:
        return f"mapping of names to {links[named[0]]}"
    return " ".join([WORDS[value["type"]], *bounds])


def array(value: Block, links: dict[str, str]) -> str:
    """What a list holds, in words."""
    if "prefixItems" in value:
        return f"list of {len(value['prefixItems'])}"
    return f"list of {kind(value['items'], links)}" if value.get("items") else "list"


def default(value: Block, needed: bool) -> str:
    """What stands where the recipe says nothing."""
    if needed:
        return "needed"
    given = value.get("default")
    if given is None or given in ({}, [], ""):
        return ""
    said = json.dumps(given) if not isinstance(given, str) else given
    return f"`{said}`" if len(said) <= LONG else ""


def row(field: str, value: Block, needed: bool, links: dict[str, str]) -> str:
    """A line of the table."""
    told = " ".join(value.get("description", "").split())
    cells = (f"`{field}`", kind(value, links), default(value, needed), told)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def same(name: str, known: dict[str, Block]) -> dict[str, list[str]]:
    """Block that is told elsewhere -> fields of `name` that are those of that block."""
    out: dict[str, list[str]] = {}
    own = known[name]["properties"]
    for first, later in TAKEN_OVER:
        if later == name:
            told = known[first]["properties"]
            out[first] = [field for field, value in own.items() if told.get(field) == value]
    return out


def section(name: str, schema: Block, links: dict[str, str]) -> str:
    """A block: what it is, where a recipe writes it, its fields."""
    known, at = blocks(schema), places(schema)[name]
    block = known[name]
    title = f"`{at[0]}`" if at else "The whole recipe"
    told = [" ".join(block["description"].split())]
    if len(at) > 1:
        others = ", ".join(f"`{place}`" for place in at[1:6])
        told.append(f"Also: {others}{' and more places' if len(at) > 6 else ''}.")
    taken = same(name, known)
    for first, fields in taken.items():
        if fields:
            listed = ", ".join(f"`{field}`" for field in fields)
            told.append(f"As in {links[first]}: {listed}.")
    left = {field for fields in taken.values() for field in fields}
    rows = [
        row(field, value, field in block.get("required", []), links)
        for field, value in block["properties"].items()
        if field not in left
    ]
    table = ["| field | value | default | what it does |", "|---|---|---|---|", *rows]
    return f'<a id="{name.lower()}"></a>\n\n## {title}\n\n' + "\n".join([*told, "", *table]) + "\n"


def pages() -> dict[str, str]:
    """File name -> text."""
    schema = json_schema()
    at = places(schema)
    out = {}
    for page, (title, names) in PAGES.items():
        links = {
            block: f"[{(at[block] or ['recipe'])[0]}]({'' if home == page else home + '.md'}"
            f"#{block.lower()})"
            for home, (_, held) in PAGES.items()
            for block in held
        }
        head = (
            f"# Fields: {title.lower()}\n\nWritten from the recipe's schema by "
            "`python -m tests.recipe_fields`. How a recipe is put together: "
            "[recipes](../recipes.md).\n\n"
        )
        out[f"{page}.md"] = head + "\n".join(section(name, schema, links) for name in names)
    return out


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for file, text in pages().items():
        (FOLDER / file).write_text(text)
