# `make demo` and `make test` work from a fresh clone: each makes .venv and installs first.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
DEMO := out/demo

.PHONY: demo test lint format clean

demo: $(INSTALLED)
	rm -rf $(DEMO)
	$(BIN)/flowopd doctor
	$(BIN)/flowopd sample recipes/world/sample.yaml --out $(DEMO)/sample
	$(BIN)/flowopd run recipes/world/demo.yaml --jobs 2 --out $(DEMO)/study
	@echo "Open $(DEMO)/study/report.html in a browser; $(DEMO)/sample/contact_sheet.png is the base."

test: $(INSTALLED) lint
	$(BIN)/python -m pytest -n auto --dist worksteal

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "flowopd needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

clean:
	rm -rf .venv out build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache
