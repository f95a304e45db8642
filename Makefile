# make demo | test | test-slow | bench | lint: each does all the set-up it needs, in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# A process per core, of one thread each; tests of one file stay together, since they share what they compile.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile --durations=10
SYSTEM := $(shell sed '/^#/d' system-packages.txt)

.PHONY: demo test test-slow bench lint system clean

demo: $(READY)
	$(BIN)/slmopt demo

test: lint system
	$(PYTEST) -m "not slow"

test-slow: $(READY) system
	$(PYTEST)

bench: $(READY)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	$(BIN)/python -m benchmarks.peers.install || true  # peers that are absent are named in the table
	$(BIN)/python -m benchmarks.cpu
	$(BIN)/python -m benchmarks.quality

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/mypy

# Emulators and drivers for tests (system-packages.txt): installed by root on Debian and its kin, else named.
system:
	@missing=""; for package in $(SYSTEM); do \
	  dpkg-query -W -f='$${Status}' $$package 2>/dev/null | grep -q 'ok installed' || missing="$$missing $$package"; done; \
	if [ -z "$$missing" ]; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  { apt-get install -qq -y --no-install-recommends $$missing || \
	    { apt-get update -qq && apt-get install -qq -y --no-install-recommends $$missing; }; } >/dev/null || \
	  echo "could not be installed, so that tests of other targets are skipped:$$missing"; \
	else echo "tests of other targets are skipped without:$$missing"; fi

# torch comes first and alone, at the version of constraints.txt: what follows then finds its CPU build in place.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check "$$(grep '^torch==' constraints.txt)"
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $(READY)

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache
