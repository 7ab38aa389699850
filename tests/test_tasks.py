"""lm-eval on a local task file."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from core.errors import UserError
from core.servers import Servers
from core.tracking import Log
from eval import compare
from eval.checkpoint import lm_eval_models, lm_eval_tasks
from eval.checkpoint.lm_eval_values import direction, scalars
from eval.comparing import metrics
from eval.config import TasksConfig
from eval.scoring import of_checkpoint
from tests import tiny
from tests.eval_files import CHATML, LLAMA3
from tests.scripted_server import ScriptedServer, completion


def test_a_task_files_data_is_found_beside_it_wherever_the_process_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    task = lm_eval_tasks.read_task(str(lm_eval_tasks.SHIPPED["everyday-science"]))
    assert isinstance(task, dict)
    data = Path(task["dataset_kwargs"]["data_files"]["test"])
    assert data.is_absolute() and len(data.read_text().splitlines()) == 32


def test_the_shipped_questions_have_four_different_choices_and_an_answer_among_them() -> None:
    lines = [
        json.loads(line)
        for line in (Path(lm_eval_tasks.__file__).parent / "data" / "everyday-science.jsonl")
        .read_text()
        .splitlines()
    ]
    assert all(len(set(q["choices"])) == 4 and q["answer"] in range(4) for q in lines)
    assert len({q["question"] for q in lines}) == len(lines)


def test_a_task_file_with_functions_goes_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("task: mine\nprocess_docs: !function utils.process\n")
    assert lm_eval_tasks.read_task(str(path)) == "mine"
    assert lm_eval_tasks.read_task("arc_challenge") == "arc_challenge"


def test_lm_eval_knows_every_task_that_our_names_stand_for() -> None:
    """Data cannot be had offline, so this goes to task resolution: names, kinds and the filters
    that gsm8k is scored by."""
    import lm_eval.tasks
    from lm_eval.tasks import TaskManager

    root = Path(str(lm_eval.tasks.__file__)).parent
    folders = (
        "arc",
        "hellaswag",
        "truthfulqa",
        "mmlu",
        "winogrande",
        "gsm8k",
        "ifeval",
        "mmlu-redux",
    )
    index = TaskManager(
        include_defaults=False, include_path=[str(root / f) for f in folders]
    ).task_index
    entries = [entry for named in lm_eval_tasks.LISTS.values() for entry in named]
    for entry in entries:
        (kind, name), *_ = ((k, entry[k]) for k in ("task", "group") if k in entry)
        assert index[name].kind.name == kind.upper()
    assert index["ifeval"].kind.name == "TASK"
    assert {
        f["name"]
        for f in yaml.safe_load((root / "gsm8k" / "gsm8k.yaml").read_text())["filter_list"]
    } == {"strict-match", "flexible-extract"}


def test_the_leaderboards_tasks_have_the_papers_shots() -> None:
    shots = {
        str(e.get("task") or e.get("group")): e["num_fewshot"]
        for e in lm_eval_tasks.LISTS["open-llm-leaderboard-v1"]
    }
    assert shots == {
        "arc_challenge": 25,
        "hellaswag": 10,
        "truthfulqa_mc2": 0,
        "mmlu": 5,
        "winogrande": 5,
        "gsm8k": 5,
    }


def test_entries_with_settings_of_their_own_reach_lm_evals_tasks_and_groups(tmp_path: Path) -> None:
    from lm_eval.tasks import TaskManager

    data = tmp_path / "d.jsonl"
    data.write_text('{"q": "1 + 1 =", "a": "2"}\n{"q": "2 + 2 =", "a": "4"}\n')
    for name in ("one", "two", "three"):
        (tmp_path / f"{name}.yaml").write_text(
            f"task: {name}\ndataset_path: json\n"
            f"dataset_kwargs: {{data_files: {{test: {data}}}}}\ntest_split: test\n"
            "output_type: generate_until\ndoc_to_text: '{{q}}'\ndoc_to_target: '{{a}}'\n"
            "num_fewshot: 1\nmetric_list: [{metric: exact_match}]\n"
        )
    (tmp_path / "both.yaml").write_text(
        "group: both\ntask: [two, three]\n"
        "aggregate_metric_list: [{metric: exact_match, weight_by_size: true}]\n"
    )
    wanted = lm_eval_tasks.requested(lm_eval_tasks.expand(["one"]), tmp_path)
    assert wanted == ["one"]
    wanted = lm_eval_tasks.requested(
        lm_eval_tasks.expand(
            [{"task": "one", "num_fewshot": 25}, {"group": "both", "num_fewshot": 5}]
        ),
        tmp_path,
    )
    manager = TaskManager(include_defaults=False, include_path=[str(tmp_path)])
    loaded = manager.load(wanted)["tasks"]
    assert {n: t.get_config("num_fewshot") for n, t in loaded.items()} == {
        "one": 25,
        "two": 5,
        "three": 5,
    }


def test_the_subjects_of_a_group_that_lm_eval_scores_are_one_task_with_all_its_items() -> None:
    rows = [
        {"task": t, "metric": "acc", "item": "0", "value": 1.0} for t in ("anatomy", "law", "gsm8k")
    ]
    found = {
        "groups": {"mmlu": {}, "mmlu_stem": {}},
        "group_subtasks": {
            "mmlu": ["mmlu_stem", "law"],
            "mmlu_stem": ["anatomy"],
            "plain": ["gsm8k"],
        },
    }
    named = [
        (row["task"], row["item"], row["cluster"])
        for row in lm_eval_tasks.pooled(rows, found, ["mmlu", "plain"])
    ]
    assert named == [
        ("mmlu", "anatomy/0", "anatomy/0"),
        ("mmlu", "law/0", "law/0"),
        ("gsm8k", "0", "0"),
    ], "two subjects are too few to be clusters"


def test_a_group_of_many_subjects_is_clustered_by_subject(tmp_path: Path) -> None:
    """MMLU's questions share a subject: its error is that of 12 subjects, not of 48 questions."""
    subjects = [f"subject_{i:02d}" for i in range(12)]
    rows = [
        {"task": name, "metric": "acc", "item": str(i), "value": float(n % 2)}
        for n, name in enumerate(subjects)
        for i in range(4)
    ]
    found = {"groups": {"mmlu": {}}, "group_subtasks": {"mmlu": subjects}}
    merged = lm_eval_tasks.pooled(rows, found, ["mmlu"])
    assert {row["cluster"] for row in merged} == set(subjects)
    (tmp_path / "tasks").mkdir()
    outcomes = pl.DataFrame(merged, schema=lm_eval_tasks.OUTCOMES)
    outcomes.write_parquet(tmp_path / "tasks" / "outcomes.parquet")
    of_checkpoint.run({"tasks": tmp_path / "tasks"}, tmp_path / "scores")
    figure = json.loads((tmp_path / "scores" / "summary.json").read_text())["tasks"]["mmlu acc"]
    assert figure["n"] == 48 and figure["standard_error"] == pytest.approx(0.5 / 11**0.5)
    scores = pl.read_parquet(tmp_path / "scores" / "scores.parquet")
    assert scores["cluster"].n_unique() == 12


