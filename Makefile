# make demo | test | test-slow | bench | lint: each does all the set-up it needs, in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test test-slow bench lint clean

demo: $(READY)
	$(BIN)/slmopt demo

test: lint
	$(BIN)/python -m pytest -m "not slow"

test-slow: $(READY)
	$(BIN)/python -m pytest

bench: $(READY)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	$(BIN)/python -m benchmarks.peers.install || true  # peers that are absent are named in the table
	$(BIN)/python -m benchmarks.cpu
	$(BIN)/python -m benchmarks.quality

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/mypy

# torch comes first and alone, at the version of constraints.txt: what follows then finds its CPU build in place.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check "$$(grep '^torch==' constraints.txt)"
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $(READY)

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache
