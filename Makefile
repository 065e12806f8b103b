# `make run` and `make test` set up .venv by themselves on a machine with Python >= 3.11.
PYTHON ?= python3
VENV ?= .venv
CONFIG ?= configs/perceptron.py

.PHONY: run test slow adversary lint seeds bench clean

run: $(VENV)/.installed
	$(VENV)/bin/lljax run $(CONFIG) $(ARGS)

test: $(VENV)/.test-installed
	$(VENV)/bin/python -m pytest -q -n auto --dist loadfile $(ARGS)

slow: $(VENV)/.test-installed
	$(VENV)/bin/python -m pytest -q -m slow --ignore=tests/adversary $(ARGS)

adversary: $(VENV)/.test-installed
	$(VENV)/bin/python -m pytest -q -m slow -n 2 --dist worksteal tests/adversary $(ARGS)

lint: $(VENV)/.test-installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

seeds: $(VENV)/.installed
	$(VENV)/bin/python -m benchmarks.perceptron_seeds $(ARGS)

bench: $(VENV)/.installed
	$(VENV)/bin/python -m benchmarks.results $(ARGS)

$(VENV)/.installed: setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "lljax needs Python 3.11 or newer; $(PYTHON) is `$(PYTHON) --version`. Try: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/.test-installed: $(VENV)/.installed
	$(VENV)/bin/python -m pip install --quiet --editable '.[test]'
	@touch $@

clean:
	rm -rf $(VENV) .cache build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
