# Two commands on a fresh machine with Python 3.11 or newer, pip and make:
#
#   make gradients    set up, then measure how the gradient of an RNN and of an LSTM decays; results in out/,
#                     with a page to read, out/gradient_norms.html
#   make test         set up, then run the tests
#
# And: test-slow (the tests that are slow and rarely wrong: the README and the notebooks, the site, whole benchmarks,
# other libraries, processes that are killed), study, throughput, long-lag (what decides the decay; speed; who learns
# over a long lag), zoo (every cell side by side), notebooks, docs, lint, format, results (what is committed, anew),
# release (the wheels and the sdist, tried, in dist/; publishes nothing), accelerators (compiles for TPUs and GPUs that
# are not there), clean.
#
# PYTHON chooses the interpreter, VENV the environment's folder, EXTRAS what is installed with the library.

PYTHON ?= python3
VENV ?= .venv
EXTRAS ?= dev
OUT ?= out
WORKERS ?= auto

BIN := $(VENV)/bin
comma := ,
INSTALLED := $(VENV)/.installed-$(subst $(comma),-,$(EXTRAS))

.PHONY: help setup gradients study throughput long-lag zoo test test-slow lint format results results-newest notebooks docs release clean
.PHONY: accelerators accelerators-check

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile

# The main job wants no more than pictures do: of an environment that is there already, nothing.
gradients: $(or $(wildcard $(INSTALLED)),$(VENV)/.installed-plots)
	$(BIN)/lstmjax gradients --out $(OUT)

# A file's tests stay with one worker, which so compiles once what they share.
PYTEST = $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile
test: $(INSTALLED)
	$(PYTEST) -m "not slow"

test-slow: $(INSTALLED)
	$(PYTEST) -m slow

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

# What the page shows, as it was run: hours. Runs that are in results/long_lag.json are not run again.
LONG_LAG = $(BIN)/python -m benchmarks.long_lag --out benchmarks/results --tasks
FIVE = --cells "tanh RNN" GRU "GRU chrono" "LSTM b_f=1" "LSTM chrono"
long-lag: $(INSTALLED)
	$(LONG_LAG) "adding 1997" "temporal order" --max-sequences 100000 $(FIVE)
	$(LONG_LAG) "embedded Reber" --max-sequences 30000 $(FIVE)
	$(LONG_LAG) "noisy lag" --max-sequences 50000 $(FIVE)
	$(LONG_LAG) "loan sentences" --lags 30 100 300 --max-sequences 30000
	$(LONG_LAG) "loan sentences" --lags 1000 --max-sequences 30000 --cells "tanh RNN" "tanh RNN uniform" "GRU chrono" "LSTM chrono"
	$(LONG_LAG) adding --lags 200 --max-sequences 120000 --cells "GRU chrono" "LSTM chrono"
	$(LONG_LAG) adding --lags 200 --max-sequences 60000 --cells "tanh RNN" GRU "LSTM b_f=1" --seeds 1
	$(LONG_LAG) adding --lags 600 1000 --cells "GRU chrono" "LSTM chrono"
	$(LONG_LAG) adding --lags 5000 --cells "LSTM chrono"
	$(LONG_LAG) copy --max-sequences 150000 --cells "GRU chrono" "LSTM chrono"
	$(LONG_LAG) copy --max-sequences 60000 --cells "tanh RNN" GRU "LSTM b_f=1" --seeds 1
	$(BIN)/python -m benchmarks.write_tables

# Every cell of the library side by side: an hour or two. What has been learned is not learned again.
zoo: $(INSTALLED)
	$(BIN)/python -m benchmarks.zoo --out benchmarks/results
	$(BIN)/python -m benchmarks.write_tables

throughput: $(INSTALLED)
	$(BIN)/python -m benchmarks.throughput --quick --out $(OUT)

# What is committed: results, the tables made of them, and the notebooks with their outputs. The peers make the
# comparison, so: make results EXTRAS=dev,peers.
results: $(INSTALLED)
	$(BIN)/lstmjax gradients --out benchmarks/results --overwrite
	$(BIN)/python -m benchmarks.gradient_study --out benchmarks/results
	$(BIN)/lstmjax explain --picture notebooks/unit.png
	$(BIN)/python -m benchmarks.throughput --out benchmarks/results
	$(BIN)/python -m benchmarks.training --out benchmarks/results
	$(BIN)/python -m benchmarks.half_precision --out benchmarks/results
	$(BIN)/python -m benchmarks.write_tables

