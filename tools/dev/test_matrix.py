#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""test_matrix.py ENVIRONMENT...: runs tests/python with the wheel that lies in dist/ in each of .venvs/ENVIRONMENT.

Prints what passed, and each test that was skipped with its reason; docs/compatibility.md keeps the same. Exit status 1, and
the page as it was, if a test failed, or if an environment ran none.
"""

import ast
import os
import platform
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "build/matrix"
PAGE = ROOT / "docs/compatibility.md"
PACKAGES = ("torch", "transformers", "peft", "accelerate", "bitsandbytes", "numpy")
HEAD = """# Compatibility

One wheel, `{wheel}`, in environments from early 2023 to today, each frozen with every package in
`python/environments`. `make env-NAME` makes one in `.venvs/`; `make test-matrix` runs the Python
tests in all of them and writes this page. The last run: {where}, no GPU.
"""


def install():
    """build/matrix/site, with the wheel of dist/ installed; the wheel's name."""
    (wheel,) = (ROOT / "dist").glob("*.whl")
    options = "-m pip install --quiet --no-deps --upgrade --target".split()
    subprocess.run([sys.executable, *options, FOLDER / "site", wheel], check=True)
    return wheel.name


def run(name):
    """The tests' results in an environment: name of the file -> Counter, and reason -> names of skipped tests."""
    report = FOLDER / f"{name}.xml"
    report.unlink(missing_ok=True)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("INT8Q_")}
    environment.update(PYTHONPATH=str(FOLDER / "site"), PYTHONDONTWRITEBYTECODE="1", HF_HUB_OFFLINE="1")
    environment["OMP_WAIT_POLICY"] = "passive"  # environments are tested side by side
    command = [ROOT / f".venvs/{name}/bin/python", "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short"]
    command += [f"--ignore={ROOT / 'tests/python/test_doctor.py'}", f"--junitxml={report}", ROOT / "tests/python"]
    with open(FOLDER / f"{name}.log", "w") as log:
        subprocess.run(command, cwd=FOLDER, env=environment, stdout=log, stderr=subprocess.STDOUT, check=False)
    print(f"{name}: {(FOLDER / f'{name}.log').read_text().splitlines()[-1]}", flush=True)
    files, reasons = {}, {}
    for case in ElementTree.parse(report).iter("testcase"):
        outcome = next((child.tag for child in case if child.tag in ("failure", "error", "skipped")), "passed")
        file = case.get("classname").rpartition(".")[2] or case.get("name").rpartition(".")[2]
        files.setdefault(file, Counter())[outcome] += 1
        if outcome == "skipped":
            reason = case.find("skipped").get("message")
            if reason == "collection skipped":  # of a whole file; the reason ends a tuple
                reason = ast.literal_eval(case.find("skipped").text)[-1].removeprefix("Skipped: ")
            reasons.setdefault(reason, Counter())[re.sub(r"\[.*", "", case.get("name").rpartition(".")[2])] += 1
    return files, reasons


def versions(name):
    """Of Python and PACKAGES."""
    python = subprocess.run([ROOT / f".venvs/{name}/bin/python", "-V"], check=True, capture_output=True, text=True).stdout
    pins = dict(
        line.split(" ")[0].lower().split("==")
        for line in (ROOT / f"python/environments/{name}.txt").read_text().splitlines()
        if "==" in line
    )
    return [python.split()[1], *(pins.get(package, "-") for package in PACKAGES)]


def page(wheel, results):
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    lines = [HEAD.format(wheel=wheel, where=cpu[1] if cpu else platform.machine())]
    lines += [
        "| environment | python | " + " | ".join(PACKAGES) + " | passed | failed | skipped |",
        "|---" * (len(PACKAGES) + 5) + "|",
    ]
    for name, (files, _) in results.items():
        total = sum(files.values(), Counter())
        counts = [total["passed"], total["failure"] + total["error"], total["skipped"]]
        lines.append(f"| {name} | " + " | ".join([*versions(name), *map(str, counts)]) + " |")
    names = sorted({file for files, _ in results.values() for file in files})
    lines += ["", "Passed, by file:", "", "| | " + " | ".join(results) + " |", "|---" * (len(results) + 1) + "|"]
    for file in names:
        lines.append(
            f"| {file} | " + " | ".join(str(files.get(file, {}).get("passed", 0)) for files, _ in results.values()) + " |"
        )
    lines += ["", "## Exemptions", "", "What is skipped, and why:"]
    for name, (_, reasons) in results.items():
        lines += ["", f"**{name}**", ""]
        for reason, tests in sorted(reasons.items()):
            lines.append(f"- {reason}: " + ", ".join(f"{test} ({count})" for test, count in sorted(tests.items())))
        if not reasons:
            lines.append("- nothing")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    wheel = install()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = dict(zip(sys.argv[1:], pool.map(run, sys.argv[1:])))
    text = page(wheel, results)
    print(text)
    failed = [name for name, (files, _) in results.items() if any(c["failure"] + c["error"] for c in files.values())]
    empty = [name for name, (files, _) in results.items() if not sum(files.values(), Counter())["passed"]]
    if failed or empty:
        sys.exit(
            f"failed: {', '.join(failed) or 'none'} (build/matrix/NAME.log); without tests: {', '.join(empty) or 'none'}"
        )
    PAGE.write_text(text)
