# radprobe: `make extract`, then `make probe`. `make help` lists the rest.

CONFIG ?= configs/demo.yaml
PYTHON ?= python3
VENV   ?= .venv
# Whether the environment is for a machine with an NVIDIA GPU: its driver's own list says so.
GPU    ?= $(if $(shell nvidia-smi -L 2>/dev/null),1,0)

RADPROBE = $(VENV)/bin/radprobe
READY    = $(VENV)/.ready
# STORE=, ARGS= and the like reach the command; unset ones leave its defaults alone.
STORE_ARG   = $(if $(STORE),--store "$(STORE)")
EXTRACT_ARG = $(STORE_ARG) $(if $(BATCH_SIZE),--batch-size $(BATCH_SIZE)) \
	$(if $(DEVICE),--device $(DEVICE)) $(if $(WORKERS),--workers $(WORKERS)) $(ARGS)

.DEFAULT_GOAL := help
.PHONY: help extract probe knn fewshot segment report test check format docs clean

help: ## Show this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-9s %s\n", $$1, $$2}'
	@echo
	@echo "  CONFIG=my.yaml  STORE=path  BATCH_SIZE=32  DEVICE=cuda  WORKERS=4  ARGS='--json'"
	@echo "  GPU=0: no CUDA build of FAISS, also where nvidia-smi lists a GPU"

extract: $(READY) ## Embed the collection of CONFIG into its store (only what is not there yet)
	@$(RADPROBE) extract "$(CONFIG)" $(EXTRACT_ARG)

probe: $(READY) ## Answer every task of CONFIG from the store: kNN, logistic probe, few-shot
	@$(RADPROBE) evaluate "$(CONFIG)" $(STORE_ARG) $(ARGS)

knn: $(READY) ## kNN alone
	@$(RADPROBE) knn "$(CONFIG)" $(STORE_ARG) $(ARGS)

fewshot: $(READY) ## Few-shot episodes alone
	@$(RADPROBE) fewshot "$(CONFIG)" $(STORE_ARG) $(ARGS)

report: $(READY) ## Write the page of CONFIG's store: results, curves, map, findings
	@$(RADPROBE) report "$(CONFIG)" $(ARGS)

segment: $(READY) ## Train and score segmentation heads on the cached patch tokens of CONFIG
	@$(RADPROBE) segment "$(CONFIG)" $(STORE_ARG) $(ARGS)

test: $(READY) ## Run the tests
	$(VENV)/bin/pytest -q -n 2 --dist worksteal $(ARGS)

check: $(READY) ## Check format, lint and types
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

format: $(READY) ## Format the code and mend what the linter can
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

docs: $(READY) ## Build the documentation into site/
	@NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict --quiet --site-dir site

clean: ## Remove the environment and the caches (no store, no data)
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis build *.egg-info

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
ifneq ($(GPU),0)
	@# The two builds of FAISS share a folder: both go, since either takes files of the other along.
	$(VENV)/bin/pip uninstall --quiet --yes faiss-cpu faiss-gpu
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt faiss-gpu
endif
	@touch $@
