"""Loss on held-out conversations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from core import models
from core.errors import UserError
from core.models import Model
from core.servers import Servers
from core.tracking import Log
from eval.checkpoint import answers, heldout_loss
from eval.config import EvalConfig
from eval.judging import pairwise
from eval.prompt_sets import prompts as benchmarks
from tests import tiny
from tests.eval_files import CHATML
from tests.scripted_server import Fault, ScriptedServer, completion

CONVERSATIONS = [
    [
        {"role": "user", "content": "Name a river in Egypt."},
        {"role": "assistant", "content": "The Nile is the longest river in Egypt."},
    ],
    [
        {"role": "user", "content": "Say hello."},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "Now count to five."},
        {"role": "assistant", "content": "One, two, three, four, five."},
    ],
    [
        {"role": "user", "content": "Why is the sky blue?"},
        {"role": "assistant", "content": "Air scatters short waves of light more than long ones."},
    ],
]


LONGER = [
    {"role": "user", "content": "How does a lock on a canal work?"},
    {
        "role": "assistant",
        "content": "A lock is a chamber with gates at both ends. A boat enters, the gates behind "
        "it close, and water is let in or out through small openings until the level is the same "
        "as on the other side. Then the gates in front open and the boat sails on.",
    },
    {"role": "user", "content": "And who invented it?"},
    {
        "role": "assistant",
        "content": "Simple locks with a single gate were built in China more than a thousand years "
        "ago. The chamber with two gates was described there in the tenth century, and in Europe "
        "it was first built in the fifteenth century in Italy and the Netherlands.",
    },
]


def _file(folder: Path, conversations: list[list[dict[str, str]]]) -> Path:
    pl.DataFrame(
        {"id": [f"c{i}" for i in range(len(conversations))], "messages": conversations}
    ).write_parquet(folder / "heldout.parquet")
    return folder / "heldout.parquet"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny.llama(tmp_path_factory.mktemp("checkpoint"))
    words = tiny.tokenizer()
    words.chat_template = CHATML
    words.save_pretrained(folder)
    return folder


def _chatml() -> tuple[Any, list[int]]:
    words = tiny.tokenizer()
    words.chat_template = CHATML
    return words, [words.convert_tokens_to_ids("<|im_end|>")]


def test_only_the_assistants_words_and_their_end_token_count() -> None:
    words, stops = _chatml()
    scored = heldout_loss.spans_of(words, CONVERSATIONS[1], stops)
    assert [words.decode(scored.ids[start:end]) for start, end in scored.spans] == [
        "Hello!<|im_end|>",
        "One, two, three, four, five.<|im_end|>",
    ]
    assert (
        scored.ids == models.render(words, CONVERSATIONS[1], add_generation_prompt=False)[:-1]
    )  # the line feed after the last turn


def test_the_end_token_counts_also_where_the_model_names_another_eos() -> None:
    words, stops = _chatml()
    assert heldout_loss.spans_of(
        words, CONVERSATIONS[1], [words.eos_token_id]
    ) == heldout_loss.spans_of(words, CONVERSATIONS[1], stops)


def test_what_follows_the_last_assistant_turn_is_left_out() -> None:
    words, stops = _chatml()
    longer = [*CONVERSATIONS[0], {"role": "user", "content": "More?"}]
    assert heldout_loss.spans_of(words, longer, stops) == heldout_loss.spans_of(
        words, CONVERSATIONS[0], stops
    )


def test_a_conversation_without_an_assistant_cannot_be_scored() -> None:
    with pytest.raises(ValueError, match="no words of the assistant"):
        heldout_loss.spans_of(_chatml()[0], CONVERSATIONS[0][:1], [])


def test_a_template_that_rewrites_earlier_turns_is_noticed() -> None:
    words, stops = _chatml()
    words.chat_template = (
        "{% for m in messages %}<|im_start|>"
        "{{ m['content'] if loop.last else 'earlier' }}<|im_end|>{% endfor %}"
    )
    with pytest.raises(ValueError, match="otherwise than the whole"):
        heldout_loss.spans_of(words, CONVERSATIONS[1], stops)


def _given(value: float, failing: str = "") -> Any:
    words, _ = _chatml()

    def answer(path: str, body: dict[str, Any]) -> dict[str, Any] | Fault:
        if failing and failing in words.decode(body["prompt"]):
            return Fault("status", 400)
        entries = [
            None,
            *(
                {str(t): {"logprob": -value * i, "rank": 1}}
                for i, t in enumerate(body["prompt"][1:], 1)
            ),
        ]
        return completion("x", prompt_logprobs=entries)

    return answer


def _run(
    url: str, path: Path, out: Path, model: Path, log: Log | None = None
) -> tuple[dict[str, Any], pl.DataFrame]:
    out.mkdir(exist_ok=True)
    block = {"urls": [url], "max_in_flight": 1}
    with Servers(Log(), out.parent / "logs") as servers:
        counts = heldout_loss.run(
            block, {"heldout": path}, out, model=str(model), servers=servers, log=log or Log()
        )
    return counts, pl.read_parquet(out / "losses.parquet")


def test_the_loss_is_the_mean_over_the_assistants_tokens(tmp_path: Path, checkpoint: Path) -> None:
    words, stops = _chatml()
    with ScriptedServer(_given(0.01)) as server:
        counts, frame = _run(
            server.url, _file(tmp_path, CONVERSATIONS), tmp_path / "out", checkpoint
        )
    places = [
        [
            i
            for start, end in heldout_loss.spans_of(words, c, stops).spans
            for i in range(start, end)
        ]
        for c in CONVERSATIONS
    ]
    assert frame["loss"].to_list() == pytest.approx([0.01 * sum(p) / len(p) for p in places])
    assert frame["tokens"].to_list() == [len(p) for p in places]
    assert counts["loss"] == pytest.approx(frame["loss"].mean())
    assert counts["token_loss"] == pytest.approx(
        0.01 * sum(map(sum, places)) / sum(map(len, places))
    )


def test_a_conversation_that_cannot_be_scored_stays_and_is_counted(
    tmp_path: Path, checkpoint: Path
) -> None:
    with ScriptedServer(_given(0.01, failing="count to five")) as server:
        counts, frame = _run(
            server.url,
            _file(tmp_path, [*CONVERSATIONS, CONVERSATIONS[0][:1]]),
            tmp_path / "out",
            checkpoint,
        )
    assert frame.select("id", "status", "reason").rows() == [
        ("c0", "ok", None),
        ("c1", "failed", "HTTP 400: scripted failure"),
        ("c2", "ok", None),
        ("c3", "failed", "the conversation holds no words of the assistant"),
    ]
    assert counts["failed"] == 2 and counts["rows"] == 4


def test_an_interrupted_scoring_continues(tmp_path: Path, checkpoint: Path) -> None:
    class Stops(Log):
        def progress(self, done: int, total: int | None, unit: str = "rows") -> None:
            if done == 2:
                raise KeyboardInterrupt

    path = _file(tmp_path, CONVERSATIONS)
    with ScriptedServer(_given(0.01)) as server:
        with pytest.raises(KeyboardInterrupt):
            _run(server.url, path, tmp_path / "out", checkpoint, Stops())
        before = len(server.requests)
        counts, _ = _run(server.url, path, tmp_path / "out", checkpoint)
    assert counts["failed"] == 0 and len(server.requests) - before == 1


def test_a_file_without_messages_is_one_sentence(tmp_path: Path, checkpoint: Path) -> None:
    pl.DataFrame({"id": ["a"]}).write_parquet(tmp_path / "heldout.parquet")
    with pytest.raises(UserError, match="it needs the columns id and messages"):
        _run("http://127.0.0.1:9", tmp_path / "heldout.parquet", tmp_path / "out", checkpoint)


# on a real vLLM


@pytest.mark.stack
def test_the_loss_through_vllm_is_that_of_a_transformers_forward(
    tmp_path: Path, vllm: Servers, teacher: Model
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    block = {"args": {"max_model_len": 2048}}
    (tmp_path / "out").mkdir()
    inputs = {"heldout": _file(tmp_path, [LONGER])}
    heldout_loss.run(
        block,
        inputs,
        tmp_path / "out",
        model="embedded/SmolLM2-135M-Instruct",
        servers=vllm,
        log=Log(),
    )
    loss, tokens = (
        pl.read_parquet(tmp_path / "out" / "losses.parquet").select("loss", "tokens").row(0)
    )
    model = AutoModelForCausalLM.from_pretrained(teacher.path, dtype=torch.float32)
    scored = heldout_loss.spans_of(
        models.tokenizer(teacher.path), LONGER, answers.stop_ids(teacher.path)
    )
    with torch.no_grad():
        logs = model(torch.tensor([scored.ids])).logits[0].log_softmax(-1)
    places = [i for start, end in scored.spans for i in range(start, end)]
    expected = -sum(float(logs[i - 1, scored.ids[i]]) for i in places) / len(places)
    assert tokens == len(places) > 90
    assert loss == pytest.approx(
        expected, abs=1.5e-2
    )  # the server computes in bf16: up to 0.01 at a hundred tokens, 0.04 at ten


@pytest.mark.stack
@pytest.mark.slow
def test_a_real_model_answers_and_judges_four_prompts_in_both_ways(
    tmp_path: Path, vllm: Servers
) -> None:
    server = {"args": {"max_model_len": 2048}}
    who = "embedded/SmolLM2-135M-Instruct"
    config = EvalConfig.model_validate(
        {
            "answers": {"sampling": {"temperature": 0, "max_tokens": 24}, "server": server},
            "judge": {"model": who, "server": server},
            "alpaca": {"order": "both"},
            "arena": {"constrain": True, "sampling": {"temperature": 0, "max_tokens": 24}},
        }
    )
    prompts = tmp_path / "prompts.jsonl"
    benchmarks.write_prompts(benchmarks.prompts("magpie-48", 4), prompts)
    for name, sampling in (("answers", {}), ("baseline", {"max_tokens": 12})):
        settings = config.answers.model_copy(
            update={"sampling": config.answers.sampling | sampling}
        )
        (tmp_path / name).mkdir()
        made = answers.run(
            settings, {"prompts": prompts}, tmp_path / name, model=who, servers=vllm, log=Log()
        )
        assert made["failed"] == 0
    inputs = {
        "prompts": prompts,
        "answers": tmp_path / "answers",
        "baseline": tmp_path / "baseline",
    }
    soft = pairwise.run(
        config.protocol("alpaca"),
        inputs,
        tmp_path / "store",
        tmp_path / "alpaca",
        servers=vllm,
        log=Log(),
    )
    games = pairwise.run(
        config.protocol("arena"),
        inputs,
        tmp_path / "store",
        tmp_path / "arena",
        servers=vllm,
        log=Log(),
    )
    assert soft["judged"] + soft["unjudged"] == 8 and soft["judged"] >= 6 and 0 < soft["mass"] < 1
    assert games["judged"] == 8 and games["constrained"] >= 1 and soft["models"] == [who]
    again = pairwise.run(
        config.protocol("arena"),
        inputs,
        tmp_path / "store",
        tmp_path / "again",
        servers=vllm,
        log=Log(),
    )
    assert again["asked"] == 0
    frame = pl.read_parquet(tmp_path / "arena" / "judgments.parquet")
    assert frame.equals(pl.read_parquet(tmp_path / "again" / "judgments.parquet"))
