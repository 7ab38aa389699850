"""What a judge is shown of an answer: without thoughts, cut to a length, in an order."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from pathlib import Path

import polars as pl

from core.errors import UserError
from eval.judging.verdicts import words_of
from eval.protocols import JudgeConfig

Answer = tuple[str | None, str]
"""An answer, or None and why there is none."""
Answers = Mapping[str, Answer]
NO_ANSWER: Answer = (None, "no answer")


def model_shown_first(instruction: str, seed: str = "0") -> bool:
    """AlpacaEval's order: drawn once an instruction, so that every model sees the same. True shows
    the model's answer before the baseline's.

    The seed text is that of alpaca_eval's PairwiseAnnotator ("is_switched_outputs" + instruction +
    seed); with seed 0 it gives the order of all published annotations.
    """
    return random.Random(f"is_switched_outputs{instruction}{seed}").choices([False, True], k=1)[0]


def shorten(text: str, judge: JudgeConfig) -> str:
    """An answer as the judge sees it: cut, with a note, where it is longer than
    `max_answer_characters`."""
    limit = judge.max_answer_characters
    if len(text) <= limit:
        return text
    return f"{text[:limit]}\n[cut here: the first {limit} of {len(text)} characters are shown]"


def shortened(answers: Iterable[Answer], judge: JudgeConfig) -> int:
    """How many answers a judge sees cut."""
    return sum(text is not None and len(text) > judge.max_answer_characters for text, _ in answers)


def length(answer: Answer) -> int | None:
    """Characters of an answer; None where there is none."""
    return None if answer[0] is None else len(answer[0])


def read_answers(folder: Path) -> Answers:
    """The answers by prompt id, from answers.parquet of a folder, without what a model thought
    before it answered: nobody is judged by that, and it would count as length."""
    return {name: (text and words_of(text), why) for name, (text, why) in _raw(folder).items()}


def thinking(folder: Path) -> int:
    """How many answers of a folder hold thoughts, which `read_answers` leaves out."""
    texts = [text for text, _ in _raw(folder).values() if text is not None]
    return sum(words_of(text) != text for text in texts)


def _raw(folder: Path) -> Answers:
    path = folder / "answers.parquet"
    try:
        frame = pl.read_parquet(path, columns=["id", "answer", "status", "reason"], glob=False)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise UserError(f"{path} cannot be read as answers ({error}); make them first.") from error
    return {i: (a if s == "ok" else None, r or "") for i, a, s, r in frame.iter_rows()}
