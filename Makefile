# Two commands for newcomers: `make demo` and `make test`. Each makes its own virtual environment.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
DEMO = .demo

.PHONY: demo test test-slow test-gpu fuzz lint types check docs bench clean

demo: $(VENV)/.demo
	@mkdir -p $(DEMO)
	$(BIN)/snnc compile models/digits-resnet.onnx -o $(DEMO)/digits-resnet.snn.onnx \
	    --calibration models/digits_train.npz --scale 16
	$(BIN)/snnc eval models/digits-resnet.onnx $(DEMO)/digits-resnet.snn.onnx \
	    --data models/digits_test.npz --scale 16 --steps 2,4,8,16,32,64

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n auto --dist worksteal

test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest -n auto --dist worksteal -m "slow and not gpu"

test-gpu: $(VENV)/.dev
	$(BIN)/python -m pytest -m gpu

fuzz: $(VENV)/.dev
	$(BIN)/python tests/fuzz/fuzz_convergence.py --count 2000 --seed 0

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

check: lint types test

docs: $(VENV)/.dev
	$(BIN)/python docs/generate.py

bench: $(VENV)/.dev
	$(BIN)/python bench/unroll.py

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install -q --disable-pip-version-check -e ".[cpu]"
	@touch $@

$(VENV)/.dev: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install -q --disable-pip-version-check -e ".[cpu,dev]"
	@touch $@ $(VENV)/.demo

clean:
	rm -rf $(VENV) $(DEMO) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
