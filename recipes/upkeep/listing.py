"""`magpie ls`: the recipes of a store, what each refers to, and what nothing refers to."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.errors import UserError
from recipes.upkeep import contents, removal
from recipes.upkeep.contents import COLUMN, RESULT, UNFINISHED, Contents, Thing
from recipes.upkeep.words import day, plain, size
from recipes.verbs.terminal import say, table

if TYPE_CHECKING:
    from recipes.schema import Loaded


def root_of(where: str) -> Path:
    """The folder of the store that `where` names, as `named` finds it."""
    return named(where)[0]


def named(where: str, overrides: Sequence[str] = ()) -> tuple[Path, Loaded | None]:
    """The folder of a store (`where` itself, or the store of the recipe that it names), and that
    recipe. Raises UserError for what is neither."""
    from recipes import schema

    folder = Path(where).expanduser()
    if folder.is_dir():
        return folder, None
    try:
        loaded = schema.load(where, overrides)
    except UserError as error:
        if Path(where).suffix or folder.exists() or where in {p.stem for p in schema.shipped()}:
            raise
        raise UserError(
            f"{where} is neither the folder of a store nor a recipe: go to where the store lies, "
            "or name it, or one of its recipes."
        ) from error
    return Path(loaded.recipe.store), loaded


def main(root: Path, *, everything: bool, as_json: bool) -> None:
    """Print one line a recipe, what lies beside them, and what `magpie gc` would remove; with
    `everything` also one line a result and column."""
    found = contents.read(root)
    going = removal.unreferred(found, time.time())
    if as_json:
        print(json.dumps(_told(found, going), indent=2))
        return
    columns = ["recipe", "last run", "results", "columns", "size", "its alone"]
    table(columns, [_recipe(found, name) for name in found.recipes])
    if everything:
        rows = [
            (thing.name, thing.kind, day(thing.changed), size(thing.size), _who(thing))
            for thing in sorted(found.things, key=lambda thing: (thing.kind, thing.name))
        ]
        table(["what", "kind", "written", "size", "referred to by"], rows)
    for line in lines(found, going):
        say(line)


def lines(found: Contents, going: list[Thing]) -> Iterator[str]:
    """What is in the store in all, beside recipes, and left behind."""
    total = sum(thing.size for thing in found.things) + sum(found.other.values())
    yield f"{found.root}: {size(total)} in all"
    beside = sorted(found.other.items(), key=lambda one: -one[1])
    shown = [f"{name} {size(held)}" for name, held in beside if held]
    if shown:
        yield f"of it {', '.join(shown)}"
    if going:
        left = size(sum(thing.size for thing in going))
        kinds = ", ".join(_counted(going))
        yield f"nothing refers to {kinds} ({left}): `magpie gc {found.root}` shows and removes them"


def _counted(things: Iterable[Thing]) -> Iterator[str]:
    kinds = [thing.kind for thing in things]
    words = {RESULT: "results", COLUMN: "columns", UNFINISHED: "unfinished results"}
    for kind in dict.fromkeys(kinds):
        count = kinds.count(kind)
        yield f"{count} {words.get(kind, f'{kind}s') if count > 1 else kind}"


def _recipe(found: Contents, name: str) -> tuple[object, ...]:
    """The line of a recipe."""
    of = found.of(name)
    alone = [thing for thing in of if thing.recipes == (name,)]
    ran = [path.stat().st_mtime for path in _marks(found.root / "recipes" / name)]
    columns = sum(thing.kind == COLUMN for thing in of)
    return (
        name,
        day(max(ran, default=0)) or "never",
        sum(thing.kind == RESULT for thing in of),
        columns if found.recipes[name].known else "not known",
        size(sum(thing.size for thing in of)),
        size(sum(thing.size for thing in alone)),
    )


def _marks(folder: Path) -> list[Path]:
    """The files that every run of a recipe writes."""
    return [path for path in map(folder.joinpath, ("refers.json", "specs.json")) if path.is_file()]


def _who(thing: Thing) -> str:
    if thing.kind == COLUMN and not thing.recipes and not thing.dropped:
        return "not known"  # `magpie answer`, or a run that noted no columns
    return ", ".join(thing.recipes) or "nothing"


def _told(found: Contents, going: list[Thing]) -> dict[str, Any]:
    """Everything, for scripts."""
    recipes = {}
    for name in found.recipes:
        of = found.of(name)
        page = found.root / "recipes" / name / "report.html"
        recipes[name] = {
            "bytes": sum(thing.size for thing in of),
            "bytes_alone": sum(thing.size for thing in of if thing.recipes == (name,)),
            "report": str(page) if page.is_file() else None,
        }
    return {
        "store": str(found.root),
        "recipes": recipes,
        "things": [plain(thing) for thing in found.things],
        "other_bytes": found.other,
        "unreferred": [str(thing.path) for thing in going],
    }
