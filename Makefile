# Two commands matter: `make demo` and `make test`. Both set themselves up.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Set-up installs, then proves that `accelerate launch` starts two processes; until it has, it is not done.
# With an NVIDIA driver the newest CUDA build of torch is wanted; without one, the pinned set this project is tested with.
CONSTRAINTS := $(if $(shell command -v nvidia-smi 2>/dev/null),,-c constraints-cpu.txt)

.PHONY: setup demo test check tables docs clean
export PYTHONUNBUFFERED := 1
export TOKENIZERS_PARALLELISM := false

setup: $(STAMP)

$(STAMP): pyproject.toml constraints-cpu.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --quiet $(CONSTRAINTS) -e '.[dev]'
	$(BIN)/python -m distill.launch.check
	@touch $(STAMP)

# make demo                      the procedural world, about 25 minutes on two cores
# make demo DATA=path            your videos: a folder, or a JSONL/CSV manifest with captions
demo: setup
	$(BIN)/python -m scripts.demo $(if $(DATA),--data $(DATA)) $(ARGS)

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# make test KERNELS=default      the same under the plain kernels of torch (or avx2)
# Two workers of one thread each: most tests are small, and many wait for processes they started.
test: check
	OMP_NUM_THREADS=1 $(if $(KERNELS),ATEN_CPU_CAPABILITY=$(KERNELS)) $(BIN)/python -m pytest -m "not slow and not gpu" -n 2 --dist loadfile

# make tables                    tables of README, docs and benchmarks from results/, where the commands wrote them
tables: setup
	$(BIN)/python -m scripts.tables

# make docs                      reference of every public name, from the docstrings: docs/api/index.html
docs: setup
	$(BIN)/python -m pdoc --docformat markdown --math -o docs/api meanflow meanflow.doctor meanflow.toys teacher distill eval

clean:
	rm -rf runs .pytest_cache .mypy_cache .ruff_cache
