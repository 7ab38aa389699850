"""Sound documents that the campaigns spoil: recipes, rows in the layouts that people publish, and
result files of other tools."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from recipes import schema
from tests.test_published import row23, row25

Row = dict[str, Any]


def recipes() -> list[Row]:
    """The shipped recipes as documents, and one that states much of what can be stated."""
    shipped = (schema.load(path).recipe for path in schema.shipped())
    written = (each.model_dump(mode="json", by_alias=True, exclude_unset=True) for each in shipped)
    return [{**each, "store": "store"} for each in written] + [own()]


def own() -> Row:
    """A recipe that states much of what can be stated, without models of its own."""
    server = {"urls": ["http://127.0.0.1:9/"], "max_in_flight": 4}
    asked = {"model": "some-model", "server": server}
    return {
        "name": "own",
        "store": "store",
        "track": "none",
        "synth": {
            "teacher": asked,
            "rows": 100,
            "instruction": {"temperature": 1.0, "max_tokens": 40},
            "response": {"temperature": 0.0, "max_tokens": 40},
            "grid": [{"rows": 100, "sampling": {"temperature": 1.1}}],
            "first_token": {"suppress": ["the"], "temperature": 1.2},
            "system_prompts": [{"text": "You know rivers.", "name": "rivers", "weight": 2}],
            "tags": {"quality": {"mode": "label"}, "reward": asked},
            "heldout": 0.1,
        },
        "arms": {
            "good": {
                "where": "input_quality >= 'good' AND NOT (response_length < 10)",
                "choose": "top(instruct_reward)",
                "budget": {"rows": 10},
                "allow_short": True,
            },
            "some": {"data": "rows.jsonl", "budget": {"tokens": 500}},
            "named": {"strategy": "magpie-pro", "params": {"tau1": -10}},
        },
        "train": {
            "base": "some-base",
            "seeds": [0, 1],
            "zero_stage": 2,
            "num_processes": 2,
            "lora": {"r": 8, "lora_alpha": 16},
            "trainer": {"max_length": 256, "learning_rate": 2e-5, "num_train_epochs": 1},
        },
        "eval": {
            "limit": 6,
            "answers": {"sampling": {"temperature": 0, "max_tokens": 30}, "server": server},
            "judge": {**asked, "api": "chat", "prices": {"input": 1, "output": 2}, "budget": 5},
            "alpaca": {"order": "both"},
            "arena": {"sampling": {"max_tokens": 30}},
            "heldout": {},
            "tasks": {"tasks": ["hellaswag", {"task": "arc_easy", "num_fewshot": 5}]},
        },
        "launch": {},
    }


def layouts() -> list[list[Row]]:
    """A few rows of each layout that is read."""
    texts = [(f"What is {n} and {n}?", f"It is {2 * n}.") for n in range(4)]
    turns = [
        [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
        for asked, answered in texts
    ]
    shared = [
        [{"from": "human", "value": asked}, {"from": "gpt", "value": answered}]
        for asked, answered in texts
    ]
    return [
        [row25(n) for n in range(4)],
        [row23(n) for n in range(4)],
        [{"instruction": a, "response": b} for a, b in texts],
        [{"instruction": a, "input": "", "output": b} for a, b in texts],
        [{"messages": each, "source": "here"} for each in turns],
        [{"messages": turns[0] + turns[1]}, {"messages": turns[2]}],
        [{"conversations": each, "id": f"c{n}"} for n, each in enumerate(shared)],
        [{"prompt": a} for a, _ in texts],
        [{"question": a, "answer": b} for a, b in texts],
        [{"data": [a, b]} for a, b in texts],
    ]


def tagged() -> list[list[Row]]:
    """Rows that a filter can be applied to."""
    return [[row25(n) for n in range(5)], [row23(n) for n in range(5)]]


def preferences() -> list[list[Row]]:
    """Pairs and rated answers."""
    pairs = [
        {"prompt": f"Say {n}.", "chosen": f"It is {n}.", "rejected": "I do not know."}
        for n in range(3)
    ]
    rated = [{"prompt": f"Say {n}.", "completion": f"{n}", "label": n > 0} for n in range(3)]
    return [pairs, rated]


def alpaca() -> list[list[Row]]:
    """Annotations of alpaca_eval, of a baseline whose tables are not on the hub."""
    return [
        [
            {
                "instruction": f"Say {n}.",
                "output_1": "x" * (n + 1),
                "generator_1": "base",
                "dataset": "",
                "output_2": f"{n}",
                "generator_2": "model",
                "annotator": "judge",
                "preference": (1.0, 2.0, 1.5, 1.25, None)[n % 5],
            }
            for n in range(12)
        ]
    ]


def arena() -> list[list[Row]]:
    """Judgments of both versions, and battles."""
    games = [{"judgment": "[[A>B]]", "score": "A>B"}, {"judgment": "[[B>>A]]", "score": "B>>A"}]
    v1 = [{"question_id": f"q{n}", "model": "m", "judge": "j", "games": games} for n in range(4)]
    v2 = [
        {
            "uid": f"q{n}",
            "category": "hard_prompt",
            "model": "m",
            "judge": "j",
            "baseline": "b",
            "games": games,
        }
        for n in range(4)
    ]
    winners = ("model_a", "model_b", "tie", "tie (bothbad)")
    battles = [
        {"question_id": f"q{n}", "model_a": "b", "model_b": "m", "winner": winners[n % 4]}
        for n in range(6)
    ]
    return [v1, v2, battles]


def wildbench() -> list[list[Row]]:
    """Ratings, and battles with a reference."""
    scores = [
        {"session_id": f"s{n}", "model_test": "m", "score": str(n + 3), "model_output": "Yes."}
        for n in range(5)
    ]
    battles = [
        {
            "session_id": f"s{n}",
            "model_A": ("m", "n")[n % 2],
            "model_B": "ref",
            "winner": ("tie", "ref")[n % 2],
            "extent": n % 3,
            "model_outputs": {"m": "Yes.", "ref": "No."},
        }
        for n in range(5)
    ]
    return [scores, battles]


def values() -> list[list[Row]]:
    """Anybody's values by item."""
    return [[{"item": f"i{n}", "value": n / 3, "cluster": f"c{n % 2}"} for n in range(6)]]


