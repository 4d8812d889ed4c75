# Two commands for newcomers: `make demo` and `make test`. Each makes its own virtual environment.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
DEMO = .demo

ZOO = .zoo
# One torchvision belongs to one torch. Their index of CPU builds saves some gigabytes of CUDA; where it
# can't be reached, pip warns and takes what it finds, or: make zoo TORCH="torch==... torchvision==..."
TORCH ?= --extra-index-url https://download.pytorch.org/whl/cpu torch==2.13.0 torchvision==0.28.0
MODULE ?=

.PHONY: demo test test-slow test-gpu fuzz golden lint types check docs bench zoo mutants clean

demo: $(VENV)/.demo
	@mkdir -p $(DEMO)
	$(BIN)/snnc compile models/digits-resnet.onnx -o $(DEMO)/digits-resnet.snn.onnx \
	    --calibration models/digits_train.npz --scale 16
	$(BIN)/snnc eval models/digits-resnet.onnx $(DEMO)/digits-resnet.snn.onnx \
	    --data models/digits_test.npz --scale 16 --steps 2,4,8,16,32,64
	$(BIN)/snnc compile models/digits-resnet.onnx -o $(DEMO)/digits-layered.snn.onnx \
	    --timing layered --coding radix -T 4 --calibration models/digits_train.npz --scale 16
	$(BIN)/snnc eval models/digits-resnet.onnx $(DEMO)/digits-layered.snn.onnx \
	    --data models/digits_test.npz --scale 16

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n auto --dist worksteal

test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest -n auto --dist worksteal -m "slow and not gpu"

test-gpu: $(VENV)/.dev
	$(BIN)/python -m pytest -m gpu

fuzz: $(VENV)/.dev
	$(BIN)/python tests/fuzz/fuzz_convergence.py --count 2000 --seed 0
	$(BIN)/python tests/fuzz/fuzz_convergence.py --count 2000 --seed 0 --timing layered

# The texts of tests/emission/golden anew, where a change of the emission is meant.
golden: $(VENV)/.dev
	$(BIN)/python -m pytest -q tests/emission/test_golden.py --write-golden

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(VENV)/.dev
	$(BIN)/mypy

check: lint types test

# The pages that come from the code, then the site in .site/, which opens from the file system.
docs: $(VENV)/.docs
	$(BIN)/python docs/generate.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet

bench: $(VENV)/.dev
	$(BIN)/python bench/unroll.py

# The networks are written once, by PyTorch's exporters and tf2onnx, each in an environment of its own
# (a quarter of an hour); to convert them all takes about an hour on two cores. What was measured is kept in
# $(ZOO)/rows.jsonl, and a run that was cut goes on there.
zoo: $(VENV)/.dev $(ZOO)/.written
	$(BIN)/python bench/zoo.py --networks $(ZOO)/networks --rows $(ZOO)/rows.jsonl \
	    --write docs/explanation/zoo.md

# All that pyproject.toml lists takes an hour; one: make mutants MODULE=passes/spike/fold_amplitude.py
mutants: $(VENV)/.dev
	$(BIN)/python -m pip install -q --disable-pip-version-check -e ".[mutants]"
	$(BIN)/python bench/mutants.py $(MODULE)

$(ZOO)/.written: tests/zoo/generate.py tests/zoo/torch_networks.py
	$(PYTHON) -m venv $(ZOO)/torch
	$(ZOO)/torch/bin/python -m pip install -q $(TORCH) onnxscript
	$(PYTHON) -m venv $(ZOO)/keras
	$(ZOO)/keras/bin/python -m pip install -q tensorflow-cpu tf2onnx
	$(ZOO)/torch/bin/python tests/zoo/generate.py torch $(ZOO)/networks
	$(ZOO)/torch/bin/python tests/zoo/generate.py torchvision $(ZOO)/networks
	$(ZOO)/keras/bin/python tests/zoo/generate.py keras $(ZOO)/networks
	@touch $@

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install -q --disable-pip-version-check -e ".[cpu]"
	@touch $@

$(VENV)/.docs: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install -q --disable-pip-version-check -e ".[cpu,docs]"
	@touch $@ $(VENV)/.demo

$(VENV)/.dev: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install -q --disable-pip-version-check -e ".[cpu,dev]"
	@touch $@ $(VENV)/.demo

clean:
	rm -rf $(VENV) $(DEMO) $(ZOO) .site build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
