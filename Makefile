# `make demo` and `make test` do everything from a fresh checkout on.
# Set-up uses uv where it is installed and pip otherwise; it is repeated only when pyproject.toml changes.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
READY := .venv/.ready
OUT ?= runs/demo

.PHONY: setup label-tools demo test coverage parity lint docs wheel dist smoke clean

setup: $(READY)

$(READY): pyproject.toml
	@echo "Setting up .venv: half a minute to two minutes with a fast network, 6 GB, most of it PyTorch's CUDA libraries."
	@if command -v uv >/dev/null; then \
		{ test -x $(BIN)/python || uv venv --quiet --python "$(PYTHON)" .venv; } && \
		uv pip install --quiet --python $(BIN)/python --editable '.[decode]' --group dev; \
	else \
		{ test -x $(BIN)/python || "$(PYTHON)" -m venv .venv; } && \
		{ $(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip >/dev/null; } && \
		$(BIN)/python -m pip install -qq --disable-pip-version-check --upgrade 'pip>=25.1' && \
		$(BIN)/python -m pip install -qq --editable '.[decode]' --group dev; \
	fi
	@touch $@

demo: $(READY)
	@$(BIN)/maskrcnn demo --out $(OUT)

# Several test workers: more threads each would only fight.
test: $(READY)
	@OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -n 2 --dist worksteal $(TESTS)

# Lines of the package that the tests run, those of worker processes too.
coverage: $(READY)
	@OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -q -n 2 --dist worksteal --cov=maskrcnn --cov-report=term:skip-covered $(TESTS)

# Every stage of every model against the original implementations' outputs, as a table in docs/parity.md.
parity: $(READY)
	@OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -q -n 2 tests/models tests/backbones --parity docs/parity.md

# Types are checked for the oldest and the newest Python.
lint: $(READY)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/pyright --pythonversion 3.11
	@$(BIN)/pyright --pythonversion 3.14
	@$(BIN)/lint-imports
	@$(MAKE) --no-print-directory docs

# The importers of labelling tools, in an environment of their own, for the tests that read predictions with them; without
# it these are skipped. They want other versions of libraries than we do.
label-tools: build/label-tools/.ready

build/label-tools/.ready:
	@"$(PYTHON)" -m venv build/label-tools
	@build/label-tools/bin/pip install -qq --disable-pip-version-check 'datumaro>=1.13' 'label-studio-sdk>=2.0' 'labelme>=6.0'
	@touch $@

# The manual, into build/site. A link that leads nowhere is an error (not with --quiet, which hides it from --strict).
docs: $(READY)
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# What people install: built, checked, and tried where nothing else is installed.
wheel: dist smoke

dist:
	@rm -rf dist build/tools
	@"$(PYTHON)" -m venv build/tools
	@build/tools/bin/python -m pip install -qq --disable-pip-version-check build twine
	@build/tools/bin/python -m build --outdir dist .
	@build/tools/bin/python -m twine check --strict dist/*

# PYTHON=python3.14 tries the wheel on another Python.
smoke:
	@rm -rf build/clean
	@"$(PYTHON)" -m venv build/clean
	@build/clean/bin/python -m pip install -qq --disable-pip-version-check dist/*.whl
	@build/clean/bin/python .ci/smoke.py

clean:
	rm -rf .venv .pytest_cache .ruff_cache .import_linter_cache build dist