def test_an_infinite_outcome_is_counted_as_one_without_a_value(tmp_path: Path) -> None:
    (tmp_path / "tasks").mkdir()
    rows = [
        {"task": "t", "metric": "bits", "item": str(i), "cluster": str(i), "value": value}
        for i, value in enumerate([1.0, 2.0, math.inf, math.nan])
    ]
    outcomes = pl.DataFrame(rows, schema=lm_eval_tasks.OUTCOMES)
    outcomes.write_parquet(tmp_path / "tasks" / "outcomes.parquet")
    of_checkpoint.run({"tasks": tmp_path / "tasks"}, tmp_path / "scores")
    figure = json.loads((tmp_path / "scores" / "summary.json").read_text())["tasks"]["t bits"]
    assert (figure["value"], figure["n"], figure["unjudged"]) == (1.5, 2, 2)
    scores = pl.read_parquet(tmp_path / "scores" / "scores.parquet")
    assert scores["reason"].to_list()[2:] == ["infinite", "no number"]


def test_a_mapping_without_a_name_is_refused() -> None:
    with pytest.raises(ValueError, match="needs `task` or `group`"):
        TasksConfig(tasks=({"num_fewshot": 5},))


def test_outcomes_keep_every_scalar_metric_of_an_item() -> None:
    sample = {
        "doc_id": 3,
        "filter": "strict",
        "metrics": ["acc", "f1", "list"],
        "acc": True,
        "f1": 0.5,
        "list": [1],
    }
    assert list(scalars(sample)) == [("acc,strict", 1.0), ("f1,strict", 0.5)]


