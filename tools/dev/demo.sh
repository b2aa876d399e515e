#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# demo.sh BUILD_FOLDER: what this machine can do, then int8 against fp32 on a real model.
set -euo pipefail
cd "$(dirname "$0")/../.."

"$1/bin/int8q" doctor
examples/minilm/demo.sh "$1"
