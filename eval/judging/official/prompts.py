"""The judge prompts of AlpacaEval and Arena-Hard as their projects wrote them, from the user's own
copy of a project: nothing of them is shipped here.

Looked for in the folders of MAGPIE_OFFICIAL (clones, or single files; several with the path
separator of the system), then in an installed alpaca_eval. Files are read as text: a prompt that is
a constant of a Python file is taken from its syntax tree, nothing runs.
"""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from core.errors import UserError

VARIABLE = "MAGPIE_OFFICIAL"
"""Names the folders that hold the user's copies."""


@dataclass(frozen=True)
class Official:
    """Where a prompt is in its project, and how its text comes out of that file."""

    project: str
    files: tuple[str, ...]  # last parts of a path in the project
    text: Callable[[Path], str | None]  # None: this file does not hold it


def _whole(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _judge_config(path: Path) -> str | None:
    """Arena-Hard v0.1's judge_config.yaml: system_prompt and prompt_template."""
    import yaml

    found = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict) or not isinstance(found.get("system_prompt"), str):
        return None
    shown = found.get("prompt_template")
    template = shown[0] if isinstance(shown, list) and shown else shown
    return _chat(found["system_prompt"], str(template)) if template else None


def _judge_settings(category: str) -> Callable[[Path], str | None]:
    """Arena-Hard v2.0's judge_utils.py: the system prompt of a category in JUDGE_SETTINGS; the
    template stands in config/arena-hard-v2.0.yaml beside it."""

    def text(path: Path) -> str | None:
        import yaml

        beside = path.parents[1] / "config" / "arena-hard-v2.0.yaml"
        system = _constants(path).get("JUDGE_SETTINGS", {}).get(category, {}).get("system_prompt")
        if not isinstance(system, str) or not beside.is_file():
            return None
        config = yaml.safe_load(beside.read_text(encoding="utf-8"))
        return _chat(system, str(config["prompt_template"]))

    return text


def _constants(path: Path) -> dict[str, Any]:
    """The constants of a Python file: texts, and mappings of them, without running it."""
    known: dict[str, Any] = {}

    def value(node: ast.expr) -> Any:
        match node:
            case ast.Constant(value=constant):
                return constant
            case ast.Name(id=name):
                return known.get(name)
            case ast.Dict(keys=keys, values=values):
                pairs = zip(keys, values, strict=True)
                return {value(key): value(own) for key, own in pairs if key is not None}
            case _:
                return None

    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=assigned):
                known[name] = value(assigned)
    return known


SLOTS = {
    "instruction": ("question_1", "QUESTION"),
    "output_1": ("answer_1", "ANSWER_A"),
    "output_2": ("answer_2", "ANSWER_B"),
}
"""Our names of what a prompt shows, and Arena-Hard's."""


def _chat(system: str, template: str) -> str:
    """Arena-Hard's two texts as one of ours."""
    for slot, names in SLOTS.items():
        template = re.sub(rf"\{{({'|'.join(names)})\}}", f"{{{slot}}}", template)
    return f"<|im_start|>system\n{system}\n<|im_end|>\n<|im_start|>user\n{template}\n<|im_end|>\n"


_V2 = ("utils/judge_utils.py",)
OFFICIAL: Mapping[str, Official] = {
    "alpaca_eval": Official(
        "alpaca_eval",
        ("alpaca_eval_clf.txt", "judge_prompt_alpaca_eval_clf.txt"),
        _whole,
    ),
    "arena-hard-v0.1": Official("arena-hard-auto", ("config/judge_config.yaml",), _judge_config),
    "arena-hard-v2.0": Official("arena-hard-auto", _V2, _judge_settings("hard_prompt")),
    "arena-hard-v2.0-creative": Official(
        "arena-hard-auto", _V2, _judge_settings("creative_writing")
    ),
}
"""The prompts by name: AlpacaEval 2's weighted_alpaca_eval_gpt4_turbo, and Arena-Hard's."""


def read(name: str) -> tuple[Path, str]:
    """The file and the text of an official prompt. Raises UserError where there is no copy."""
    wanted = OFFICIAL[name]
    for path in _candidates(wanted):
        try:
            text = wanted.text(path)
        except (OSError, ValueError, KeyError, SyntaxError) as error:
            raise UserError(f"{path} cannot be read as the prompt of {name}: {error}.") from error
        if text is not None:
            return path, text
    raise UserError(
        f"judge prompt '{name}' is not shipped: set {VARIABLE} to your copy of {wanted.project} "
        f"(its {wanted.files[0]} is read), or give the path of a template."
    )


def _candidates(wanted: Official) -> Iterator[Path]:
    """Files that may hold a prompt, those of the user's folders first."""
    named = os.environ.get(VARIABLE, "").split(os.pathsep)
    folders = [Path(folder) for folder in named if folder]
    package = find_spec(wanted.project) if wanted.project == "alpaca_eval" else None
    if package is not None and package.origin:
        folders.append(Path(package.origin).parent)
    for folder in folders:
        for file in wanted.files:
            if folder.is_file() and folder.as_posix().endswith(file):
                yield folder
            yield from sorted(folder.rglob(file))
