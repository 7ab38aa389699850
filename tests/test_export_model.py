"""`magpie export --form model`: a checkpoint with its card, its base's licence texts and its
adapter, pushed to a hub on loopback."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from core.errors import UserError
from core.models import tokenizer
from core.store import Counts
from recipes import schema
from recipes.exchange import export_model
from recipes.exchange.export_data import Target
from recipes.stages import graph
from tests import small_recipe
from tests.loopback_hub import TOKEN, Hub
from tests.scripted_server import ScriptedServer
from tests.test_import_export import hub  # noqa: F401  # a fixture
from train import chat, launch
from train.config import TrainConfig
from train.export import export


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A recipe that trained an adapter: the training itself is left out, its export is real."""
    folder = tmp_path_factory.mktemp("made")
    llama = small_recipe.model(folder / "llama-3-tiny")
    (llama / "LICENSE").write_text("The licence's text.")
    (llama / "README.md").write_text("---\nlicense: llama3\n---\n")

    def run(config: TrainConfig, *_: Any, base: str, **__: Any) -> Counts:
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM

        out: Path = _[1]
        out.mkdir(parents=True, exist_ok=True)
        (out / "train.json").write_text(json.dumps({"base": base}))
        model = AutoModelForCausalLM.from_pretrained(base)
        get_peft_model(model, LoraConfig(r=2, task_type="CAUSAL_LM")).save_pretrained(
            folder / "saved"
        )
        export(
            folder / "saved",
            out / "checkpoint",
            base=base,
            revision=None,
            chat=chat.choose(config, tokenizer(base)),
            dtype="bfloat16",
        )
        return {"steps": 3, "last_loss": 0.5}

    with ScriptedServer(small_recipe.answer) as server, pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "run", run)
        path = small_recipe.recipe(folder, llama, server.url, train=True)
        graph.run(schema.load(path), "train")
        yield path


@pytest.fixture(scope="module")
def exported(made: Path) -> Path:
    out = made.parent / "exported"
    export_model.main(str(made), Target(out, "model"), arm="good", seed=0)
    return out


def front(folder: Path) -> dict[str, Any]:
    text = (folder / "README.md").read_text()
    told: dict[str, Any] = yaml.safe_load(text.split("---")[1])
    return told


def test_the_folder_holds_weights_tokenizer_adapter_and_the_licence_of_the_base(
    exported: Path,
) -> None:
    names = {path.relative_to(exported).as_posix() for path in exported.rglob("*")}
    assert {"model.safetensors", "config.json", "chat_template.jinja", "LICENSE"} <= names
    assert {"adapter/adapter_config.json", "adapter/adapter_model.safetensors"} <= names
    assert (exported / "LICENSE").read_text() == "The licence's text."


def test_the_adapter_names_its_base_as_the_recipe_does(made: Path, exported: Path) -> None:
    said = json.loads((exported / "adapter" / "adapter_config.json").read_text())
    train = schema.load(made).recipe.train
    assert train is not None and said["base_model_name_or_path"] == train.base


def test_the_card_has_a_licence_line_data_settings_and_content(made: Path, exported: Path) -> None:
    text = (exported / "README.md").read_text()
    result = graph.plan(schema.load(made)).results
    assert front(exported)["license"] == "llama3" and "sft" in front(exported)["tags"]
    assert "Built with Meta Llama 3" in text
    assert result["select/good"].digest in text and result["train/good/0"].digest in text
    assert "input_quality >= 'good'" in text and "learning_rate: 0.001" in text
    assert "None is known" in text and "| last loss | 0.5 |" in text


def test_the_card_tells_scores_with_their_intervals(made: Path, tmp_path: Path) -> None:
    trained = export_model.find(schema.load(made), "good", 0)
    metric = {"value": 0.25, "lower": 0.125, "upper": 0.5, "n": 48}
    (tmp_path / "summary.json").write_text(json.dumps({"alpaca": {"win_rate": metric}}))
    scored = export_model.Result(tmp_path, {"digest": "x"})
    known = export_model.Trained(
        trained.recipe, "good", 0, {**trained.results, "score/good/0": scored}
    )
    card = export_model.render(known, None, "")
    assert "| alpaca | win_rate | 0.25 (0.125 to 0.5), n 48 |" in card
    assert "**No licence is stated.**" in card


@pytest.mark.parametrize(
    ("base", "licence", "says"),
    [
        ("google/gemma-3-270m", "gemma", "https://ai.google.dev/gemma/terms"),
        ("meta-llama/Meta-Llama-3-8B", "llama3", "`Llama 3`"),
        ("meta-llama/Llama-3.1-8B", "llama3.1", "`Llama`"),
        ("embedded/SmolLM2-135M-Instruct", "apache-2.0", ""),
    ],
)
def test_the_terms_of_known_bases_are_said(base: str, licence: str, says: str) -> None:
    short, terms = export_model.terms_of(base)
    assert short == licence and says in terms


@pytest.mark.parametrize(
    ("arm", "seed", "sentence"),
    [
        (None, None, "--arm is needed"),
        ("goood", None, "no arm of that name is trained; did you mean 'good'"),
        ("untuned", None, "no arm of that name is trained"),
        ("good", 7, r"good/7 of recipe small is not trained; `magpie run .* --until train`"),
    ],
)
def test_what_is_not_trained_is_refused(
    made: Path, tmp_path: Path, arm: str | None, seed: int | None, sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        export_model.main(str(made), Target(tmp_path / "out", "model"), arm=arm, seed=seed)


def test_push_sends_weights_and_card_to_a_model_repository(
    hub: Hub,  # noqa: F811
    made: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    target = Target(None, "model", licence="apache-2.0", push="me/model", private=True)
    export_model.main(str(made), target, arm="good")
    sent = hub.repositories["me/model"]
    assert sent.kind == "models" and sent.private
    names = {"README.md", "model.safetensors", "adapter/adapter_model.safetensors"}
    assert names <= sent.files.keys() and len(hub.uploads) > 0, "weights are LFS files"
    assert TOKEN not in capsys.readouterr().out
