# `make demo` and `make test` set up what they need: python3 (3.11 or later) and make are enough.
PYTHON ?= python3
VENV ?= .venv
VENV4 ?= .venv-transformers4
VENV_DOCS ?= .venv-docs
BIN = $(VENV)/bin

export XDG_CACHE_HOME ?= $(CURDIR)/.cache
export HF_HOME ?= $(CURDIR)/.cache/huggingface

.PHONY: demo test test-all lint docs
demo: $(VENV)/ready
	@$(BIN)/python -m mir_task demo demo-output

test: $(VENV)/ready
	$(BIN)/python -m pytest -q -n 2 -m "not slow"

MODELS = adapters architectures capture demo harness measuring/test_library.py measuring/test_sharded.py measuring/test_caption.py test_callback.py test_moca.py
# All tests, then those that run a model once more on transformers 4, where users of `--model llava` live.
test-all: $(VENV)/ready $(VENV4)/ready
	$(BIN)/python -m pytest -q -n 2 --strict-skips
	$(VENV4)/bin/python -m pytest -q -n 2 --strict-skips $(addprefix tests/,$(MODELS))

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# A site in site/: `python3 -m http.server -d site` shows it.
docs: $(VENV_DOCS)/ready
	NO_MKDOCS_2_WARNING=1 $(VENV_DOCS)/bin/mkdocs build --strict
	@echo "The pages: site/index.html"

$(VENV)/ready: pyproject.toml
	@echo "Setting up $(VENV): 7 GB and some minutes, once"
	@sh tools/tell.sh $(VENV).log $(PYTHON) -m venv $(VENV)
	@sh tools/tell.sh $(VENV).log $(BIN)/pip install --progress-bar off --editable '.[dev]'
	touch $@

$(VENV4)/ready: pyproject.toml
	@echo "Setting up $(VENV4): 7 GB and some minutes, once"
	@sh tools/tell.sh $(VENV4).log $(PYTHON) -m venv $(VENV4)
	@sh tools/tell.sh $(VENV4).log $(VENV4)/bin/pip install --progress-bar off --editable '.[dev]' 'transformers==4.57.6' 'datasets<5'
	@sh tools/tell.sh $(VENV4).log $(VENV4)/bin/pip install --progress-bar off --no-deps llava-torch
	touch $@

EXTRA = import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"])
$(VENV_DOCS)/ready: pyproject.toml
	$(PYTHON) -m venv $(VENV_DOCS)
	$(VENV_DOCS)/bin/pip install --quiet $$($(PYTHON) -c '$(EXTRA)')
	touch $@
