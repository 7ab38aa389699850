"""An arm of a recipe: a filter over the pool, someone else's data, another recipe's selection, a
mixture of these, another arm's rows with answers moved, a finished model, or another arm's
checkpoint that goes on. Imports pydantic only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Literal

from pydantic import BaseModel, Field, model_validator

from core.errors import UserError, nearest
from synth.config.models import STRICT
from synth.config.rows import MOST_ROWS, Reading

Kind = Literal["pool", "data", "recipe", "mix", "shuffled", "model", "dpo"]
_FILTER = ("strategy", "params", "where", "choose")


class Budget(BaseModel):
    """How much an arm selects, in absolute terms, so that no arm depends on another."""

    model_config = STRICT
    rows: int | None = Field(default=None, ge=1, le=MOST_ROWS)
    """Rows."""
    tokens: int | None = Field(default=None, ge=1, le=10_000 * MOST_ROWS)
    """Non-pad tokens after the student's chat template."""

    @model_validator(mode="after")
    def _one(self) -> Budget:
        if (self.rows is None) == (self.tokens is None):
            raise ValueError("a budget is either {rows: N} or {tokens: N}")
        return self


class Choosing(Reading):
    """Rows, and which of them: what an arm and a part of a mixture have in common. How `data` is
    read (map, join, split, config, revision, as) stands beside it."""

    strategy: str | None = None
    """A named strategy (`magpie filters` lists them); `where`, `choose` and `budget` given beside
    it replace its own."""
    params: dict[str, float | str] = Field(default_factory=dict)
    """Thresholds of the named strategy."""
    where: str | None = None
    """SQL predicate over columns, decided row by row; absent: every row may be chosen."""
    choose: str | None = None
    """longest, top(COLUMN), hash_order, difficulty_mix, balanced(COLUMN), diverse, deita, qdit, mig
    ... or all (`magpie filters` lists them and says what each costs)."""
    allow_cut: bool | None = None
    """Whether an answer that was cut off (finish_reason length) may be chosen. Default: as the
    strategy says (those of the paper: yes); else not where `choose` ranks by response length."""
    data: str | None = None
    """Someone else's data in place of the pool: hub id, file or folder in any layout that `magpie
    import` reads. Columns that it lacks are measured as `synth.tags` says."""
    answers: Literal["keep", "missing", "all"] = "keep"
    """What becomes of the answers of `data`: `keep` them, let the responder answer the rows where
    they are `missing`, or `all` anew ("new answers for old prompts", the paper's Table 14)."""
    recipe: str | None = None
    """Another recipe, by its file: the rows that its `arm` chose, in that order (it has run)."""
    arm: str | None = None
    """Which arm of `recipe`."""
    licence: str | None = None
    """The licence of these rows, as the hub names it (apache-2.0, cc-by-4.0), for reports and
    cards; default: what each row says, else what the data's own card says."""

    @property
    def filtered(self) -> bool:
        """Whether anything says which rows come first, or which may not."""
        return any(getattr(self, name) for name in _FILTER)

    @model_validator(mode="after")
    def _one_source(self) -> Choosing:
        if self.data and self.recipe:
            raise ValueError("give `data` or `recipe`, not both")
        if (self.recipe is None) != (self.arm is None):
            raise ValueError(
                "another recipe's rows are named by two keys: {recipe: FILE, arm: NAME}"
            )
        if self.answers != "keep" and not self.data:
            raise ValueError("`answers` is for rows of other people's `data`")
        if self.recipe and (self.filtered or self.spec()):
            raise ValueError(
                "another recipe's rows are taken as it chose them; filter them there, or export "
                "them and name the folder as `data`"
            )
        return self


class PartConfig(Choosing):
    """A part of a mixture that is no arm of its own: other data, or another recipe's rows."""

    share: float = Field(gt=0, lt=1)
    """Its share of the mixture's budget."""

    @model_validator(mode="after")
    def _somewhere(self) -> PartConfig:
        if not (self.data or self.recipe):
            raise ValueError(
                "a part that states more than its share needs `data` or `recipe`; an arm of this "
                "recipe is mixed by its name alone (`NAME: 0.7`)"
            )
        return self


