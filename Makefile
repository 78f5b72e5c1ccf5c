# Every target makes its own .venv first, and again only when pyproject.toml changes.

# The torch that the tests are run with. It is installed first and alone: with it there, the looser
# requirement in pyproject.toml is met, and nothing newer (and several gigabytes larger) is fetched.
TORCH ?= torch==2.13.0
# The first Python that is new enough and can make a virtual environment; `make PYTHON=…` to choose.
PYTHON ?= $(firstword $(shell for p in python3 python3.11 python3.12 python3.13; do \
	$$p -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p; done; true))

BIN := .venv/bin
STAMP := .venv/.installed
NOTEBOOK := notebooks/02-digits.ipynb
ALL_TIERS := tests --ignore=tests/benchmarks
# These compute; the others mostly wait, for the bounds that they test. `make test` runs the two beside each other.
# The soak comes first, in a heap that a thousand tests have not yet stirred.
COMPUTING := tests/soak tests/unit tests/property tests/fault/test_nemesis.py

# The oldest versions were not built for a newer Python than the oldest.
OLDEST_PYTHON ?= $(firstword $(shell for p in $(PYTHON) python3.11; do \
	$$p -c 'import sys, ensurepip; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null && echo $$p; done; true))
OLDEST := .venv-oldest/bin
OLDEST_STAMP := .venv-oldest/.installed

.PHONY: help demo lab test test-computing test-fast test-oldest test-all soak mutants lint bench scale pictures debian-packages clean

help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

$(STAMP): pyproject.toml
	$(if $(PYTHON),,$(error no Python >= 3.11 with venv found; name one: make PYTHON=/path/to/python3.12))
	@echo "setting up .venv: some minutes, once"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet --editable ".[test]"
	touch $@

$(OLDEST_STAMP): pyproject.toml tests/oldest.txt
	$(OLDEST_PYTHON) -m venv .venv-oldest
	$(OLDEST)/python -m pip install --quiet "$(TORCH)"
	$(OLDEST)/python -m pip install --quiet --editable . --constraint tests/oldest.txt \
		ipykernel matplotlib pytest pytest-timeout hypothesis
	touch $@

demo: $(STAMP) ## a small network trained on four ranks, headless; what each rank said is printed
	$(BIN)/python docs/demo.py $(NOTEBOOK)

lab: $(STAMP) ## the same notebook in JupyterLab
	$(BIN)/jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) $(NOTEBOOK)

test: $(STAMP) debian-packages | out ## lint and every kind of test, with fewer examples: at most 20 minutes
	nice -n 19 $(MAKE) --no-print-directory lint test-oldest test-computing > out/beside.log 2>&1 & beside=$$!; \
		$(BIN)/python -m pytest $(ALL_TIERS) $(COMPUTING:%=--ignore=%); waited=$$?; \
		wait $$beside; computed=$$?; cat out/beside.log; exit $$((waited ? waited : computed))

test-computing: $(STAMP)
	$(BIN)/python -m pytest -p no:cacheprovider $(COMPUTING)

out:
	mkdir -p out

test-fast: $(STAMP) ## the tests that start no process: under 10 s
	JUPYTER_DDP_POOL_EXAMPLES=1000 JUPYTER_DDP_FRAMES=10000 \
		$(BIN)/python -m pytest tests/unit tests/property tests/contract -m "not processes"

test-oldest: ## the main path with the oldest IPython, ipykernel and others that are supported
	$(if $(OLDEST_PYTHON),$(MAKE) --no-print-directory $(OLDEST_STAMP),@echo "test-oldest: skipped, no Python 3.11")
	$(if $(OLDEST_PYTHON),$(OLDEST)/python -m pytest -p no:cacheprovider tests/integration/test_smoke.py)

test-all: $(STAMP) debian-packages lint test-oldest ## everything, with all seeds and sizes
	$(BIN)/python -m pytest tests/soak --all
	$(BIN)/python -m pytest $(ALL_TIERS) --ignore=tests/soak --all --hypothesis-profile=long

# Each part can be run alone: make soak SOAK=tests/soak; SCHEDULES=250:500 takes the second half of the schedules.
SOAK ?= tests/soak tests/fault/test_nemesis.py tests/property/test_malformed.py tests/property/test_pool_machine.py \
	tests/fault/test_crash_table.py tests/fault/test_owners_die.py
SCHEDULES ?= 500

soak: $(STAMP) ## 10,000 cells, 500 schedules of faults, a million malformed frames: an hour or more
	JUPYTER_DDP_SOAK=10000 JUPYTER_DDP_SCHEDULES=$(SCHEDULES) JUPYTER_DDP_FRAMES=1000000 \
		JUPYTER_DDP_POOL_EXAMPLES=100000 $(BIN)/python -m pytest --timeout=0 --all $(SOAK)

mutants: $(STAMP) ## small changes to the pool's machine: whether the tests notice: docs/mutants.md
	$(BIN)/python -m tests.mutants

lint: $(STAMP) ## ruff, mypy --strict, and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP) ## the measurements, beside ipyparallel and torchrun; BENCH="--quick", "--write docs/speed.md"
	$(BIN)/python -m pip install --quiet --editable ".[benchmarks]"
	$(BIN)/python -m tests.benchmarks $(BENCH)

scale: $(STAMP) debian-packages ## how far a browser is behind up to 1,024 ranks; SCALE="--write docs/speed.md"
	$(BIN)/python -m tests.browser.scale_table $(SCALE)

pictures: $(STAMP) debian-packages ## the pictures of README.md, from real runs in a browser
	$(BIN)/python docs/make_pictures.py

debian-packages:
	.ci/debian-packages

clean: ## forget .venv, caches and what was made
	rm -rf .venv .venv-oldest .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache out
