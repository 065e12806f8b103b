# `make run` and `make test` set up .venv by themselves on a machine with Python >= 3.11.
PYTHON ?= python3
VENV ?= .venv
CONFIG ?= configs/perceptron.py

.PHONY: run test slow adversary lint docs seeds bench clean

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

# The tutorials are executed; compiling is most of their time, and these flags make it a third.
docs: export XLA_FLAGS ?= --xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false
docs: $(VENV)/.docs-installed
	$(VENV)/bin/python -m sphinx -q -E -n -W --keep-going -j auto -d docs/_build/doctrees docs docs/_build/html $(ARGS)
	$(VENV)/bin/python docs/check.py docs/_build/html

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

$(VENV)/.docs-installed: $(VENV)/.installed
	$(VENV)/bin/python -m pip install --quiet --editable '.[docs]'
	@touch $@

clean:
	rm -rf $(VENV) .cache build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache docs/_build
