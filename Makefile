# Two commands from a fresh clone: `make demo`, `make test`. They need Python 3.11+, pip and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test test-slow test-long test-cluster check docs format bench gpu gpu-shards clean

demo: $(READY)
	$(BIN)/upfield demo --out demo

test: $(READY)
	$(BIN)/pytest -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test-slow test-long: $(READY)
	$(BIN)/pytest -m 'slow or generated' --hypothesis-profile many

# A real Slurm of two nodes on this machine, started and stopped by the tests.
test-cluster: $(READY)
	@command -v sbatch > /dev/null || { apt-get update && apt-get install --yes --no-install-recommends slurm-wlm munge; } > /dev/null
	$(BIN)/pytest -m cluster

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

# The documentation site, in site/. It needs no network. A broken link or a file loaded from elsewhere is an error.
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)
	@command -v nginx > /dev/null || { apt-get update && apt-get install --yes --no-install-recommends nginx-light; } > /dev/null
	@for program in $(filter-out benchmarks/gpu_%,$(wildcard benchmarks/*.py)); do echo "== $$program"; $(BIN)/python $$program || exit 1; done

# The acceptance run. It needs the shards and a Python with torch, but no installed upfield, so that a copy of this folder
# with the shards in it can run on a machine without a network. Options: make gpu GPU_OPTIONS='--only 4,6'.
SHARDS := .acceptance/shards
gpu: $(if $(wildcard $(SHARDS)/manifest.json),,gpu-shards)
	$$([ -x $(BIN)/python ] && echo $(BIN)/python || echo $(PYTHON)) benchmarks/gpu_acceptance.py --shards $(SHARDS) $(GPU_OPTIONS)

gpu-shards: $(READY)
	$(BIN)/python benchmarks/gpu_acceptance.py --make_shards --shards $(SHARDS)

$(READY): pyproject.toml constraints.txt
	@echo "Installing upfield and its libraries into $(VENV). The first time, this downloads gigabytes and takes minutes."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev,demo]'
	touch $(READY)

clean:
	rm -rf $(VENV) demo build dist site *.egg-info .pytest_cache .ruff_cache
