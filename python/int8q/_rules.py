# SPDX-License-Identifier: Apache-2.0
"""What is known to go wrong around 8-bit loading: each rule is a condition on versions and facts, what it means, and the
one command that mends it. The error messages that a rule explains are its `seen_as`."""

import re
import shlex
import sys
from dataclasses import dataclass
from glob import glob
from importlib.util import find_spec
from os.path import dirname, exists, join
from shutil import which
from sysconfig import get_path
from typing import Callable

from . import _facts


class Environment:
    """A package's version is an attribute, as a tuple of numbers; () if it is missing, which compares less than any."""

    def __init__(self, facts, traceback=""):
        self.facts = facts
        self.traceback = traceback
        self.probes = facts["imports"]
        self.cuda = self.probes.get("torch", {}).get("cuda")  # None: torch could not say

    def __getattr__(self, package):
        return numbers(self.facts["packages"].get(package))

    def text(self, package):
        return self.facts["packages"].get(package) or "missing"

    @property
    def printed(self):
        """What the packages said while they were imported, and the traceback."""
        return "\n".join([*(probe.get("stderr", "") for probe in self.probes.values()), self.traceback])

    @property
    def loads_8bit(self):
        return self.transformers and self.accelerate and self.bitsandbytes


def numbers(version):
    """The leading numbers: 2.0.1+cu118 is (2, 0, 1), 0.41.2.post2 is (0, 41, 2)."""
    found = re.match(r"\d+(\.\d+)*", version or "")
    return tuple(map(int, found[0].split("."))) if found else ()


def pip(*arguments):
    """The command that installs into this very interpreter, which may come without pip, or guarded by its distribution."""
    python = shlex.quote(sys.executable or "python3")
    install = f"{python} -m pip install"
    if find_spec("pip") is None:
        install = f"uv pip install --python {python}" if which("uv") else f"{python} -m ensurepip && {install}"
    elif sys.prefix == sys.base_prefix and exists(join(get_path("stdlib"), "EXTERNALLY-MANAGED")):
        install += " --user --break-system-packages"
    return " ".join([install, *map(shlex.quote, arguments)])


def reinstall(*options):
    """The command that puts the library that belongs to this package beside it; forced, since pip leaves a version that is
    there already."""
    source = _facts.source()
    if source is None:
        return "export INT8Q_LIBRARY=YOUR_LIBINT8Q.so.1"
    return pip("--force-reinstall", "--no-deps", *options, *source)


@dataclass(frozen=True)
class Rule:
    name: str
    level: str  # "warning": what is installed fails; "note": only a program that asks for it does
    seen_as: str
    applies: Callable
    says: Callable
    mend: Callable


def on_int8q(environment):
    """The command that runs a script which asks for 8 bits, unchanged, in these versions."""
    return f"{shlex.quote(sys.executable)} -m int8q run YOUR_SCRIPT.py"


# The original message, and those of 4.38 and of 5.
REQUIRES = (
    r"Using `(load_in_8bit=True`|bitsandbytes` [48]-bit quantization) requires "
    r"([Aa]ccelerate|(the latest version of )?bitsandbytes)"
)


def _missing_8bit(e):
    return [name for name in ("accelerate", "bitsandbytes") if not getattr(e, name)]


def _below_floor(e):
    """transformers 5 compares versions and calls what is too old missing."""
    return [f"{n}>={f}" for n, f in (("accelerate", "1.1"), ("bitsandbytes", "0.46.1")) if () < getattr(e, n) < numbers(f)]


def _peft_floor(e):
    return "0.20" if e.transformers >= (5,) else "0.5"


# Up to CUDA 12 the packages' names end in it: nvidia-cublas-cu12.
_CUDA = re.compile(r"lib(nvJitLink|cudart|cublas|cublasLt|cusparse|cusolver|cufft)\.so\.(\d+)[.\d]*: cannot open shared")
_CUDA_PACKAGES = {"cudart": "cuda-runtime", "cublasLt": "cublas"}


