# Two commands do all the set-up: `make demo` and `make test`.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SOURCES := $(wildcard rustbpe/src/*.rs) rustbpe/Cargo.toml pyproject.toml

# Without a cargo that works, a toolchain is fetched into the virtual environment, and every recipe finds it there.
ifeq ($(shell cargo --version 2>/dev/null),)
RUST := $(abspath $(VENV))/rust
CARGO := $(VENV)/rust/cargo/bin/cargo
export CARGO_HOME := $(RUST)/cargo
export RUSTUP_HOME := $(RUST)/rustup
export PATH := $(CARGO_HOME)/bin:$(PATH)
endif

.PHONY: demo test check build bench help

help:  ## Show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 10

build: $(VENV)/.built  ## Make the virtual environment and build the Rust extension

$(VENV)/.dependencies: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python .ci/dependencies.py pyproject.toml > $(VENV)/requirements.txt
	$(BIN)/python -m pip install --quiet -r $(VENV)/requirements.txt
	touch $@

$(VENV)/rust/cargo/bin/cargo: | $(VENV)/.dependencies
	@echo "no cargo on PATH: fetching Rust into $(RUST)"
	$(BIN)/python -m pip install --quiet --target "$(RUST)/site" "puccinialin>=0.1.14,<1"
	PYTHONPATH="$(RUST)/site" $(BIN)/python -m puccinialin --location "$(RUST)" --info-json "$(RUST)/environment.json" || { \
	  echo "error: Rust is not installed and cannot be fetched from here" >&2; \
	  echo "hint:  make build RUSTUP_UPDATE_ROOT=URL  # of a mirror; or install Rust (https://rustup.rs), then: make build" >&2; \
	  rm -f "$@"; exit 3; }

$(VENV)/.built: $(VENV)/.dependencies $(SOURCES) | $(CARGO)
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
	cargo clippy --version >/dev/null 2>&1 || rustup component add clippy
	cargo clippy --quiet --manifest-path rustbpe/Cargo.toml --all-targets --features python -- -D warnings
	$(MAKE) test

bench: build  ## Measure this project beside its peers (benchmarks/README.md)
	$(BIN)/python -m pip install --quiet "rustbpe>=0.1" psutil
	$(BIN)/python benchmarks/train.py
