#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""freeze.py NAME.in...: writes NAME.txt beside each: every package that pip would install for it here, with its hash."""

import json
import subprocess
import sys
from pathlib import Path

for name in sys.argv[1:]:
    path = Path(name)
    command = [sys.executable, *"-m pip install --quiet --dry-run --ignore-installed --report - -r".split(), name]
    report = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    lines = ["# SPDX-License-Identifier: Apache-2.0", f"# Written by tools/dev/freeze.py from {path.name}."]
    for package in sorted(report["install"], key=lambda package: package["metadata"]["name"].lower()):
        digest = package["download_info"]["archive_info"]["hashes"]["sha256"]
        lines.append(f"{package['metadata']['name']}=={package['metadata']['version']} --hash=sha256:{digest}")
    path.with_suffix(".txt").write_text("\n".join(lines) + "\n")
