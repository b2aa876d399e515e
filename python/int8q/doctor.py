# SPDX-License-Identifier: Apache-2.0
"""python -m int8q doctor: what this interpreter has, whether the library loads and fits, and what is wrong, each with the
one command that mends it. It runs where NumPy, torch or the library itself are broken."""

import argparse
import json
import re
import shlex
import sys

from . import _facts
from ._rules import RULES, Environment, pip, reinstall

WIDTH = 100
_LEVELS = ("fault", "warning", "note")


def add_arguments(parser):
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--error", metavar="FILE", help="explain this traceback too; - reads it from standard input")
    parser.add_argument(
        "--timeout", type=_seconds, default=60.0, metavar="S", help="seconds that importing a package may take (default 60)"
    )


def _seconds(text):
    try:
        value = float(text)
    except ValueError:
        value = 0
    if not 0 < value <= 1e6:  # poll() takes no more than 24 days
        raise argparse.ArgumentTypeError(f"{text!r}; expected seconds, more than 0 and at most 1000000")
    return value


def run(options):
    traceback = _read(options.error) if options.error else ""
    facts = _facts.gather(options.timeout)
    report = {**facts, "findings": findings(facts, traceback)}
    if options.error:
        report["error"] = explain(facts, traceback)
    sys.stdout.write(json.dumps(report, indent=2) + "\n" if options.json else show(report))
    return 1 if any(finding["level"] == "fault" for finding in report["findings"]) else 0


def _read(path):
    if path == "-":
        return sys.stdin.read()
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()


def findings(facts, traceback=""):
    """[{"name":, "level":, "says":, "do":}], worst first."""
    environment = Environment(facts, traceback)
    rules = [rule for rule in RULES if rule.applies(environment)]
    found = [*_library(facts["library"], facts), *_imports(facts, rules), *_path(facts["interpreter"])]
    for rule in rules:
        found.append(_finding(rule.name, rule.level, rule.says(environment), rule.mend(environment)))
    return sorted(found, key=lambda finding: _LEVELS.index(finding["level"]))


def explain(facts, traceback):
    """Which rules know this traceback: those whose cause is here, and those whose cause is not."""
    environment = Environment(facts, traceback)
    known = [rule for rule in RULES if re.search(rule.seen_as, traceback)]
    here = [rule.name for rule in known if rule.applies(environment)]
    return {"causes_here": here, "causes_elsewhere": [rule.name for rule in known if rule.name not in here]}


def _finding(name, level, says, do):
    return {"name": name, "level": level, "says": says, "do": do}


def _library(library, facts):
    """The four states: not installed, won't load, ABI mismatch, no GPU."""
    chosen = facts["environment"].get("INT8Q_LIBRARY")
    again = "unset INT8Q_LIBRARY" if chosen else reinstall()
    if library["state"] != "ok":
        path = library["stderr"].rpartition("\n")[2] or "the library"
        says = f"{path} does not load: {library['error']}"
        return [_finding("library-wont-load", "fault", says, again)]
    if "path" not in library:
        return [_not_loaded(library["tried"], chosen, again)]
    if "mismatch" in library or _level(library["found"]) < _level(library["wanted"]):
        return [_mismatch(library, again)]
    found = []
    if "refused" in library["context"]:
        named = re.search(r"INT8Q_\w+", library["context"]["refused"])
        do = f"unset {named[0]}" if named and named[0] in facts["environment"] else again
        found.append(_finding("library-refuses", "fault", library["context"]["refused"], do))
    return found


def _not_loaded(tried, chosen, again):
    row = tried[-1]
    # dlopen names what it cannot open: the library itself, or one that the library needs.
    if row["error"].startswith(f"{row['path']}: cannot open shared object file: No such file"):
        says = "libint8q.so.1 is not installed; looked for " + " and ".join(row["path"] for row in tried)
        return _finding("library-not-installed", "fault", says, again)
    do = again if chosen else _loader(row["error"], again)
    return _finding("library-wont-load", "fault", f"{row['path']} does not load: {row['error']}", do)


def _loader(error, again):
    if re.search(r"version `GLIBCXX_|version `CXXABI_", error):
        return "conda install -c conda-forge libstdcxx-ng" if _facts.kind() == "conda" else _rebuild()
    if re.search(r"version `GLIBC_", error):
        return _rebuild()
    missing = re.match(r"(lib[\w+.-]+): cannot open shared object file", error)
    if missing and missing[1].startswith("libstdc++"):
        return "sudo apt-get install libstdc++6"
    return again


def _rebuild():
    """The same from the sources, which a wheel does not have."""
    if (_facts.source() or [""])[-1].endswith((".whl", _facts.UNKNOWN_SOURCE)):
        return pip("--force-reinstall", "--no-deps", "YOUR_SOURCES_OF_INT8Q")
    return reinstall("--no-binary", "int8q")


