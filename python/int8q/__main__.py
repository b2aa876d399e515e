# SPDX-License-Identifier: Apache-2.0
"""python -m int8q: doctor and quantize, which need nothing but the standard library and libint8q, and run."""

import argparse
import sys

from . import _quantize, _run, doctor

EPILOG = """\
Exit status: 0 ok; 1 doctor found something broken that int8q needs, or run lacks a package; 2 usage; 3 a file cannot be
read or written; 4 bad input; 130 interrupted (Ctrl-C; nothing is left behind); 70 the library cannot be used, or a defect
of int8q.
"""


def main(arguments=None):
    parser = argparse.ArgumentParser(
        prog="python -m int8q",
        description="LLM.int8() quantization: diagnose this interpreter, quantize checkpoints, run scripts.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module, text in (
        ("doctor", doctor, "say what was found in this interpreter, and what is wrong"),
        ("quantize", _quantize, "quantize a checkpoint's linears to bitsandbytes' int8 layout"),
        ("run", _run, "run a script with load_in_8bit=True on int8q instead of bitsandbytes (int8q.as_bitsandbytes)"),
    ):
        command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    options = parser.parse_args(arguments)
    if options.command == "run":
        return options.run(options)  # streams and exceptions are the script's
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # paths may be of any bytes
    try:
        return options.run(options)
    except OSError as error:
        sys.stderr.write(f"int8q: error: {error}\n")
        return 3
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
