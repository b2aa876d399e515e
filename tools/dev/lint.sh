#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Every hook of .pre-commit-config.yaml over every file, then clang-tidy over every translation unit.
set -euo pipefail
cd "$(dirname "$0")/../.."

tools/dev/venv.sh tools/dev/lint-requirements.txt
build/venv/bin/pre-commit run --all-files --show-diff-on-failure

# The folder is configured, not built: clang-tidy needs the commands only. images.cpp includes what a build compiles.
cmake --preset debug -B build/tidy -DCMAKE_C_COMPILER=gcc -DCMAKE_CXX_COMPILER=g++ >/dev/null
run-clang-tidy-14 -quiet -extra-arg=-Wno-unknown-warning-option -p build/tidy -j "$(nproc)" "^$PWD/(src/(?!cuda/images)|tools/|tests/|bench/|examples/)" 2>/dev/null
