"""What `choose` may be: an entry of CHOICES says how it is written, what it takes and at what cost,
and has the function that orders rows by it. A further kind is one more entry."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from core.errors import UserError, nearest
from synth.filters.choosing import kinds
from synth.filters.choosing.arguments import (
    Check,
    Columns,
    check_boundary,
    check_cosine,
    check_file,
    check_gain,
    check_groups,
    check_labels,
    check_ordered,
    check_part,
    check_share,
    check_text,
)
from synth.filters.choosing.candidates import Candidates
from synth.filters.orders import Positions
from synth.measures import SHIPPED


@dataclass(frozen=True)
class Choose:
    """What one arm chooses by: the kind, its arguments (defaults filled in), and the columns that
    it ranks by."""

    kind: str
    arguments: tuple[str, ...]
    ranks: tuple[str, ...]

    @property
    def choice(self) -> Choice:
        """What the kind is."""
        return CHOICES[self.kind]

    def __str__(self) -> str:
        """As a recipe states it."""
        return f"{self.kind}({', '.join(self.arguments)})" if self.arguments else self.kind


@dataclass(frozen=True)
class Choice:
    """One kind of `choose`: how it is written, the order it takes rows in, and which rows it needs
    answered."""

    usage: str
    takes: str
    answers: str
    order: Callable[[Candidates], Iterable[Positions]]
    """Places of the candidates in batches, best first; a budget takes from the front."""
    ranks: tuple[str, ...] = ()
    """Columns that it ranks by; none: those that its arguments name."""
    columns: int | None = None
    """How many of its arguments, from the first, are columns that it ranks by; None: all."""
    checks: tuple[Check, ...] = ()
    """One for each argument it may have."""
    required: int = 0
    """Arguments that cannot be left out."""
    defaults: tuple[str, ...] = ()
    """The last arguments, where they are not given."""
    greedy: bool = False
    """Whether one row decides about the next: it then waits until `where` is decided everywhere,
    and a row whose answer failed stays in the way of others."""
    waits: bool = False
    """Whether it waits until `where` is decided everywhere, for another reason."""
    controls: bool = False
    """Whether its first argument names the arm that it is like."""
    seeded: bool = False
    """Whether a training seed draws another sample."""


def read(text: str, at: str, fields: Columns = SHIPPED.fields) -> Choose:
    """Take apart what an arm states, e.g. "balanced(task_category, instruct_reward)". Raises
    UserError for a kind or an argument that there is not; `at` is its place in the recipe, `fields`
    the columns that there are."""
    written = re.fullmatch(r"(\w+)(?:\(([^()]*)\))?", text.strip())
    kind, inside = written.groups(default="") if written else (text, "")
    if kind not in CHOICES:
        usages = ", ".join(choice.usage for choice in CHOICES.values())
        raise UserError(
            f"{at}: unknown choice '{text}'{nearest(kind, CHOICES)}; there are {usages}."
        )
    choice = CHOICES[kind]
    given = tuple(each.strip() for each in inside.split(",") if each.strip())
    if not choice.required <= len(given) <= len(choice.checks):
        raise UserError(f"{at}: '{text}' should read {choice.usage}.")
    without = len(choice.checks) - len(choice.defaults)
    arguments = (
        given + choice.defaults[max(len(given) - without, 0) :] if choice.defaults else given
    )
    for argument, check in zip(arguments, choice.checks, strict=False):
        check(argument, at, fields)
    return Choose(kind, arguments, choice.ranks or arguments[: choice.columns])


_KEPT = "the chosen rows"
_ALL_LIVE = "every row that no rule on instructions refuses"
CHOICES: dict[str, Choice] = {
    "longest": Choice(
        "longest",
        "the longest responses, in characters",
        _ALL_LIVE,
        kinds.highest,
        ranks=("response_length",),
    ),
    "top": Choice(
        "top(COLUMN)",
        "the highest values of a number or an ordered label",
        f"{_KEPT}; of a column that reads responses, {_ALL_LIVE}",
        kinds.highest,
        checks=(check_ordered,),
        required=1,
    ),
    "hash_order": Choice(
        "hash_order(SAMPLE)",
        "a fixed pseudo-random order; with a SAMPLE (any word) another one, for a second sample",
        f"{_KEPT}, and those that a rule on responses refuses on the way",
        kinds.hash_order,
        columns=0,
        checks=(check_text,),
        seeded=True,
    ),
    "difficulty_mix": Choice(
        "difficulty_mix(LABEL)",
        "half up to LABEL (easy), half above; the longest responses in each half",
        _ALL_LIVE,
        kinds.difficulty_mix,
        ranks=("difficulty", "response_length"),
        checks=(check_boundary,),
        defaults=("easy",),
    ),
    "balanced": Choice(
        "balanced(COLUMN, BY)",
        "equally many of each value of COLUMN, each by falling BY (by hash where absent)",
        f"{_KEPT}; with a BY that reads responses, {_ALL_LIVE}",
        kinds.balanced,
        checks=(check_groups, check_ordered),
        required=1,
    ),
    "diverse": Choice(
        "diverse",
        "the instruction farthest from all taken before it (greedy k-center on embeddings)",
        f"{_KEPT}; where a rule reads responses, {_ALL_LIVE}",
        kinds.diverse,
        greedy=True,
    ),
    "deita": Choice(
        "deita(COSINE)",
        "the highest difficulty x pair score, but none within COSINE (0.9) of one taken before",
        _ALL_LIVE,
        kinds.deita,
        ranks=("difficulty_rank", "difficulty", "pair_score_rank", "pair_score"),
        checks=(check_cosine,),
        defaults=("0.9",),
        greedy=True,
    ),
    "random_balanced": Choice(
        "random_balanced(COLUMN)",
        "equally many of each value of COLUMN, at random within each",
        f"{_KEPT}, and those that a rule on responses refuses on the way",
        kinds.random_balanced,
        checks=(check_groups,),
        required=1,
        seeded=True,
    ),
    "random_length_matched": Choice(
        "random_length_matched(ARM)",
        "at random, as many of each response length (20 bins by quantiles) as ARM chose",
        _ALL_LIVE,
        kinds.random_length_matched,
        ranks=("response_length",),
        checks=(check_text,),
        required=1,
        controls=True,
        seeded=True,
    ),
    "part": Choice(
        "part(COLUMN, PART)",
        "the top, middle (nearest to the median rank) or low part of a number",
        f"{_KEPT}; of a column that reads responses, {_ALL_LIVE}",
        kinds.part_of,
        columns=1,
        checks=(check_ordered, check_part),
        required=2,
    ),
    "qdit": Choice(
        "qdit(QUALITY, ALPHA)",
        "the largest (1 - ALPHA) x facility-location gain + ALPHA (0.7) x rank of QUALITY, "
        "greedily",
        f"{_KEPT}; with a QUALITY that reads responses, {_ALL_LIVE}",
        kinds.quality_and_diversity,
        columns=1,
        checks=(check_ordered, check_share),
        required=1,
        defaults=("0.7",),
        greedy=True,
    ),
    "mig": Choice(
        "mig(LABELS, SCORE, GAIN, COSINE)",
        "the largest gain of information over the graph of labels (GAIN exact or gradient, COSINE "
        "0.9), greedily",
        f"{_KEPT}; with a SCORE that reads responses, {_ALL_LIVE}",
        kinds.information_gain,
        columns=2,
        checks=(check_labels, check_ordered, check_gain, check_cosine),
        required=2,
        defaults=("exact", "0.9"),
        greedy=True,
    ),
    "rds": Choice(
        "rds(FILE)",
        "the rows nearest to each query of FILE by a model's hidden states, the queries in turns",
        _ALL_LIVE,
        kinds.near_queries,
        ranks=("response_length",),
        checks=(check_file,),
        required=1,
        waits=True,
    ),
    "rip": Choice(
        "rip(REWARD, LENGTH, GAP)",
        "rows whose worst answer has a high reward and is long and whose rewards lie close "
        "together: beyond three quantiles (0.5)",
        "k answers of every row that no rule refuses",
        kinds.survivors,
        ranks=("worst_reward", "worst_length", "reward_gap"),
        checks=(check_share, check_share, check_share),
        defaults=("0.5", "0.5", "0.5"),
        waits=True,
    ),
    "ids": Choice(
        "ids(FILE)",
        "the ids in FILE, by falling score where it has scores, else in its order",
        _KEPT,
        kinds.listed,
        columns=0,
        checks=(check_file,),
        required=1,
    ),
    "all": Choice("all", "every row", "every row", kinds.every_row),
}
"""By the name that a recipe writes; `magpie filters` prints usage, takes and answers."""
