# SPDX-License-Identifier: Apache-2.0
#
# The front door; CMake does the work. Every target first installs what it needs (root) or says how (anybody else).
.DEFAULT_GOAL := help
.PHONY: build demo demo-lm demo-lora test test-full test-matrix bench bench-python docs lint dist install clean help
MAKEFLAGS += --no-print-directory
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c

deps := tools/dev/install_deps.sh
jobs ?= $(shell nproc)
prefix ?= /usr/local
# A configured folder keeps the generator that it was made with; ninja may have been installed a line before.
configure = cmake --preset $(1) $$([ -f build/$(1)/CMakeCache.txt ] || ! command -v ninja >/dev/null || echo "-G Ninja")
make_preset = cmake --build build/$(1) -j $(jobs)
run_tests = ctest --preset $(1) -j $(jobs)

# Compiles the CUDA kernels; neither a toolkit nor a GPU is needed.
nvrtc = tools/dev/venv.sh tools/cuda/requirements.txt

environments = $(basename $(notdir $(wildcard python/environments/*.txt)))

# g++ 12's ThreadSanitizer does not start where the kernel randomizes more than 28 bits of addresses.
unrandomized = $(shell setarch -R true 2>/dev/null && echo setarch -R)

build: ## build the library, the int8q command, tests, examples and benchmarks in build/release
	@$(deps) build test
	@$(nvrtc)
	$(call configure,release)
	$(call make_preset,release)

demo: ## build what it needs, then show int8 against fp32 on a real model
	@$(deps) build demo
	@$(nvrtc)
	$(call configure,release)
	$(call make_preset,release) --target int8q_cli minilm
	tools/dev/demo.sh build/release

demo-lm: ## SmolLM2-135M: text, KL, perplexity, tokens/s and memory beside fp32, bf16 and bitsandbytes (downloads 3 GB the first time)
	@$(deps) build demo
	@$(nvrtc)
	$(call configure,release)
	$(call make_preset,release) --target int8q
	tools/dev/demo_lm.sh build/release

demo-lora: ## LoRA in 8 bits: a T5 in the versions of 2023, SmolLM2 in today's (downloads 6 GB the first time)
	@$(deps) build demo
	@$(nvrtc)
	$(call configure,release)
	$(call make_preset,release) --target int8q
	tools/dev/demo_lora.sh build/release

test: ## build and run every test that is not slow, with the ABI and packaging checks (minutes)
	@$(deps) build test python
	tools/dev/venv.sh tests/python/requirements.txt tools/cuda/requirements.txt tests/checks/cuda-requirements.txt
	PIP_NO_DEPS=1 tools/dev/venv.sh tests/cuda_emulation/requirements.txt
	tools/dev/env.sh current
	$(call configure,release)
	$(call make_preset,release)
	$(call run_tests,release)
	@echo 'What the grids of tests ran:'
	@grep -hE '^[a-z0-9, ]+: [0-9]+ cells|cells: |cells of|^skipped:' build/release/Testing/Temporary/LastTest.log | sort -u

test-full: docs ## the documentation, the slow tests, then all under AddressSanitizer + UBSan, under ThreadSanitizer, and on Arm under qemu
	@$(deps) build test full demo
	@$(nvrtc)
	$(call configure,release)
	$(call make_preset,release)
	$(call run_tests,release-slow)
	for preset in asan tsan aarch64; do \
	  $(call configure,$$preset); \
	  cmake --build build/$$preset -j $(jobs); \
	  $$([ $$preset = tsan ] && echo "$(unrandomized)") ctest --preset $$preset -j $(jobs); \
	done

test-matrix: ## the wheel in each environment of python/environments: its Python tests, and the table in docs/compatibility.md (20 GB)
	@$(deps) build python
	tools/dev/env.sh $(environments)
	tools/dev/dist.sh
	build/venv/bin/python tools/dev/test_matrix.py $(environments)

env-%: ## .venvs/NAME with what python/environments/NAME.txt pins (up to 6 GB)
	@$(deps) python
	tools/dev/env.sh $*

bench: ## measure against the machine's peaks, oneDNN, torch and bitsandbytes; table, pictures and raw results in build/release/bench
	@$(deps) build test bench
	@$(nvrtc)
	$(call configure,release)
	$(call make_preset,release)
	tools/dev/bench.sh build/release
	tools/dev/bench_python.sh build/release
	.venvs/current/bin/python bench/report.py build/release/bench

bench-python: ## of that, only the comparison with torch and bitsandbytes (downloads 3 GB the first time)
	@$(deps) build bench
	@$(nvrtc)
	$(call configure,release)
	$(call make_preset,release) --target int8q
	tools/dev/bench_python.sh build/release

docs: ## build the documentation in build/docs/html
	@$(deps) build docs
	tools/dev/docs.sh build

dist: ## the Python wheel and source distribution in dist/, installed and run in each Python from 3.9 to 3.13 that is here
	@$(deps) build python
	tools/dev/dist.sh

lint: ## check formatting, clang-tidy, Python and shell scripts, and that generated files are current
	@$(deps) build test lint
	tools/dev/lint.sh

install: ## install under prefix=/usr/local (DESTDIR is honoured)
	@$(deps) build
	@$(nvrtc)
	$(call configure,install) --install-prefix $(prefix)
	cmake --build build/install -j $(jobs)
	cmake --install build/install
	@# As root: let the loader find it, and leave the build folder to whom the sources belong to.
	@[ "$$(id -u)" -ne 0 ] || chown -R --reference=. build
	@[ -n "$(DESTDIR)" ] || [ "$$(id -u)" -ne 0 ] || ldconfig

clean: ## remove everything that was built
	rm -rf build dist

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
