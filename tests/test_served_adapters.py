"""LoRA trainings of one base whose adapters one server of it holds (`eval.lora: served`)."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from core import models
from core.errors import UserError
from core.serving import adapters
from core.serving.vllm_server import command_line
from core.store import Counts, Result
from eval.checkpoint import heldout_loss, lm_eval_models
from eval.checkpoint.answers import stop_ids
from eval.config import EvalConfig, TasksConfig
from recipes import schema
from recipes.checks import questions
from recipes.stages import graph
from recipes.stages.evaluating import answering
from recipes.stages.evaluating.runs import OverBase, Run, evaluated
from recipes.stages.walk import Arms
from recipes.verbs.planning import plan as planning
from recipes.verbs.planning.trainings import Hardware
from tests import small_recipe, tiny
from tests.scripted_server import ScriptedServer
from tests.waiting import exit_code, until
from train import chat, launch
from train.config import TrainConfig
from train.export import ADAPTER, export

ROOT = Path(__file__).parents[1]
LORA = {"r": 4, "lora_alpha": 32, "target_modules": "all-linear"}
RUNS = ["good/0", "good/1", "random/0", "random/1"]


def train(config: TrainConfig, *_: Any, base: str, seed: int, **__: Any) -> Counts:
    """In place of a training: an adapter with weights of its own, exported as every training's."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    inputs, out = _[0], _[1]
    out.mkdir(parents=True, exist_ok=True)
    (out / "train.json").write_text(json.dumps({"base": base}))
    torch.manual_seed(int(inputs["tokens"].name[:8], 16) + seed)
    adapter = LoraConfig(**{"init_lora_weights": False, **(config.lora or {})})
    made = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter)
    made.save_pretrained(out / "final")
    template = chat.choose(config, models.tokenizer(base))
    where = out / "checkpoint"
    dtype = config.export_dtype
    export(out / "final", where, base=base, revision=None, chat=template, dtype=dtype)
    shutil.rmtree(out / "final")
    shutil.rmtree(out / "merged")
    return {"steps": 1, "last_loss": 0.5}


def recipe(folder: Path, url: str, **changes: Any) -> schema.Loaded:
    """Two arms and two seeds of one base, which has no chat template of its own."""
    llama = folder / "llama"
    if not llama.is_dir():
        small_recipe.model(llama)
        tiny.llama(folder / "base")
    arms = {name: {"choose": "hash_order", "budget": {"rows": 10}} for name in ("good", "random")}
    arms["good"]["choose"] = "longest"
    settings: dict[str, Any] = {
        "train__base": str(folder / "base"),
        "train__lora": LORA,
        "train__seeds": [0, 1],
        "train__export_dtype": "float32",
        "arms": arms,
        "eval__lora": "served",
        "eval__alpaca": None,
        "eval__arena": None,
        "eval__judge": None,
        "eval__checks": {"limit": 6},
    }
    path = small_recipe.recipe(folder, llama, url, train=True, **{**settings, **changes})
    return schema.load(path)


URL = "http://127.0.0.1:1"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="module")
def trained(folder: Path) -> Iterator[tuple[Path, ScriptedServer]]:
    """A folder whose store holds the four trainings, and the server that is asked."""
    with ScriptedServer(small_recipe.answer) as server, pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "run", train)
        graph.run(recipe(folder, server.url), "train")
        yield folder, server


@pytest.fixture(scope="module")
def answered(trained: tuple[Path, ScriptedServer]) -> tuple[graph.Outcome, list[Any]]:
    """A run up to the answers and losses, and what was asked."""
    folder, server = trained
    before = len(server.requests)
    outcome = graph.run(recipe(folder, server.url), "heldout")
    return outcome, server.requests[before:]


def over(outcome: graph.Outcome) -> OverBase:
    trainings = {run: outcome.results[f"train/{run}"] for run in RUNS}
    return OverBase(models.Model("base", "base", "r"), trainings)


def test_every_training_is_asked_by_the_name_of_its_adapter(
    answered: tuple[graph.Outcome, list[Any]],
) -> None:
    _, requests = answered
    prompts = [r.body["model"] for r in requests if "stop_token_ids" in r.body]
    losses = [r.body["model"] for r in requests if r.body.get("prompt_logprobs") is not None]
    assert prompts == sorted(prompts) and set(prompts) == set(losses) == set(RUNS)
    assert {prompts.count(run) for run in RUNS} == {6}


