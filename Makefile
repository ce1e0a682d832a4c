# Two commands do all the set-up: `make demo` and `make test`. Both can be run in any order, again,
# and after an interruption; a stamp is written only when a step is complete.

ROOT := $(dir $(abspath $(lastword $(MAKEFILE_LIST))))
VENV ?= $(ROOT).venv
PYTHON ?= python3
TORCH ?= torch==2.13.0
BIN := $(VENV)/bin

.PHONY: demo test install model browser clean

demo: model
	cd $(ROOT) && $(BIN)/mnemoscope scan smollm2-135m --output $(ROOT)runs/demo --resume

test: model browser
	cd $(ROOT) && $(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy
	cd $(ROOT) && $(BIN)/python -m pytest -q -n 2 --dist loadfile

install: $(VENV)/.installed

model: install
	$(BIN)/mnemoscope models fetch smollm2-135m

# The explorer is tested in a browser: one that is there, else Playwright's, else the system's. Where
# none can be had this says so, and those tests are skipped; CI fails instead.
browser: install
	@cd $(ROOT) && $(BIN)/python -c "import apps.bench_explore as b, sys; sys.exit(not b.find_browser())" \
	  || $(BIN)/python -m playwright install chromium >/dev/null 2>&1 \
	  || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq \
	       && apt-get install -y -qq chromium >/dev/null; } \
	  || echo "no browser could be found or installed: the explorer will not be tested in one"

# torch goes first, at a fixed version: otherwise pip would pick a build for another machine
$(VENV)/.installed: $(ROOT)pyproject.toml $(ROOT)constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q "$(TORCH)"
	$(BIN)/python -m pip install -q -c $(ROOT)constraints.txt -e "$(ROOT)[dev]"
	touch $@

clean:
	rm -rf $(VENV) $(ROOT)runs
