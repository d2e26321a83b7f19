# Two commands: `make demo` shows it, `make test` proves it. Both need git, make and Python 3.11 or later.

# The Python to make the environment with; when not named, the first one found that is new enough.
PYTHON ?=
VENV   ?= .venv
BIN    := $(VENV)/bin
ARGS   ?=
PROCESSES ?=
RUNS   ?= 500
# The exact versions that the development environment gets; `make … PINS=` takes the newest that fit instead.
PINS   ?= constraints.txt
SECONDS ?= 60
MOVES  ?= 3
# Six workers, also on two cores: much of a test of outages is waiting. The tests of one file that use a broker share a
# worker, which has the broker to itself.
PYTEST  = $(BIN)/python -m pytest -n 6 --dist loadgroup

.DEFAULT_GOAL := help
.PHONY: help docs demo test test-fake scenarios soak faults simulate scale large bench lint types format brokers guarantees pins audit fuzz fuzz-frames move oslo-functional clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# Drivers that are distributions of their own, with the extra that brings the server they start.
PLUGINS = plugins/dse-nats[local]
PLUGIN_FILES = plugins/dse-nats/setup.cfg plugins/dse-nats/pyproject.toml

# What each driver of the guarantee table is tested by.
CONTRACTS = $(foreach driver,fake redis rabbit oslo_fake oslo_rabbit,tests/contract/test_$(driver).py) \
	plugins/dse-nats/tests/test_contract.py

# The stamps are newer than what they were made from: with nothing changed there is nothing to install.
$(VENV)/.demo: setup.cfg pyproject.toml tools/venv
	@tools/venv "$(PYTHON)" $(VENV) .[all]
	@touch $@

$(VENV)/.plugins: setup.cfg pyproject.toml tools/venv $(PLUGIN_FILES)
	@tools/venv "$(PYTHON)" $(VENV) .[all] $(PLUGINS)
	@touch $@ $(VENV)/.demo

$(VENV)/.dev: setup.cfg pyproject.toml tools/venv $(PLUGIN_FILES) $(PINS)
	@PINS=$(PINS) tools/venv "$(PYTHON)" $(VENV) .[dev] $(PLUGINS)
	@touch $@ $(VENV)/.demo $(VENV)/.plugins

# Several processes need a broker; the one of the NATS plugin starts by itself, and ends with the last of them.
demo: $(VENV)/.$(if $(PROCESSES),plugins,demo) ## run the demo; PROCESSES=1: a process a node; ARGS="--transport redis://localhost --seconds 10"
	@$(BIN)/dse demo $(if $(PROCESSES),--transport nats+local://demo) $(ARGS)

# The AsyncAPI project's own parser, which the documents of `dse describe` have to satisfy.
ASYNCAPI = build/asyncapi
$(ASYNCAPI)/.installed: tests/system/asyncapi/package.json tools/install-brokers
	@tools/install-brokers
	@mkdir -p $(ASYNCAPI) && cp tests/system/asyncapi/package.json $(ASYNCAPI)/
	@npm install --prefix $(ASYNCAPI) --silent --no-audit --no-fund --no-package-lock
	@touch $@

test: export DSE_TEST_ASYNCAPI = $(abspath $(ASYNCAPI))
test: $(VENV)/.dev brokers $(ASYNCAPI)/.installed ## the whole suite, every driver; installs the brokers, npm and Chromium if they are missing
	$(PYTEST) $(ARGS)

test-fake: $(VENV)/.dev ## what needs no broker
	$(PYTEST) -m "not redis and not rabbit and not postgres and not nats" $(ARGS)

faults: $(VENV)/.dev brokers ## faults on real brokers at full length, some 7 minutes; the counts go into docs/faults.md
	@mkdir -p build && rm -f build/faults.jsonl
	DSE_FAULTS=build/faults.jsonl $(PYTEST) tests/system/test_faults.py $(ARGS)
	$(BIN)/python tests/system/faults/report.py build/faults.jsonl docs/faults.md

guarantees: $(VENV)/.dev brokers ## the contract on every driver, some minutes; the table goes into docs/guarantees.md
	@mkdir -p build
	$(PYTEST) $(CONTRACTS) --dse-report docs/guarantees.md --dse-report build/guarantees.json $(ARGS)

move: $(VENV)/.dev brokers ## a running site moves from RabbitMQ to Redis through a bridge, MOVES=3 times, with and without a kill
	@mkdir -p build && rm -f build/move.jsonl
	DSE_MOVE=build/move.jsonl DSE_MOVE_RUNS=$(MOVES) $(BIN)/python -m pytest tests/system/test_move.py $(ARGS)
	$(BIN)/python tests/system/move/report.py build/move.jsonl docs/bridge.md

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

docs: $(VENV)/.dev ## the documentation site, into build/site; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

$(VENV)/.fuzz: $(VENV)/.dev
	@tools/venv "$(PYTHON)" $(VENV) .[dev,fuzz] $(PLUGINS)
	@touch $@

fuzz: $(VENV)/.fuzz ## every fuzzer for 60 seconds (SECONDS=60), as many at once as there are cores; ARGS="frames node"
	@mkdir -p build/fuzz
	PYTHONPATH=tests $(BIN)/python -m fuzz --seconds $(SECONDS) $(ARGS)

fuzz-frames: $(VENV)/.dev ## ten million changed and random frames through a whole node (ARGS="--frames 100000")
	PYTHONPATH=tests $(BIN)/python -m fuzz.frames $(ARGS)

lint: $(VENV)/.dev ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev ## mypy --strict
	$(BIN)/mypy

format: $(VENV)/.dev ## put the code into ruff's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Apart from the development environment: what they need is no part of what is tested.
build/audit/.made: setup.cfg tools/venv
	@mkdir -p build && PINS=$(PINS) tools/venv "$(PYTHON)" build/audit .[audit]
	@touch $@

pins: ## renew constraints.txt: the newest versions that fit, for every Python from 3.11
	@PINS= $(MAKE) --no-print-directory build/audit/.made
	tools/pins build/audit/bin/uv constraints.txt .[dev,audit,fuzz] plugins/dse-nats[local,test]

audit: build/audit/.made ## look up known vulnerabilities of what constraints.txt names; needs the network
	build/audit/bin/python tools/audit build/audit/bin/pip-audit constraints.txt $(ARGS)

brokers: ## install the brokers that the tests start (root or sudo)
	@tools/install-brokers

clean: ## remove what was built; .venv stays
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .tox
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
