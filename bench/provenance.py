# SPDX-License-Identifier: Apache-2.0
"""Is a folder of results one run: one machine, one library, one sitting? What a file does not say is no proof of it."""

from datetime import datetime, timedelta

LONGEST_RUN = timedelta(hours=3)  # `make bench` takes less than one


def machine_of(run):
    machine = run.facts.get("machine") or {}
    if "vendor" not in machine:
        return None
    return f"{machine['vendor']} family {machine['family']} model {machine['model']}"


def library_of(run):
    digest = run.facts.get("library_sha256")
    return digest and f"libint8q.so.1 of sha256 {digest[:12]}"


def common_machine(runs):
    """What all files that name a machine agree on, else {}: peaks and opponents are then not judged."""
    machines = {machine_of(run): run.facts["machine"] for run in runs if machine_of(run)}
    return next(iter(machines.values())) if len(machines) == 1 else {}


def disagreements(runs):
    """Sentences on why these files are not one run; none if they are."""
    found = []
    for what, tell in (("machine", machine_of), ("library", library_of)):
        files = {}
        for run in runs:
            files.setdefault(tell(run), []).append(run.path.name)
        silent = files.pop(None, [])
        if silent:
            found.append(f"the {what} is not said by {', '.join(silent)}")
        if len(files) > 1:
            found.append(f"the {what} differs: " + "; ".join(f"{name}: {', '.join(of)}" for name, of in files.items()))
    dates = sorted((datetime.fromisoformat(run.facts["date"]), run.path.name) for run in runs if run.facts.get("date"))
    if len(dates) < len(runs):
        found.append("the date is not said by " + ", ".join(run.path.name for run in runs if not run.facts.get("date")))
    if dates and dates[-1][0] - dates[0][0] > LONGEST_RUN:
        hours = (dates[-1][0] - dates[0][0]).total_seconds() / 3600
        found.append(f"{dates[0][1]} and {dates[-1][1]} were begun {hours:.1f} hours apart")
    return found
