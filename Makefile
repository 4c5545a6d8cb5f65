# Two commands are enough: `make demo` and `make test`. Both set up everything they need.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test tests test-fast test-interchange crash fuzz audit mutants lint style types bench pocket docs wheel clean

demo: $(STAMP)
	$(BIN)/python -m tilting.cli.demo --out demo

# One thread in each of as many workers as there are cores: two programs of two threads on two cores cost far more. Files go to
# workers in the order of tests/conftest.py.
WORKERS := -n auto --dist loadfile --no-loadscope-reorder
test: lint tests

tests: style
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(WORKERS)

# What is asked of every change: all but the slow truths of mathematics and the papers' recipes.
test-fast: $(STAMP) lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(WORKERS) -m "not slow" --ignore tests/truth --ignore tests/papers

# Files that others read and write, and their pipelines, by the newest versions that constraints.txt has and by the lowest that
# pyproject.toml allows.
INTERCHANGED := tests/models/test_lora_formats.py tests/models/test_any_pipeline.py
test-interchange: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(INTERCHANGED)
	$(BIN)/python -m pip install -q --upgrade --target build/lowest --no-deps -r constraints-lowest.txt
	PYTHONPATH=build/lowest OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(INTERCHANGED)

# A kill at every point where any command writes, not at a tenth of them.
crash: $(STAMP)
	KILL_PART=0/1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -rP -n 2 --dist load tests/runs/test_kill_points.py tests/runs/test_processes.py

# Ten minutes of bad input to every reader of what others wrote.
fuzz: $(STAMP)
	FUZZ_SECONDS=600 OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/fuzz

# What bandit finds in the sources; each finding is explained where it stands.
audit: $(STAMP)
	$(BIN)/bandit -q -r src -c pyproject.toml

# Is there a test that sees each small wrong formula? Hours; goes on where it was; `make mutants ROOMS="weights select"`.
mutants: $(STAMP)
	$(BIN)/python tests/mutation/mutants.py $(ROOMS)

lint: style types

style: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: style
	$(BIN)/pyright

bench: $(STAMP)
	$(BIN)/python benchmarks/overhead.py
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/rewards.py

pocket: $(STAMP)
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[train]"
	training/pocket/run.sh

# The documentation as pages, into build/docs/site; a link that leads nowhere is an error.
docs: $(STAMP)
	$(BIN)/python docs/site.py build/docs
	cd build/docs && $(CURDIR)/$(BIN)/zensical build --strict

wheel: $(STAMP)
	$(BIN)/python -m build --wheel --no-isolation

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt torch
	$(BIN)/python -m pip install -q -c constraints.txt hatchling -e ".[dev]"
	touch $(STAMP)

clean:
	rm -rf demo dist build