def test_prompts_are_in_the_checkpoints_chat_template_and_end_at_its_stop_tokens(
    answered: tuple[graph.Outcome, list[Any]],
) -> None:
    outcome, requests = answered
    checkpoint = outcome.results["train/good/0"].path / "checkpoint"
    own = models.tokenizer(str(checkpoint))
    asked = next(r.body for r in requests if "stop_token_ids" in r.body)
    text = own.decode(asked["prompt"])
    assert "<|im_start|>user" in text and text.endswith("<|im_start|>assistant\n")
    stops = {own.convert_tokens_to_ids(token) for token in ("<|im_end|>", "<|endoftext|>")}
    assert set(asked["stop_token_ids"]) == stops


def test_answers_by_merged_weights_are_other_results_and_both_are_kept(
    trained: tuple[Path, ScriptedServer], answered: tuple[graph.Outcome, list[Any]]
) -> None:
    folder, server = trained
    merged = graph.plan(recipe(folder, server.url, eval__lora="merged"))
    state = {step.name: step.state for step in merged.steps}
    asked = [f"{kind}/{run}" for kind in ("answers", "heldout") for run in RUNS]
    assert {state[name] for name in asked} == {"run"}
    cause = next(step.why for step in merged.steps if step.name == "answers/good/0")
    assert "lora: served -> unset" in cause
    served = graph.plan(recipe(folder, server.url))
    assert {step.state for step in served.steps if step.name in asked} == {"reuse"}


def test_a_plan_says_that_one_server_answers_for_all(
    trained: tuple[Path, ScriptedServer],
) -> None:
    folder, server = trained
    loaded = recipe(folder, server.url)
    outcome = graph.plan(loaded)
    told = planning.summary(loaded.recipe, outcome, [])
    assert told["served"]["trainings"] == RUNS and told["served"]["servers"] == 1
    (line,) = [line for line in planning.lines(told, Hardware()) if "eval.lora" in line]
    assert line.startswith(f"one server of {folder / 'base'} answers for 4 trainings by their ad")
    merged = recipe(folder, server.url, eval__lora="merged")
    assert planning.summary(merged.recipe, outcome, [])["served"]["proposed"]
    odd = recipe(folder, server.url, eval__lora="merged", train__lora={**LORA, "use_dora": True})
    assert planning.summary(odd.recipe, outcome, [])["served"] is None, "vLLM would refuse it"
    apart = recipe(folder, server.url, eval__heldout={"server": {"urls": [server.url]}})
    told = planning.summary(apart.recipe, outcome, [])
    assert "2 servers of" in "".join(planning.lines(told, Hardware()))


def test_all_trainings_have_one_server_with_all_adapters(
    trained: tuple[Path, ScriptedServer],
) -> None:
    outcome = graph.plan(recipe(trained[0], trained[1].url))
    (trained[0] / "base").mkdir(exist_ok=True)
    group = OverBase(models.resolve(str(trained[0] / "base")), over(outcome).trainings)
    block = {"args": {"dtype": "float32", "max_lora_rank": 64}, "max_in_flight": 3}
    specs = [group.adapted(run).spec(block) for run in RUNS]
    assert specs[0] == specs[1] == specs[2] == specs[3]
    said = specs[0].args
    assert (said["enable_lora"], said["max_lora_rank"]) == (True, 64), "the recipe's own is taken"
    assert (said["dtype"], specs[0].max_in_flight) == ("float32", 3)
    linear = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    assert said["lora_target_modules"] == linear, "the head is not wrapped"
    assert group.adapted("good/0").spec({}).args["max_lora_rank"] == 8
    loaded = {each["name"]: Path(each["path"]) for each in said["lora_modules"]}
    assert [*loaded] == RUNS and all(
        (path / "adapter_model.safetensors").is_file() for path in loaded.values()
    )
    assert specs[0].model == str(trained[0] / "base") and said["tokenizer"] == str(
        loaded["good/0"].parent
    )
    line = command_line(said)
    at = line.index("--lora-modules")
    assert json.loads(line[at + 1]) == {"name": "good/0", "path": str(loaded["good/0"])}


