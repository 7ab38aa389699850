"""The published rules that have names: data, no code. `magpie filters` prints them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

Param = float | str


@dataclass(frozen=True)
class Strategy:
    """A named rule: SQL and choice with {thresholds}, how many rows it takes where its source
    says so, and where the rule comes from."""

    where: str | None
    choose: str
    rows: int | None
    source: str
    params: Mapping[str, Param] = field(default_factory=dict)
    """Thresholds with their defaults; "" for one that an arm has to give."""
    cost: str = ""
    """What has to be computed for it besides the answers that its `choose` needs."""
    allow_cut: bool | None = None
    """Whether answers that were cut off may be chosen; None: as its `choose` has it."""

    def filled(self, text: str | None, params: Mapping[str, Param]) -> str | None:
        """`text` with the thresholds put in."""
        thresholds = {**self.params, **params}
        return text and text.format(**{name: _plain(v) for name, v in thresholds.items()})


def _plain(value: Param) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


_TAU1, _TAU2, _DISTANCE = {"tau1": -12.0}, {"tau2": 0.0}, {"distance": 0.0}
_GOOD_EASY = {"quality": "good", "difficulty": "easy"}
_PAPER = "paper Table 5"
_APART = "min_neighbor_distance > {distance}"
_REWARD, _MARGIN = "instruct_reward > {tau1}", "reward_difference > {tau2}"
_QUALITY, _DIFFICULTY = "input_quality >= '{quality}'", "difficulty >= '{difficulty}'"

_PUBLISHED: dict[str, Strategy] = {
    "magpie-air": Strategy(
        f"{_QUALITY} AND {_DIFFICULTY} AND {_APART} AND {_MARGIN}",
        "longest",
        300_000,
        f"{_PAPER}, Air Filter",
        {"quality": "good", "difficulty": "medium", **_DISTANCE, **_TAU2},
    ),
    "magpie-pro": Strategy(
        f"{_QUALITY} AND {_APART} AND {_REWARD}",
        "longest",
        300_000,
        f"{_PAPER}, Pro Filter",
        {"quality": "average", **_DISTANCE, **_TAU1},
    ),
    "magpie-pro-2": Strategy(
        f"{_QUALITY} AND {_DIFFICULTY} AND {_APART} AND {_REWARD}",
        "longest",
        300_000,
        f"{_PAPER}, Filter2",
        {**_GOOD_EASY, **_DISTANCE, **_TAU1},
    ),
    "magpie-pro-3": Strategy(
        f"{_APART} AND {_REWARD}", "longest", 300_000, f"{_PAPER}, Filter3", {**_DISTANCE, **_TAU1}
    ),
    "magpie-pro-4": Strategy(
        f"{_QUALITY} AND {_DIFFICULTY} AND {_APART} AND {_MARGIN}",
        "longest",
        300_000,
        f"{_PAPER}, Filter4",
        {**_GOOD_EASY, **_DISTANCE, **_TAU2},
    ),
    "magpie-pro-5": Strategy(
        f"{_QUALITY} AND {_DIFFICULTY} AND {_APART} AND {_REWARD}",
        "hash_order",
        338_000,
        f"{_PAPER}, Filter5",
        {**_GOOD_EASY, **_DISTANCE, **_TAU1},
    ),
    "magpie-pro-6": Strategy(
        f"{_APART} AND {_REWARD}",
        "difficulty_mix({boundary})",
        200_000,
        f"{_PAPER}, Filter6",
        {"boundary": "easy", **_DISTANCE, **_TAU1},
    ),
    "magpie-pro-300k-card": Strategy(
        f"{_QUALITY} AND instruct_reward >= {{tau1}} AND {_APART} AND instruction NOT LIKE '%:'",
        "longest",
        300_000,
        "card of Magpie-Pro-300K-Filtered",
        {"quality": "average", "tau1": -10.0, **_DISTANCE},
    ),
    "magpie-notebook": Strategy(
        f"{_QUALITY} AND {_REWARD} AND instruction NOT LIKE '%:' AND NOT near_duplicate",
        "longest",
        300_000,
        "data_filter.ipynb of the original; near duplicates by its id rule",
        {"quality": "good", "tau1": -10.0},
    ),
}

STRATEGIES: dict[str, Strategy] = {
    **{name: replace(each, allow_cut=True) for name, each in _PUBLISHED.items()},
    "longest": Strategy(None, "longest", None, "the paper's last step alone"),
    "random-balanced": Strategy(
        None,
        "random_balanced({column})",
        None,
        "at random, equally many of each task category",
        {"column": "task_category"},
    ),
    "random-length-matched": Strategy(
        None,
        "random_length_matched({arm})",
        None,
        "a control: at random, with the response lengths of another arm",
        {"arm": ""},
    ),
    "reward-top": Strategy(None, "top(instruct_reward)", None, "highest reward"),
    "ifd-top": Strategy(
        "ifd < {max_ifd}",
        "top(ifd)",
        None,
        "Cherry LLM, arXiv 2308.12032: highest IFD below 1",
        {"max_ifd": 1.0},
    ),
    "deita": Strategy(
        None,
        "deita({cosine})",
        None,
        "DEITA, arXiv 2312.15685: complexity x quality, repr filter 0.9",
        {"cosine": 0.9},
    ),
    "diverse": Strategy(
        None, "diverse", None, "greedy k-center, Sener and Savarese, arXiv 1708.00489"
    ),
    "superfilter": Strategy(
        "superfilter < {max_ifd}",
        "top(superfilter)",
        None,
        "Superfiltering, arXiv 2402.00530: highest IFD below 1 of a small model",
        {"max_ifd": 1.0},
        "two passes of a model of GPT-2's size over every answered row",
    ),
    "fit": Strategy(
        None,
        "part(fit, {part})",
        None,
        "after GRAPE, arXiv 2502.04194, which keeps the best of k answers: ranks one answer a row",
        {"part": "top"},
        "a pass of the model to be trained over every answered row (8B: 6 H100-hours a million)",
    ),
    "rds": Strategy(
        None,
        "rds({queries})",
        None,
        "RDS+, arXiv 2503.01807: nearest to each query in turns, by hidden states",
        {"queries": ""},
        "a pass of the model to be trained over every answered row (8B: 6 H100-hours a million)",
    ),
    "rip": Strategy(
        None,
        "rip({reward}, {length}, {gap})",
        None,
        "RIP, arXiv 2501.18578: prompts whose worst answer is good and long, and gap small",
        {"reward": 0.5, "length": 0.5, "gap": 0.5},
        "k answers and rewards a row, those of `synth.preferences`",
    ),
    "qdit": Strategy(
        None,
        "qdit({quality}, {alpha})",
        None,
        "QDIT, arXiv 2311.14736: facility location and quality (its rank, 0 to 1)",
        {"quality": "instruct_reward", "alpha": 0.7},
        "embeddings of the instructions; n^2 products",
    ),
    "mig": Strategy(
        None,
        "mig({labels}, {score}, {gain}, {cosine})",
        None,
        "MIG, arXiv 2504.13835: information over a graph of labels",
        {"labels": "knowledge", "score": "input_quality", "gain": "exact", "cosine": 0.9},
        "explanations of the difficulty tagger; embeddings of labels",
    ),
    "ids": Strategy(
        None,
        "ids({file})",
        None,
        "whatever someone computed (LESS, NUGGETS, SelectIT, QuRating, AlpaGasus ...)",
        {"file": ""},
    ),
    "category-balanced": Strategy(
        None,
        "balanced({column})",
        None,
        "equally many of each task category",
        {"column": "task_category"},
    ),
    "difficulty-mix": Strategy(
        None,
        "difficulty_mix({boundary})",
        None,
        f"{_PAPER}, the last column of Filter6 alone",
        {"boundary": "easy"},
    ),
    "random": Strategy(None, "hash_order", None, "the pool at equal size"),
    "all": Strategy(None, "all", None, "every row, so every row is answered"),
}
"""`> 0` on the neighbour distance drops every copy of an exact duplicate (they are at exactly 0);
the notebook's rule keeps the first. The paper took answers as they were, cut off or not."""
