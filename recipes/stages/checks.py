"""Sampling parameters of a recipe, checked against what the installed vLLM knows before anything is
spent."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from core.errors import UserError, nearest
from recipes.schema import Recipe

OURS = (
    "model",
    "prompt",
    "n",
    "best_of",
    "stream",
    "stream_options",
    "echo",
    "use_beam_search",
    "structured_outputs",
    "return_token_ids",
)
"""What the harness says in a request itself, or what would make answers that nobody reads."""


def check(recipe: Recipe) -> None:
    """Refuse what vLLM would ignore, with the nearest valid name. Models on other people's servers
    (`urls`) take what they take.

    Raises UserError naming the place in the recipe.
    """
    from core.vllm_server import completion_fields

    known = completion_fields() - set(OURS)
    for at, sampling, server in _samplings(recipe):
        for name in sampling:
            if name in OURS:
                raise UserError(
                    f"{at}.{name} is not for a recipe to say: every request asks for one text, in a form of the harness's own."
                )
            if known and not server.get("urls") and name not in known:
                raise UserError(
                    f"{at}: vLLM knows no sampling parameter '{name}'{nearest(name, known)}"
                )


def _samplings(recipe: Recipe) -> Iterator[tuple[str, Mapping[str, Any], Mapping[str, Any]]]:
    """(place, sampling, the server block of the model that samples so) of everything that synthesis
    samples."""
    synth = recipe.synth
    teacher, responder = synth.teacher.server, (synth.responder or synth.teacher).server
    yield "synth.instruction", synth.instruction, teacher
    yield "synth.response", synth.response, responder
    for number, cell in enumerate(synth.grid if isinstance(synth.grid, tuple) else ()):
        yield f"synth.grid[{number}].sampling", cell.sampling, teacher
    for name in ("quality", "difficulty", "category", "pair_score"):
        tag = getattr(synth.tags, name)
        yield f"synth.tags.{name}.sampling", tag.sampling, (tag.model or synth.teacher).server
    for name, model in (("safety", synth.tags.safety), ("base", synth.tags.base)):
        if model is not None:
            yield f"synth.tags.{name}.sampling", model.sampling, model.server
    if synth.preferences is not None:
        yield "synth.preferences.sampling", synth.preferences.sampling, responder
