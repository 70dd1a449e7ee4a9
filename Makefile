# make study · make check · make test · make constraints      (Python 3.11+; all else is installed into .venv)
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
	$(BIN)/pip install --quiet -c constraints.txt -e '.[bench,label]'
	$(BIN)/python benchmarks/augmentation.py
	$(BIN)/python benchmarks/run.py
	$(BIN)/python benchmarks/growth.py
	$(BIN)/python benchmarks/epoch.py
	$(BIN)/python benchmarks/precision.py
	$(BIN)/python benchmarks/scheduling.py
	$(BIN)/python benchmarks/planning.py
	$(BIN)/python benchmarks/searching.py
	$(BIN)/python benchmarks/loading.py
	$(BIN)/python benchmarks/meta_step.py
	$(BIN)/python benchmarks/label_errors.py digits_vectors --labels symmetric:0.2 pair:0.3 none:0
	$(BIN)/python benchmarks/neighbours.py
	$(BIN)/python benchmarks/mixtures.py
	$(BIN)/python benchmarks/methods.py

# Whoever has a GPU: one table in under ten minutes.
gpu: $(VENV)/installed
	$(BIN)/python benchmarks/gpu.py

# One file says "installed": made last, so that an interrupted install is taken up again.
$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

# The newest versions that pyproject.toml allows: test with them, then commit constraints.txt.  What follows a + in a
# version is a build for one machine, such as torch's +cpu.
constraints: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --upgrade --upgrade-strategy eager -e '.[dev]'
	echo '# Written by `make constraints`: the versions that were tested.' > constraints.txt
	$(BIN)/python -m pip list --format=freeze --exclude-editable --exclude pip | sed 's/+.*//' >> constraints.txt
	@touch $(VENV)/installed

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache

.PHONY: study test check lint bench gpu constraints clean
