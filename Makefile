# Two commands do everything: `make demo` and `make test`. Both make .venv first, with the pinned versions.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# One thread a process: the demo runs a process per stage and the tests a process per core.
export OMP_NUM_THREADS ?= 1

.PHONY: demo test test-browser lint wheel clean

demo: $(VENV)/installed
	$(BIN)/loraplex demo -o demo

test: $(VENV)/installed
	$(BIN)/python -m pytest -q -n auto

# The report's page, and a trace in Perfetto's, in a real browser; needs Chromium (Debian's package `chromium`).
test-browser: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[browser]'
	$(BIN)/python -m pytest -q tests/analysis/check_report_in_chromium.py tests/analysis/check_trace_in_perfetto.py

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell

wheel: $(VENV)/installed
	rm -rf build dist
	$(BIN)/python -m build --wheel --outdir dist .

clean:
	rm -rf $(VENV) build dist demo *.egg-info

$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "LoRAPlex needs Python 3.11 or later; name one: make PYTHON=python3.12 ..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[train,fast,dev]'
	touch $@
