# psl: `make` alone prints what there is to do. GNU make 3.81 (that of macOS) or newer.
PYTHON  ?= python3
VENV    := .venv
DATASET ?= digits
QUICK   ?= 0
FULL    ?= 0
BIN     := $(VENV)/bin
READY   := $(VENV)/.ready
BOOK    := $(VENV)/.book
CORES    = $(shell nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)

# Where this repository stands, for the site's buttons to Binder and Colab; if empty, book/conf.py asks git for its remote.
export REPOSITORY

# Data sets are looked for here; absolute, because notebooks run in their own folder.
export PSL_DATA := $(abspath $(or $(PSL_DATA),data))

NAMES := $(basename $(notdir $(sort $(wildcard notebooks/[0-9]*.ipynb))))
BUILD := build/$(DATASET)
ifeq ($(DATASET),digits)
  FIGURES := figures
else
  # Only these compare on images.
  NAMES   := $(filter 03_% 04_% 05_%,$(NAMES))
  FIGURES := figures/$(DATASET)
endif
# Where notebook 07 is executed. Its figures in figures/ are those of all scenarios, FULL=1; fewer go to a folder of their own.
BUILD_07 := $(BUILD)$(if $(filter 0,$(FULL)),-short)
ifneq ($(QUICK),0)
  # A quick run must not overwrite the full one's figures.
  BUILD    := $(BUILD)-quick
  BUILD_07 := $(BUILD)
  FIGURES  := $(BUILD)/figures
endif
SETTING    := $(if $(filter digits,$(DATASET)),, DATASET=$(DATASET))$(if $(filter 0,$(QUICK)),, QUICK=$(QUICK))
executed   = $(foreach name,$(filter $1,$(NAMES)),$(if $(filter 07_%,$(name)),$(BUILD_07),$(BUILD))/$(name).ipynb)
figures_of = $(if $(filter $(BUILD)/%,$1),$(FIGURES),$(BUILD_07)/figures)
# Notebook 04 waits for 03, so 03 begins early; before it only 07, the longest of a short run (in others it waits for all).
EXECUTED   := $(call executed,07_%) $(call executed,03_%) $(filter-out $(call executed,03_% 07_%),$(call executed,%))
SIGNATURES := $(EXECUTED:.ipynb=.inputs)
GALLERIES  := $(sort $(foreach notebook,$(EXECUTED),$(call figures_of,$(notebook))/README.md))

# The notebooks whose outputs are compared (cells marked NBVAL_CHECK_OUTPUT): those that take seconds.
GUARDED    := $(wildcard notebooks/00_*.ipynb notebooks/01_*.ipynb notebooks/02_*.ipynb)
# One thread for each process: workers share out the cores.
PYTEST     := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n

ifneq ($(filter notebooks,$(MAKECMDGOALS)),)
ifneq ($(DATASET)-$(QUICK),digits-0)
$(error make notebooks: expected the committed setting, got DATASET=$(DATASET) QUICK=$(QUICK). Fix: leave both out)
endif
endif

.DEFAULT_GOAL := help
.PHONY: help env lab figures galleries signatures notebooks test check lint exercises student slides book book-links lite benchmarks-report clean
.DELETE_ON_ERROR:
.SECONDARY:

help:
	@echo "make env        build .venv with the pinned packages (the others do it by themselves)"
	@echo "make figures    execute the notebooks on all cores, write figures/. Settings:"
	@echo "                  DATASET=mnist  on MNIST, into figures/mnist/"
	@echo "                  QUICK=1        a short run, into build/digits-quick/figures/"
	@echo "                  FULL=1         notebook 07 measures all scenarios and writes into figures/;"
	@echo "                                 else it measures a few, into build/digits-short/figures/"
	@echo "make notebooks  the same, and put the outputs into notebooks/ (07's only with FULL=1)"
	@echo "make lab        open the notebooks in JupyterLab; their figures go to build/lab/ (LAB='--no-browser --port 9999')"
	@echo "make exercises  run every solution, and show every check its wrong answers"
	@echo "make student    write the notebooks with exercises, without solutions, into build/student/"
	@echo "make slides     write the notebooks as slides, without code, into build/slides/"
	@echo "make book       build the site into build/book/ (REPOSITORY=https://... for its buttons to Binder and Colab)"
	@echo "make book-links ask every address in the site whether it still exists; needs the internet"
	@echo "make lite       build a site where planning runs in the browser alone, into build/lite/"
	@echo "make check      style, types and the fast tests, in less than two minutes"
	@echo "make test       execute every notebook with QUICK=1, then run all tests, on all cores"
	@echo "make lint       check style with ruff and types with pyright"
	@echo "make benchmarks-report  write benchmarks/results/README.md from the CSV files beside it"
	@echo "make clean      remove what was built (not .venv, not figures/)"

