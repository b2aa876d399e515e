#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# check_spdx.sh FILE...: each names its licence in its first three lines.
set -euo pipefail

status=0
for file in "$@"; do
  if [ -s "$file" ] && ! head -n 3 "$file" | grep -q 'SPDX-License-Identifier: Apache-2.0'; then
    echo "$file: no 'SPDX-License-Identifier: Apache-2.0' in its first three lines" >&2
    status=1
  fi
done
exit $status
