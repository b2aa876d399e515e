# SPDX-License-Identifier: Apache-2.0
#
# The front door; CMake does the work. Every target first installs what it needs (root) or says how (anybody else).
.DEFAULT_GOAL := help
.PHONY: build demo test test-full bench bench-python docs lint install clean help
MAKEFLAGS += --no-print-directory
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c

deps := tools/dev/install_deps.sh
jobs ?= $(shell nproc)
prefix ?= /usr/local
generator = $(if $(shell command -v ninja),-G Ninja)
# A configured folder keeps the generator that it was made with.
configure = cmake --preset $(1) $(if $(wildcard build/$(1)/CMakeCache.txt),,$(generator)) $(2)
make_preset = cmake --build build/$(1) -j $(jobs)
run_tests = ctest --preset $(1) -j $(jobs)

# g++ 12's ThreadSanitizer does not start where the kernel randomizes more than 28 bits of addresses.
unrandomized = $(shell setarch -R true 2>/dev/null && echo setarch -R)

build: ## build the library, the int8q command, tests, examples and benchmarks in build/release
	@$(deps) build test
	$(call configure,release)
	$(call make_preset,release)

demo: ## build, then show int8 against fp32 on a real model
	@$(deps) build test demo
	$(call configure,release)
	$(call make_preset,release)
	tools/dev/demo.sh build/release

test: ## build and run every test that is not slow, with the ABI and packaging checks (minutes)
	@$(deps) build test
	$(call configure,release)
	$(call make_preset,release)
	$(call run_tests,release)

test-full: ## the slow tests, then all under AddressSanitizer + UBSan, under ThreadSanitizer, and on Arm under qemu
	@$(deps) build test full
	$(call configure,release)
	$(call make_preset,release)
	$(call run_tests,release-slow)
	for preset in asan tsan aarch64; do \
	  cmake --preset $$preset $$([ -f build/$$preset/CMakeCache.txt ] || echo "$(generator)"); \
	  cmake --build build/$$preset -j $(jobs); \
	  $$([ $$preset = tsan ] && echo "$(unrandomized)") ctest --preset $$preset -j $(jobs); \
	done

bench: ## build and run the benchmarks; raw results go to build/release/bench/*.json
	@$(deps) build test bench
	$(call configure,release)
	$(call make_preset,release)
	tools/dev/bench.sh build/release

bench-python: ## compare with bitsandbytes and torch in an environment of its own (downloads 3 GB the first time)
	@$(deps) build bench
	$(call configure,release)
	$(call make_preset,release) --target int8q
	tools/dev/bench_python.sh build/release

docs: ## build the documentation in build/docs/html
	@$(deps) build docs
	tools/dev/docs.sh build

lint: ## check formatting, clang-tidy, Python and shell scripts, and that generated files are current
	@$(deps) build test lint
	tools/dev/lint.sh

install: ## install under prefix=/usr/local (DESTDIR is honoured)
	@$(deps) build
	cmake --preset release -B build/install $(generator) --install-prefix $(prefix) -DINT8Q_BUILD_TESTS=OFF \
	  -DINT8Q_BUILD_EXAMPLES=OFF -DINT8Q_BUILD_BENCH=OFF
	cmake --build build/install -j $(jobs)
	cmake --install build/install

clean: ## remove everything that was built
	rm -rf build

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
