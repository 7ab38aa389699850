"""Drawing a pool: exact counts for any concurrency and after any kill, replacements, grids,
steering prompts, category balance."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from core.errors import UserError
from core.models import resolve, tokenizer
from core.servers import Servers
from core.tracking import Log
from synth.config.synthesis import SynthConfig
from synth.context import Context
from synth.generate import ask
from synth.generate.system_prompts import chosen, domains, steered
from synth.pool import category_balance
from synth.pool.draw import draw, mine
from synth.pool.pool import Pool
from tests import small_recipe, tiny
from tests.scripted_model import magpie
from tests.scripted_server import Fault, ScriptedServer, completion
from tests.waiting import exit_code


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_recipe.model(tmp_path_factory.mktemp("model") / "llama")


class Teacher:
    """Answers by the seed; a share of the instructions is empty. `kill` is the process to end at
    the n-th request."""

    def __init__(self, empty: float = 0.0) -> None:
        self.empty, self.seen = empty, 0
        self.kill: tuple[int, int] | None = None

    def __call__(self, path: str, body: dict[str, Any]) -> dict[str, Any] | Fault:
        if "logprob_token_ids" in body:
            return magpie(path, body)
        self.seen += 1
        if self.kill and self.seen >= self.kill[1]:
            os.kill(self.kill[0], signal.SIGKILL)
            self.kill = None
        seed = body.get("seed", 999)  # answers at temperature 0 have none
        if seed % 1000 < self.empty * 1000:
            return completion("  ")
        return completion(f"question {seed}\nof an assistant, in two lines?")


@pytest.fixture
def teacher() -> Teacher:
    return Teacher()


@pytest.fixture
def server(teacher: Teacher) -> Iterator[ScriptedServer]:
    with ScriptedServer(teacher) as running:
        yield running


class Heard(Log):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def settings(
    llama: Path, server: ScriptedServer, in_flight: int = 32, **changes: Any
) -> dict[str, Any]:
    where = {"model": str(llama), "server": {"urls": [server.url], "max_in_flight": in_flight}}
    return {
        "teacher": where,
        "rows": 100,
        "instruction": {"temperature": 1.0, "max_tokens": 40},
        **changes,
    }


def pool(folder: Path, data: dict[str, Any]) -> Pool:
    return Pool(SynthConfig.model_validate(data), Context(folder, resolve))


def filled(
    folder: Path, data: dict[str, Any], log: Log | None = None
) -> tuple[Pool, dict[str, Any]]:
    made = pool(folder, data)
    log = log or Log()
    with Servers(log, folder / "logs") as servers:
        return made, draw(made, servers, log)


def stored(made: Pool) -> pl.DataFrame:
    """Every stored draw of this pool, texts and all, from the files themselves."""
    return pl.concat([pl.read_parquet(p) for p in made.instruction.parts()])


@pytest.mark.parametrize("requests", [(1, 1), (7, 5), (64, 1000)])
def test_as_many_instructions_as_were_asked_for_whatever_the_concurrency_and_batch(
    tmp_path: Path,
    llama: Path,
    server: ScriptedServer,
    teacher: Teacher,
    monkeypatch: pytest.MonkeyPatch,
    requests: tuple[int, int],
) -> None:
    in_flight, batch = requests
    monkeypatch.setattr(ask, "BATCH_ROWS", batch)
    teacher.empty = 0.1
    made, counts = filled(tmp_path, settings(llama, server, in_flight, rows=200))
    assert counts["rows"] == 200 == len(made.frame()) == made.frame()["id"].n_unique()
    assert counts["failed"]["empty instruction"] > 5, "failed draws stay visible"
    assert (
        len(stored(made))
        == 200 + counts["failed"]["empty instruction"]
        == stored(made)["id"].n_unique()
    )


def test_the_pool_is_the_same_whatever_the_concurrency(
    tmp_path: Path, llama: Path, server: ScriptedServer, teacher: Teacher
) -> None:
    teacher.empty = 0.1
    one, two = (
        filled(tmp_path / str(n), settings(llama, server, n))[0].frame(["instruction"])
        for n in (1, 50)
    )
    assert one.select("id", "instruction").equals(two.select("id", "instruction"))


@pytest.mark.process
def test_1000_instructions_after_three_kills_none_lost_none_doubled(
    tmp_path: Path, llama: Path, server: ScriptedServer, teacher: Teacher
) -> None:
    teacher.empty = 0.05
    data = settings(llama, server, rows=1000)
    code = (
        "import json, sys; from pathlib import Path; from "
        "core.servers import Servers; from core.models import resolve;"
        "from core.tracking import Log; from synth.config.synthesis import SynthConfig;"
        " from synth.context import Context; from synth.pool.draw import draw;"
        "from synth.pool.pool import Pool; root = Path(sys.argv[1]); "
        "config = SynthConfig.model_validate(json.loads(sys.argv[2]));"
        "draw(Pool(config, Context(root, resolve)), Servers(Log(), root / 'logs'), Log())"
    )
    command = [sys.executable, "-c", code, str(tmp_path), json.dumps(data)]
    for at in (
        3,
        200,
        1040,
    ):  # at the beginning, in the middle, and while failed draws are replaced
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        teacher.kill = (process.pid, max(at, teacher.seen + 3))
        assert exit_code(process) == -signal.SIGKILL
    before = teacher.seen
    assert subprocess.run(command, timeout=300, stderr=subprocess.DEVNULL).returncode == 0
    made = pool(tmp_path, data)
    assert len(made.frame()) == 1000 == made.frame()["id"].n_unique()
    assert stored(made)["id"].n_unique() == len(stored(made))
    assert made.missing_instructions().is_empty()
    assert teacher.seen - before < 1000, "what was drawn before the kills is not drawn again"


def test_tasks_that_share_a_pool_fill_their_own_places_replacements_included(
    tmp_path: Path, llama: Path, server: ScriptedServer, teacher: Teacher
) -> None:
    teacher.empty = 0.2
    data = settings(llama, server, rows=100)
    made = pool(tmp_path, data)
    with Servers(Log(), tmp_path / "logs") as servers:
        draw(made, servers, Log(), (1, 2))
        half = len(made.frame())
        assert half == len(mine(made.planned, (1, 2)))
        assert draw(made, servers, Log(), (0, 2))["rows"] == 100
    alone, _ = filled(tmp_path / "alone", data)
    assert alone.frame()["id"].to_list() == made.frame()["id"].to_list()
    assert stored(made)["id"].n_unique() == len(stored(made)) == len(stored(alone))


def test_a_pool_that_grows_draws_only_what_is_new(
    tmp_path: Path, llama: Path, server: ScriptedServer, teacher: Teacher
) -> None:
    filled(tmp_path, settings(llama, server, rows=30))
    made, _ = filled(tmp_path, settings(llama, server, rows=50))
    assert teacher.seen == 50 and len(made.frame()) == 50
    hot = {"temperature": 1.2, "top_p": 0.995}
    made, _ = filled(
        tmp_path,
        settings(
            llama,
            server,
            rows=70,
            grid=[{"rows": 50, "sampling": {}}, {"rows": 20, "sampling": hot}],
        ),
    )
    assert teacher.seen == 70 and len(made.frame()) == 70, (
        "a grid around it draws the new cell alone"
    )


def test_each_row_records_its_own_sampling(
    tmp_path: Path, llama: Path, server: ScriptedServer
) -> None:
    made, counts = filled(tmp_path, settings(llama, server, rows=100, grid="magpie-pro"))
    frame = made.frame()
    assert counts["rows"] == 100
    assert Counter(frame.select("temperature", "top_p").iter_rows()) == {
        (1.0, 1.0): 30,
        (1.1, 0.995): 30,
        (1.2, 0.995): 30,
        (1.25, 0.99): 10,
    }
    sent = Counter((r.body["temperature"], r.body["top_p"]) for r in server.requests)
    assert sent == {(1.0, 1.0): 30, (1.1, 0.995): 30, (1.2, 0.995): 30, (1.25, 0.99): 10}
    by_seed = {r.body["seed"]: r.body["temperature"] for r in server.requests}
    assert all(
        by_seed[r["seed"]] == r["temperature"] and json.loads(r["sampling"])["max_tokens"] == 40
        for r in stored(made).to_dicts()
    )


def test_a_teacher_that_only_fails_is_given_up_and_said(
    tmp_path: Path, llama: Path, server: ScriptedServer, teacher: Teacher
) -> None:
    teacher.empty = 1.0
    log = Heard()
    made, counts = filled(tmp_path, settings(llama, server, rows=4), log)
    assert counts == {"rows": 0, "failed": {"empty instruction": 20}, "tokens": 0}
    assert any(
        re.match(r"4 of 4 instructions could not be had in 5 draws each", line)
        for line in log.lines
    )
    assert made.missing_instructions().is_empty()


PROMPTS = [
    {"domain": "math", "weight": 3},
    {"domain": "code", "language": "German"},
    {"name": "none", "text": "", "weight": 1},
]


def test_rows_are_drawn_under_their_own_system_prompt_by_weight(
    tmp_path: Path, llama: Path, server: ScriptedServer
) -> None:
    made, _ = filled(tmp_path, settings(llama, server, rows=400, system_prompts=PROMPTS))
    frame = made.frame()
    shares = Counter(frame["system_prompt"].to_list())
    assert set(shares) == {"math", "code+German", "none"} and abs(shares["math"] / 400 - 0.6) < 0.08
    words = tokenizer(str(llama))
    told = {r.body["seed"]: words.decode(r.body["prompt"]) for r in server.requests}
    for seed, name in stored(made).select("seed", "system_prompt").iter_rows():
        assert ("mathematics" in told[seed]) == (name == "math")
        assert ("German" in told[seed] and "code" in told[seed]) == (name == "code+German")
        assert told[seed].endswith("<|im_start|>user\n")
    assert stored(made)["template"].n_unique() == 3


def test_a_rows_system_prompt_follows_from_its_id_and_the_weights_need_not_sum_to_one() -> None:
    prompts = steered(
        SynthConfig.model_validate(
            {"teacher": {"model": "m"}, "system_prompts": PROMPTS}
        ).system_prompts
    )
    ids = [f"{i:020x}" for i in range(5000)]
    first = chosen(ids, prompts)
    assert first == chosen(ids[:10], prompts) + chosen(ids[10:], prompts)
    counts = Counter(first)
    assert [round(counts[k] / 5000, 1) for k in range(3)] == [0.6, 0.2, 0.2]
    tenths = [p.__class__(p.name, p.text, 0.1) for p in prompts * 4]
    assert set(chosen(ids, tenths)) == set(range(12))


def test_domains_are_shipped_and_unknown_ones_named(tmp_path: Path) -> None:
    assert domains() == ["code", "math", "translation"]

    def one(**prompt: Any) -> Any:
        return steered(
            SynthConfig.model_validate(
                {"teacher": {"model": "m"}, "system_prompts": [prompt]}
            ).system_prompts
        )[0]

    with pytest.raises(UserError, match="no domain 'maths'; did you mean 'math'"):
        one(domain="maths")
    with pytest.raises(UserError, match="does not exist"):
        one(file=str(tmp_path / "absent.txt"))
    (tmp_path / "law.txt").write_text("You are a lawyer.\n")
    assert (one(file=str(tmp_path / "law.txt")).name, one(file=str(tmp_path / "law.txt")).text) == (
        "law",
        "You are a lawyer.",
    )
    assert one(language="Japanese").text.count("Japanese") == 3
    with pytest.raises(UserError, match="two of them are named 'math'"):
        steered(
            SynthConfig.model_validate(
                {"teacher": {"model": "m"}, "system_prompts": [{"domain": "math"}] * 2}
            ).system_prompts
        )


def test_responses_are_made_without_the_steering_prompt(
    tmp_path: Path, llama: Path, server: ScriptedServer
) -> None:
    from synth.pool.computed import COMPUTED

    made, _ = filled(
        tmp_path, settings(llama, server, rows=5, system_prompts=[{"text": "Only about cheese."}])
    )
    asked = len(server.requests)
    with Servers(Log(), tmp_path / "logs") as servers:
        rows = made.frame(["instruction"]).select("id", "instruction")
        assert (
            len(
                pl.concat(
                    COMPUTED["response"].compute(rows, made.config, made.context.serving(servers))
                )
            )
            == 5
        )
    words = tokenizer(str(llama))
    assert all("cheese" in words.decode(r.body["prompt"]) for r in server.requests[:asked])
    assert not any("cheese" in words.decode(r.body["prompt"]) for r in server.requests[asked:])


def test_the_category_balance_is_labelled_and_told_while_drawing(
    tmp_path: Path, llama: Path, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(category_balance, "SAMPLE", 10)
    log = Heard()
    data = settings(llama, server, 8, rows=100, category_balance=40)
    made, _ = filled(tmp_path, data, log)
    told = [line for line in log.lines if line.startswith("categories of")]
    assert [line.split(":")[0] for line in told] == [
        "categories of 10 of 40 instructions",
        "categories of 20 of 80 instructions",
    ]
    shares = {k: v for k, v in log.seen.items() if k.startswith("category/")}
    assert len(shares) == 12 and abs(sum(shares.values()) - 1) < 1e-9
    first = next(i for i, r in enumerate(server.requests) if "logprob_token_ids" in r.body)
    assert first < len(server.requests) - 40, "while drawing, not after"
    labels = sum("logprob_token_ids" in r.body for r in server.requests)
    assert labels == 20
    frame = made.frame()
    assert (
        frame.filter(pl.col("status:category") == "ok")["task_category"].drop_nulls().len() == 20
    ), "the labels are cells of the column"
    assert (
        made.cells["instruction"]
        == pool(tmp_path, {**data, "category_balance": None}).cells["instruction"]
    ), "reporting changes no key"


def test_a_report_of_the_balance_reads_nothing_of_what_was_drawn_before(
    tmp_path: Path, llama: Path, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(category_balance, "SAMPLE", 5)
    read: list[Pool] = []
    drawn = Pool.drawn
    monkeypatch.setattr(Pool, "drawn", lambda self: read.append(self) or drawn(self))
    log = Heard()
    filled(tmp_path / "a", settings(llama, server, 8, rows=60, category_balance=10), log)
    reports = [line for line in log.lines if line.startswith("categories of")]
    with_reports = len(read)
    read.clear()
    filled(tmp_path / "b", settings(llama, server, 8, rows=60))
    assert len(reports) == 6 and with_reports == len(read)


def test_the_first_token_rule_is_part_of_the_key_and_reaches_the_requests(
    tmp_path: Path, llama: Path, teacher: Teacher
) -> None:
    words = tokenizer(str(llama))

    def answer(path: str, body: dict[str, Any]) -> Any:
        if body["max_tokens"] == 1:
            return completion("why", "length", token_ids=words("why")["input_ids"][:1])
        return completion(" the river", "stop", token_ids=words(" the river")["input_ids"])

    with ScriptedServer(answer) as server:
        data = settings(llama, server, rows=3, first_token={"temperature": 1.2})
        made, _ = filled(tmp_path, data)
    assert made.frame(["instruction"])["instruction"].to_list() == ["why the river"] * 3
    assert (
        made.cells["instruction"]
        != pool(tmp_path, {**data, "first_token": None}).cells["instruction"]
    )


def test_template_variables_of_a_model_are_part_of_its_keys(
    tmp_path: Path, llama: Path, server: ScriptedServer
) -> None:
    data = settings(llama, server)
    quiet = {
        **data,
        "teacher": {**data["teacher"], "chat_template_kwargs": {"enable_thinking": False}},
    }
    one, two = pool(tmp_path, data), pool(tmp_path, quiet)
    assert (
        one.cells["instruction"] != two.cells["instruction"]
        and one.cells["response"] != two.cells["response"]
    )
    assert one.cells["instruction"]["teacher"] == resolve(str(llama)).revision, (
        "without them the key is the revision alone, as ever"
    )


def test_a_models_chat_template_and_its_variables_reach_instructions_and_responses(
    tmp_path: Path, llama: Path, server: ScriptedServer
) -> None:
    from synth.pool.computed import COMPUTED

    own = tmp_path / "own.jinja"
    own.write_text(
        "{% for m in messages %}<|im_start|>{{ m.role }} of "
        "{{ place }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    data = settings(llama, server, rows=2)
    data["teacher"] |= {"chat_template": str(own), "chat_template_kwargs": {"place": 'Oz"'}}
    made, _ = filled(tmp_path, data)
    with Servers(Log(), tmp_path / "logs") as servers:
        rows = made.frame(["instruction"]).select("id", "instruction")
        list(COMPUTED["response"].compute(rows, made.config, made.context.serving(servers)))
    words = tokenizer(str(llama))
    told = [words.decode(r.body["prompt"]) for r in server.requests]
    assert told[0] == '<|im_start|>user of Oz"\n'
    assert told[-1].startswith('<|im_start|>user of Oz"\nquestion ') and told[-1].endswith(
        "<|im_start|>assistant\n"
    )
    with pytest.raises(
        UserError, match=r"absent.jinja of .* does not exist; check `chat_template`"
    ):
        pool(tmp_path, {**data, "teacher": {**data["teacher"], "chat_template": "absent.jinja"}})


def test_a_plain_familys_instruction_ends_before_its_next_header_and_the_draw_says_by_what(
    tmp_path: Path,
) -> None:
    def runs_on(path: str, body: dict[str, Any]) -> dict[str, Any]:
        """What such a model writes, cut where vLLM cuts it."""
        text = f"How do {body['seed']} planes fly? ASSISTANT: By lift. USER: And ships?"
        ends = [text.find(word) for word in body.get("stop", ()) if word in text]
        return completion(text[: min(ends, default=len(text))])

    vicuna = tiny.llama(tmp_path / "vicuna-tiny")
    with ScriptedServer(runs_on) as server:
        made, _ = filled(tmp_path / "vicuna", settings(vicuna, server, rows=3))
        plain, _ = filled(
            tmp_path / "other", settings(small_recipe.model(tmp_path / "other"), server, rows=3)
        )
    drawn = made.instruction.read()
    assert all(text.endswith("planes fly?") for text in drawn["instruction"])
    assert [json.loads(stop) for stop in drawn["stop"]] == [["ASSISTANT:", "USER:"]] * 3
    assert plain.instruction.read()["stop"].null_count() == 3
