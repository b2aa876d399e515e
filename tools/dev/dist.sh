#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# dist.sh: dist/ with the source distribution and the wheel that is built from it, then tests/checks/wheel.py over both. The
# platform that the tag promises is the check's to hold: glibc 2.34.
set -euo pipefail
cd "$(dirname "$0")/../.."

tools/dev/venv.sh tools/dev/dist-requirements.txt
rm -rf dist
build/venv/bin/python -m build --outdir dist -C wheel.tags="py3-none-manylinux_2_34_$(uname -m)"
build/venv/bin/python tests/checks/wheel.py dist
