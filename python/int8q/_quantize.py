# SPDX-License-Identifier: Apache-2.0
"""python -m int8q quantize: the library's checkpoint quantization, with the options, report and exit statuses of the int8q
command."""

import ctypes
import errno
import json
import os
import re
import signal
import sys
import time

from . import _abi

USAGE, IO, BAD_INPUT, INTERNAL, INTERRUPTED = 2, 3, 4, 70, 130
_DOCTOR = "`python -m int8q doctor` says what is wrong"

# status: (exit, hint)
_FAILURES = {
    _abi.INT8Q_INVALID_ARGUMENT: (USAGE, "--help shows the options; -f replaces an existing OUT"),
    _abi.INT8Q_NOT_FOUND: (IO, "check the path; a folder needs model.safetensors or model.safetensors.index.json"),
    _abi.INT8Q_IO: (IO, "check permissions and free space; the output is left as it was"),
    _abi.INT8Q_CORRUPT: (BAD_INPUT, "the file is damaged or no safetensors file; fetch it again"),
    _abi.INT8Q_NOT_FINITE: (BAD_INPUT, "these weights cannot be quantized; leave the tensor alone with --exclude"),
    _abi.INT8Q_UNSUPPORTED: (BAD_INPUT, "pass a float checkpoint in safetensors"),
    _abi.INT8Q_SIZE_OVERFLOW: (BAD_INPUT, "leave the tensor alone with --exclude"),
    _abi.INT8Q_OUT_OF_MEMORY: (INTERNAL, "free memory, or use fewer threads"),
    _abi.INT8Q_CANCELLED: (INTERRUPTED, "nothing was left behind; run it again to start over"),
}
_DEFECT = (INTERNAL, "this is a defect of int8q; please report it with the output of `python -m int8q doctor --json`")

_REASONS = {
    _abi.INT8Q_TENSOR_QUANTIZE: "",
    _abi.INT8Q_TENSOR_COPY_DTYPE: "is not fp32, fp16 or bf16",
    _abi.INT8Q_TENSOR_COPY_SHAPE: "is not 2-D",
    _abi.INT8Q_TENSOR_COPY_NAME: "is not named .weight",
    _abi.INT8Q_TENSOR_COPY_INCLUDE: "no --include matches",
    _abi.INT8Q_TENSOR_COPY_EXCLUDE: "left alone by default",
}
# As safetensors names them, by INT8Q_F32, ...
_DTYPES = "? F32 F16 BF16 I8 I32 U8 F64 I16 U16 U32 I64 U64 BOOL F8_E4M3 F8_E5M2".split()


class Failure(Exception):
    def __init__(self, exit_status, message, hint):
        super().__init__(message)
        self.exit, self.hint = exit_status, hint


def add_arguments(parser):
    add = parser.add_argument
    add("IN", help="a .safetensors file, or a Hugging Face folder (sharded or not)")
    add("OUT", nargs="?", help="the file or folder to write; nothing is left behind if it fails")
    add(
        "--include",
        action="append",
        default=[],
        metavar="REGEX",
        help=r"quantize 2-D tensors whose name matches (ECMAScript regex; repeatable; default \.weight$)",
    )
    add(
        "--exclude",
        action="append",
        default=[],
        metavar="REGEX",
        help="but leave these alone (repeatable; default: embeddings, norms, heads, experts' routers)",
    )
    add("--threshold", type=float, default=6.0, help="outlier threshold that config.json will state (default 6)")
    add("--threads", type=int, default=0, help="threads (default: all that this process may use)")
    add("-f", "--overwrite", action="store_true", help="replace an existing OUT at the end")
    add("-n", "--dry-run", action="store_true", help="show the plan, write nothing")
    add("-q", "--quiet", action="store_true", help="print errors only")
    add("-v", "--verbose", action="store_true", help="list every tensor in the plan")
    add("--json", action="store_true", help="print a JSON summary instead")


def run(options):
    try:
        _quantize(options)
        return 0
    except Failure as failure:
        message, status, hint = str(failure), failure.exit, failure.hint
    except _abi.AbiError as error:
        message, status, hint = str(error), INTERNAL, _DOCTOR
    sys.stderr.write(f"int8q: error: {message}\nhint: {hint}\n")
    return status


def _quantize(options):
    if not options.OUT and not options.dry_run:
        raise Failure(USAGE, "OUT is missing", "name the output, or pass --dry-run to see the plan only")
    if (
        not options.dry_run
        and all(map(os.path.exists, (options.IN, options.OUT)))
        and os.path.samefile(options.IN, options.OUT)
    ):
        raise Failure(USAGE, f"{options.OUT} is IN itself, which would be lost", "name another OUT; move it afterwards")
    output = Output()
    report = Report(options, output)
    try:
        with Signals() as signals:
            _call(options, report, signals)
    finally:
        report.close_bar()
    report.finish()
    output.finish()


