#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# env.sh NAME...: .venvs/NAME with what python/environments/NAME.txt pins (up to 6 GB each); nothing is asked again until it
# changes, and what was already there is kept where the file still asks for it.
set -euo pipefail
cd "$(dirname "$0")/../.."

for name in "$@"; do
  requirements=python/environments/$name.txt
  [ -e "$requirements" ] || {
    echo "env.sh: no environment '$name'; expected one of $(basename -s .txt -a python/environments/*.txt | xargs)" >&2
    exit 2
  }
  venv=.venvs/$name
  stamp=$venv/$(sha256sum <"$requirements" | cut -c1-16).installed
  [ -e "$stamp" ] && continue
  echo "$venv: installing $requirements"
  [ -x "$venv/bin/python" ] || /usr/bin/python3 -m venv "$venv"
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-cache-dir --no-deps --require-hashes -r "$requirements"
  touch "$stamp"
done