# The same grid on the newest JAX: make results-newest EXTRAS=dev,peers PYTHON=python3.12 VENV=.venv-newest
results-newest: $(INSTALLED)
	$(BIN)/python -m benchmarks.throughput --out $(VENV)/throughput
	cp $(VENV)/throughput/throughput.json benchmarks/results/throughput_newest_jax.json
	$(BIN)/python -m benchmarks.write_tables

# What XLA makes of the library for TPUs and for NVIDIA GPUs: each compiler in an environment of its own. The counts
# that are committed are of these versions.
COMPILERS := $(VENV)-tpu/.installed $(VENV)-cuda/.installed
ACCELERATORS = $(BIN)/python -m benchmarks.accelerators --environments $(VENV)
accelerators: $(INSTALLED) $(COMPILERS)
	$(ACCELERATORS)
	$(BIN)/python -m benchmarks.write_tables

accelerators-check: $(INSTALLED) $(COMPILERS)
	$(ACCELERATORS) --check

$(VENV)-tpu/.installed: COMPILER := 'jax[tpu]==0.10.2' libtpu==0.0.42.1
$(VENV)-cuda/.installed: COMPILER := jax==0.10.2 jax-cuda12-plugin==0.10.2 jax-cuda12-pjrt==0.10.2 nvidia-cuda-nvcc-cu12==12.9.86
$(COMPILERS): $(VENV)-%/.installed:
	@echo "Setting up $(VENV)-$*, which compiles for $*, once; a minute or two and 1.5 GB, most of it to download."
	test -x $(VENV)-$*/bin/python || $(PYTHON) -m venv $(VENV)-$*
	@$(VENV)-$*/bin/python -m pip install --quiet --no-compile jaxtyping optax $(COMPILER) || { echo "No compiler for $* can be" \
		"installed here, with $$($(PYTHON) --version): wanted $(COMPILER) as wheels"; exit 1; }
	@touch $@

notebooks: $(INSTALLED)
	$(BIN)/jupytext --to ipynb --execute notebooks/*.py

# The site, from docs/_build/html/index.html on; a warning is an error.
docs: $(INSTALLED)
	rm -rf docs/api
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --conf-dir docs . docs/_build/html

# A release is a version in lstmjax/__init__.py that CITATION.cff names too, with an entry "## VERSION - DATE" in the
# changelog, from a tree without changes. What is then in dist/ can be uploaded as it is.
VERSION = $(shell sed -n 's/^__version__ = "\(.*\)"$$/\1/p' lstmjax/__init__.py)
release: $(INSTALLED)
	@grep -qxE '## $(VERSION) - [0-9]{4}-[0-9]{2}-[0-9]{2}' CHANGELOG.md || \
		{ echo "CHANGELOG.md has no entry '## $(VERSION) - DATE' for the version in lstmjax/__init__.py"; exit 1; }
	@grep -qx 'version: $(VERSION)' CITATION.cff || \
		{ echo "CITATION.cff has another version than lstmjax/__init__.py, $(VERSION)"; exit 1; }
	@test -z "$$(git status --porcelain --untracked-files=no)" || { echo "there are changes that are not committed"; exit 1; }
	rm -rf dist
	mkdir dist
	PYTHON=$(BIN)/python bash .ci/wheels dist
	PYTHON=$(BIN)/python bash .ci/package dist

clean:
	rm -rf $(VENV) $(VENV)-tpu $(VENV)-cuda .venv-newest build dist .pytest_cache .ruff_cache .hypothesis docs/_build docs/api

# Not quiet: what pip gathers is seen to move.
$(VENV)/.installed-%: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "lstmjax needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.12"; exit 1; }
	@echo "Setting up $(VENV) for '$(subst -,$(comma),$*)', once; it takes" \
		"$(if $(filter plots,$*),a minute and 0.9 GB,two minutes or more and 1.6 GB or more), most of it to download."
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --editable '.[$(subst -,$(comma),$*)]'
	@touch $@