@pytest.mark.parametrize(
    ("lora", "sentence"),
    [
        ({"modules_to_save": ["lm_head"]}, "train.lora.modules_to_save: vLLM serves no adapter"),
        ({"use_dora": True}, "train.lora.use_dora: vLLM serves no adapter"),
        ({"trainable_token_indices": [1]}, "train.lora.trainable_token_indices: vLLM serves no"),
        ({"bias": "all"}, "train.lora.bias: vLLM serves no trained biases"),
        ({"init_lora_weights": "pissa"}, "train.lora.init_lora_weights: pissa changes the base's"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "adapted embeddings (embed_tokens)"),
        ({"r": 1024}, "train.lora.r: the rank 1024 is above vLLM's highest, 512"),
        ({"r": 8, "rank_pattern": {"q_proj": 600}}, "train.lora.r: the rank 600 is above"),
    ],
)
def test_an_adapter_that_no_server_could_hold_is_refused_before_anything_is_trained(
    folder: Path, lora: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UserError, match=re.escape(sentence)) as refused:
        recipe(folder, URL, train__lora={**LORA, **lora})
    assert str(refused.value).endswith("write `eval.lora: merged`")
    recipe(folder, URL, train__lora={**LORA, **lora}, eval__lora="merged")


def test_the_servers_own_max_lora_rank_counts(folder: Path) -> None:
    answers = {"server": {"args": {"max_lora_rank": 16}}}
    with pytest.raises(UserError, match="the rank 32 is above the server's own max_lora_rank, 16"):
        recipe(folder, URL, train__lora={**LORA, "r": 32}, eval__answers=answers)
    checks = {"answers": {"server": {"args": {"max_lora_rank": 64}}}}
    with pytest.raises(UserError, match="the rank 32 is above the server's own max_lora_rank, 16"):
        changes = {"eval__answers": answers, "eval__checks": checks}
        recipe(folder, URL, train__lora={**LORA, "r": 32}, **changes)


@pytest.mark.parametrize(("rank", "most"), [(1, 8), (8, 8), (9, 16), (320, 320), (512, 512)])
def test_a_server_takes_ranks_up_to_the_next_that_vllm_knows(rank: int, most: int) -> None:
    assert adapters.arguments(rank) == {"enable_lora": True, "max_lora_rank": most}
    adapters.check({"r": rank}, most)


def test_plain_arguments_are_served_and_a_recipe_without_adapters_has_none_to_serve(
    folder: Path,
) -> None:
    plain = {**LORA, "use_rslora": True, "lora_dropout": 0.1, "init_lora_weights": "gaussian"}
    recipe(folder, URL, train__lora={**plain, "use_dora": False})
    with pytest.raises(UserError, match=r"eval.lora: `served` is for trainings with `train.lora`"):
        recipe(folder, URL, train__lora=None)


def copied(outcome: graph.Outcome, folder: Path) -> tuple[OverBase, Path]:
    """A training's result as a copy, whose adapter may be changed."""
    shutil.copytree(outcome.results["train/good/0"].path, folder / "result")
    made = Result(folder / "result", {"digest": "d"})
    base = models.resolve(json.loads((folder / "result" / "train.json").read_text())["base"])
    return OverBase(base, {"good/0": made}), folder / "result" / "checkpoint" / ADAPTER


def test_an_adapter_with_trained_embeddings_beside_it_is_not_served(
    answered: tuple[graph.Outcome, list[Any]], tmp_path: Path
) -> None:
    """vLLM passes over such weights without a word."""
    from safetensors.torch import load_file, save_file

    group, adapter = copied(answered[0], tmp_path)
    weights = load_file(adapter / "adapter_model.safetensors")
    weights["base_model.model.model.embed_tokens.weight"] = weights.popitem()[1]
    save_file(weights, adapter / "adapter_model.safetensors")
    with pytest.raises(UserError, match=r"train/good/0: beside .*embed_tokens.weight itself"):
        group.adapted("good/0")


