# make demo: train on generated conversations (or DATA=folder of MELD or CMU-MOSI) and print a table
# make test: all tests.   make check: lint and types.   make ctest: the C++ tests.   make clean
PYTHON ?= python3
VENV ?= .venv
DATA ?=
BIN := $(VENV)/bin

.PHONY: install demo test check ctest clean

install: $(VENV)/installed

$(VENV)/installed: requirements.txt pyproject.toml setup.py CMakeLists.txt $(shell find csrc -type f)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --upgrade --quiet pip
	$(BIN)/python -m pip install -r requirements.txt
	$(BIN)/python -m amuse_kernels.info
	touch $@

demo: install
	$(BIN)/amuse compare $(if $(DATA),--data "$(DATA)")

test: install
	$(BIN)/python -m pytest

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

ctest: install
	$(BIN)/cmake -S . -B build/ctest -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN)/ninja) \
		-DAMUSE_BUILD_PYTHON=OFF -DAMUSE_BUILD_TESTS=ON -DAMUSE_CUDA=OFF
	$(BIN)/cmake --build build/ctest
	$(BIN)/ctest --test-dir build/ctest --output-on-failure

clean:
	rm -rf build $(VENV) *.egg-info amuse_kernels/*.so amuse_kernels/_build_info.json