def samples() -> list[list[Row]]:
    """Samples of lm-eval, of a release that names its metrics and of one that does not."""
    new = [
        {
            "doc_id": n,
            "doc": {"question": "?"},
            "target": "a",
            "filtered_resps": ["a"],
            "metrics": ["acc", "acc_norm"],
            "acc": float(n % 2),
            "acc_norm": 1.0,
            "doc_hash": f"d{n}",
            "prompt_hash": f"p{n}",
            "filter": "none",
        }
        for n in range(5)
    ]
    old = [{"doc_id": n, "doc": {}, "filtered_resps": ["b"], "acc": n % 2} for n in range(5)]
    return [new, old]


def prompts() -> list[list[Row]]:
    """Evaluation prompts in the known forms."""
    return [
        [{"id": f"p{n}", "prompt": f"Say {n}.", "category": "c"} for n in range(4)],
        [{"uid": f"p{n}", "prompt": f"Say {n}.", "category": "c"} for n in range(4)],
        [{"question_id": n, "turns": [{"content": f"Say {n}."}]} for n in range(4)],
        [{"instruction": f"Say {n}.", "dataset": "d"} for n in range(4)],
    ]


def answers() -> list[list[Row]]:
    """A baseline's answers to `prompts()[0]`, in the known forms."""
    return [
        [{"id": f"p{n}", "answer": f"{n}"} for n in range(4)],
        [{"instruction": f"Say {n}.", "output": f"{n}"} for n in range(4)],
        [{"question_id": f"p{n}", "choices": [{"turns": [{"content": f"{n}"}]}]} for n in range(4)],
        [
            {"uid": f"p{n}", "messages": [{"role": "user"}, {"content": {"answer": f"{n}"}}]}
            for n in range(4)
        ],
    ]


def listed() -> list[list[Row]]:
    """Ids with scores, as somebody else's choice comes."""
    return [[{"id": f"u{n}", "score": n / 2} for n in range(4)], [{"id": n} for n in range(4)]]


def queries() -> list[list[Row]]:
    """Queries that rows are chosen like."""
    said = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
    return [
        [{"instruction": f"Say {n}.", "response": f"{n}"} for n in range(3)],
        [{"messages": said}],
    ]


def mtbench() -> list[list[Row]]:
    """Questions of two turns."""
    return [
        [
            {"question_id": 80 + n, "category": "writing", "turns": [f"Write {n}.", "Shorter."]}
            for n in range(3)
        ]
    ]


def wild_tasks() -> list[list[Row]]:
    """WildBench's tasks."""
    said = [{"role": "user", "content": "Plan a trip."}]
    return [
        [
            {
                "session_id": f"s{n}",
                "conversation_input": said,
                "checklist": ["Is it short?"],
                "primary_tag": "Planning",
                "secondary_tags": [],
                "references": {"gpt-4": "A trip."},
            }
            for n in range(3)
        ]
    ]


PREDICATES = (
    "input_quality >= 'good' AND response_length BETWEEN 10 AND 500",
    "NOT (language = 'en' OR language IN ('de', 'fr'))",
    "instruction LIKE '%What%' AND LENGTH(instruction) > 4",
    "instruct_reward > -3.5e0 AND difficulty <> 'hard'",
    "ARRAY_CONTAINS(other_task_category, 'Math') AND min_neighbor_distance >= 0.1",
)
CHOICES = (
    "longest",
    "top(instruct_reward)",
    "hash_order",
    "balanced(task_category, instruct_reward)",
    "diverse(instruct_reward, 0.1)",
)


def files(folder: Path) -> dict[str, Path]:
    """Sound files beside spoiled ones: prompts that answers belong to."""
    from eval.prompt_sets.prompts import Prompt, write_prompts

    path = folder / "known.jsonl"
    write_prompts([Prompt(f"p{n}", f"Say {n}.", "c") for n in range(4)], path)
    return {"prompts": path}
