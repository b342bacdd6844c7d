PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: quickstart test test-all lint types clean

# One small model from text to a verified artifact, offline after the installation.
quickstart: $(STAMP)
	$(BIN)/compressor run recipes/quickstart.yaml
	$(BIN)/compressor verify runs/quickstart/artifact

test: lint types
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

test-all: lint types
	$(BIN)/python -m pytest -q -m "slow or not slow"

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/compressor validate recipes/*.yaml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-actions .github/actions/*/action.yml

types: $(STAMP)
	$(BIN)/mypy

# torch first: on its own the version is taken as it is pinned, without other builds' extra packages.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[cpu,dev]"
	touch $@

clean:
	rm -rf $(VENV) runs build
