# Every target sets up what it needs in .venv by itself.
PYTHON ?= python3
VENV := .venv
OLDEST := .venv-oldest
INTEGRATIONS := .venv-integrations
BIN := $(VENV)/bin
# A test uses one core.
PARALLEL := --numprocesses auto --dist worksteal
export HF_HUB_OFFLINE = 1
# Tests start many processes, each of which would compile the package anew.
export PYTHONDONTWRITEBYTECODE =

.PHONY: demo test tests checks quick support coverage lint types docs bench profile test-oldest test-integrations clean

demo: $(VENV)/ready
	$(BIN)/vlmfix generate --image docs/scene.png --prompt "Describe the image." --method var --compare

# The checks run beside the tests, on whatever core is free.
test: $(VENV)/ready
	$(MAKE) --no-print-directory --jobs 2 tests checks

tests: $(VENV)/ready
	$(BIN)/pytest $(PARALLEL)

checks: $(VENV)/ready
	$(MAKE) --no-print-directory lint types docs

quick: $(VENV)/ready
	$(BIN)/pytest $(PARALLEL) -m "not slow"

# All types of models of transformers: takes half an hour, and writes the support matrix.
support: $(VENV)/ready
	$(BIN)/pytest $(PARALLEL) -m support
	$(BIN)/python -m docs.make_support_matrix

# What no test reaches in the engine and the methods, branches included.
coverage: $(VENV)/ready
	$(BIN)/pytest $(PARALLEL) --cov --cov-report term tests/engine tests/methods tests/inference tests/models tests/probe

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(VENV)/ready
	$(BIN)/mypy

docs: $(VENV)/ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

# Speed against greedy decoding on this machine, and against the last kept run of such a machine.
bench: $(VENV)/ready
	$(BIN)/python -m benchmarks.bench

# Where the time of a decode step goes: make profile METHOD=var
METHOD ?= var
profile: $(VENV)/ready
	$(BIN)/python -m benchmarks.profile --method $(METHOD)

test-oldest: $(OLDEST)/ready
	$(OLDEST)/bin/pytest $(PARALLEL) -m promises

# With the real packages of others, offline.
test-integrations: $(INTEGRATIONS)/ready
	$(INTEGRATIONS)/bin/pytest -rs --numprocesses auto --dist loadfile tests/integrations

$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

$(OLDEST)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(OLDEST)
	grep -v transformers constraints.txt > $(OLDEST)/constraints.txt
	$(OLDEST)/bin/pip install --quiet --constraint $(OLDEST)/constraints.txt --editable ".[dev]" transformers==5.17.0
	touch $@

# lmms-eval pins much, and needs little of it.
$(INTEGRATIONS)/ready: pyproject.toml constraints.txt tests/integrations/requirements.txt
	$(PYTHON) -m venv $(INTEGRATIONS)
	$(INTEGRATIONS)/bin/pip install --quiet --constraint constraints.txt --editable ".[dev,ray]" --requirement tests/integrations/requirements.txt
	$(INTEGRATIONS)/bin/pip install --quiet --no-deps lmms_eval==0.7.3
	touch $@

clean:
	rm -rf $(VENV) $(OLDEST) $(INTEGRATIONS) build dist site
