# Two commands: `make demo` and `make test`. Both make .venv on first use and reuse it afterwards.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Everything the installed package is built from: a change reinstalls it (ninja rebuilds what changed).
SOURCES := pyproject.toml setup.py $(shell find csrc -type f)
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: demo test lint fuzz soak asan docs clean

demo: $(VENV)/installed
	$(BIN)/detcam demo --out demo

test: $(VENV)/installed lint
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fuzz: $(VENV)/installed
	FUZZ=100000 $(BIN)/python -m pytest -n auto --dist worksteal tests/fuzz -rP
	FUZZ=100000 $(BIN)/python -m pytest -s tests/ops/test_fuzz_ops.py

soak: $(VENV)/installed
	SOAK=10000 $(BIN)/python -m pytest -s tests/abuse/test_long_life.py

asan: $(VENV)/installed
	tests/ops/sanitized.sh $(BIN)/python

docs: $(VENV)/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --site-dir build/site

$(VENV)/torch:
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --upgrade pip
	$(PIP) install --quiet "torch>=2.10" torchvision "setuptools>=77" "pybind11>=2.13" ninja
	touch $@

$(VENV)/installed: $(VENV)/torch $(SOURCES)
	$(PIP) install --quiet --no-build-isolation -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) build demo detcam/ops/*.so detcam/ops/_build.json
