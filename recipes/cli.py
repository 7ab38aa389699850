"""`magpie`: the groups of verbs, and what they have in common. Everything heavy is imported inside
the verb that needs it.

Exit codes: 0 done, 1 a run failed, 2 the request was wrong (one sentence says what, where and what
to do), 75 a training was asked to stop, is saved, and goes on with the same command.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import Annotated

from typer import Exit, Option, Typer

from recipes.commands import cluster, comparing, data, experiment, looking

app = Typer(
    help="Which data makes the better model, and how sure are you? "
    "Magpie synthesis, filters, SFT and evaluation from one recipe.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"magpie-harness {version('magpie-harness')}")
        raise Exit


def _flowing(text: str) -> str:
    """A docstring as the help prints it: its lines joined, so that a narrow terminal breaks them
    where it ends; its paragraphs stay apart, the first of which stands in the list of verbs."""
    return "\n\n".join(" ".join(one.split()) for one in text.split("\n\n"))


@app.callback()
def common(
    version: Annotated[
        bool, Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
    debug: Annotated[
        bool, Option("--debug", help="Show the traceback of an error; also after a verb.")
    ] = False,
) -> None:
    """What is said before any verb; `main` takes --debug out wherever it stands."""


for group in (experiment, data, comparing, looking, cluster):
    for command in group.app.registered_commands:
        assert command.callback is not None, "every verb is a function"
        command.help = _flowing(command.callback.__doc__ or "")
    app.add_typer(group.app)


def main() -> None:
    """Entry point: errors are sentences, `--debug` shows tracebacks."""
    debug = "--debug" in sys.argv
    if debug:
        sys.argv.remove("--debug")
    _quiet(debug)
    if _only_tokenizes(sys.argv[1:]):
        from core.models import without_torch

        without_torch()
    try:
        app()
    except KeyboardInterrupt:
        _end(130, "stopped; the same command continues where it was.")
    except SystemExit:
        raise
    except BaseException as error:  # polars' panics are no Exception
        from core.errors import Stopped, of_system

        if isinstance(error, Stopped):
            _end(Stopped.code, str(error))
        if debug:
            raise
        if (sentence := of_system(error)) is not None:
            _end(2, sentence)
        _end(1, f"{type(error).__name__}: {error} (a defect: --debug shows the traceback)")


QUIET = {
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_VERBOSITY": "error",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "DATASETS_VERBOSITY": "error",
    "TRANSFORMERS_VERBOSITY": "error",
    "TQDM_DISABLE": "1",
}
"""What keeps libraries' bars, retries and advice off the terminal, where nobody asked for them."""


def _quiet(debug: bool) -> None:
    """Let libraries say errors only; with `debug` all that they say by themselves."""
    if debug:
        return
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    # DeepSpeed sets its own level while it is imported, and then says which device it found.
    logging.getLogger("DeepSpeed").addFilter(lambda record: record.levelno >= logging.ERROR)


def _only_tokenizes(words: list[str]) -> bool:
    """Whether a command needs a tokenizer and no model: then torch, which takes seconds to import,
    is not imported."""
    if words[:1] == ["template"]:
        return True
    options = {word.partition("=")[0] for word in words}
    hidden_states = any("rds" in word for word in words)
    return (
        words[:1] == ["filter"]
        and "--tokens" in options
        and not ("--embedding" in options or hidden_states)
    )


def _end(code: int, sentence: str) -> None:
    from core.errors import shown

    print(f"magpie: {shown(sentence)}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
