PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

.PHONY: demo test test-slow lint bench zoo clean hooks

demo: $(VENV)/.installed  ## the main job on the built-in data
	$(BIN)/slim prune --method hbfp models/lenet5-digits.pt

test: $(VENV)/.installed-dev
	$(BIN)/pytest -q -n auto

test-slow: $(VENV)/.installed-dev
	$(BIN)/pytest -q -m slow -n auto

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.installed-dev  ## ratios, each measured side by side in one run
	for file in benchmarks/bench_*.py; do $(BIN)/python $$file || exit 1; done

zoo: $(VENV)/.installed-dev  ## every classification network of torchvision, pruned and proven: hours, goes on where it stopped
	$(BIN)/python benchmarks/zoo.py

hooks: $(VENV)/.installed-dev
	$(BIN)/pre-commit install

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("slimcli needs Python 3.11 or newer; name one: make PYTHON=python3.11 ...") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --upgrade pip
	$(BIN)/pip install -q -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/pip install -q -e '.[dev]'
	touch $@
