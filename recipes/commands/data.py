"""Data without a recipe: reading, measuring, filtering, answering, writing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from typer import Argument, Option, Typer

from recipes.commands.options import AsJson, told

app = Typer()

PANEL = "Make data"


@app.command(rich_help_panel=PANEL)
def filters(as_json: AsJson = False) -> None:
    """List filter strategies and reward models.

    Each strategy with its rule and source; each reward model with the threshold that belongs to it.
    """
    from recipes.verbs.filter import show_filters

    show_filters(as_json=as_json)


@app.command("filter", rich_help_panel=PANEL)
def filter_data(
    data: Annotated[
        str,
        Argument(
            help="Tagged rows: a file, a folder or a hub id; "
            "ours or published, Parquet or JSON Lines."
        ),
    ],
    strategy: Annotated[
        str | None,
        Option(help="A named strategy, or several with commas; `magpie filters` lists them."),
    ] = None,
    where: Annotated[
        str | None, Option(help="SQL predicate over columns, in place of the strategy's.")
    ] = None,
    choose: Annotated[
        str | None,
        Option(
            help="What to take first, in place of the strategy's: longest, top(COLUMN), diverse ..."
        ),
    ] = None,
    rows: Annotated[int | None, Option(min=1, help="How many rows to take.")] = None,
    tokens: Annotated[
        int | None, Option(min=1, help="How many tokens to take, as --student counts them.")
    ] = None,
    param: Annotated[
        list[str] | None, Option(help="A threshold of the strategy: tau1=-10 (repeatable).")
    ] = None,
    seed: Annotated[int, Option(min=0, help="Redraws what is chosen by hash_order.")] = 0,
    out: Annotated[
        Path | None,
        Option(
            help="Write the chosen rows to this .parquet or .jsonl "
            "(a folder for several strategies)."
        ),
    ] = None,
    form: Annotated[str, Option(help="same, 23, 25, sharegpt or messages.")] = "same",
    allow_short: Annotated[
        bool, Option("--allow-short", help="Take fewer rows where there are not enough.")
    ] = False,
    allow_cut: Annotated[
        bool | None,
        Option(
            "--allow-cut/--no-allow-cut",
            help="Whether answers that were cut off may be chosen; default: not by length.",
        ),
    ] = None,
    embedding: Annotated[
        str | None,
        Option(help="Model that embeds instructions and labels, for diverse, deita, qdit and mig."),
    ] = None,
    student: Annotated[
        str | None, Option(help="Model whose tokens a budget in tokens counts.")
    ] = None,
    chat_template_path: Annotated[
        str | None,
        Option(help="Its chat template where it has none: chatml, llama3, smollm2, or a file."),
    ] = None,
    recipe: Annotated[
        str | None, Option(help="A recipe whose own columns (`synth.tags.own`) may be named.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Filter any tagged data set.

    Prints what stopped how many rows, and writes the rows that were chosen.
    """
    from recipes.exchange import likeness
    from recipes.verbs import filter as filtering

    asked = filtering.Asked(
        strategy, param or (), rows, tokens, where, choose, allow_short, allow_cut
    )
    models = likeness.Models(embedding, student, chat_template_path, recipe)
    filtering.main(data, asked, filtering.Output(out, form, as_json), seed, models)


@app.command(rich_help_panel=PANEL)
def template(
    model: str,
    system_prompt: Annotated[
        str | None,
        Option(help="default, or a text ('' for none); absent: what suits the family."),
    ] = None,
    chat_template: Annotated[
        str | None, Option(help="A Jinja file in place of the tokenizer's chat template.")
    ] = None,
) -> None:
    """Print a model's pre-query template.

    Text, token ids, stop ids, what was derived or overridden, and what it was tested against.
    """
    from synth.chat.describe import described

    print(json.dumps(described(model, system_prompt, chat_template), indent=2, ensure_ascii=False))


Map = Annotated[
    list[str] | None,
    Option("--map", help="Our columns=the file's: instruction=question,response=answer."),
]
Join = Annotated[
    str | None,
    Option(help="Make the instruction of several columns: '{instruction}\\n\\n{input}'."),
]
Split = Annotated[str | None, Option(help="Split of a hub data set (default: train).")]
Config = Annotated[str | None, Option(help="Configuration of a hub data set.")]
Revision = Annotated[str | None, Option(help="Commit, branch or tag of a hub data set.")]


