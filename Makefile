# Everything a user or CI runs. Each target does its own set-up on a fresh machine and is quick the second time.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CACHE := $(CURDIR)/$(VENV)/cache

export HF_HOME ?= $(CACHE)/huggingface
export TORCH_EXTENSIONS_DIR ?= $(CACHE)/torch_extensions
export TORCHINDUCTOR_CACHE_DIR ?= $(CACHE)/inductor
export MPLCONFIGDIR ?= $(CACHE)/matplotlib
export TOKENIZERS_PARALLELISM ?= false

# the oldest that is supported, one between, the one of constraints.txt
VERSIONS := 5.5.4 5.17.0 5.22.2
ENVIRONMENTS := $(VERSIONS:%=$(CURDIR)/$(VENV)/versions/%)
INTEL := $(CURDIR)/$(VENV)/versions/optimum-intel
EXECUTORCH := $(CURDIR)/$(VENV)/versions/executorch
SITE = $(shell $(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')

# in a process of its own: one that has run OpenVINO crashes in later tests, at a signal within training
OPENVINO := tests/export/test_openvino.py
OPENVINO_TESTS = HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(OPENVINO)

.PHONY: help setup quickstart test test-full test-versions test-intel test-executorch bench cards lint format clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(VENV)/.installed  ## the environment in .venv

$(VENV)/.installed: Makefile setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "hf_ext needs Python 3.11 or newer, this is %d.%d; set PYTHON=python3.11" % sys.version_info[:2])'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[train,peft,kernels,liger,export,openvino,test,lint]'
	DS_BUILD_OPS=0 $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[deepspeed]'  # asks for torch
	@touch $@

# what ZeRO would compile in its first run here, minutes for each process; the tests skip its runs where it is missing
$(VENV)/.deepspeed_ops: $(VENV)/.installed
	@$(BIN)/python -m hf_ext.training.deepspeed_ops deepspeed_shm_comm && touch $@ || echo "not built (is there a C++ compiler?): the tests of ZeRO will be skipped"

quickstart: setup  ## train a small decoder on Python's own library, into outputs/quickstart
	$(BIN)/python recipes/pretraining/train.py recipes/pretraining/quickstart.yaml --resume auto

test: setup $(VENV)/.deepspeed_ops  ## the tests, short forms
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m 'not full' --ignore $(OPENVINO) $(ARGS)
	$(OPENVINO_TESTS)

test-full: setup $(VENV)/.deepspeed_ops  ## the tests, long matrices too
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal --ignore $(OPENVINO) $(ARGS)
	$(OPENVINO_TESTS)

# nothing in it but transformers and what it asks for; torch is the same hundreds of megabytes, so it is linked
$(CURDIR)/$(VENV)/versions/%/.installed: constraints/transformers-%.txt $(VENV)/.installed
	rm -rf $(@D) && $(PYTHON) -m venv --without-pip $(@D)
	ln -s $(SITE)/torch $(SITE)/torchgen $(SITE)/functorch $(SITE)/torch-*.dist-info $(@D)/lib/python3*/site-packages/
	$(BIN)/python -m pip --python $(@D)/bin/python install --quiet --disable-pip-version-check -c $< transformers accelerate
	@touch $@

test-versions: setup $(ENVIRONMENTS:%=%/.installed)  ## saved models in clean environments without hf_ext, by three versions of transformers
	HF_EXT_PYTHONS="$(ENVIRONMENTS:%=%/bin/python)" HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 \
		$(BIN)/python -m pytest -n 2 -m heavy tests/hub/test_bundle.py

# optimum-intel wants an older transformers, and without --no-deps a torchvision that nothing here needs
$(INTEL)/.installed: constraints/optimum-intel.txt $(VENV)/.installed
	rm -rf $(@D) && $(PYTHON) -m venv --without-pip $(@D)
	ln -s $(SITE)/torch $(SITE)/torchgen $(SITE)/functorch $(SITE)/torch-*.dist-info $(@D)/lib/python3*/site-packages/
	$(BIN)/python -m pip --python $(@D)/bin/python install --quiet --disable-pip-version-check -c $< \
		transformers accelerate optimum openvino openvino-tokenizers nncf requests setuptools pytest
	$(BIN)/python -m pip --python $(@D)/bin/python install --quiet --disable-pip-version-check -c $< --no-deps optimum-intel
	$(BIN)/python -m pip --python $(@D)/bin/python install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

test-intel: setup $(INTEL)/.installed  ## exports by optimum-intel, in an environment of its own
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(INTEL)/bin/python -m pytest --noconftest tests/export/test_optimum_intel.py

# executorch brings torchao, whose import prints at every import of transformers
$(EXECUTORCH)/.installed: constraints/executorch.txt $(VENV)/.installed
	rm -rf $(@D) && $(PYTHON) -m venv --without-pip $(@D)
	ln -s $(SITE)/torch $(SITE)/torchgen $(SITE)/functorch $(SITE)/torch-*.dist-info $(@D)/lib/python3*/site-packages/
	$(BIN)/python -m pip --python $(@D)/bin/python install --quiet --disable-pip-version-check -c $< \
		transformers accelerate executorch pytest
	$(BIN)/python -m pip --python $(@D)/bin/python install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

test-executorch: setup $(EXECUTORCH)/.installed  ## exports for ExecuTorch and torchao's numbers, in an environment of its own
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(EXECUTORCH)/bin/python -m pytest --noconftest \
		tests/export/test_executorch.py tests/quantization/test_torchao.py

bench: setup  ## tables and plots of what costs what, into outputs/benchmarks
	$(BIN)/python tests/benchmarks/report.py

# one after the other; stopped, it goes on where it was; ARGS="--list" says what there is, ARGS="--only sst2" makes one
cards: setup  ## run the recipes that have no card in model_cards yet, hours in all, and write the architectures' cards
	$(BIN)/python -m hf_ext.hub.recipe_cards model_cards $(ARGS)
	$(BIN)/ruff format --quiet model_cards

lint: setup  ## style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: setup  ## mend the style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## what runs leave; keeps .venv
	rm -rf outputs .pytest_cache .ruff_cache
