# make demo: install, then the whole way on two CPU cores.   make test: install, then the tests.
PYTHON ?= python3
VENV ?= .venv
# For example PIP_ARGS='--extra-index-url https://download.pytorch.org/whl/cpu': torch without CUDA, smaller by gigabytes.
PIP_ARGS ?=
BIN := $(VENV)/bin
# Progress is printed as it is made.
export PYTHONUNBUFFERED = 1

.PHONY: demo test lint env clean

demo: $(VENV)/.installed
	@$(BIN)/python -W ignore tools/demo.py

test: $(VENV)/.installed
	@echo '=== Lint'
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . || { echo 'Lint failed: `make lint` repairs what can be repaired.'; exit 1; }
	@echo '=== Tests, in the order of the data'
	@$(BIN)/python -m pytest || { echo 'Tests failed: the names are above; one alone: $(BIN)/python -m pytest tests/FILE.py -k NAME'; exit 1; }

lint: $(VENV)/.installed
	@$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

env: $(VENV)/.installed

# Made anew only when what is to be installed changes.
$(VENV)/.installed: requirements/runtime.txt requirements/demo.txt requirements/optional.txt requirements/tests.txt setup.py pyproject.toml
	@echo '=== Install into $(VENV): once, some minutes, mostly torch'
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 10) <= v <= (3, 12) else f"Python 3.10 to 3.12 is needed, this is {v[0]}.{v[1]}: make PYTHON=python3.11 ...")'
	@$(PYTHON) -m venv $(VENV) || { echo 'No virtual environment could be made: on Debian and Ubuntu install python3-venv.'; exit 1; }
	@$(BIN)/python -m pip install --disable-pip-version-check -q $(PIP_ARGS) 'setuptools<82' wheel && \
		$(BIN)/python -m pip install --disable-pip-version-check --progress-bar on $(PIP_ARGS) -r requirements/tests.txt && \
		$(BIN)/python -m pip install --disable-pip-version-check -q --no-deps --no-build-isolation -e . || \
		{ echo 'The installation failed: the reason is above. `make $(MAKECMDGOALS)` goes on where it stopped; packages already fetched are not fetched again.'; exit 1; }
	@touch $@

clean:
	rm -rf $(VENV) work_dirs build *.egg-info