class ArmConfig(Choosing):
    """One arm: a filter over the pool or over someone else's data, another recipe's selection, a
    mixture, another arm's rows with answers moved, a finished model, or another arm's checkpoint
    that goes on with preference pairs."""

    budget: Budget | None = None
    """How much to choose; required of the pool's rows (unless `choose: all`) and of a mixture."""
    allow_short: bool = False
    """Train on fewer rows when the budget cannot be filled, instead of stopping."""
    mix: dict[str, float | PartConfig] | None = None
    """A mixture: NAME -> its share of the budget, of an arm of this recipe; or NAME -> {share: ...,
    data: ...} with what a `data` arm takes. The shares sum to 1, and no row comes twice."""
    of: str | None = None
    """The arm whose rows a `shuffled` arm has."""
    shuffled: float | None = Field(default=None, gt=0, le=1)
    """A positive control: the rows of the arm `of`, with this share of their answers moved to other
    instructions. It must lose to that arm, or the experiment can see nothing so small."""
    model: str | None = None
    """A finished model in place of training (`untuned` in the demo is the base model itself)."""
    dpo: str | None = None
    """Another arm, whose checkpoint of each seed goes on with preference pairs as the recipe's
    `dpo:` block says. The pairs are `data` (a preference set of any layout), or those that
    `synth.preferences` makes of that arm's rows."""

    @property
    def kind(self) -> Kind:
        """Where its rows come from; `model` and `dpo`: it has none of its own."""
        named: tuple[Kind, ...] = ("model", "dpo", "mix", "shuffled", "recipe", "data")
        return next((kind for kind in named if getattr(self, kind)), "pool")

    @property
    def parts(self) -> dict[str, Fraction]:
        """The parts of a mixture with their shares, exactly as written."""
        shares = (self.mix or {}).items()
        return {
            name: Fraction(str(part.share if isinstance(part, PartConfig) else part))
            for name, part in shares
        }

    @model_validator(mode="after")
    def _goes_together(self) -> ArmConfig:
        """Refuse settings that do not go together."""
        of_rows = self.filtered or self.budget or self.data or self.recipe or self.mix
        reading = {**self.spec(), "revision": None} if self.model or self.mix else self.spec()
        read = any(value is not None for value in reading.values())
        if self.model and (of_rows or read or self.licence):
            raise ValueError(
                "an arm that is a finished model takes nothing but `model` and `revision`"
            )
        if self.mix and (self.filtered or self.data or self.recipe or read or self.licence):
            raise ValueError(
                "a mixture takes `budget` and `allow_short`; filters, data and licences stand with "
                "its parts"
            )
        if self.kind in ("pool", "dpo") and not self.data and read:
            first = next(iter(reading))
            raise ValueError(f"`{first}` says how `data` is read, and this arm has no `data`")
        return self

    @model_validator(mode="after")
    def _pairs(self) -> ArmConfig:
        """An arm that goes on from another takes pairs, and no rows."""
        others = self.model or self.mix or self.recipe or self.budget or self.filtered
        if self.dpo and (others or self.answers != "keep" or self.as_ is not None):
            raise ValueError(
                "an arm that goes on by `dpo` takes nothing but `data` (its pairs), how they are "
                "read, and `licence`"
            )
        return self

    @model_validator(mode="after")
    def _shuffled(self) -> ArmConfig:
        """A shuffled arm names the arm whose rows it has, and nothing else."""
        if (self.of is None) != (self.shuffled is None):
            raise ValueError("a shuffled arm is named by two keys: {of: ARM, shuffled: SHARE}")
        others = self.model or self.mix or self.dpo or self.data or self.recipe or self.spec()
        if self.of and (others or self.budget or self.filtered or self.licence):
            raise ValueError(
                "a shuffled arm takes `of` and `shuffled` alone; which rows it has, the arm `of` "
                "says"
            )
        return self

    @model_validator(mode="after")
    def _mixture(self) -> ArmConfig:
        """A mixture has parts, shares that sum to 1, and a budget."""
        if self.mix is None:
            return self
        if len(self.mix) < 2:
            raise ValueError("a mixture has two parts or more")
        if any(share <= 0 for share in self.parts.values()):
            raise ValueError("every share of a mixture is above 0")
        total = sum(self.parts.values(), Fraction(0))
        if abs(total - 1) > Fraction(1, 10**6):
            raise ValueError(f"the shares of a mixture sum to 1, and these to {float(total):g}")
        if self.budget is None:
            raise ValueError("a mixture needs a budget: {rows: N} or {tokens: N}")
        return self


NOT_MIXED: dict[Kind, str] = {
    "model": "a finished model, so it has no rows to mix",
    "dpo": "a DPO of another arm, so it has no rows to mix",
    "shuffled": "a control with wrong answers; mix the arm that it is made of",
}
"""Arms that no mixture takes from, and why."""


