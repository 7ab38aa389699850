"""The page of all benchmarks, and the mutations that tests are held against."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from benchmarks import __main__ as all_of_them
from benchmarks import mutant_runs, mutants
from benchmarks.__main__ import Benchmark
from synth.filters.verdicts import held_out

GROUPS = {"Start-up": (Benchmark("bench_help", ("--runs", "2")),)}
KEPT: dict[str, Any] = {
    "status": 0,
    "printed": "fastest 0.3 s",
    "said": [],
    "seconds": 1234.5,
    "cpu_seconds": 2.0,
    "load_before": 0.1,
    "machine": {
        "date": "2026-01-02",
        "cores": 2,
        "memory_gib": 24,
        "python": "3.11.7",
        "versions": {"torch": "2.13.0"},
    },
}


def _page(folder: Path, **changes: Any) -> str:
    (folder / "bench_help-runs-2.json").write_text(json.dumps(KEPT | changes))
    return all_of_them.page(GROUPS, folder)


def test_the_page_holds_what_was_printed_and_under_which_conditions(tmp_path: Path) -> None:
    page = _page(tmp_path)
    assert "How long does `magpie --help` take?" in page
    assert "```sh\npython benchmarks/bench_help.py --runs 2\n```" in page
    assert "```text\nfastest 0.3 s\n```" in page
    assert "2026-01-02; 2 cores, 24 GiB, no GPU; Python 3.11.7, torch 2.13.0; 1,234 s" in page


def test_a_bar_that_was_missed_stands_below_the_figure(tmp_path: Path) -> None:
    page = _page(tmp_path, status=1)
    assert page.index("fastest 0.3 s") < page.index("a bar that it holds itself to was missed")


def test_a_benchmark_without_a_figure_says_why(tmp_path: Path) -> None:
    page = _page(tmp_path, status=1, printed="", said=["No module named 'faiss'"])
    assert "No figure: No module named 'faiss'." in page


def test_a_benchmark_that_was_not_run_is_no_figure(tmp_path: Path) -> None:
    assert "Not measured yet." in all_of_them.page(GROUPS, tmp_path)


def test_every_benchmark_of_the_page_is_there() -> None:
    for benchmark in [one for group in all_of_them.GROUPS.values() for one in group]:
        assert all_of_them.question(benchmark.name).endswith(("?", ".", ":")), benchmark.name


@pytest.mark.parametrize("module", ["synth/filters/verdicts.py", "eval/comparing/differences.py"])
def test_every_mutation_is_another_module_that_compiles(module: str) -> None:
    found = mutants.mutants(module)
    sources = {ast.unparse(mutant.tree) for mutant in found}
    assert len(sources) == len(found) > 10
    for source in sources:
        compile(source, module, "exec")


def test_every_mutation_has_a_name_of_its_own() -> None:
    names = [mutant.name for module in mutants.TESTS for mutant in mutants.mutants(module)]
    assert len(names) == len(set(names)) > 2000


def test_what_is_called_equivalent_is_a_mutation_of_the_code_as_it_stands() -> None:
    names = {mutant.name for module in mutants.TESTS for mutant in mutants.mutants(module)}
    assert not set(mutants.equivalent()) - names


def test_a_mutation_of_a_function_is_met_by_whoever_imported_it() -> None:
    before = held_out.__code__
    (mutant,) = [
        one
        for one in mutants.mutants("synth/filters/verdicts.py")
        if one.function == "held_out" and (one.before, one.after) == ("64", "65")
    ]
    ids = pl.Series([f"{row}" for row in range(50)])
    try:
        assert mutant_runs.exchange(mutant, [held_out]) == 1
        mutated = held_out(ids, 0.25)
    finally:
        held_out.__code__ = before
    assert mutated.to_list() != held_out(ids, 0.25).to_list()


def test_a_sample_of_mutations_is_the_same_for_the_same_seed() -> None:
    names = [mutant.name for mutant in mutants.drawn(5, seed=3)]
    assert names == [mutant.name for mutant in mutants.drawn(5, seed=3)]
    assert names != [mutant.name for mutant in mutants.drawn(5, seed=4)]


def test_the_share_noticed_leaves_out_what_is_equivalent(monkeypatch: pytest.MonkeyPatch) -> None:
    sample = mutants.mutants("synth/filters/verdicts.py")[:4]
    results = {mutant.key: {"result": "failed"} for mutant in sample}
    results[sample[0].key] = {"result": "passed"}
    results[sample[1].key] = {"result": "passed"}
    monkeypatch.setattr(mutants, "equivalent", lambda: {sample[0].name: "nothing depends on it"})
    told = mutants.told(sample, results)
    assert "noticed: 66.7 % of those that are not equivalent" in told
    assert f"survived: line {sample[1].line}, {sample[1].name}" in told
    assert f"equivalent: {sample[0].name}: nothing depends on it" in told
