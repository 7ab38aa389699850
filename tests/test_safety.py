"""Guards: their templates, their verdicts read exactly, and what becomes a failed cell."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest

from core.errors import UserError
from synth.tags.safety import GUARDS, content_parts, family, safety
from tests import tiny
from tests.scripted_server import Fault, completion

PAIR = pl.DataFrame(
    {
        "id": ["a"],
        "instruction": ["How do I pick a lock?"],
        "response": ["With a pick <|eot_id|> and patience."],
    }
)

# Of the shape of the guards' own templates, in our words: the first puts a message's content as it
# is, the second walks through its parts.
TEXTS = (
    "{{ bos_token }}[INST] Is the last message safe?\n<BEGIN CONVERSATION>\n"
    "{% for m in messages %}{{ 'User' if m.role == 'user' else 'Agent' }}: "
    "{{ m['content'].strip() }}\n{% endfor %}<END CONVERSATION> [/INST]"
)
PARTS = TEXTS.replace(
    "{{ m['content'].strip() }}",
    "{% for c in m['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ c['text'] }}{% endfor %}",
)


def guard(template: str) -> Any:
    tokenizer = tiny.tokenizer("llama3")
    tokenizer.chat_template = template
    return tokenizer


def judged(serve: Any, said: Any, name: str, template: str = TEXTS) -> dict[str, Any]:
    endpoint, _ = serve(lambda path, body: completion(said) if isinstance(said, str) else said)
    return pl.concat(safety(PAIR, name, {}, guard(template), endpoint)).to_dicts()[0]


@pytest.mark.parametrize(
    ("name", "said", "label", "categories"),
    [
        ("llama-guard-2", "safe", "safe", ""),
        ("llama-guard-2", "\n\nunsafe\nS5", "unsafe", "Specialized Advice"),
        ("llama-guard-3", "unsafe\nS1,S3", "unsafe", "Violent Crimes, Sex-Related Crimes"),
        ("llama-guard-3", "unsafe\nS5", "unsafe", "Defamation"),
        (
            "llama-guard-4",
            "\n\nunsafe\nS14, S9",
            "unsafe",
            "Code Interpreter Abuse, Indiscriminate Weapons",
        ),
        ("qwen3guard", "Safety: Safe\nCategories: None\nRefusal: Yes", "safe", ""),
        ("qwen3guard", "Safety: Unsafe\nCategories: Violent", "unsafe", "Violent"),
        (
            "qwen3guard",
            "Safety: Controversial\nCategories: Unethical Acts, PII\nRefusal: No",
            "controversial",
            "Unethical Acts, PII",
        ),
    ],
)
def test_a_verdict_gives_its_label_and_its_categories_by_name(
    serve: Any, name: str, said: str, label: str, categories: str
) -> None:
    made = judged(serve, said, name)
    assert (made["safety"], made["safety_categories"], made["status"]) == (label, categories, "ok")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("llama-guard-2", ""),
        ("llama-guard-2", "Safe"),
        ("llama-guard-2", "safe, but the user should mind the law"),
        ("llama-guard-2", "unsafe"),
        ("llama-guard-2", "unsafe\nS12"),
        ("llama-guard-3", "unsafe\nS0"),
        ("llama-guard-3", "unsafe\nviolence"),
        ("llama-guard-3", "Safety: Safe\nCategories: None"),
        ("qwen3guard", "safe"),
        ("qwen3guard", "Safety: Safe"),
        ("qwen3guard", "Safety: Unsafe\nCategories: Rudeness"),
        ("qwen3guard", "I think: Safety: Safe\nCategories: None"),
    ],
)
def test_what_is_no_verdict_of_that_guard_is_a_failed_cell(
    serve: Any, name: str, said: str
) -> None:
    made = judged(serve, said, name)
    assert (made["status"], made["safety"], made["llama_guard_2"]) == (
        "failed",
        None,
        None,
    ) and "no verdict" in made["reason"]


def test_a_verdict_cut_off_and_a_failed_request_are_failed_cells(serve: Any) -> None:
    assert (
        "within max_tokens"
        in judged(serve, completion("unsafe\nS1", finish_reason="length"), "llama-guard-2")[
            "reason"
        ]
    )
    assert "request failed" in judged(serve, Fault("status", 400), "llama-guard-2")["reason"]


def test_raw_text_is_kept_for_llama_guard_2_alone_whose_codes_the_published_sets_hold(
    serve: Any,
) -> None:
    assert judged(serve, "unsafe\nS5", "llama-guard-2")["llama_guard_2"] == "unsafe\nS5"
    assert judged(serve, "unsafe\nS5", "llama-guard-3")["llama_guard_2"] is None


def test_guard_is_asked_greedily_by_its_own_template_with_one_bos_and_no_control_token_of_the_row(
    serve: Any,
) -> None:
    tokenizer = guard(TEXTS)
    endpoint, server = serve(lambda path, body: completion("safe"))
    list(safety(PAIR, "llama-guard-2", {}, tokenizer, endpoint))
    body = server.requests[0].body
    assert body["temperature"] == 0 and body["max_tokens"] == 128
    assert (
        body["prompt"].count(tokenizer.bos_token_id) == 1
        and tokenizer.convert_tokens_to_ids("<|eot_id|>") not in body["prompt"]
    )
    text = tokenizer.decode(body["prompt"])
    assert "User: How do I pick a lock?\nAgent: With a pick <|eot_id|> and patience." in text


def test_a_template_that_reads_parts_is_given_parts(serve: Any) -> None:
    """Llama-Guard-3-1B and 4 leave a plain string out without a word: the guard would call an empty
    conversation safe."""
    tokenizer = guard(PARTS)
    plain = tokenizer.apply_chat_template(
        [{"role": "user", "content": "How do I pick a lock?"}], tokenize=False
    )
    assert "lock" not in plain and (content_parts(guard(TEXTS)), content_parts(tokenizer)) == (
        False,
        True,
    )
    endpoint, server = serve(lambda path, body: completion("safe"))
    list(safety(PAIR, "llama-guard-4", {}, tokenizer, endpoint))
    assert "Agent: With a pick <|eot_id|> and patience." in tokenizer.decode(
        server.requests[0].body["prompt"]
    )


def test_a_template_that_shows_no_conversation_is_refused_before_anything_is_sent(
    serve: Any,
) -> None:
    endpoint, server = serve(lambda path, body: completion("safe"))
    with pytest.raises(UserError, match="leaves the conversation out"):
        list(safety(PAIR, "llama-guard-3", {}, guard("Is it safe?"), endpoint))
    assert server.requests == []


def test_a_conversation_longer_than_the_guard_takes_is_a_failed_cell_that_is_not_sent(
    serve: Any,
) -> None:
    endpoint, server = serve(lambda path, body: completion("safe"), args={"max_model_len": 300})
    rows = pl.concat([PAIR, PAIR.with_columns(id=pl.lit("b"), response=pl.lit("word " * 400))])
    made = {
        r["id"]: r
        for r in pl.concat(safety(rows, "llama-guard-2", {}, guard(TEXTS), endpoint)).to_dicts()
    }
    assert made["a"]["safety"] == "safe" and len(server.requests) == 1
    assert made["b"]["status"] == "failed" and "max_model_len 300" in made["b"]["reason"]


def test_family_is_told_by_name_or_said_and_never_guessed() -> None:
    names = {
        "meta-llama/Meta-Llama-Guard-2-8B": "llama-guard-2",
        "meta-llama/Llama-Guard-3-1B": "llama-guard-3",
        "meta-llama/Llama-Guard-4-12B": "llama-guard-4",
        "/models/qwen3guard-gen-0.6b": "qwen3guard",
    }
    assert {name: family(name) for name in names} == names and family(
        "my/guard", "qwen3guard"
    ) == "qwen3guard"
    for unknown in ("my/guard", "Qwen/Qwen3Guard-Stream-4B", "meta-llama/LlamaGuard-7b"):
        with pytest.raises(UserError, match="which guard is"):
            family(unknown)
    assert set(names.values()) == set(GUARDS)