def test_a_sample_of_perplexity_is_a_log_likelihood_and_counts_by_its_negative() -> None:
    """Under its own name the worse model would win: of a log-likelihood more is better."""
    sample = {"doc_id": 0, "filter": "none", "metrics": ["perplexity"], "perplexity": -2.5}
    assert list(scalars(sample)) == [("log_perplexity", 2.5)]
    assert metrics.lower_is_better("task log_perplexity")


def test_which_way_a_metric_is_better_comes_from_lm_eval_to_the_verdict(tmp_path: Path) -> None:
    assert direction({"t": {"wer2": False}}, "t", "wer2,none") is False
    assert direction({}, "t", "wer2") is None
    folders = {}
    for arm, value in (("good", 0.1), ("bad", 0.9)):
        rows = [
            {
                "task": "t",
                "metric": "wer2",
                "item": str(i),
                "cluster": str(i),
                "value": value + i % 2 / 10,
                "higher_is_better": False,
            }
            for i in range(50)
        ]
        tasks = tmp_path / arm / "tasks"
        tasks.mkdir(parents=True)
        pl.DataFrame(rows, schema=lm_eval_tasks.OUTCOMES).write_parquet(tasks / "outcomes.parquet")
        folders[arm] = tmp_path / arm / "scores"
        of_checkpoint.run({"tasks": tasks}, folders[arm])
    compare.run(folders, tmp_path / "out", metrics.Declared("tasks"))
    comparison = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert comparison["differences"][0]["verdict"] == "good is better"


def test_a_missing_task_file_and_a_setting_of_ours_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere.yaml does not exist"):
        lm_eval_tasks.run(
            TasksConfig(tasks=(str(tmp_path / "nowhere.yaml"),)),
            {},
            tmp_path / "out",
            model="x",
            servers=Servers(Log(), tmp_path),
            log=Log(),
        )
    with pytest.raises(ValueError, match="log_samples is set by the harness"):
        TasksConfig(evaluate={"log_samples": False})


@pytest.mark.stack
def test_lm_eval_scores_a_checkpoint_and_keeps_each_items_outcome(tmp_path: Path) -> None:
    model = tiny.llama(tmp_path / "model")
    counts = lm_eval_tasks.run(
        TasksConfig(evaluate={"limit": 6, "batch_size": 2}),
        {},
        tmp_path / "out",
        model=str(model),
        servers=Servers(Log(), tmp_path),
        log=Log(),
    )
    frame = pl.read_parquet(tmp_path / "out" / "outcomes.parquet")
    assert sorted((tmp_path / "out").iterdir()) == [
        tmp_path / "out" / "outcomes.parquet",
        tmp_path / "out" / "protocol.json",
        tmp_path / "out" / "results.json",
    ]
    assert frame["metric"].value_counts().sort("metric").rows() == [("acc", 6), ("acc_norm", 6)]
    assert counts["results"]["everyday-science"]["acc,none"] == pytest.approx(
        frame.filter(pl.col("metric") == "acc")["value"].mean()
    )
    of_checkpoint.run({"tasks": tmp_path / "out"}, tmp_path / "scores")
    summary = json.loads((tmp_path / "scores" / "summary.json").read_text())
    assert summary["tasks"]["everyday-science acc"]["n"] == 6


@pytest.mark.slow
def test_what_lm_eval_says_when_it_fails_is_one_sentence(tmp_path: Path) -> None:
    model = tiny.llama(tmp_path / "model")
    with pytest.raises(UserError, match=r"lm-eval failed on no_such_task"):
        lm_eval_tasks.run(
            TasksConfig(tasks=("no_such_task",)),
            {},
            tmp_path / "bad",
            model=str(model),
            servers=Servers(Log(), tmp_path),
            log=Log(),
        )