env: $(READY)

$(READY): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "psl: expected Python 3.11 or newer, got `$(PYTHON) --version 2>&1`." \
	       "Fix: make PYTHON=/path/to/python3.11 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --prefer-binary --no-compile -r requirements.txt
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps --no-build-isolation -e .
	@# pip compiles on one core only. Some packages contain files that do not compile, and are never imported.
	@$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib src || true
	@# JupyterLab asks about news at its first start; not here.
	$(BIN)/jupyter-labextension disable --level=sys_prefix @jupyterlab/apputils-extension:announcements
	@touch $@

# At most four notebooks side by side: each spreads its own runs over all cores, and memory is finite. `make -jN` has its way.
figures: $(READY)
	@case " $$MAKEFLAGS" in *" -j"*|*--jobserver*) jobs= ;; \
	  *) jobs=$(CORES); test $$jobs -le 4 || jobs=4; jobs=-j$$jobs ;; esac; \
	  $(MAKE) --no-print-directory $$jobs galleries
	@echo "figures: $(patsubst %/README.md,%/,$(GALLERIES)) up to date"

galleries: $(GALLERIES)

# What is in figures/ comes from FULL=1, of which a plain run makes everything but notebook 07's part anew.
$(GALLERIES): %/README.md: $(EXECUTED) tools/publish.py | $(READY)
	@$(BIN)/python tools/publish.py gallery $* "make figures$(SETTING)$(if $(filter figures,$*), FULL=1)"

# A signature changes only if something changed that a notebook's figures depend on, or if one of them is gone.
signatures:
	@$(PYTHON) tools/inputs.py $(SIGNATURES) DATASET=$(DATASET) QUICK=$(QUICK) FIGURES=$(FIGURES)

$(SIGNATURES): signatures
	@:

build/%.ipynb: build/%.inputs | $(READY)
	@$(BIN)/python tools/execute.py $< $(call figures_of,$@) DATASET=$(DATASET) QUICK=$(QUICK) \
	  $(if $(filter 07_%,$(notdir $*)),FULL=$(FULL))

# Notebook 04 draws what 03 found.
$(call executed,04_%): $(call executed,03_%)

# Notebooks 01 and 07 measure seconds. They run alone: after all others, and one after the other. Nobody keeps the seconds
# of a short run.
ifeq ($(QUICK),0)
$(call executed,01_%): | $(filter-out $(call executed,01_% 07_%),$(EXECUTED))
$(call executed,07_%): | $(filter-out $(call executed,07_%),$(EXECUTED))
endif

notebooks: figures
	@$(BIN)/python tools/publish.py notebooks $(filter $(BUILD)/%,$(EXECUTED))

lab: $(READY)
	$(BIN)/jupyter-lab --ServerApp.root_dir="$(CURDIR)" --LabApp.default_url=/lab/tree/notebooks/00_environment.ipynb \
	  $(if $(filter 0,$(shell id -u)),--allow-root) $(LAB)

# The notebooks check their own claims; pytest comes last, so that its verdict is the last line.
test: $(READY)
	@$(MAKE) --no-print-directory figures QUICK=1 DATASET=digits
	$(PYTEST) $(CORES) --nbval-lax tests $(GUARDED)

check: lint
	$(PYTEST) $(CORES) -m "not slow" tests

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright

exercises: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python tools/exercises.py

student: $(READY)
	@$(BIN)/python tools/student.py

# The pages fetch reveal.js and MathJax from the internet when they are opened.
slides: $(READY)
	@$(BIN)/python tools/slides.py

book: $(BOOK)
	@$(BIN)/python tools/book.py

book-links: $(BOOK)
	@$(BIN)/python tools/book.py build/book-links linkcheck

lite: $(BOOK)
	@$(BIN)/python tools/lite.py

# On the first use: 20 seconds and 65 MB that `make env` need not spend.
$(BOOK): requirements-book.txt $(READY)
	$(BIN)/python -m pip install -q --disable-pip-version-check --prefer-binary -r requirements.txt -r $<
	@touch $@

benchmarks-report: $(READY)
	$(BIN)/python benchmarks/report.py

clean:
	rm -rf build .pytest_cache .ruff_cache .hypothesis src/*.egg-info
	find . -name __pycache__ -not -path "./$(VENV)/*" -prune -exec rm -rf {} +
