# The commands a newcomer needs; `make help` lists them. Every target sets the environment up first, once.

PYTHON      ?= python3.11
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
BENCHES     := $(filter-out bench/jobmatch_%.py,$(wildcard bench/*.py))

BIN   := .venv/bin
STAMP := .venv/.installed
PIP   := $(BIN)/python -m pip --disable-pip-version-check
UNCOMPILED := anthropic phonenumbers statsmodels schemathesis cohere fontTools mypy mypyc setuptools playwright virtualenv
TORCH := $(shell grep '^torch==' constraints.txt)

# No target may reach a model hub or send usage statistics.
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false
export RAY_USAGE_STATS_ENABLED := 0
export VLLM_NO_USAGE_STATS := 1

.DEFAULT_GOAL := help
.PHONY: help setup demo test check format bench contracts clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(STAMP)  ## the whole path on the embedded market: runs/demo/report.html
	@$(BIN)/preceptor run demo --root runs/demo --serve-examples

# Two processes: Rays and engines that start leave cores idle (tests/conftest.py says who gets what).
test: $(STAMP)  ## all tests except the slow ones
	@$(BIN)/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder

check: $(STAMP)  ## lint, format and types, changing nothing
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy

format: $(STAMP)  ## mend what lint and format can mend
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

bench: demo  ## every benchmark that needs no data of yours, on the run of `make demo`; hours
	@set -e; for bench in $(BENCHES); do echo "bench: $$bench"; $(BIN)/python -m bench.$$(basename $$bench .py); done

contracts: $(STAMP)  ## write docs/contracts.md from the schemas
	@$(BIN)/python -m preceptor.contracts_doc > docs/.contracts.partial
	@mv docs/.contracts.partial docs/contracts.md

clean:  ## remove caches and build output; keeps .venv and runs
	@rm -rf dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find pipeline serve jobs tests bench -name __pycache__ -prune -exec rm -rf {} +

setup: $(STAMP)  ## .venv with the pinned packages; reruns only when the pins or pyproject.toml change

# --no-deps: constraints.txt is the complete set, and pip would add torchvision, torchaudio and torchcodec to it.
# uv unpacks what pip takes 83 s for in 14 s on 2 cores; it reads none of pip's settings, so those that say where packages
# come from are handed over. Where uv finds less than pip would (a proxy with a password, say), pip installs after all.
# Then compileall on all cores, of all but what is large and hardly ever imported: left to the first import, every process of
# the first engine would compile the same modules (150 s instead of 60 s to its first grade), and where Python is told to
# write none (PYTHONDONTWRITEBYTECODE) every process there is: a model's took 13 s to load, 9 s since.
$(STAMP): constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null || \
	  { echo "setup: '$(PYTHON)' is not a Python 3.11. Install it, or name one: make PYTHON=/path/to/python3.11"; exit 1; }
	@$(BIN)/python -c '' 2>/dev/null || { echo "setup: creating .venv"; $(PYTHON) -m venv --clear .venv; }
	@$(PIP) install -q --no-compile --no-deps -c constraints.txt uv || echo "setup: no uv; pip alone will do, more slowly"
	@settings="$$($(PIP) config list 2>/dev/null)"; \
	setting() { printf '%s\n' "$$settings" | sed -n "s/^[^=]*\.$$1='\(.*\)'$$/\1/p" | head -n 1 | sed 's/\\n/ /g'; }; \
	default=$$(setting index-url) extra=$$(setting extra-index-url) links=$$(setting find-links) cert=$$(setting cert); \
	by_uv() { env $${default:+UV_DEFAULT_INDEX="$$default"} UV_INDEX="$$extra $$1" UV_INDEX_STRATEGY=unsafe-best-match \
	  $${links:+UV_FIND_LINKS="$$(echo $$links | tr ' ' ',')"} $${cert:+SSL_CERT_FILE="$$cert"} \
	  $(BIN)/uv pip install -q --python $(BIN)/python --no-deps -r constraints.txt; }; \
	by_pip() { $(PIP) install -q --no-compile --no-deps $${1:+--extra-index-url $$1} -r constraints.txt; }; \
	echo "setup: installing $$(grep -c '==' constraints.txt) pinned packages (20 to 90 s)"; \
	by_uv 2>/dev/null || by_uv $(TORCH_INDEX) 2>/dev/null || by_pip 2>/dev/null || by_pip $(TORCH_INDEX) || \
	  { echo "setup: pip failed, see above. Is $(TORCH) missing? docs/install.md lists three ways to bring it."; exit 1; }
	@$(PIP) install -q --no-compile --no-deps --no-build-isolation -e .
	@echo "setup: compiling what is imported (30 to 50 s)"; \
	cd "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" && \
	$(CURDIR)/$(BIN)/python -m compileall -qq -j 0 -x '/(tests?|$(subst $() ,|,$(UNCOMPILED)))/' . || true
	@touch $@
	@echo "setup: done"
