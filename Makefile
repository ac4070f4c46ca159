# `make` lists the verbs. What takes more than a line of shell is a script in .ci/.

PYTHON ?=
ARGS ?=
export PYTHON

python := .venv/bin/python

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test test-all lint bench bench-stampede soak endurance mutants faults-table docs clean

help: ## Show this list
	@echo "make VERB [ARGS='...'] [PYTHON=/path/to/python3]"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1|\2/p' $(MAKEFILE_LIST) | \
		while IFS='|' read -r verb what; do printf '  %-14s%s\n' $$verb "$$what"; done

demo: .venv/.stamp-fastapi,celery,embedded ## Watch a job-matching service get fast, lose Redis and heal (ARGS=--json)
	@$(python) docs/examples/job_matching/demo.py $(ARGS)

test: .venv/.stamp-test ## Run every test, against real Redis servers of our own (ARGS go to pytest)
	@.ci/server.sh
	@$(python) -m pytest -n 2 --dist worksteal $(ARGS)

test-all: .venv/.stamp-dev ## Run every test on Python 3.11, 3.12, 3.13 and the ends of redis-py (ARGS go to tox)
	@.ci/server.sh
	@.ci/test-all.sh $(ARGS)

lint: .venv/.stamp-dev ## Check format, lint, types and layers
	@echo "==> ruff, mypy, import-linter"
	@$(python) -m ruff format --check --quiet .
	@$(python) -m ruff check --quiet .
	@$(python) -m mypy
	@$(python) .venv/bin/lint-imports --no-logo

bench: .venv/.stamp-test ## Measure jmcache beside its peers, a quarter of an hour (ARGS="--quick", --write)
	@.ci/server.sh
	@PYTHONPATH=tests $(python) -m benchmarks.bench $(ARGS)

faults-table: .venv/.stamp-test ## Run the fault matrix and write its table into docs/error_handling.md
	@.ci/server.sh
	@$(python) tests/faults/table.py $(ARGS)

soak: .venv/.stamp-test ## Use it for ten minutes while everything breaks (ARGS="--seconds 60 --seed 7", --peers)
	@.ci/server.sh
	@PYTHONPATH=tests $(python) -m soak $(ARGS)

bench-stampede: .venv/.stamp-test ## Many processes ask for one key at once: jmcache beside its peers (ARGS=--quick)
	@.ci/server.sh
	@PYTHONPATH=tests $(python) -m benchmarks.stampede $(ARGS)

endurance: .venv/.stamp-test ## Fork, interrupt, recover and queue at length, against figures (half an hour; ARGS="forks --times 500")
	@.ci/server.sh
	@PYTHONPATH=tests $(python) -m soak.endurance $(ARGS)

mutants: .venv/.stamp-test ## Break the circuit breaker in small ways, and see its tests notice (half an hour)
	@.ci/server.sh
	@$(python) tests/mutate.py $(ARGS)

docs: .venv/.stamp-test ## Run every code block of README.md and docs/
	@.ci/server.sh
	@$(python) -m pytest tests/test_docs.py $(ARGS)

clean: ## Remove .venv and everything built
	rm -rf .venv .tox build dist *.egg-info .hypothesis .*_cache
	find jmcache tests docs -name __pycache__ -type d -exec rm -rf {} +

.venv/.stamp-%: setup.cfg
	@.ci/venv.sh $*
