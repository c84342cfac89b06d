# make quickstart   install, train m1 for 32,000 tokens on this machine's Python source, evaluate it, print a table
# make test         install, run the tests
# make style        install, check style and types
# PYTHON=python3.12 picks an interpreter, TORCH="torch==2.11.0" a version of torch.

PYTHON ?= python3
VENV ?= .venv
RUN ?= runs/quickstart-$(shell date +%Y%m%d-%H%M%S)
BIN := $(VENV)/bin
# Set once, before a recipe runs: RUN names a folder by the time at which make started.
RUN := $(RUN)

# On Linux the package index's own torch is the CUDA build, gigabytes that a machine without an NVIDIA GPU has no use
# for. PyTorch's own index has the CPU build; where it cannot be reached, the package index decides.
ifeq ($(shell uname -s),Linux)
ifeq ($(shell command -v nvidia-smi),)
TORCH ?= torch==2.13.0
CPU_TORCH := --no-deps --retries 1 --index-url https://download.pytorch.org/whl/cpu
endif
endif
TORCH ?= torch

# Candidates of HumanEval are run on Linux alone.
ifeq ($(shell uname -s),Linux)
HUMANEVAL := yes
endif

.PHONY: install quickstart test style
.DEFAULT_GOAL := quickstart

install: $(VENV)/installed

$(VENV)/installed: setup.cfg pyproject.toml Makefile
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else f"error: {sys.executable} is Python {sys.version.split()[0]}; llama-code needs 3.11 or newer: make PYTHON=python3.12")'
	@$(PYTHON) -m venv $(VENV) || { echo "error: $(PYTHON) cannot make a virtual environment; install its venv package (Debian and Ubuntu: apt install python3-venv)" >&2; rm -rf $(VENV); exit 2; }
ifdef CPU_TORCH
	$(BIN)/python -m pip install $(CPU_TORCH) "$(TORCH)" || echo "PyTorch's index of CPU builds has no $(TORCH) for this machine or cannot be reached; taking the package index's"
endif
	$(BIN)/python -m pip install "$(TORCH)" -e ".[dev]"
	@touch $@

quickstart: install
	$(BIN)/python train_clm.py --config m1 --output_dir $(RUN)
	$(BIN)/python eval_code.py --model $(RUN) --tasks perplexity --limit 24 --output_dir $(RUN)/eval/perplexity
ifdef HUMANEVAL
	$(BIN)/python eval_code.py --model $(RUN) --tasks humaneval --temperature 0 --output_dir $(RUN)/eval/humaneval-greedy
	$(BIN)/python eval_code.py --model $(RUN) --tasks humaneval --num_samples 10 --limit 10 --output_dir $(RUN)/eval/humaneval-sampled
else
	@echo "HumanEval runs the programs that the model writes, which needs Linux: run 'make quickstart' in Docker for it."
endif
	$(BIN)/python -m llama_code.evaluation.summary $(RUN)

# torchao and, on CPUs with bf16, bitsandbytes print when transformers finds and imports them, so they lie apart, where
# only the tests that want them look.
# Tests run in a process for each core, a file's in one, each with one thread; but the judge's alone, which compare the
# machine's processes and temporary files before and after.
test: export OMP_NUM_THREADS := 1
test: install
	$(BIN)/python -m pytest -n auto --dist loadfile --ignore tests/judge
	$(BIN)/python -m pytest tests/judge
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(VENV)/torchao torchao==0.18.0
	PYTHONPATH=$(VENV)/torchao $(BIN)/python -m pytest -n auto tests/training/test_low_bit.py tests/evaluation/test_quantized.py
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(VENV)/bitsandbytes bitsandbytes==0.50.2
	PYTHONPATH=$(VENV)/bitsandbytes $(BIN)/python -m pytest -n auto tests/training/test_peft.py tests/evaluation/test_quantized.py -k "qlora or nf4"

style: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@# mypy follows setup.cfg's mapped packages in a regular install only, so it gets one beside the editable one.
	rm -rf build $(VENV)/types
	$(BIN)/python -m pip install --quiet --no-deps --target $(VENV)/types .
	MYPYPATH=$(VENV)/types $(BIN)/mypy -p llama_code
