# make study · make check · make test      (Python 3.11+; everything else is installed into .venv)
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PRESET ?= digits
# Python keeps what pytest has made of the tests' files: reading them anew takes each process seven seconds.
PYTEST := PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -q

study: $(VENV)/installed
	$(BIN)/python studies/robmix_ablation.py --preset $(PRESET)

# Everything.  Three processes on two cores: tests of clusters wait more than they work.
test: $(VENV)/installed
	$(PYTEST) -n 3 --dist loadgroup --no-loadscope-reorder --durations=25

# What a developer runs every minute: formatting, types, import rules, and the tests that are not slow.
check: lint
	$(PYTEST) -n 2 --dist loadgroup --no-loadscope-reorder -m "not slow and not hosts and not gpu"

lint: $(VENV)/installed
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports

bench: $(VENV)/installed
	$(BIN)/pip install --quiet -e '.[bench]'
	$(BIN)/python benchmarks/augmentation.py
	$(BIN)/python benchmarks/epoch.py
	$(BIN)/python benchmarks/scheduling.py
	$(BIN)/python benchmarks/planning.py
	$(BIN)/python benchmarks/searching.py
	$(BIN)/python benchmarks/loading.py
	$(BIN)/python benchmarks/meta_step.py
	$(BIN)/python benchmarks/methods.py

# One file says "installed": made last, so that an interrupted install is taken up again.
$(VENV)/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache

.PHONY: study test check lint bench clean
