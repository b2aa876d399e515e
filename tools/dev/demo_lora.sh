#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# demo_lora.sh BUILD_FOLDER (from the root of the sources): LoRA in 8 bits on the library there, a T5 in the versions of 2023
# and SmolLM2 in today's. Adapters are in build/demo-lora. Some five minutes.
set -euo pipefail
library=$1/lib/libint8q.so.1
cd "$(dirname "$0")/../.."
folder=build/demo-lora

tools/dev/env.sh pinned-2023 current
tools/dev/smollm2.sh build/demo-lm
mkdir -p $folder
export INT8Q_LIBRARY=$library PYTHONPATH=python HF_HUB_OFFLINE=1 BITSANDBYTES_NOWELCOME=1
.venvs/pinned-2023/bin/python examples/python/lora_t5.py $folder
echo
.venvs/current/bin/python examples/python/lora_smollm2.py build/demo-lm/model build/demo-lm/debian-faq.txt $folder/smollm2-lora
