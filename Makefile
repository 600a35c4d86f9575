# The two commands to know are `make lab` and `make test`; `make help` lists the rest.

PYTHON ?= python3
LAB_ARGS ?=
NB ?=
TEST_ARGS ?=
WORKERS ?= logical

BIN := .venv/bin
# What the notebooks need, and what the tests and the pages need as well.
LAB := .venv/.lab
INSTALLED := .venv/.installed
NOTEBOOKS := $(sort $(wildcard nbs/*.ipynb talk/*.ipynb))
UV := $(shell uv --version >/dev/null 2>&1 && command -v uv)

# What `make data` has fetched serves the notebooks, too.
ifeq ($(strip $(NABLAB_DATA)),)
NABLAB_DATA := $(if $(wildcard build/data/opendata/higgsml_subset.csv.gz),build/data)
endif
# Notebooks run in their own folder, where a relative path would point elsewhere.
ifneq ($(strip $(NABLAB_DATA)),)
export NABLAB_DATA := $(abspath $(NABLAB_DATA))
endif

# Nothing is compiled twice: JAX keeps its programs here (JAX_COMPILATION_CACHE_DIR= to do without).
export JAX_COMPILATION_CACHE_DIR ?= $(abspath build/compiled)
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS ?= 0

.DEFAULT_GOAL := help
.PHONY: help lab check-env data test thorough quick lint execute workshop talk slides book links benchmark inferno neos arena open-data lock clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' Makefile

lab: $(LAB) ## open the notebooks in JupyterLab (LAB_ARGS=--no-browser to only serve them)
	$(BIN)/jupyter lab --ServerApp.root_dir=. --LabApp.default_url=/lab/tree/nbs/00_start_here.ipynb \
		$(if $(filter 0,$(shell id -u)),--allow-root) $(LAB_ARGS)

check-env: ## say what is missing on this computer, in plain words
	@$(firstword $(wildcard $(BIN)/python) $(PYTHON)) tools/check_env.py

data: $(LAB) ## fetch the public data that tests and notebook 12 read (69 MB, once; needs a network)
	$(BIN)/python tools/fetch_data.py

# Most of the time of the tests goes into compiling what runs once: fewer passes. jaxlib knows the
# second flag up to 0.10 only, and stops Python at one that it does not know.
OLD_XLA = $(shell $(BIN)/python -c 'from importlib.metadata import version; \
	print("--xla_cpu_use_fusion_emitters=false" * version("jaxlib").startswith("0.10."))' 2>/dev/null)
test thorough quick: export JAX_PLATFORMS = cpu
test thorough quick: export XLA_FLAGS ?= --xla_backend_optimization_level=1 $(OLD_XLA)
PYTEST = $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(TEST_ARGS)

CHECK_ALL = $(PYTEST) --durations=20 --durations-min=5 \
	--nbval --nbval-current-env --nbval-sanitize-with tests/sanitize.cfg $(NOTEBOOKS) tests

test: lint ## check the style, run every notebook against its stored output, and run the tests
	$(CHECK_ALL) -m "not thorough"

thorough: lint ## the same, with every case of the tests that take long (an hour and more)
	$(CHECK_ALL)

quick: lint ## run the tests that do not take long: no notebooks, no browser, no long fits
	$(PYTEST) -m "not long" tests

lint: $(INSTALLED) ## check the style of code and notebooks
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

execute: export JAX_PLATFORMS = cpu
execute: $(LAB) ## run the notebooks again and store their outputs (NB=03_smooth_cuts for one)
	$(BIN)/python tools/execute.py $(if $(NB),$(filter %/$(NB).ipynb,$(NOTEBOOKS)),$(NOTEBOOKS))

talk: $(LAB) ## open the talk in JupyterLab, presenting
	rm -rf build/presenting && mkdir -p build && cp -r talk/presenting build/
	JUPYTERLAB_SETTINGS_DIR=build/presenting $(BIN)/jupyter lab --ServerApp.root_dir=. \
		--LabApp.default_url=/doc/tree/talk/talk.ipynb \
		$(if $(filter 0,$(shell id -u)),--allow-root) $(LAB_ARGS)

slides: export JAX_PLATFORMS = cpu
slides: $(INSTALLED) ## write the talk as a deck that needs no network to build/slides
	$(BIN)/python tools/slides.py

book: $(INSTALLED) ## write notebooks and package as pages that need no network to build/book
	$(BIN)/python tools/book.py

links: $(INSTALLED) ## ask for every address that the pages name (needs a network)
	$(BIN)/python tools/book.py links

workshop: $(LAB) ## write the participants' and the teachers' notebooks to build/workshop
	$(BIN)/python tools/workshop.py

# What takes long has a target of its own, or is called by hand (RESULTS.md says how).
LONG_ONES := $(addprefix tests/benchmarks/,inferno.py neos_table.py arena_training.py open_data_training.py hub.py browser.py minima.py \
	lapack.py)
OTHER_PYTHON := tests/benchmarks/evermore_fit.py
benchmark: export JAX_PLATFORMS = cpu
benchmark: export JAX_COMPILATION_CACHE_DIR =
benchmark: $(INSTALLED) ## compare speed and results with other packages
	$(PIP) install --quiet --constraint requirements.lock --editable '.[benchmark]'
	set -e; for script in $(filter-out $(LONG_ONES) $(OTHER_PYTHON),$(wildcard tests/benchmarks/*.py)); do \
		$(BIN)/python $$script; done

inferno: export JAX_PLATFORMS = cpu
inferno: $(INSTALLED) ## train INFERNO's table, 30 times (under an hour; goes on where it was interrupted)
	$(BIN)/python tests/benchmarks/inferno.py

neos: export JAX_PLATFORMS = cpu
neos: $(INSTALLED) ## train the table of neos, 105 times (half an hour; goes on where it was interrupted)
	$(BIN)/python tests/benchmarks/neos_table.py

arena: export JAX_PLATFORMS = cpu
arena: $(INSTALLED) ## train what notebook 10 shows (under an hour; goes on where it was interrupted)
	$(BIN)/python tests/benchmarks/arena_training.py

open-data: export JAX_PLATFORMS = cpu
open-data: $(INSTALLED) ## train what notebook 12 shows, 96 times (6 minutes; goes on where it was interrupted)
	$(BIN)/python tests/benchmarks/open_data_training.py

lock: ## renew requirements.lock from pyproject.toml (needs uv; LOCK_ARGS=--upgrade for newer versions)
	uv pip compile pyproject.toml --extra test --extra site --universal --python-version 3.11 \
		--no-header --no-annotate $(LOCK_ARGS) --output-file requirements.lock

clean: ## remove the environment and everything that can be made again
	rm -rf .venv .pytest_cache .ruff_cache build utils/*.egg-info
	find . '(' -name __pycache__ -o -name .ipynb_checkpoints ')' -prune -exec rm -rf {} +

# The environment: made again when the pins or the package's own metadata change.
ifeq ($(UV),)
MAKE_VENV = $(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv .venv
PIP = $(BIN)/python -m pip
else
MAKE_VENV = test -x $(BIN)/python || uv venv --quiet --python $(PYTHON) .venv
PIP = VIRTUAL_ENV=.venv uv pip
endif

define ENVIRONMENT
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "nablab needs Python 3.11 or newer, and '$(PYTHON)' is missing or older:" \
		"install one, or name it, as in: make lab PYTHON=python3.12" >&2; exit 1; }
	$(MAKE_VENV)
	mkdir -p .venv/share/jupyter/lab/settings
	cp binder/overrides.json .venv/share/jupyter/lab/settings/
endef

$(LAB): requirements.lock pyproject.toml binder/overrides.json
	$(ENVIRONMENT)
	$(PIP) install --quiet --constraint requirements.lock --editable '.[notebooks]'
	touch $@

$(INSTALLED): requirements.lock pyproject.toml binder/overrides.json
	$(ENVIRONMENT)
	$(PIP) install --quiet --requirement requirements.lock
	$(PIP) install --quiet --no-deps --editable .
	touch $(LAB) $@