def _call(options, report, signals):
    library = _abi.library()
    raised = []

    def progress(_, p):
        try:
            report.on_progress(p.contents)
        except BaseException as error:  # ctypes would print it and go on
            raised.append(error)
        return bool(raised or signals.caught)

    def texts(values):
        return (ctypes.c_char_p * len(values))(*map(os.fsencode, values)) if values else None

    context = ctypes.POINTER(_abi.int8q_context)()
    settings = _abi.int8q_context_options(size=ctypes.sizeof(_abi.int8q_context_options), threads=options.threads)
    status = library.int8q_create_context(ctypes.byref(settings), ctypes.byref(context))
    if status in (_abi.INT8Q_UNSUPPORTED, _abi.INT8Q_INVALID_ARGUMENT):
        raise Failure(USAGE, _message(library), _DOCTOR)
    _check(library, status)
    try:
        checkpoint = _abi.int8q_checkpoint_options(
            size=ctypes.sizeof(_abi.int8q_checkpoint_options),
            dry_run=options.dry_run,
            overwrite=options.overwrite,
            threshold=options.threshold,
            include=texts(options.include),
            include_count=len(options.include),
            exclude=texts(options.exclude),
            exclude_count=len(options.exclude),
        )
        paths = [os.fsencode(path) if path else None for path in (options.IN, options.OUT)]
        status = library.int8q_quantize_checkpoint(
            context, *paths, ctypes.byref(checkpoint), _abi.int8q_progress_fn(progress), None
        )
        if raised:
            raise raised[0]
        _check(library, status)
    finally:
        library.int8q_destroy_context(context)


def _message(library):
    return library.int8q_last_error().decode("utf-8", "replace")


def _check(library, status):
    if status != _abi.INT8Q_OK:
        raise Failure(_FAILURES.get(status, _DEFECT)[0], _message(library), _FAILURES.get(status, _DEFECT)[1])


class Signals:
    """While a checkpoint is written, Ctrl-C, a hang-up or `kill` ask the library to stop, which leaves nothing behind.
    nohup's choice to ignore SIGHUP stands."""

    def __enter__(self):
        self.caught = False
        self._before = {}
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._catch)
        return self

    def _catch(self, *_):
        self.caught = True

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)


class Output:
    """Standard output whose reader may go away (`| head`) without ending the conversion; its first error is kept."""

    def __init__(self):
        self._error = None

    def write(self, text):
        try:
            sys.stdout.write(text)
            sys.stdout.flush()
        except OSError as error:
            self._error = self._error or error
            # What is still buffered must not fail once more when the interpreter ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    def finish(self):
        if self._error and self._error.errno != errno.EPIPE:
            raise Failure(
                IO,
                f"writing to standard output failed: {self._error.strerror}",
                "send the output elsewhere, or free space; files that were asked for are complete",
            )


