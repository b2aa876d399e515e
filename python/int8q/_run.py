# SPDX-License-Identifier: Apache-2.0
"""python -m int8q run SCRIPT.py ...: a script that asks for bitsandbytes' 8 bits, unchanged, on int8q."""

import runpy
import sys
from importlib.util import find_spec
from os.path import dirname, realpath

from ._rules import pip


def add_arguments(parser):
    parser.add_argument("script", help="the script, which runs as python SCRIPT would run it")
    parser.add_argument("arguments", nargs="...", help="its own arguments")


def run(options):
    missing = [name for name in ("torch", "transformers") if find_spec(name) is None]
    if missing:
        sys.stderr.write(f"int8q: error: run needs {' and '.join(missing)}, not installed here. Run: {pip(*missing)}\n")
        return 1
    import int8q.as_bitsandbytes  # noqa: F401

    sys.argv = [options.script, *options.arguments]
    sys.path[0] = dirname(realpath(options.script))
    runpy.run_path(options.script, run_name="__main__")
    return 0
