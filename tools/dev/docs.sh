#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# docs.sh BUILD_FOLDER: BUILD_FOLDER/docs/html from docs/ and the public headers; a warning is an error.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
cd "$root"
build=$(realpath -m "$1")/docs
mkdir -p "$build"

tools/dev/venv.sh docs/requirements.txt
(cat docs/Doxyfile && echo "OUTPUT_DIRECTORY = $build/doxygen") | doxygen -
INT8Q_DOXYGEN_XML=$build/doxygen/xml build/venv/bin/sphinx-build -q -W --keep-going -b html -d "$build/doctrees" \
  docs "$build/html"
echo "documentation: $build/html/index.html"
