# All that is needed is make, git and a Python 3.11 to 3.14. `.venv` is made when a target first needs it.

unexport PYTHONDONTWRITEBYTECODE # without compiled modules every start of Dagster takes seconds longer
unexport PYTHONPATH
unexport VIRTUAL_ENV
export PIP_DISABLE_PIP_VERSION_CHECK = 1

BIN := .venv/bin
CODE := data_assets data_assets_tests $(wildcard benchmarks fixtures)

# Each is tried, not just looked up: a name may stand for a Python that is not there (pyenv) or has no venv (Debian).
CANDIDATES := $(PYTHON) python3.13 python3.12 python3.11 python3 python
USABLE := import sys, ensurepip, sqlite3, ssl, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 15))

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo dev test bench bench-full lint format types pytest pins clean

help: ## these lines
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

setup: .venv/.project ## make .venv with the pinned requirements and this project in it
	@:

# From scratch whenever the pins change, so nothing that they no longer name stays behind.
.venv/.requirements: requirements.txt requirements-dev.txt
	@found=; for python in $(CANDIDATES); do \
	    if "$$python" -c '$(USABLE)' >/dev/null 2>&1; then found="$$python"; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
	    echo "No Python 3.11 to 3.14 with venv and sqlite3 among: $(CANDIDATES)." >&2; \
	    echo "Install one (on Debian: python3 and python3-venv), or say which: make PYTHON=/path/to/python" >&2; exit 1; \
	fi; \
	echo "Making .venv with $$("$$found" --version); the packages take a minute or two ..."; \
	"$$found" -m venv --clear .venv
	@$(BIN)/python -m pip install -qq --require-hashes --no-deps -r requirements-dev.txt
	@$(BIN)/python -m pip check --quiet
	@touch $@

.venv/.project: .venv/.requirements pyproject.toml
	@$(BIN)/python -m pip install -qq --no-deps --no-build-isolation --editable .
	@touch $@

# The package is a table and a setup.py; nothing of it is imported.
.venv/.flights: requirements-demo.txt .venv/.requirements
	@$(BIN)/python -m pip install -qq --require-hashes --no-deps --no-build-isolation -r requirements-demo.txt
	@touch $@

# For the tests that look at the reports and at the UI. Where none can be had they are skipped, and say so. The machine's
# own packages are asked only in CI: nobody expects `make test` to install software for the whole machine.
.venv/.browser: .venv/.requirements
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null || \
	    PLAYWRIGHT_DOWNLOAD_CONNECTION_TIMEOUT=15000 $(BIN)/playwright install --only-shell chromium || \
	    { [ "$$CI" = true ] && [ "$$(id -u)" = 0 ] && apt-get update -qq && \
	        DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends chromium >/dev/null; } || \
	    echo "No Chromium could be fetched: the tests in a browser will be skipped." >&2
	@touch $@

demo: setup .venv/.flights ## a year of real flights, from one raw file to 365 reports
	@$(BIN)/data-assets demo

# Plain `.venv/bin/dg dev` does the same with more words: these keep it from announcing a temporary home that nothing is
# kept in, and from telling about its own telemetry.
dev: export DAGSTER_HOME ?= $(CURDIR)
dev: export DAGSTER_DISABLE_TELEMETRY = 1
dev: setup ## the Dagster UI at http://localhost:3000
	@$(BIN)/dg dev

test: lint types pytest ## everything that CI checks

bench: setup .venv/.flights ## what a day costs beside bare engines; writes docs/benchmarks.md; five minutes
	$(BIN)/python -m benchmarks.pipeline 100000 --write
	$(BIN)/python -m benchmarks.pipeline 100000 --source parquet --write
	$(BIN)/python -m benchmarks.pipeline 1000000 --write
	$(BIN)/python -m benchmarks.pipeline 1000000 --source parquet --write
	$(BIN)/python -m benchmarks.ingest
	$(BIN)/python -m benchmarks.days imports month

bench-full: bench ## the same up to 244 million rows, many days and files; an hour and a half
	$(BIN)/python -m benchmarks.pipeline 10000000 --rounds 2 --write
	$(BIN)/python -m benchmarks.pipeline 10000000 --source parquet --rounds 2 --write
	$(BIN)/python -m benchmarks.pipeline 50000000 --only graph --rounds 1 --write
	$(BIN)/python -m benchmarks.pipeline 50000000 --only graph --rounds 1 --limit 521 --write
	$(BIN)/python -m benchmarks.pipeline 244000000 --source parquet --only graph --rounds 1 --write
	$(BIN)/python -m benchmarks.pipeline 244000000 --source parquet --only graph --rounds 1 --limit 521 --write
	$(BIN)/python -m benchmarks.memory --write
	$(BIN)/python -m benchmarks.scale --write
	$(BIN)/python -m benchmarks.ingest 10000000
	$(BIN)/python -m benchmarks.days year ticks

lint: setup ## formatting and style
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/ruff check $(CODE)

types: setup ## mypy
	$(BIN)/mypy

pytest: setup .venv/.flights .venv/.browser ## the tests, without the slow ones
	$(BIN)/pytest -n auto --dist loadfile

format: setup ## write the formatting, and fix what ruff can fix
	$(BIN)/ruff check --fix-only --quiet $(CODE)
	$(BIN)/ruff format $(CODE)

# uv, because one file then serves every Python from 3.11 on.
pins: setup ## make the requirements files again from pyproject.toml
	@test -x .venv/uv/bin/uv || { $(BIN)/python -m venv .venv/uv && .venv/uv/bin/python -m pip install --quiet uv; }
	.venv/uv/bin/uv pip compile $(PINS) pyproject.toml --output-file requirements.txt
	.venv/uv/bin/uv pip compile $(PINS) --extra dev --constraint requirements.txt pyproject.toml --output-file requirements-dev.txt

PINS := --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-header --no-emit-index-url --no-annotate

clean: ## remove .venv, caches and build outputs; data and history stay
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist *.egg-info .tmp_dagster_home_*
	find $(CODE) -name __pycache__ -type d -prune -exec rm -rf {} +
