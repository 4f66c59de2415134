# Needs Linux x86-64, Python 3.11 or later with venv, and make. Nothing else.
PYTHON ?= python3
VENV := .venv
PEERS := .venv-peers
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.DEFAULT_GOAL := help
.PHONY: help up test lint bench chaos fuzz routes protos pins setup clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "%-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

up: $(VENV)/local ## Start the whole gateway on embedded parts, in the foreground
	@exec $(BIN)/authz up

# Each of two processes starts parts of its own and takes one file after the other;
# the quick files come last, so that both end at about the same time.
test: lint ## Run lint, types, import layers and all tests on real parts
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: $(VENV)/dev ## Check style, types and layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/dev $(PEERS)/peers ## Measure what the gateway costs, beside others; some 30 minutes
	$(BIN)/python -m benchmarks

chaos: $(VENV)/dev ## Lose a primary, fill disks and memory, break a cluster, send a crowd; needs root
	$(BIN)/python -m pytest -m chaos tests/chaos

fuzz: $(VENV)/dev ## Search for a minute for inputs that break a property
	$(BIN)/python -m tests.fuzz

routes: $(VENV)/dev ## Compare our table of routes with Ollama's source in OLLAMA=/path
	$(BIN)/python -m tests.compare_routes $(OLLAMA)

protos: $(VENV)/dev ## Generate authz/pb from protos
	$(BIN)/python -m grpc_tools.protoc -Iprotos --python_out=. --pyi_out=. protos/authz/pb/*.proto

pins: $(VENV)/dev ## Pin the newest allowed versions, with hashes, in requirements
	$(call pin,service,pyproject.toml)
	$(call pin,local,pyproject.toml --extra local --extra check --group build -c requirements/service.txt)
	$(call pin,dev,pyproject.toml --extra local --extra check --group build --group dev -c requirements/local.txt)
	$(call pin,peers,--group peers)

setup: $(VENV)/dev ## Create .venv with everything that work on the project needs

clean: ## Remove .venv, .venv-peers and caches; keeps the data of `make up` in .authz
	rm -rf $(VENV) $(PEERS) .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache

define pin
$(BIN)/uv pip compile $(2) -o requirements/$(1).txt --upgrade --universal \
  --python-version 3.11 --generate-hashes --no-emit-index-url --quiet \
  --custom-compile-command 'make pins'
endef

# A stamp a set of pins, so that `make up` installs no tools of developers.
$(VENV)/%: requirements/%.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --require-hashes -r $<
	$(PIP) install --no-deps --no-build-isolation -e .
	touch $@

# What the benchmark compares us with wants other versions than we do.
$(PEERS)/peers: requirements/peers.txt
	test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip --disable-pip-version-check --quiet install --require-hashes -r $<
	touch $@
