#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# venv.sh REQUIREMENTS...: build/venv with these pinned, hashed requirements; nothing is asked again until one changes.
set -euo pipefail
cd "$(dirname "$0")/../.."

venv=build/venv
[ -x $venv/bin/python ] || /usr/bin/python3 -m venv $venv
for requirements in "$@"; do
  stamp=$venv/$(sha256sum <"$requirements" | cut -c1-16).installed
  [ -e "$stamp" ] && continue
  $venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --only-binary :all: -r "$requirements"
  touch "$stamp"
done