def check_mixtures(arms: Mapping[str, ArmConfig]) -> None:
    """Raises UserError for a mixture that names no arm, a finished model or itself."""
    for name, arm in arms.items():
        for part in _mixed_arms(arm):
            at = f"arms.{name}.mix.{part}"
            if part not in arms:
                others = [other for other in arms if other != name]
                raise UserError(
                    f"{at}: no arm is called '{part}'{nearest(part, others)}; other data is "
                    f"mixed as {{share: {float(arm.parts[part]):g}, data: ...}}."
                )
            if arms[part].kind in NOT_MIXED:
                raise UserError(f"{at}: this arm is {NOT_MIXED[arms[part].kind]}.")
        circle = _circle(arms, (name,))
        if circle:
            raise UserError(f"arms.{name}.mix: {' -> '.join(circle)} is a circle.")
        for part, config in (arm.mix or {}).items():
            if isinstance(config, PartConfig) and part in arms:
                raise UserError(
                    f"arms.{name}.mix.{part}: an arm is called so as well; give this part "
                    "another name."
                )


def check_shuffled(arms: Mapping[str, ArmConfig]) -> None:
    """Raises UserError for a shuffled arm of one that there is not, or that has no rows of its
    own."""
    for name, arm in arms.items():
        if arm.of is None:
            continue
        others = [other for other in arms if other != name]
        if arm.of not in others:
            raise UserError(
                f"arms.{name}.of: no other arm is called '{arm.of}'{nearest(arm.of, others)}."
            )
        kind = arms[arm.of].kind
        if kind in ("model", "dpo", "shuffled"):
            raise UserError(
                f"arms.{name}.of: '{arm.of}' chooses no rows itself; name an arm that does."
            )


def check_alignments(arms: Mapping[str, ArmConfig], given: Mapping[str, object]) -> None:
    """Raises UserError for an arm that goes on from what there is not. `given`: the recipe's blocks
    `train`, `dpo` and `preferences`, each None where it is absent."""
    going_on = [name for name, arm in arms.items() if arm.dpo is not None]
    if going_on and given["dpo"] is None:
        raise UserError(
            f"arms.{going_on[0]}.dpo: the recipe has no block `dpo`, which says how arms go on."
        )
    if given["dpo"] is not None and not going_on:
        raise UserError("dpo: no arm goes on; name what does by an arm {dpo: ARM}.")
    for name, arm in arms.items():
        if arm.dpo is None:
            continue
        at = f"arms.{name}.dpo"
        others = [other for other in arms if other != name]
        if arm.dpo not in others:
            raise UserError(f"{at}: no other arm is called '{arm.dpo}'{nearest(arm.dpo, others)}.")
        before = arms[arm.dpo]
        if before.kind == "dpo":
            raise UserError(
                f"{at}: '{arm.dpo}' went on by `dpo` itself; name the arm that it began from, or "
                "its exported checkpoint as the `model` of an arm."
            )
        if before.kind != "model" and given["train"] is None:
            raise UserError(
                f"{at}: '{arm.dpo}' is not trained here; add `train`, or name an arm that is a "
                "finished `model`."
            )
        makes = given["preferences"] is not None and before.kind != "model"
        if arm.data is None and not makes:
            raise UserError(
                f"{at}: there are no pairs for it; give `data`, a preference set, or let "
                "`synth.preferences` make some of an arm's rows."
            )


def mixing_order(arms: Mapping[str, ArmConfig]) -> list[str]:
    """The mixtures, each behind those that it mixes."""
    ordered: list[str] = []

    def add(name: str) -> None:
        for part in _mixed_arms(arms[name]):
            add(part)
        if arms[name].kind == "mix" and name not in ordered:
            ordered.append(name)

    for name in arms:
        add(name)
    return ordered


def _mixed_arms(arm: ArmConfig) -> Iterator[str]:
    """The parts of a mixture that are arms."""
    for part, config in (arm.mix or {}).items():
        if not isinstance(config, PartConfig):
            yield part


def _circle(arms: Mapping[str, ArmConfig], path: tuple[str, ...]) -> tuple[str, ...]:
    """The way from the first of these mixtures back to itself; () where there is none."""
    for part in _mixed_arms(arms[path[-1]]):
        if part == path[0]:
            return (*path, part)
        if part in path or part not in arms:
            continue
        if found := _circle(arms, (*path, part)):
            return found
    return ()
