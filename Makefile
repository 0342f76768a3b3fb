# make demo: install, then the whole way on two CPU cores.   make test: install, then the tests.
# make report WORK_DIR=work_dirs/NAME: a run as one HTML page.
# make test STACK=onedl: the tests with other versions of torch, mmengine, mmcv and mmdet, requirements/stack_*.txt.
PYTHON ?= python3
STACK ?= lite
VENV ?= $(if $(filter lite,$(STACK)),.venv,.venv-$(STACK))
# For example PIP_ARGS='--extra-index-url https://download.pytorch.org/whl/cpu': torch without CUDA, smaller by gigabytes.
PIP_ARGS ?=
# For example PYTEST_ARGS='-k rank'. The tests run on two cores, a thread each: more lose time.
PYTEST_ARGS ?=
BIN := $(VENV)/bin
REQUIREMENTS := $(addprefix requirements/,stack_$(STACK).txt runtime.txt demo.txt optional.txt tests.txt)
# Progress is printed as it is made.
export PYTHONUNBUFFERED = 1

.PHONY: demo test report lint env clean

demo: $(VENV)/.installed
	@$(BIN)/python -W ignore tools/demo.py

test: $(VENV)/.installed
	@echo '=== Lint'
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . || { echo 'Lint failed: `make lint` repairs what can be repaired.'; exit 1; }
	@echo '=== Tests of stack $(STACK), on two cores'
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --durations 10 $(PYTEST_ARGS) || { echo 'Tests failed: the names are above; one alone: $(BIN)/python -m pytest tests/FILE.py -k NAME'; exit 1; }

report: $(if $(WORK_DIR),$(VENV)/.installed)
	@test -n "$(WORK_DIR)" || { echo 'Of which run? make report WORK_DIR=work_dirs/NAME, the folder that training wrote.'; exit 1; }
	@$(BIN)/python -W ignore tools/report.py "$(WORK_DIR)"

lint: $(VENV)/.installed
	@$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

env: $(VENV)/.installed

# Made anew only when what is to be installed changes.
$(VENV)/.installed: $(REQUIREMENTS) setup.py pyproject.toml
	@echo '=== Install into $(VENV): once, some minutes, mostly torch'
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 10) <= v <= (3, 12) else f"Python 3.10 to 3.12 is needed, this is {v[0]}.{v[1]}: make PYTHON=python3.11 ...")'
	@$(PYTHON) -m venv $(VENV) || { echo 'No virtual environment could be made: on Debian and Ubuntu install python3-venv.'; exit 1; }
	@$(BIN)/python -m pip install --disable-pip-version-check -q $(PIP_ARGS) 'setuptools<82' wheel && \
		$(BIN)/python -m pip install --disable-pip-version-check --progress-bar on $(PIP_ARGS) -r requirements/stack_$(STACK).txt -r requirements/tests.txt && \
		$(BIN)/python -m pip install --disable-pip-version-check -q --no-deps --no-build-isolation -e . || \
		{ echo 'The installation failed: the reason is above. `make $(MAKECMDGOALS)` goes on where it stopped; packages already fetched are not fetched again.'; exit 1; }
	@touch $@

clean:
	rm -rf $(VENV) .venv-* work_dirs build *.egg-info
