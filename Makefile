# Two commands do everything: `make demo` and `make test`. Both install what they need into .venv first.
PYTHON ?= python3
BIN := .venv/bin
TOOLS := .venv-tools/bin

.PHONY: demo demo-quick test test-ray check lock audit clean
.DEFAULT_GOAL := help

help:
	@echo "make demo        learned order against arrival order on the real vLLM, on this machine's CPU"
	@echo "make demo-quick  the same, smaller"
	@echo "make test        every test, the real engine's included"
	@echo "make test-ray    adds Ray (0.3 GB) to .venv and runs its tests, some minutes"
	@echo "make check       lint, types, architecture and tests, as CI runs them"
	@echo "make lock        write requirements/{gateway,make}.txt with hashes, the bill of materials, the base image's digest"
	@echo "make audit       look for known holes in what is locked"

# `make LOCKED=1 ...`: every package from PyPI by version and hash (requirements/make.txt), wheels only.
.venv/engine.stamp: pyproject.toml scripts/install_engine.py requirements/constraints.txt requirements/make.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
		|| { echo "sooner needs Python 3.11 to 3.13; choose one with: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
ifdef LOCKED
	$(BIN)/python -m pip install --quiet --require-hashes --no-deps --only-binary :all: -r requirements/make.txt
	$(BIN)/python scripts/install_engine.py
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable packages/sooner-blend --editable .
else
	$(BIN)/python scripts/install_engine.py
	$(BIN)/python -m pip install --quiet --constraint requirements/constraints.txt --editable packages/sooner-blend \
		--editable '.[demo,sim,train,logs,gateway,vllm,dev]'
endif
	@touch $@

$(TOOLS)/stamp: Makefile
	$(PYTHON) -m venv .venv-tools
	$(TOOLS)/python -m pip install --quiet uv==0.13.9 cyclonedx-bom==7.5.0 pip-audit==2.10.1
	@touch $@

demo: .venv/engine.stamp
	$(BIN)/sooner demo --out runs/demo

demo-quick: .venv/engine.stamp
	$(BIN)/sooner demo --quick --out runs/demo-quick

test: .venv/engine.stamp
	@failed=0; \
	$(BIN)/python -m pytest -m engine || failed=1; \
	$(BIN)/python -m pytest -m "not engine" -n 2 --dist loadfile || failed=1; \
	exit $$failed

test-ray: .venv/engine.stamp
	$(BIN)/python -m pip install --quiet --constraint requirements/constraints.txt --editable '.[ray]'
	$(BIN)/python -m pytest tests/integration/test_ray.py

check: .venv/engine.stamp
	PATH="$(CURDIR)/$(BIN):$$PATH" scripts/check

lock: $(TOOLS)/stamp
	PATH="$(CURDIR)/$(TOOLS):$$PATH" scripts/lock

audit: $(TOOLS)/stamp
	$(TOOLS)/pip-audit --require-hashes --disable-pip -r requirements/gateway.txt -r requirements/make.txt \
		|| { echo "audit: the lines above say what is known, or that no advisory database could be reached"; exit 1; }

clean:
	rm -rf .venv .venv-tools runs dist build