@pytest.mark.parametrize(
    ("visible", "settings", "backend"),
    [
        ("0,1,2,3", {}, ("vllm", {"dtype": "auto", "data_parallel_size": 4})),
        ("0,1,2,3", {"backend": "hf"}, ("hf", {})),
        ("0,1,2,3", {"model_args": {"dtype": "float32"}}, ("hf", {"dtype": "float32"})),
        ("", {}, ("hf", {})),
    ],
)
def test_lm_eval_uses_every_gpu_unless_the_recipe_says_otherwise(
    monkeypatch: pytest.MonkeyPatch, visible: str, settings: dict[str, Any], backend: Any
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(lm_eval_models, "_installed", lambda package: True)
    assert lm_eval_models.backend_of(TasksConfig(**settings)) == backend


def bare_model(folder: Path, family: str = "chatml") -> Path:
    """A model's folder with tokenizer and configuration only, where it holds no more yet."""
    tiny.tokenizer(family).save_pretrained(folder)
    if not (folder / "config.json").exists():
        (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
        (folder / "model.safetensors").touch()
    return folder


def chat_model(folder: Path, family: str = "chatml") -> Path:
    """A model's folder (of tokenizer and configuration only, where it is new) with a chat template,
    and an end of turn that only generation_config.json names."""
    bare_model(folder, family)
    words = tiny.tokenizer(family)
    words.chat_template = CHATML if family == "chatml" else LLAMA3
    words.save_pretrained(folder)
    ends = words.convert_tokens_to_ids(tiny.SPECIAL[family][2])
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [ends]}))
    return folder


def how(config: TasksConfig, model: Path, logs: Path) -> lm_eval_models.Reached:
    with Servers(Log(), logs) as servers, lm_eval_models.reached(config, str(model), servers) as it:
        return it


def test_a_checkpoint_with_a_chat_template_is_asked_by_it_unless_the_recipe_says_otherwise(
    tmp_path: Path,
) -> None:
    bare, chat = bare_model(tmp_path / "bare"), chat_model(tmp_path / "chat")
    assert how(TasksConfig(), bare, tmp_path).evaluate["apply_chat_template"] is False
    assert how(TasksConfig(), chat, tmp_path).evaluate["apply_chat_template"] is True
    plain = TasksConfig(evaluate={"apply_chat_template": False, "limit": 3})
    assert how(plain, chat, tmp_path).evaluate == {"apply_chat_template": False, "limit": 3}
    named = TasksConfig(backend="hf", model_args={"pretrained": str(chat)})
    assert how(named, bare, tmp_path).evaluate["apply_chat_template"] is True


def test_local_completions_ask_our_server_with_its_key_length_and_ends_of_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = chat_model(tmp_path / "chat", "llama3")
    monkeypatch.setenv("TASKS_KEY", "secret-1")
    with ScriptedServer(lambda path, body: completion("x"), key="secret-1") as server:
        own = {"urls": [server.url], "api_key_env": "TASKS_KEY", "max_in_flight": 7}
        config = TasksConfig(backend="local-completions", server=own)
        found = how(config, model, tmp_path)
        plain = config.model_copy(update={"evaluate": {"apply_chat_template": False}})
        without = how(plain, model, tmp_path)
    assert found.model_args["base_url"] == f"{server.url}/v1/completions"
    assert found.model_args["tokenizer"] == str(model) and found.model_args["num_concurrent"] == 7
    assert found.env == {"OPENAI_API_KEY": "secret-1"}
    assert "secret-1" not in json.dumps([found.model_args, found.evaluate])
    ends = {tiny.tokenizer("llama3").convert_tokens_to_ids(t) for t in tiny.SPECIAL["llama3"][1:3]}
    assert set(found.evaluate["gen_kwargs"]["stop_token_ids"]) == ends
    # Llama 3's template writes the BOS; without it the tokenizer has to.
    assert (found.model_args["add_bos_token"], without.model_args["add_bos_token"]) == (False, True)


@pytest.mark.stack
@pytest.mark.slow
def test_a_server_of_ours_gives_lm_eval_the_outcomes_of_the_model_in_process(
    tmp_path: Path,
) -> None:
    pytest.importorskip("tenacity", reason="lm-eval's servers need lm-eval[api]")
    model = chat_model(tiny.llama(tmp_path / "chat", "llama3"), "llama3")
    outcomes = {}
    with Servers(Log(), tmp_path / "logs") as servers:
        for backend in ("hf", "local-completions"):
            settings: dict[str, Any] = {"backend": backend, "evaluate": {"limit": 12}}
            if backend != "hf":
                settings["server"] = {"args": {"max_model_len": 512, "dtype": "float32"}}
            out = tmp_path / backend
            counts = lm_eval_tasks.run(
                TasksConfig(**settings), {}, out, model=str(model), servers=servers, log=Log()
            )
            assert counts["chat_template"] is True
            outcomes[backend] = pl.read_parquet(out / "outcomes.parquet")
    assert outcomes["hf"].height == 24
    assert outcomes["local-completions"].equals(outcomes["hf"])