def test_an_adapted_head_is_not_served(
    answered: tuple[graph.Outcome, list[Any]], tmp_path: Path
) -> None:
    """A pattern of `target_modules` may name it."""
    from safetensors.torch import load_file, save_file

    group, adapter = copied(answered[0], tmp_path)
    weights = load_file(adapter / "adapter_model.safetensors")
    weights["base_model.model.lm_head.lora_A.weight"] = weights.popitem()[1]
    save_file(weights, adapter / "adapter_model.safetensors")
    with pytest.raises(UserError, match="train/good/0: it adapts lm_head, which vLLM does not"):
        group.adapted("good/0")


def test_a_checkpoint_without_an_adapter_in_safetensors_is_not_served(
    answered: tuple[graph.Outcome, list[Any]], tmp_path: Path
) -> None:
    """vLLM would load a pickled one in its place."""
    group, adapter = copied(answered[0], tmp_path)
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(UserError, match=r"keeps no adapter in safetensors .* `eval.lora: merged`"):
        group.adapted("good/0")
    shutil.rmtree(adapter)
    with pytest.raises(UserError, match="keeps no adapter in safetensors"):
        group.adapted("good/0")


def test_finished_models_and_what_goes_on_by_dpo_have_servers_of_their_own(
    folder: Path,
) -> None:
    llama = {"model": str(folder / "llama")}
    arms = {
        "good": {"choose": "longest", "budget": {"rows": 10}},
        "aligned": {"dpo": "good"},
        "untuned": llama,
    }
    preferences = {"reward": {**llama, "server": {"urls": [URL]}}}
    loaded = recipe(
        folder / "dpo", URL, arms=arms, synth__preferences=preferences, dpo={"lora": LORA}
    )
    names = ["good/0", "good/1", "untuned", "aligned/0"]
    found = evaluated(loaded.recipe, Arms.of(loaded.recipe), dict.fromkeys(names))
    assert [run.name for run in found] == ["good/0", "good/1", "aligned/0", "untuned"]
    assert [run.over is not None for run in found] == [True, True, False, False]


def test_what_one_server_answers_for_is_asked_question_by_question() -> None:
    """Another question may have a server of its own, and then each is started once."""
    group = OverBase(models.Model("base", "base", "r"), {})
    runs = [Run("a/0", None, group), Run("b/0", None, group), Run("c", None)]
    asked = answering.questions(EvalConfig(), {}, {"heldout": None, "heldout-foreign": None})
    turns = [(run.name, question.part) for run, question in answering.in_turn(runs, asked)]
    first, second = "heldout", "heldout-foreign"
    assert turns == [
        *(("a/0", first), ("b/0", first), ("a/0", second), ("b/0", second)),
        *(("c", first), ("c", second)),
    ]


def test_lm_eval_asks_for_the_adapter_with_the_checkpoints_tokenizer(
    trained: tuple[Path, ScriptedServer], answered: tuple[graph.Outcome, list[Any]], servers: Any
) -> None:
    group = OverBase(models.resolve(str(trained[0] / "base")), over(answered[0]).trainings)
    asked = group.adapted("random/1")
    config = TasksConfig(backend="local-completions", server={"urls": [trained[1].url]})
    with lm_eval_models.reached(config, asked, servers) as how:
        assert how.model_args["model"] == "random/1"
        assert how.model_args["tokenizer"] == asked.checkpoint
        assert how.evaluate["apply_chat_template"] is True
    # its own process loads the merged weights
    with lm_eval_models.reached(TasksConfig(backend="hf"), asked, servers) as how:
        assert how.model_args["pretrained"] == asked.checkpoint


@pytest.mark.parametrize(("lora", "told"), [("served", True), ("merged", None)])
def test_vllm_judges_a_checkpoints_server_with_the_adapters_that_it_will_hold(
    folder: Path, lora: str, told: bool | None
) -> None:
    answers = {"server": {"args": {"max_model_len": 256}}}
    loaded = recipe(folder, URL, eval__answers=answers, eval__lora=lora)
    asked = questions.of_recipe(loaded.recipe, models.resolve)
    (args,) = (each.value["args"] for each in asked if each.kind == "engine")
    assert (args["max_model_len"], args.get("enable_lora")) == (256, told)


RUN = """
import sys
from recipes import schema
from recipes.stages import graph
graph.run(schema.load(sys.argv[1]), "heldout")
"""


