# psl: `make` alone prints what there is to do.
PYTHON  ?= python3
VENV    := .venv
DATASET ?= digits
QUICK   ?= 0
BIN     := $(VENV)/bin
READY   := $(VENV)/.ready

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
ifneq ($(QUICK),0)
  # A quick run must not overwrite the full one's figures.
  BUILD   := $(BUILD)-quick
  FIGURES := $(BUILD)/figures
endif
EXECUTED := $(NAMES:%=$(BUILD)/%.ipynb)
INPUTS    = DATASET=$(DATASET) QUICK=$(QUICK) FIGURES=$(FIGURES)

.DEFAULT_GOAL := help
.PHONY: help env lab notebooks figures test lint clean FORCE
.DELETE_ON_ERROR:
.SECONDARY:

help:
	@echo "make env        build .venv with the pinned packages (the others do it by themselves)"
	@echo "make figures    execute the notebooks, write figures/ (DATASET=mnist: on MNIST; QUICK=1: a short run)"
	@echo "make notebooks  the same, and put the outputs into notebooks/"
	@echo "make lab        open the notebooks in JupyterLab"
	@echo "make test       run all tests"
	@echo "make lint       check style with ruff"
	@echo "make clean      remove what was built (not .venv, not figures/)"

env: $(READY)

$(READY): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "psl: expected Python 3.11 or newer, got `$(PYTHON) --version 2>&1`." \
	       "Fix: make PYTHON=/path/to/python3.11 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

# The signature changes only if something a notebook depends on does; so does what hangs on it.
$(BUILD)/%.inputs: FORCE
	@$(PYTHON) tools/inputs.py notebooks/$*.ipynb $@ $(INPUTS)

$(BUILD)/%.ipynb: $(BUILD)/%.inputs | $(READY)
	@echo "== notebooks/$*.ipynb"
	@# Side by side, notebooks get one thread each; alone, one gets them all.
	@# Checkpoints of this very input: an interrupted run goes on where it was.
	@case " $$MAKEFLAGS" in *" -j"*|*" --jobs"*) export OMP_NUM_THREADS=1;; esac; \
	  caches="$(CURDIR)/$(BUILD)/cache"; cache="$$caches/$*-`cut -c1-12 $<`"; part="$(@:.ipynb=.part.ipynb)"; \
	  mkdir -p "$$cache"; find "$$caches" -maxdepth 1 -name "$*-*" ! -path "$$cache" -exec rm -rf {} +; \
	  $(BIN)/papermill notebooks/$*.ipynb $$part --cwd notebooks --kernel python3 --log-level WARNING \
	    -p QUICK $(if $(filter 0,$(QUICK)),False,True) -p DATASET $(DATASET) \
	    -p FIGURES "$(CURDIR)/$(FIGURES)" -p CACHE "$$cache" || exit 1; \
	  (ls $(FIGURES)/`echo $* | cut -c1-3`* 2>/dev/null || true) > $(@:.ipynb=.figures); \
	  mv "$$part" $@ && rm -rf "$$cache"

# The last notebook draws what the training notebook found.
$(BUILD)/04_figures.ipynb: $(BUILD)/03_training.ipynb

$(FIGURES)/README.md: $(EXECUTED) tools/publish.py | $(READY)
	@$(BIN)/python tools/publish.py gallery $(FIGURES)

figures: $(FIGURES)/README.md
	@echo "figures: $(FIGURES)/ is up to date"

notebooks: figures
	@test $(DATASET)-$(QUICK) = digits-0 || { \
	  echo "make notebooks: expected the committed setting, got DATASET=$(DATASET) QUICK=$(QUICK). Fix: leave both out" >&2; exit 1; }
	@$(BIN)/python tools/publish.py notebooks $(BUILD)

lab: $(READY)
	$(BIN)/jupyter lab --notebook-dir=notebooks

test: $(READY)
	QUICK=1 FIGURES="$(CURDIR)/build/test-figures" $(BIN)/python -m pytest --nbval-lax tests notebooks

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf build .pytest_cache .ruff_cache .hypothesis src/*.egg-info
	find . -name __pycache__ -not -path "./$(VENV)/*" -prune -exec rm -rf {} +
