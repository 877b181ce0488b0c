# Two commands on a fresh machine with Python 3.11 or newer, pip and make:
#
#   make gradients    set up, then measure how the gradient of an RNN and of an LSTM decays; results in out/
#   make test         set up, then run the tests
#
# PYTHON chooses the interpreter, VENV the environment's folder, EXTRAS what is installed beside the library.

PYTHON ?= python3
VENV ?= .venv
EXTRAS ?= dev
OUT ?= out
WORKERS ?= auto

BIN := $(VENV)/bin
comma := ,
INSTALLED := $(VENV)/.installed-$(subst $(comma),-,$(EXTRAS))

.PHONY: setup gradients study throughput test lint format results results-newest notebooks docs clean

gradients: $(INSTALLED)
	$(BIN)/python -m benchmarks.gradient_norms --out $(OUT)

test: $(INSTALLED)
	$(BIN)/python -m pytest -n $(WORKERS)

setup: $(INSTALLED)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

study: $(INSTALLED)
	$(BIN)/python -m benchmarks.gradient_study --out $(OUT)

throughput: $(INSTALLED)
	$(BIN)/python -m benchmarks.throughput --quick --out $(OUT)

# What is committed: results, the tables made of them, and the notebooks with their outputs. The peers make the
# comparison, so: make results EXTRAS=dev,peers.
results: $(INSTALLED)
	$(BIN)/python -m benchmarks.gradient_norms --out benchmarks/results
	$(BIN)/python -m benchmarks.gradient_study --out benchmarks/results
	$(BIN)/python -m lstmjax.explain --picture notebooks/unit.png
	$(BIN)/python -m benchmarks.throughput --out benchmarks/results
	$(BIN)/python -m benchmarks.write_tables

# The same grid on the newest JAX: make results-newest EXTRAS=dev,peers PYTHON=python3.12 VENV=.venv-newest
results-newest: $(INSTALLED)
	$(BIN)/python -m benchmarks.throughput --out $(VENV)/throughput
	cp $(VENV)/throughput/throughput.json benchmarks/results/throughput_newest_jax.json
	$(BIN)/python -m benchmarks.write_tables

notebooks: $(INSTALLED)
	$(BIN)/jupytext --to ipynb --execute notebooks/*.py

# The site, from docs/_build/html/index.html on; a warning is an error.
docs: $(INSTALLED)
	rm -rf docs/api
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --conf-dir docs . docs/_build/html

clean:
	rm -rf $(VENV) .venv-newest build dist .pytest_cache .ruff_cache .hypothesis docs/_build docs/api

$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "lstmjax needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.12"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[$(EXTRAS)]'
	touch $@
