# SPDX-License-Identifier: Apache-2.0
"""selftest_corruption.py COMMAND: with any one kernel corrupted, `int8q-testing selftest` exits 1; without, 0."""

import json
import os
import subprocess
import sys


def selftest(command, isa, corrupt=None):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("INT8Q_")}
    if corrupt:
        environment["INT8Q_CORRUPT_KERNEL"] = corrupt
    return subprocess.run([command, "selftest", "--json", "--isa", isa], env=environment, capture_output=True, text=True)


def main(command):
    doctor = json.loads(subprocess.run([command, "doctor", "--json"], capture_output=True, text=True).stdout)
    isas = [isa["name"] for isa in doctor["cpu"]["isas"] if isa["runnable"]]
    print("not on this CPU:", [isa["name"] for isa in doctor["cpu"]["isas"] if not isa["runnable"]])
    failures = kernels = 0
    for isa in isas:
        clean = selftest(command, isa)
        if clean.returncode != 0:
            sys.exit(f"{isa}: selftest fails without corruption\n{clean.stdout}{clean.stderr}")
        for kernel in json.loads(clean.stdout)[0]["kernels"]:
            kernels += 1
            run = selftest(command, isa, kernel["kernel"])
            if run.returncode != 1:
                print(f"{isa}: {kernel['kernel']} corrupted, and selftest exits {run.returncode}")
                failures += 1
    print(f"{kernels} kernels of {isas} corrupted one by one, {failures} not noticed")
    # A table has 30 kernels; the generic ISA is always there.
    sys.exit(failures != 0 or kernels < 30 * len(isas) or "generic" not in isas)


main(*sys.argv[1:])