def _mismatch(library, again):
    wanted, found = library["wanted"], library.get("found")
    where = f"wanted ABI {wanted}, found {found or 'none'} at {library['path']}"
    if found and _level(found) < _level(wanted):
        return _finding("abi-older", "fault", f"the library is older than this package: {where}", again)
    if found and _level(found)[0] > _level(wanted)[0]:
        return _finding("abi-newer", "fault", f"the library is newer than this package: {where}", again)
    says = f"the library is of another project or build: {where}; {library['mismatch']}"
    return _finding("abi-foreign", "fault", says, again)


def _level(text):
    return tuple(map(int, text.split(".")))


def _imports(facts, rules):
    """What does not import, but for what a rule explains: to install that again would not mend it."""
    for name, probe in facts["imports"].items():
        if probe["state"] == "missing" and name == "numpy":
            yield _finding("numpy-missing", "fault", "int8q needs NumPy, which is not installed here", pip("numpy"))
        elif probe["state"] not in ("ok", "missing") and not any(re.search(r.seen_as, probe["stderr"]) for r in rules):
            level = "fault" if name == "numpy" else "warning"
            version = facts["packages"].get(name)
            says = f"import {name}{f' {version}' if version else ''} {probe['state']}: {probe['error']}"
            again = f"{name}=={version.split('+')[0]}" if version else name
            yield _finding(f"{name}-broken", level, says, pip("--force-reinstall", again))


def _path(interpreter):
    for name, on_path in interpreter["on_path"].items():
        if not on_path["ours"]:
            says = f"`{name}` on PATH, {on_path['path']}, is not this interpreter's but of {on_path['belongs_to']}"
            use = shlex.quote(interpreter["path"]) + (" -m pip" if name == "pip" else "")
            yield _finding(f"{name}-elsewhere", "note", says, f"use {use}")


def show(report):
    """Text, at most 100 columns but for paths and commands, the worst first."""
    lines = []
    for finding in report["findings"]:
        label = finding["level"].upper() if finding["level"] == "fault" else finding["level"]
        lines += _wrap(f"{label:<9} ", f"{finding['says']} [{finding['name']}]")
        lines.append(f"{'':9} do: {finding['do']}")
    if "error" in report:
        lines += _shown_error(report["error"])
    if not any(finding["level"] == "fault" for finding in report["findings"]):
        lines.append("no fault found")
    return "\n".join([*lines, "", *_shown_facts(report), ""])


def _shown_error(error):
    if error["causes_here"]:
        text = f"known as {', '.join(error['causes_here'])}, see above"
    elif error["causes_elsewhere"]:
        names = ", ".join(error["causes_elsewhere"])
        text = f"known as {names}, but nothing here causes it; run doctor with the interpreter that raised it"
    else:
        text = "no known one"
    return _wrap("traceback ", text)


def _shown_facts(report):
    interpreter, machine = report["interpreter"], report["platform"]
    yield from _wrap("python    ", f"{interpreter['version']} {interpreter['path']} ({interpreter['kind']})")
    for folder in interpreter["site_packages"]:
        yield f"          {folder}"
    yield from _wrap("platform  ", f"{machine['system']}, {machine['machine']}, {machine['libc']}")
    yield from _shown_library(report["library"])
    for name, value in report["environment"].items():
        yield f"{name}={value}"
    packages = [f"{name} {version or '-'}{_state(report, name)}" for name, version in report["packages"].items()]
    yield from _wrap("packages  ", ", ".join(packages))


def _state(report, name):
    state = report["imports"].get(name, {}).get("state")
    return "" if state in (None, "ok", "missing") else f" ({state})"


def _shown_library(library):
    if "diagnosis" not in library:
        for row in library.get("tried", []):
            yield from _wrap(
                "tried     ", row["error"] if row["error"].startswith(row["path"]) else "{path}: {error}".format(**row)
            )
        return
    diagnosis, context = library["diagnosis"], library["context"]
    yield f"library   {library['path']}"
    yield f"          {diagnosis['version']}, ABI {library['found']} (wanted {library['wanted']})"
    cpu = diagnosis["cpu"]
    yield from _wrap("cpu       ", f"{cpu['brand']}: {cpu['chosen']['name'] or 'none'}, {cpu['chosen']['why']}")
    yield from _wrap("threads   ", f"{context.get('threads', 0)} used, {diagnosis['threads']} available")
    gpu = diagnosis["gpu"]
    yield from _wrap("gpu       ", f"{gpu['state']}: {gpu['why']}")
    for one in gpu["devices"]:
        runs = one["image"] or "nothing that is here"
        yield from _wrap("          ", f"{one['device']}: {one['name']}, capability {one['capability']}, runs {runs}")
    yield from _wrap("          ", "kernels for " + (", ".join(gpu["images"]) or "none"))


def _wrap(label, text):
    """Words into lines; a path or a command that is longer than a line stays whole."""
    lines, line = [], label
    for word in text.split():
        if len(line) + len(word) > WIDTH and line.strip() != label.strip():
            lines.append(line.rstrip())
            line = " " * len(label)
        line += word + " "
    return [*lines, line.rstrip()]
