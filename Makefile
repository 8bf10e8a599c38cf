# Needs make and Python 3.11 to 3.13, or make and uv. Everything else is installed into .venv: the
# package alone for `make train`, with the extra "dev" for tests and lint.
#   make test ARGS="-k schedule -n 0"   more arguments for the command (-n 0: one test at a time)
#   make train PYTHON=python3.13        the Python that makes .venv
.DEFAULT_GOAL := help
.PHONY: help train test test-gpu lint format bench soak lock docs wheel test-lowest test-lightning nightly clean FORCE

PYTHON ?=
comma := ,
SECONDS ?= 60
BIN := .venv/bin
EXTRAS ?= dev
# Each stamp is written last and holds the checkout's path: a half-made or copied .venv is made again.
STAMP := .venv/.installed
DEV := .venv/.$(subst $(comma),-,$(EXTRAS))
INTACT := $(shell [ "$$(cat $(STAMP) 2>/dev/null)" = "$$(pwd -P)" ] && $(BIN)/python -c "" 2>/dev/null && echo yes)

train: $(STAMP)  ## train on CIFAR-10, or on built-in images where it is not to be had
	$(BIN)/onelayer fit --config configs/quickstart.yaml $(ARGS)

test: $(DEV)  ## run every test
	$(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

test-gpu: $(DEV)  ## run the tests that need a CUDA device
	$(BIN)/python -m pytest -n 0 -m gpu tests/test_gpu.py $(ARGS)

lint: $(DEV)  ## check style, format and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(DEV)  ## mend what lint can mend
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(DEV)  ## time the contenders side by side
	$(BIN)/python -m benchmarks.run $(ARGS)
	$(BIN)/python -m benchmarks.growth

soak: $(DEV)  ## kill and resume at random, for SECONDS=60
	$(BIN)/python -m tests.support.soak --seconds $(SECONDS) $(ARGS)

lock: $(STAMP)  ## write constraints.txt anew, with the newest versions
	rm -rf .venv/lock && $(BIN)/python -m venv .venv/lock
	.venv/lock/bin/python -m pip install --quiet --disable-pip-version-check ".[dev,loggers]"
	{ sed -n '/^#/p' constraints.txt; .venv/lock/bin/python -m pip freeze --exclude onelayer \
	  | sed 's/+[a-z0-9.]*$$//' | grep -v '^nvidia-\|^triton\|^cuda-'; } > .venv/constraints.txt
	mv .venv/constraints.txt constraints.txt
	rm -rf .venv/lock

docs: $(DEV)  ## build the documentation in .site; warnings are errors
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip >/dev/null
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

wheel: $(DEV)  ## build the wheel and the sdist in dist/
	rm -rf dist && $(BIN)/python -m hatchling build

# Old packages use what the newest ones, on which they depend, deprecate.
test-lowest:  ## run the tests with the lowest versions that pyproject.toml allows
	rm -rf .lowest && uv venv --quiet --python 3.11 .lowest
	uv pip install --quiet --resolution lowest-direct --python .lowest/bin/python -e ".[dev]"
	.lowest/bin/python -m pytest -n 2 --dist worksteal \
	  -W ignore::DeprecationWarning -W ignore::FutureWarning $(ARGS)

# Three times ten minutes on two cores; docs/lightning_suite.md says what fails, and why.
LIGHTNING := https://github.com/Lightning-AI/pytorch-lightning
TAG ?= 2.6.5
PARTS ?= callbacks checkpointing trainer loops tuner core models/test_restore.py models/test_hooks.py
test-lightning: $(DEV)  ## run Lightning's own tests with OneLayer in place of their model
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip >/dev/null
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt pytest-timeout
	[ -d .lightning/tests ] || git clone --quiet --depth 1 --branch $(TAG) $(LIGHTNING) .lightning
	rm -rf .lightning/reports
	for loader in boring plain resident; do for part in $(PARTS); do \
	  (cd .lightning/tests && ONELAYER_LOADER=$$loader PL_RUN_CPU_TESTS=1 \
	    PYTHONPATH=$(CURDIR)/src:$(CURDIR):$(CURDIR)/.lightning/tests $(CURDIR)/$(BIN)/python -m pytest \
	    -p tests.lightning_suite -c /dev/null --rootdir=. -q --timeout=60 -o timeout_func_only=true \
	    -k "not ddp and not spawn and not fork and not legacy" \
	    --junitxml=../reports/$$loader/$$(basename $$part .py).xml tests_pytorch/$$part); \
	done; done; :
	$(BIN)/python -m tests.lightning_suite .lightning/reports/boring .lightning/reports/plain:57 .lightning/reports/resident:99

nightly:  ## everything: all extras, docs, wheel, lowest versions, Lightning's own tests, soak
	$(MAKE) lint test docs wheel test-lowest test-lightning EXTRAS=dev,loggers
	$(MAKE) soak EXTRAS=dev,loggers SECONDS=900

clean:  ## remove .venv and caches (runs in lightning_logs/ stay)
	rm -rf .venv .lowest .lightning .site dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

help:  ## list these
	@sed -n 's/^\([a-z-]*\):.*##  *\(.*\)/  make \1	\2/p' $(MAKEFILE_LIST)

# With uv if it is on PATH, else (or if uv fails) with venv and pip. A complete .venv is updated in place.
$(STAMP): pyproject.toml constraints.txt $(if $(INTACT),,FORCE)
	@set -u; \
	supported='import sys; (3, 11) <= sys.version_info[:2] <= (3, 13) or sys.exit(1); print(sys.executable)'; \
	python=; \
	for name in $(or $(PYTHON),python3 python3.13 python3.12 python3.11 python); do \
	  python=$$("$$name" -c "$$supported" 2>/dev/null) && break || python=; \
	done; \
	if [ -z "$$python" ] && ! command -v uv >/dev/null 2>&1; then \
	  echo "onelayer needs Python 3.11, 3.12 or 3.13: none found$(if $(PYTHON), as $(PYTHON))." >&2; exit 1; \
	fi; \
	[ "$(INTACT)" = yes ] || rm -rf .venv; \
	rm -f .venv/.installed .venv/.dev*; \
	if command -v uv >/dev/null 2>&1; then \
	  [ -d .venv ] || uv venv --quiet --python "$${python:->=3.11,<3.14}" .venv; \
	fi; \
	if [ ! -d .venv ] && ! "$$python" -m venv .venv >/dev/null; then \
	  rm -rf .venv; \
	  echo "$$python cannot make virtual environments: install its venv module" \
	    "(Debian, Ubuntu: apt install python3-venv) or uv, then run make again." >&2; exit 1; \
	fi
	@$(install); install . onelayer && pwd -P > $(STAMP)

$(DEV): $(STAMP)
	@$(install); install ".[$(EXTRAS)]" "what tests need" && pwd -P > $(DEV)

# install PACKAGE WORDS. A .venv made by uv has no pip until uv fails.
define install
set -u; install() { \
  if command -v uv >/dev/null 2>&1; then \
    echo "Installing $$2 into .venv with uv"; \
    uv pip install --quiet --python $(BIN)/python -c constraints.txt -e "$$1" && return; \
    echo "uv could not install; trying pip." >&2; \
  fi; \
  $(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip >/dev/null; \
  echo "Installing $$2 into .venv with pip (minutes, the first time)"; \
  $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-input -c constraints.txt -e "$$1"; \
}
endef