def merged_answer(checkpoint: str, model: Any, prompt: str, tokens: int) -> str:
    """What a checkpoint's merged weights answer, greedily, by transformers."""
    import torch

    own = models.tokenizer(checkpoint)
    asked = [{"role": "user", "content": prompt}]
    ids = models.render(own, asked, add_generation_prompt=True)
    stops = stop_ids(checkpoint)
    given = {"max_new_tokens": tokens, "do_sample": False, "eos_token_id": stops}
    made = model.generate(torch.tensor([ids]), **given)[0][len(ids) :]
    return str(own.decode(made, skip_special_tokens=True))


def merged_loss(checkpoint: str, model: Any, messages: list[dict[str, str]]) -> float:
    """The loss of a checkpoint's merged weights on a conversation, by transformers."""
    import torch

    scored = heldout_loss.spans_of(models.tokenizer(checkpoint), messages, stop_ids(checkpoint))
    with torch.no_grad():
        logits = model(torch.tensor([scored.ids])).logits[0].double()
    chances = torch.log_softmax(logits, -1)
    counted = [at for start, end in scored.spans for at in range(start, end)]
    return -sum(float(chances[at - 1, scored.ids[at]]) for at in counted) / len(counted)


@pytest.mark.stack
@pytest.mark.slow
def test_a_real_server_with_adapters_answers_as_the_merged_weights_do_and_survives_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """In float32, greedy: the same texts, the same losses but for rounding; one server for both
    trainings; killed after the first answers, the next run keeps them."""
    args = {"max_model_len": 512, "dtype": "float32"}
    small = {"args": args, "env": {"VLLM_CPU_KVCACHE_SPACE": "1"}}
    own = {"sampling": {"temperature": 0, "max_tokens": 24}, "server": small}
    monkeypatch.setattr(launch, "run", train)
    with ScriptedServer(small_recipe.answer) as server:
        loaded = recipe(tmp_path, server.url, train__seeds=[0], eval__answers=own)
        graph.run(loaded, "train")
        command = [sys.executable, "-c", RUN, str(loaded.source.path)]
        with (tmp_path / "killed").open("wb") as said:
            killed = subprocess.Popen(command, cwd=ROOT, stdout=said, stderr=said)
        results = tmp_path / "store" / "results" / "answers"
        until(partial(made, results), "the first answers", killed)
        killed.kill()
        exit_code(killed)
        kept = made(results)
        capfd.readouterr()
        served = graph.run(loaded, "heldout")
        assert capfd.readouterr().err.count("starting vLLM for") == 1
    after = made(results)
    assert kept and kept.items() <= after.items()
    rows = pl.read_parquet(served.results["select/heldout"].path / "heldout.parquet")
    conversations = dict(rows.select("id", "messages").iter_rows())
    texts = set()
    for run in ("good/0", "random/0"):
        agrees(served, run, conversations)
        told = pl.read_parquet(served.results[f"answers/{run}"].path / "answers.parquet")
        texts.add(tuple(told["answer"]))
    assert len(texts) == 2, "each adapter has words of its own"


def agrees(served: graph.Outcome, run: str, conversations: dict[str, list[dict[str, str]]]) -> None:
    """Holds a run's answers and losses against its merged weights."""
    import torch
    from transformers import AutoModelForCausalLM

    checkpoint = str(served.results[f"train/{run}"].path / "checkpoint")
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    told = pl.read_parquet(served.results[f"answers/{run}"].path / "answers.parquet")
    assert told["status"].unique().to_list() == ["ok"]
    for prompt, text in told.select("prompt", "answer").iter_rows():
        # vLLM holds the bytes of an unfinished character back
        text = text.rstrip("\ufffd")
        assert text == merged_answer(checkpoint, model, prompt, 24).rstrip("\ufffd")
    losses = pl.read_parquet(served.results[f"heldout/{run}"].path / "losses.parquet")
    assert losses.height == len(conversations)
    for name, loss in losses.select("id", "loss").iter_rows():
        assert loss == pytest.approx(merged_loss(checkpoint, model, conversations[name]), abs=1e-4)


def made(results: Path) -> dict[str, int]:
    """When each finished result was."""
    found = results.glob("*/manifest.json")
    whole = [path for path in found if not path.parent.name.endswith(".partial")]
    return {path.parent.name: path.stat().st_mtime_ns for path in whole}
