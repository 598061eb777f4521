# Two commands do all the set-up: `make demo` and `make test`.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SOURCES := $(wildcard rustbpe/src/*.rs) rustbpe/Cargo.toml pyproject.toml

.PHONY: demo test check build bench help

help:  ## Show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 10

build: $(VENV)/.built  ## Make the virtual environment and build the Rust extension

$(VENV)/.dependencies: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python .ci/dependencies.py pyproject.toml > $(VENV)/requirements.txt
	$(BIN)/python -m pip install --quiet -r $(VENV)/requirements.txt
	touch $@

$(VENV)/.built: $(VENV)/.dependencies $(SOURCES)
	@command -v cargo >/dev/null || { echo "error: Rust is not installed (no cargo on PATH)"; echo "hint:  install it with rustup, then: make build"; exit 3; }
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	touch $@

demo: build  ## The whole pipeline on the CPU, from raw text to a chat answer
	$(BIN)/nanochat run --preset demo
	$(BIN)/nanochat chat demo -p "How many r are in strawberry?"

test: build  ## Run every test
	OMP_NUM_THREADS=2 GOMP_SPINCOUNT=1000 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile
	cargo test --quiet --manifest-path rustbpe/Cargo.toml

check: build  ## Format, lint, types, import contracts, clippy, cargo test, pytest
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports
	cargo clippy --quiet --manifest-path rustbpe/Cargo.toml --all-targets --features python -- -D warnings
	$(MAKE) test

bench: build  ## Measure this project beside its peers (benchmarks/README.md)
	$(BIN)/python -m pip install --quiet "rustbpe>=0.1" psutil
	$(BIN)/python benchmarks/train.py
