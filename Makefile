# Two commands matter: `make demo` and `make test`. Both set the project up in .venv first.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-browser test-deploy test-package test-anywhere docs lint bench format clean

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

demo: .venv/installed
	$(BIN)/fedrebasin compare

test: .venv/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist worksteal \
		-m "not slow and not cuda and not network and not browser and not package and not deploy"

test-browser: .venv/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m browser tests/browser

test-package: .venv/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m package tests/package

# All tests, the slow ones too, on other processors, threads, orders, Pythons and versions: ROWS="oldest avx2" for some.
test-anywhere: .venv/installed-dev
	$(BIN)/python tests/package/anywhere.py $(ROWS)

.venv/installed-docs: .venv/installed
	$(BIN)/python -m pip install --quiet --editable ".[docs]"
	touch $@

docs: .venv/installed-docs
	rm -rf build/docs-lib build/lib
	$(BIN)/python -m pip install --quiet --no-deps --target build/docs-lib .
	$(BIN)/mkdocs build --strict --quiet

# Minutes: a SuperLink and three SuperNodes on this machine, some of which are killed.
test-deploy: .venv/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m deploy tests/deploy

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# FASHION_MNIST=FOLDER for the rows that need it
bench: .venv/installed-dev
	$(BIN)/python benchmarks/all.py --out build/bench $(if $(FASHION_MNIST),--fashion-mnist $(FASHION_MNIST))

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