def _cuda_library(e):
    """The missing library lies in a package that the loader does not search, or has to be installed."""
    library, major = _CUDA.search(e.printed).groups()
    for folder in e.facts["interpreter"]["site_packages"]:
        for path in sorted(glob(join(folder, "nvidia", "*", "lib", f"lib{library}.so.{major}*"))):
            return f"export LD_LIBRARY_PATH={shlex.quote(dirname(path))}:$LD_LIBRARY_PATH"
    suffix = f"-cu{major}" if int(major) < 13 else ""
    return pip(f"nvidia-{_CUDA_PACKAGES.get(library, library.lower())}{suffix}")


RULES = (
    # transformers 4.27.2 modeling_utils.py: the ImportError is raised where find_spec is None. bitsandbytes#837
    Rule(
        "missing-package",
        "note",
        REQUIRES,
        lambda e: e.transformers and _missing_8bit(e),
        lambda e: f"load_in_8bit of transformers {e.text('transformers')} needs {' and '.join(_missing_8bit(e))}, "
        f"which this interpreter does not have; another one may, see the interpreter above",
        lambda e: pip(*(n + (">=0.46.1" if n == "bitsandbytes" else ">=1.1") for n in _missing_8bit(e)))
        if e.transformers >= (4, 45)
        else pip(*_missing_8bit(e)),
    ),
    # transformers#25473, #38528; import_utils.py of 4.32.1 to 4.44.2, not of 4.31.0 and 4.45.2. bitsandbytes#837
    Rule(
        "cuda-condition",
        "warning",
        REQUIRES + r"|No GPU found\. A GPU is needed for quantization",
        lambda e: (4, 32) <= e.transformers < (4, 45) and e.loads_8bit and e.cuda is False,
        lambda e: f"accelerate and bitsandbytes are installed; transformers {e.text('transformers')} calls bitsandbytes "
        "missing wherever torch.cuda.is_available() is False, as it is here",
        on_int8q,
    ),
    # transformers quantizer_bnb_8bit.py and integrations/bitsandbytes.py of 4.45.2 to 4.57.6
    Rule(
        "cuda-required",
        "warning",
        r"CUDA is required but not available for bitsandbytes|bitsandbytes \(<0\.43\.1\) requires CUDA|" + REQUIRES,
        lambda e: (4, 45) <= e.transformers < (5,) and () < e.bitsandbytes < (0, 46) and e.cuda is False,
        lambda e: f"bitsandbytes {e.text('bitsandbytes')} has no CPU backend, and there is no CUDA here; "
        "transformers calls it missing or refuses it",
        on_int8q,
    ),
    # transformers 5.23.0 import_utils.py: BITSANDBYTES_MIN_VERSION, ACCELERATE_MIN_VERSION
    Rule(
        "version-floor",
        "warning",
        REQUIRES,
        lambda e: e.transformers >= (5,) and _below_floor(e),
        lambda e: f"transformers {e.text('transformers')} calls what is too old missing: it needs "
        f"{' and '.join(_below_floor(e))}, installed: accelerate {e.text('accelerate')}, "
        f"bitsandbytes {e.text('bitsandbytes')}",
        lambda e: pip("-U", *_below_floor(e)),
    ),
    # transformers 5.23.0 raises a TypeError; transformers#21579 brought what replaces it
    Rule(
        "keyword-gone",
        "note",
        r"unexpected keyword argument '?load_in_8bit",
        lambda e: e.transformers >= (5,) and "load_in_8bit" in e.traceback,
        lambda e: f"transformers {e.text('transformers')} has no keyword load_in_8bit but "
        "quantization_config=BitsAndBytesConfig(load_in_8bit=True); int8q translates it for scripts that keep it",
        on_int8q,
    ),
    # Tried with transformers 4.27.2, accelerate 0.17.1, bitsandbytes 0.41.2.post2 and torch 2.0.1, without a GPU
    Rule(
        "cpu-dispatch",
        "warning",
        r"Some modules are dispatched on the CPU or the disk|No GPU found\. A GPU is needed for quantization",
        lambda e: (4, 22) <= e.transformers < (4, 32) and e.loads_8bit and e.cuda is False,
        lambda e: f"transformers {e.text('transformers')} loads in 8 bit on a GPU only; without one, load_in_8bit=True "
        "ends in 'Some modules are dispatched on the CPU or the disk', or 'No GPU found'",
        on_int8q,
    ),
    # bitsandbytes#156, #399, #459: the CPU library of the releases before 0.43 has neither
    Rule(
        "bitsandbytes-cpu-library",
        "warning",
        r"undefined symbol: (cget_col_row_stats|cadam32bit_grad_fp32)|was compiled without GPU support",
        lambda e: () < e.bitsandbytes < (0, 43) and e.cuda is False,
        lambda e: f"bitsandbytes {e.text('bitsandbytes')} took its CPU library, which lacks cget_col_row_stats and "
        "cadam32bit_grad_fp32: nothing of it runs in 8 bit here",
        on_int8q,
    ),
    # bitsandbytes#1905: CUDA 13's packages moved their libraries to nvidia/cu13/lib; #232, #1452
    Rule(
        "cuda-library",
        "warning",
        _CUDA.pattern,
        lambda e: _CUDA.search(e.printed),
        lambda e: f"lib{_CUDA.search(e.printed)[1]}.so.{_CUDA.search(e.printed)[2]} of CUDA is not found by the loader",
        _cuda_library,
    ),
    # pytorch#107302: wheels support NumPy 2 since torch 2.3
    Rule(
        "numpy-torch",
        "warning",
        r"_ARRAY_API not found|compiled using NumPy 1\.x|Numpy is not available|Failed to initialize NumPy",
        lambda e: e.numpy >= (2,) and () < e.torch < (2, 3),
        lambda e: f"torch {e.text('torch')} was built for NumPy 1 and cannot use NumPy {e.text('numpy')}",
        lambda e: pip("numpy<2"),
    ),
    # Tried: with NumPy 1.26.4 pyarrow 25.0.0 imports, 26.0.0 raises
    Rule(
        "pyarrow-numpy",
        "warning",
        r"pyarrow requires NumPy 2|numpy\.core\.multiarray failed to import",
        lambda e: e.pyarrow >= (26,) and () < e.numpy < (2,),
        lambda e: f"pyarrow {e.text('pyarrow')} needs NumPy 2, installed is {e.text('numpy')}"
        + (f", which torch {e.text('torch')} cannot do without" if () < e.torch < (2, 3) else "")
        + "; datasets and transformers' Trainer die of it",
        lambda e: pip("pyarrow<26"),
    ),
    # bitsandbytes#1450: removed in 0.45; peft reads it up to 0.13.2, no longer in 0.14.0
    Rule(
        "memory-efficient-backward",
        "warning",
        r"has no attribute 'memory_efficient_backward'|unexpected keyword argument 'memory_efficient_backward'",
        lambda e: e.bitsandbytes >= (0, 45) and () < e.peft < (0, 14),
        lambda e: f"peft {e.text('peft')} reads memory_efficient_backward, which bitsandbytes {e.text('bitsandbytes')} "
        "no longer has",
        lambda e: pip("-U", "peft>=0.14"),
    ),
    # transformers' MIN_PEFT_VERSION: 0.5.0 from 4.35 to 4.57, 0.20.0 in 5.23.0. peft#3333
    Rule(
        "peft-too-old",
        "warning",
        r"cannot import name 'HybridCache' from 'transformers'|version of PEFT you are using is not compatible",
        lambda e: e.transformers >= (4, 35) and () < e.peft < numbers(_peft_floor(e)),
        lambda e: f"transformers {e.text('transformers')} works with peft {_peft_floor(e)} or newer, installed is "
        f"{e.text('peft')}",
        lambda e: pip("-U", f"peft>={_peft_floor(e)}"),
    ),
    # peft#2292: imports EncoderDecoderCache since 0.14.0; transformers has it in 4.43.4, not in 4.42.4
    Rule(
        "peft-too-new",
        "warning",
        r"cannot import name 'EncoderDecoderCache' from 'transformers'",
        lambda e: e.peft >= (0, 14) and () < e.transformers < (4, 43),
        lambda e: f"peft {e.text('peft')} needs transformers 4.43 or newer, installed is {e.text('transformers')}",
        lambda e: pip("peft<0.14"),
    ),
)
