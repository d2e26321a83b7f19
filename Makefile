# Two commands: `make demo` shows it, `make test` proves it. Both need git, make and Python 3.11 or later.

# The Python to make the environment with; when not named, the first one found that is new enough.
PYTHON ?=
VENV   ?= .venv
BIN    := $(VENV)/bin
ARGS   ?=
PROCESSES ?=
RUNS   ?= 500
# Four workers, also on two cores: much of a test of outages is waiting. The tests of one file that use a broker share a
# worker, which has the broker to itself.
PYTEST  = $(BIN)/python -m pytest -n 4 --dist loadgroup

.DEFAULT_GOAL := help
.PHONY: help demo test test-fake scenarios soak faults simulate scale large bench oslo-functional lint types format brokers clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# Drivers that are distributions of their own, with the extra that brings the server they start.
PLUGINS = plugins/dse-nats[local]
PLUGIN_FILES = plugins/dse-nats/setup.cfg plugins/dse-nats/pyproject.toml

# The stamps are newer than what they were made from: with nothing changed there is nothing to install.
$(VENV)/.demo: setup.cfg pyproject.toml tools/venv
	@tools/venv "$(PYTHON)" $(VENV) .[all]
	@touch $@

$(VENV)/.plugins: setup.cfg pyproject.toml tools/venv $(PLUGIN_FILES)
	@tools/venv "$(PYTHON)" $(VENV) .[all] $(PLUGINS)
	@touch $@ $(VENV)/.demo

$(VENV)/.dev: setup.cfg pyproject.toml tools/venv $(PLUGIN_FILES)
	@tools/venv "$(PYTHON)" $(VENV) .[dev] $(PLUGINS)
	@touch $@ $(VENV)/.demo $(VENV)/.plugins

# Several processes need a broker; the one of the NATS plugin starts by itself, and ends with the last of them.
demo: $(VENV)/.$(if $(PROCESSES),plugins,demo) ## run the demo; PROCESSES=1: a process a node; ARGS="--transport redis://localhost --seconds 10"
	@$(BIN)/dse demo $(if $(PROCESSES),--transport nats+local://demo) $(ARGS)

test: $(VENV)/.dev brokers ## the whole suite, every driver; installs Redis and RabbitMQ if they are missing
	$(PYTEST) $(ARGS)

test-fake: $(VENV)/.dev ## what needs no broker
	$(PYTEST) -m "not redis and not rabbit and not postgres and not nats" $(ARGS)

faults: $(VENV)/.dev brokers ## faults on real brokers at full length, some 7 minutes; the counts go into docs/faults.md
	@mkdir -p build && rm -f build/faults.jsonl
	DSE_FAULTS=build/faults.jsonl $(PYTEST) tests/system/test_faults.py $(ARGS)
	$(BIN)/python tests/system/faults/report.py build/faults.jsonl docs/faults.md

scenarios: $(VENV)/.dev brokers ## calls and broadcasts right after nodes start: 500 runs of each on each driver (RUNS=500)
	DSE_SCENARIO_RUNS=$(RUNS) $(PYTEST) tests/system/test_scenarios.py $(ARGS)

soak: $(VENV)/.dev brokers ## ten minutes of coming and going on every driver; what is held must stay flat; docs/soak.md
	$(BIN)/python benchmarks/soak.py --report docs/soak $(ARGS)

large: $(VENV)/.dev brokers ## the first sync of a table of a million rows (ROWS=1000000)
	DSE_LARGE_ROWS=$(or $(ROWS),1000000) $(BIN)/python -m pytest -s tests/system/test_large_table.py $(ARGS)

build/oslo/.done: tools/venv setup.cfg $(PLUGIN_FILES)
	@mkdir -p build/oslo && tools/venv "$(PYTHON)" build/oslo/venv .[redis,rabbit,oslo] $(PLUGINS)
	@build/oslo/venv/bin/python -m pip install --disable-pip-version-check -qq oslotest testscenarios requests
	@touch $@

oslo-functional: build/oslo/.done brokers ## oslo.messaging's own functional tests over DSE; ARGS="redis fake nats rabbit"
	build/oslo/venv/bin/python tools/oslo_functional.py $(or $(ARGS),redis fake)

simulate: $(VENV)/.dev ## 10,000 random histories of simulated buses with every fault; a failing seed is printed
	$(BIN)/python -m dse.testing.simulation --histories 10000 $(ARGS)

scale: $(VENV)/.dev ## 10 to 10,000 simulated nodes, some minutes; the figures and plots go into docs/scale.md
	$(BIN)/python benchmarks/scale.py $(ARGS)

build/bench/.peers: tools/peers $(VENV)/.dev
	@mkdir -p build/bench && tools/peers $(BIN)/python build/bench
	@touch $@

bench: $(VENV)/.dev brokers build/bench/.peers ## DSE beside its peers and the floors, ten minutes; docs/performance
	cd benchmarks && $(abspath $(BIN))/python -m compare --environments ../build/bench --into ../docs/performance $(ARGS)

lint: $(VENV)/.dev ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev ## mypy --strict
	$(BIN)/mypy

format: $(VENV)/.dev ## put the code into ruff's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

brokers: ## install the brokers that the tests start (root or sudo)
	@tools/install-brokers

clean: ## remove what was built; .venv stays
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .tox
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
