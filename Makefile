# `make demo`, `make test`, `make nightly`: each installs into .venv only what it needs, on first use.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Whatever the installed package is built from: a change reinstalls it (ninja rebuilds only what changed).
SOURCES := pyproject.toml setup.py $(shell find csrc -type f)
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALL := $(PIP) install --quiet --no-build-isolation
PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile
NIGHTLY_ROUNDS ?= 20

.PHONY: demo test nightly lint pytest fuzz soak asan docs clean

demo: $(VENV)/demo
	$(BIN)/detcam demo --out demo

# mypy needs one core for a while: it runs beside the tests.
test: $(VENV)/test
	$(MAKE) --no-print-directory -j2 lint pytest

lint: $(VENV)/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

pytest: $(VENV)/test
	$(PYTEST)

# The random tests of the default tier again and again, each time with fresh seeds, then everything once.
# A failure does not stop the rest: a night shows all that fails by chance, not the first.
nightly: $(VENV)/nightly lint
	failed=0; \
	for round in $$(seq $(NIGHTLY_ROUNDS)); do \
		echo "round $$round of $(NIGHTLY_ROUNDS)"; NIGHTLY=1 ONLY_RANDOM=1 $(PYTEST) -q || failed=1; \
	done; \
	NIGHTLY=1 FUZZ=100000 $(PYTEST) || failed=1; exit $$failed

fuzz: $(VENV)/test
	NIGHTLY=1 FUZZ=100000 $(BIN)/python -m pytest -n auto --dist worksteal tests/fuzz -rP
	NIGHTLY=1 FUZZ=100000 $(BIN)/python -m pytest -s tests/ops/test_fuzz_ops.py

soak: $(VENV)/test
	NIGHTLY=1 SOAK=10000 $(BIN)/python -m pytest -s tests/abuse/test_long_life.py

asan: $(VENV)/test
	tests/ops/sanitized.sh $(BIN)/python

docs: $(VENV)/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --site-dir build/site

$(VENV)/torch:
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --upgrade pip
	$(PIP) install --quiet "torch>=2.10" torchvision "setuptools>=77" "pybind11>=2.13" ninja
	touch $@

$(VENV)/demo: $(VENV)/torch $(SOURCES)
	$(INSTALL) -e ".[demo]"
	touch $@

$(VENV)/test: $(VENV)/demo
	$(INSTALL) -e ".[test]"
	touch $@

$(VENV)/docs: $(VENV)/demo
	$(INSTALL) -e ".[docs]"
	touch $@

# CI=true builds the CUDA kernels for all architectures, without a GPU too: the tests read what the compiler says.
$(VENV)/nightly: $(VENV)/test
	CI=true $(INSTALL) -e ".[nightly]"
	touch $@

clean:
	rm -rf $(VENV) build demo detcam/ops/*.so detcam/ops/_build.json
