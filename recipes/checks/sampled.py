"""Everything that a recipe samples: where it is written, how, by whose server, and through which
API."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from core.errors import UserError, nearest
from core.serving.vllm_server import completion_fields
from eval.config import EvalConfig
from eval.protocols import PAIRWISE, RATED, AnswersConfig, JudgeConfig
from recipes.blocks.refusals import shown
from synth.config.models import ModelConfig
from synth.config.synthesis import SynthConfig
from synth.config.tags import OwnConfig, TagConfig, TagsConfig

Settings = Mapping[str, Any]

OURS = (
    "model",
    "prompt",
    "messages",
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


@dataclass(frozen=True)
class Sampled:
    """A `sampling` block: its place (dotted), what it says, and the server block of the model."""

    place: str
    sampling: Settings
    server: Settings
    api: str = "completions"


def of_synthesis(synth: SynthConfig) -> Iterator[Sampled]:
    """What synthesis and tags sample."""
    teacher, responder = synth.teacher, synth.responder or synth.teacher
    yield _by("synth.instruction", synth.instruction, teacher)
    yield _by("synth.response", synth.response, responder)
    entries = synth.grid if isinstance(synth.grid, tuple) else ()
    for number, entry in enumerate(entries):
        yield _by(f"synth.grid.{number}.sampling", entry.sampling, teacher)
    tags = synth.tags
    for place, tag in asked_tags(tags):
        yield _by(f"{place}.sampling", tag.sampling, tag.model or synth.teacher)
    if tags.safety is not None:
        yield _by("synth.tags.safety.sampling", tags.safety.sampling, tags.safety)
    if tags.base is not None:
        yield _by("synth.tags.base.sampling", tags.base.sampling, tags.base)
    if synth.responses is not None:
        yield _by("synth.responses.sampling", synth.best_of_sampling, responder)
    if synth.preferences is not None:
        yield _by("synth.preferences.sampling", synth.preferences.sampling, responder)


def of_evaluation(config: EvalConfig) -> Iterator[Sampled]:
    """What checkpoints and judges sample."""
    yield _answers("eval.answers.sampling", config.answers)
    for name in (*PAIRWISE, *RATED, "checks"):
        block = getattr(config, name)
        if block is None:
            continue
        if block.answers is not None:
            yield _answers(f"eval.{name}.answers.sampling", block.answers)
        judges = getattr(block, "judges", None) or (getattr(block, "judge", None) or config.judge,)
        if name == "checks" or getattr(block, "mode", None) == "reward":
            continue
        for judge in filter(None, judges):
            yield _judge(f"eval.{name}.sampling", block.sampling, judge)


def _by(place: str, sampling: Settings, model: ModelConfig) -> Sampled:
    return Sampled(place, sampling, model.server, model.api)


def _answers(place: str, answers: AnswersConfig) -> Sampled:
    return Sampled(place, answers.sampling, answers.server)


def _judge(place: str, sampling: Settings, judge: JudgeConfig) -> Sampled:
    return Sampled(place, sampling, judge.server, judge.asks_by)


def asked_tags(tags: TagsConfig) -> Iterator[tuple[str, TagConfig | OwnConfig]]:
    """(place, settings) of everything that language models are asked to tag."""
    for name in ("quality", "difficulty", "category", "pair_score"):
        yield f"synth.tags.{name}", getattr(tags, name)
    for name, own in tags.own.items():
        if own.prompt is None:
            continue
        yield f"synth.tags.own.{name}", own


def check(synth: SynthConfig, config: EvalConfig | None) -> None:
    """Refuse sampling parameters that vLLM would ignore, with the nearest valid name, and values
    that no server takes. Models on other people's servers (`urls`) take names of their own.

    Raises UserError naming the place in the recipe.
    """
    for each in [*of_synthesis(synth), *(of_evaluation(config) if config else ())]:
        known = {n for n in completion_fields(each.api) if n[0] != "_"} - set(OURS)
        for name, value in each.sampling.items():
            if name in OURS:
                raise UserError(
                    f"{each.place}.{name} is not for a recipe to say: every request asks for one "
                    "text, in a form of the harness's own."
                )
            if known and not each.server.get("urls") and name not in known:
                hint = nearest(name, known)
                hint = hint if "did you mean" in hint else ""
                raise UserError(f"{each.place}: vLLM knows no sampling parameter '{name}'{hint}.")
            _value(f"{each.place}.{name}", name, value)


_BOUNDS: dict[str, tuple[type, float, float, str]] = {
    "temperature": (float, 0.0, 2.0, "a number from 0 to 2"),
    "top_p": (float, 0.0, 1.0, "a number above 0, up to 1"),
    "min_p": (float, 0.0, 1.0, "a number from 0 to 1"),
    "presence_penalty": (float, -2.0, 2.0, "a number from -2 to 2"),
    "frequency_penalty": (float, -2.0, 2.0, "a number from -2 to 2"),
    "max_tokens": (int, 1, 1e9, "a whole number of 1 or more"),
    "max_completion_tokens": (int, 1, 1e9, "a whole number of 1 or more"),
    "min_tokens": (int, 0, 1e9, "a whole number of 0 or more"),
    "top_k": (int, -1, 1e9, "a whole number of 1 or more (0 or -1: all tokens)"),
    "seed": (int, -(2.0**63), 2.0**63, "a whole number"),
}
"""What every server of OpenAI's API says of these names: type, lowest and highest value."""


def _value(at: str, name: str, value: Any) -> None:
    """Raise UserError for a value that no server takes."""
    if value is None or name not in _BOUNDS:
        return
    kind, low, high, needed = _BOUNDS[name]
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    whole = number and (kind is float or float(value).is_integer())
    fine = whole and low <= value <= high and not (name == "top_p" and value == 0)
    if not fine:
        raise UserError(f"{at}: needs {needed} (it is {shown(value)}).")
