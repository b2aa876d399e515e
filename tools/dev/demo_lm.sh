#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# demo_lm.sh BUILD_FOLDER [OPTION...] (from the root of the sources): SmolLM2-135M on the library there, beside fp32, bf16 and
# bitsandbytes; options go to bench/language_model.py. Model, text and results are in build/demo-lm. Some fifteen minutes.
set -euo pipefail
library=$1/lib/libint8q.so.1
shift
cd "$(dirname "$0")/../.."
folder=build/demo-lm

tools/dev/env.sh current
tools/dev/smollm2.sh $folder
export INT8Q_LIBRARY=$library PYTHONPATH=python HF_HUB_OFFLINE=1
.venvs/current/bin/python bench/language_model.py --model $folder/model --text $folder/debian-faq.txt \
  --json $folder/language_model.json "$@"