class Report:
    """The plan before the first byte is written, a progress bar, a summary."""

    def __init__(self, options, output):
        self._options, self._write = options, output.write
        self._text = not options.quiet and not options.json
        self._bar = None
        self._shown = False
        self._groups = {}  # (copied, reason, name, dtype, shape): [tensors, bytes_in, bytes_out]
        self._start = time.monotonic()

    def on_progress(self, p):
        if p.phase == _abi.INT8Q_PHASE_PLAN:
            return self._plan(p)
        self._show_plan()
        if not self._total(copied=False)[0]:
            raise Failure(
                USAGE,
                "no tensor is to be quantized, so the output would be the input",
                "see the plan (--dry-run --verbose); --include and --exclude replace the default choice",
            )
        if self._text and sys.stderr.isatty():
            self._show_bar(p)

    def _show_bar(self, p):
        if self._bar is None:
            self._bar = _bar()
        self._bar.total = p.total_in
        self._bar.set_postfix_str(_printable(p.tensor or b""), refresh=False)
        self._bar.update(p.bytes_in - self._bar.n)

    def close_bar(self):
        if self._bar is not None:
            self._bar.close()

    def finish(self):
        self._show_plan()
        if self._options.json:
            self._write(json.dumps(self._summary(), indent=2) + "\n")
        elif self._text and not self._options.dry_run:
            self._show_summary()

    def _plan(self, p):
        copied = p.action != _abi.INT8Q_TENSOR_QUANTIZE
        reason = _REASONS.get(p.action, "")
        if p.action == _abi.INT8Q_TENSOR_COPY_EXCLUDE and self._options.exclude:
            reason = "--exclude matches"
        name = _printable(p.tensor)
        # Layers of one kind share a line: encoder.layer.*.output.dense.weight.
        name = name if self._options.verbose else re.sub("[0-9]+", "*", name)
        dtype = _DTYPES[p.dtype] if 0 < p.dtype < len(_DTYPES) else "?"
        group = self._groups.setdefault((copied, reason, name, dtype, "" if copied else f"{p.rows}x{p.cols}"), [0, 0, 0])
        for i, amount in enumerate((1, p.bytes_in, p.bytes_out)):
            group[i] += amount

    def _total(self, copied=None):
        chosen = [total for key, total in self._groups.items() if copied in (None, key[0])]
        return [sum(column) for column in zip(*chosen)] or [0, 0, 0]

    def _show_plan(self):
        if self._shown or not self._text:
            return
        self._shown = True
        lines = [f"Plan for {_printable(os.fsencode(self._options.IN))}"]
        before = None
        for (copied, reason, name, dtype, shape), (tensors, read, written) in sorted(self._groups.items()):
            if copied and reason != before:
                lines.append(f"  copied: {reason}")
                before = reason
            lines.append(
                f"  {'copy' if copied else 'int8'} {tensors:4} x {name:<58} {dtype:>5} {shape:>11} "
                f"{_bytes(read):>9} -> {_bytes(written)}"
            )
        quantized, copied, whole = self._total(False), self._total(True), self._total()
        lines.append(f"  to int8: {quantized[0]} tensors; copied: {copied[0]} tensors")
        lines.append(f"  {_bytes(whole[1])} -> {_bytes(whole[2])} ({_ratio(whole)})")
        self._write("\n".join(lines) + "\n")

    def _show_summary(self):
        lines = ["", f"{'':<18} {'tensors':>8} {'before':>12} {'after':>12} {'ratio':>8}"]
        for what, copied in (("quantized linears", False), ("copied", True), ("checkpoint", None)):
            t = self._total(copied)
            lines.append(f"{what:<18} {t[0]:>8} {_bytes(t[1]):>12} {_bytes(t[2]):>12} {_ratio(t):>8}")
        out = self._options.OUT
        if os.path.isdir(out) and not os.path.exists(os.path.join(out, "config.json")):
            lines.append(
                "IN has no config.json, so no quantization_config was written: loaders will not know that this is int8"
            )
        seconds = time.monotonic() - self._start
        rate = self._total()[1] / max(seconds, 1e-9)
        lines.append(f"{_printable(os.fsencode(out))} in {seconds:.1f} s, {_bytes(rate)}/s")
        self._write("\n".join(lines) + "\n")

    def _summary(self):
        def total(t):
            return dict(zip(("tensors", "bytes_in", "bytes_out"), t))

        plan = []
        for (copied, reason, name, dtype, _), t in sorted(self._groups.items()):
            entry = {**total(t), "name": name, "dtype": dtype, "action": "copy" if copied else "int8"}
            plan.append({**entry, "reason": reason} if copied else entry)
        return {
            "in": self._options.IN,
            "out": self._options.OUT or "",
            "dry_run": self._options.dry_run,
            "threshold": self._options.threshold,
            "plan": plan,
            "quantized": total(self._total(False)),
            "copied": total(self._total(True)),
            "checkpoint": total(self._total()),
            "seconds": time.monotonic() - self._start,
        }


def _bar():
    """tqdm's if it is installed."""
    try:
        from tqdm import tqdm
    except ImportError:
        return Line()
    return tqdm(unit="B", unit_scale=True, leave=False, file=sys.stderr)


class Line:
    """As much of tqdm as is used here: a line on standard error that is written again."""

    def __init__(self):
        self.n = self.total = 0
        self._what, self._start, self._last = "", time.monotonic(), 0.0

    def set_postfix_str(self, what, refresh):
        self._what = what

    def update(self, more):
        self.n += more
        now = time.monotonic()
        if now - self._last < 0.1 and self.n != self.total:
            return
        self._last = now
        share = self.n / self.total if self.total else 1.0
        rate = self.n / max(now - self._start, 1e-9)
        line = f"[{'#' * int(24 * share):.<24}] {100 * share:3.0f}% {_bytes(rate):>9}/s  {self._what}"
        columns = os.get_terminal_size(sys.stderr.fileno()).columns or 80
        sys.stderr.write("\r\x1b[K" + line[: columns - 1])
        sys.stderr.flush()

    def close(self):
        sys.stderr.write("\r\x1b[K")


def _printable(name):
    """Text of a file, such as a tensor's name, without control characters: a terminal would obey them."""
    return "".join(c if c.isprintable() else "?" for c in name.decode("utf-8", "replace"))


def _bytes(count):
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            break
        count, unit = count / 1000, "TB"
    return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"


def _ratio(total):
    return f"{total[2] / total[1]:.3f}" if total[1] else "-"
