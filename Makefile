# Needs make and Python 3.11 to 3.13, or make and uv; everything else is installed into .venv.
#   make test ARGS="-k schedule -n 0"   more arguments for the command (-n 0: one test at a time)
#   make train PYTHON=python3.13        the Python that makes .venv
.DEFAULT_GOAL := help
.PHONY: help train test test-gpu lint format bench soak clean FORCE

PYTHON ?=
SECONDS ?= 60
BIN := .venv/bin
STAMP := .venv/.complete# written last, holds the checkout's path: a half-made or copied .venv is made again
INTACT := $(shell [ "$$(cat $(STAMP) 2>/dev/null)" = "$$(pwd -P)" ] && $(BIN)/python -c "" 2>/dev/null && echo yes)

train: $(STAMP)  ## train on CIFAR-10, or on built-in images where it is not to be had
	$(BIN)/onelayer fit --config configs/quickstart.yaml $(ARGS)

test: $(STAMP)  ## run every test
	$(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

test-gpu: $(STAMP)  ## run the tests that need a CUDA device
	$(BIN)/python -m pytest -n 0 -m gpu tests/test_gpu.py $(ARGS)

lint: $(STAMP)  ## check style, format and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(STAMP)  ## mend what lint can mend
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(STAMP)  ## time the contenders side by side
	$(BIN)/python -m benchmarks.run $(ARGS)
	$(BIN)/python -m benchmarks.growth

soak: $(STAMP)  ## kill and resume at random, for SECONDS=60
	$(BIN)/python -m tests.support.soak --seconds $(SECONDS) $(ARGS)

clean:  ## remove .venv and caches (runs in lightning_logs/ stay)
	rm -rf .venv .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

help:  ## list these
	@sed -n 's/^\([a-z-]*\):.*##  *\(.*\)/  make \1	\2/p' $(MAKEFILE_LIST)

# With uv where it is on PATH, else (or where uv fails) with venv and pip. A complete .venv is updated in place.
$(STAMP): pyproject.toml constraints.txt $(if $(INTACT),,FORCE)
	@set -u; \
	supported='import sys; (3, 11) <= sys.version_info[:2] <= (3, 13) or sys.exit(1); print(sys.executable)'; \
	python=; \
	for name in $(or $(PYTHON),python3 python3.13 python3.12 python3.11 python); do \
	  python=$$("$$name" -c "$$supported" 2>/dev/null) && break || python=; \
	done; \
	uv=$$(command -v uv 2>/dev/null) || uv=; \
	if [ -z "$$python$$uv" ]; then \
	  echo "onelayer needs Python 3.11, 3.12 or 3.13: none found$(if $(PYTHON), as $(PYTHON))." >&2; exit 1; \
	fi; \
	[ "$(INTACT)" = yes ] || rm -rf .venv; \
	rm -f $(STAMP); \
	with_uv() { \
	  [ -n "$$uv" ] || return 1; \
	  echo "Installing into .venv with uv"; \
	  { [ -d .venv ] || uv venv --quiet --python "$${python:->=3.11,<3.14}" .venv; } && \
	  uv pip install --python $(BIN)/python -c constraints.txt -e ".[dev]" && return; \
	  echo "uv could not install." >&2; return 1; \
	}; \
	with_pip() { \
	  [ -n "$$python" ] || return 1; \
	  echo "Installing into .venv with pip (a few minutes the first time)"; \
	  $(BIN)/python -m pip --version >/dev/null 2>&1 || { \
	    rm -rf .venv; \
	    "$$python" -m venv .venv >/dev/null || { \
	      echo "$$python cannot make virtual environments: install its venv module" \
	        "(Debian, Ubuntu: apt install python3-venv) or uv, then run make again." >&2; return 1; }; }; \
	  $(BIN)/python -m pip install $(if $(INTACT),--quiet) --disable-pip-version-check --no-input -c constraints.txt -e ".[dev]"; \
	}; \
	with_uv || with_pip || exit 1; \
	pwd -P > $(STAMP)