@app.command("import", rich_help_panel=PANEL)
def import_(
    source: Annotated[
        str,
        Argument(help="Anybody's data: file, folder or hub id (docs/files.md lists the layouts)."),
    ],
    out: Annotated[
        Path | None, Option(help="A .parquet or .jsonl file, or a folder of Parquet shards.")
    ] = None,
    limit: Annotated[int | None, Option(help="The first rows only.")] = None,
    form: Annotated[str, Option(help="magpie (ours), 23, 25, sharegpt or messages.")] = "magpie",
    map_: Map = None,
    join: Join = None,
    split: Split = None,
    config: Config = None,
    revision: Revision = None,
    as_: Annotated[
        str | None,
        Option("--as", help="Of preference data: sft (its chosen answers) or preferences (TRL's)."),
    ] = None,
    head: Annotated[
        int | None, Option(min=1, help="Show how the first rows would be read; write nothing.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Read anybody's data into our form, or any other.

    Failed rows and failed tags are counted by reason.
    """
    from recipes.exchange import import_data, reading

    how = reading.of(map_, join=join, split=split, config=config, revision=revision, as_=as_)
    wanted = import_data.Wanted(form, limit, head, as_)
    told(lambda: import_data.verb(source, out, wanted, how), as_json=as_json)


@app.command(rich_help_panel=PANEL)
def answer(
    data: Annotated[
        str, Argument(help="Prompts, with or without answers: file, folder or hub id.")
    ],
    model: Annotated[
        str, Option(help="Who answers: folder, hub id, embedded/NAME, or a name that --url knows.")
    ],
    out: Annotated[Path, Option(help="A .parquet or .jsonl file, or a folder of Parquet shards.")],
    answers: Annotated[
        str, Option(help="missing: answer the prompts that have no answer; all: every prompt anew.")
    ] = "missing",
    sampling: Annotated[
        list[str] | None,
        Option(help="A parameter, verbatim: temperature=0.7, max_tokens=1024 (repeatable)."),
    ] = None,
    url: Annotated[
        list[str] | None,
        Option(help="Servers that run already, up to but without /v1; none: vLLM is started."),
    ] = None,
    api_key_env: Annotated[
        str | None, Option(help="Environment variable that holds the key for --url.")
    ] = None,
    api: Annotated[
        str | None,
        Option(help="chat (default with --url: any OpenAI-compatible service) or completions."),
    ] = None,
    server: Annotated[
        list[str] | None,
        Option(help="As recipes have it: max_in_flight=64, args.max_model_len=8192 (repeatable)."),
    ] = None,
    prices: Annotated[
        str | None, Option(help="Of a million tokens read and generated: 0.15,0.60.")
    ] = None,
    budget: Annotated[
        float | None, Option(help="The most that it may cost in all, in the prices' currency.")
    ] = None,
    model_revision: Annotated[str | None, Option(help="Hub commit, branch or tag of it.")] = None,
    limit: Annotated[int | None, Option(help="The first rows only.")] = None,
    map_: Map = None,
    join: Join = None,
    split: Split = None,
    config: Config = None,
    revision: Revision = None,
    as_: Annotated[
        str | None, Option("--as", help="Of preference data: sft, which takes its prompts.")
    ] = None,
    form: Annotated[str, Option(help="magpie (ours), 23, 25, sharegpt or messages.")] = "magpie",
    store: Annotated[Path, Option(help="Folder that keeps every answer.")] = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Answer prompts with any model or service.

    The same command continues what was stopped, and buys nothing twice.
    """
    from recipes.exchange import reading
    from recipes.verbs import answer as answering

    how = reading.of(map_, join=join, split=split, config=config, revision=revision, as_=as_)
    rows = {"import": data, "answers": answers, "limit": limit, **how.spec()}
    wanted = answering.Wanted(rows, sampling or ())
    responder = answering.Responder(
        model, model_revision, url or (), api_key_env, api, server or (), prices, budget
    )
    output = answering.Output(out, form, store)
    told(lambda: answering.main(wanted, responder, output), as_json=as_json)


@app.command(rich_help_panel=PANEL)
def export(
    source: Annotated[str, Argument(help="Data (file, folder, hub id), or a finished recipe.")],
    form: Annotated[
        str,
        Option(
            help="23 or 25 (the columns of the published sets), sharegpt, messages or magpie; or "
            "model: the checkpoint of a recipe's arm, with a model card."
        ),
    ],
    out: Annotated[
        Path | None, Option(help="A file, or a folder that gets shards (or weights) and a card.")
    ] = None,
    arm: Annotated[
        str | None, Option(help="The recipe's arm; default: every answered row of the pool.")
    ] = None,
    seed: Annotated[
        int | None,
        Option(
            help="Which sample of an arm that is drawn by seed, or which training of it; "
            "default: the first."
        ),
    ] = None,
    licence: Annotated[
        str | None, Option("--license", help="The hub's name of the licence, for the card.")
    ] = None,
    push: Annotated[
        str | None,
        Option(help="Upload to this repository of the hub (write token in HF_TOKEN)."),
    ] = None,
    private: Annotated[bool, Option("--private", help="Make a new repository private.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write data or models in published forms, with a card.

    Data, or an arm of a recipe, with a dataset card; or what a recipe trained, with a model card.
    """
    from recipes.exchange import export_data, export_model

    target = export_data.Target(out, form, licence, push, private)
    verb = export_model.main if form == "model" else export_data.main
    told(lambda: verb(source, target, arm=arm, seed=seed), as_json=as_json)


@app.command(rich_help_panel=PANEL)
def tag(
    data: Annotated[
        str | None, Argument(help="Anybody's data: file, folder or hub id (as `magpie import`).")
    ] = None,
    columns: Annotated[
        str,
        Option(
            help="What to measure: quality, difficulty, category, pair_score, language, pii, "
            "minhash, neighbors, overlap, reward, ... or columns of theirs."
        ),
    ] = "",
    out: Annotated[Path | None, Option(help="A .parquet or .jsonl file.")] = None,
    recipe: Annotated[
        str | None, Option(help="Measure as the `synth.tags` of this recipe say.")
    ] = None,
    model: Annotated[str | None, Option(help="The tagger, where the recipe names none.")] = None,
    url: Annotated[
        list[str] | None, Option(help="A server of the tagger that runs already (repeatable).")
    ] = None,
    chat: Annotated[bool, Option("--chat", help="The tagger is a service that chats.")] = False,
    mode: Annotated[str | None, Option(help="label or explain, of the shipped LLM tags.")] = None,
    embedding: Annotated[str | None, Option(help="Model that embeds, for neighbors.")] = None,
    prompts: Annotated[
        Path | None, Option(help="JSON Lines of evaluation prompts, for overlap.")
    ] = None,
    store: Annotated[
        Path | None, Option(help="Where what is measured is kept; default: beside --out.")
    ] = None,
    form: Annotated[
        str, Option(help="same (the source's columns and ours), magpie, 23 or 25.")
    ] = "same",
    limit: Annotated[int | None, Option(min=1, help="The first rows only.")] = None,
    check: Annotated[
        str | None,
        Option(help="Compare the tagger with the labels that this file has; writes nothing."),
    ] = None,
    sample: Annotated[int, Option(min=1, help="How many rows --check compares.")] = 1000,
    map_: Map = None,
    join: Join = None,
    split: Split = None,
    config: Config = None,
    revision: Revision = None,
    as_: Annotated[str | None, Option("--as", help="Of preference data: sft.")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure any file by models or rules.

    Its rows are written with the new columns; what is there already is not measured again.
    """
    from recipes.exchange import reading, tag_data
    from recipes.verbs import tag as tagging

    how = reading.of(map_, join=join, split=split, config=config, revision=revision, as_=as_)
    tagger = tag_data.Tagger(
        recipe, model, url or (), chat, mode, embedding, str(prompts) if prompts else None
    )
    shown = tagging.Shown(limit, as_json)
    wanted = tagging.Wanted(out, store, form, check, sample)
    tagging.verb(data, columns, tagger, wanted, how, shown)
