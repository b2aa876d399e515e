# SPDX-License-Identifier: Apache-2.0
"""The package as it is installed: what its import loads, and what it says beside a library that cannot serve it.
INT8Q_CC is a C compiler."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import int8q
from int8q import _abi

MEND = "python -m pip install --force-reinstall int8q"


def run(program, folder, **environment):
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(folder), **environment}
    return subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)


@pytest.fixture
def package(tmp_path):
    """A copy of the package that has no library beside it."""
    shutil.copytree(Path(int8q.__file__).parent, tmp_path / "int8q", ignore=shutil.ignore_patterns("*.so*", "__pycache__"))
    return tmp_path


def library_beside(package, source):
    target = package / "int8q" / _abi.SONAME
    compiler = [os.environ.get("INT8Q_CC", "cc"), "-shared", "-fPIC", "-o", target, "-x", "c", "-"]
    subprocess.run(compiler, input=source, text=True, check=True)
    return str(target)


def test_the_import_loads_numpy_only(package):
    program = """
import sys
import int8q
foreign = {"torch", "transformers", "peft", "bitsandbytes", "safetensors", "scipy"} & set(sys.modules)
assert not foreign, foreign
from int8q import _abi
assert _abi._library is None
assert set(dir(int8q)) >= set(int8q.__all__)
"""
    result = run(program, package, INT8Q_LIBRARY="/nonexistent")
    assert result.returncode == 0, result.stderr


def bootstrap(level, hash_text):
    return (
        f"unsigned int8q_abi_version(void) {{ return {level[0] << 16 | level[1]}u; }}\n"
        f'const char* int8q_abi_hash(unsigned level) {{ (void)level; return "{hash_text}"; }}\n'
    )


@pytest.mark.parametrize(
    "source, name, wanted, found",
    [
        (bootstrap((0, 9), ""), "AbiMismatch", "this package needs ABI 1.x", "loaded 0.9"),
        (bootstrap((2, 0), ""), "AbiMismatch", "this package needs ABI 1.x", "loaded 2.0"),
        (
            bootstrap((1, 0), "f" * 64),
            "AbiMismatch",
            "this package needs ABI 1.0 with hash",
            "loaded one with hash ffffffff",
        ),
        ("int unrelated;", "AbiMismatch", "this package needs ABI 1.x", "loaded no int8q library"),
    ],
)
def test_a_library_that_cannot_serve(source, name, wanted, found, package):
    path = library_beside(package, source)
    result = run("import int8q; print('imported'); int8q.default_context()", package)
    assert result.stdout == "imported\n"
    message = result.stderr.splitlines()[-1]
    assert message.startswith(f"int8q._abi.{name}: ") and message.endswith(f". Run: {MEND}"), message
    for part in (wanted, found, path):
        assert part in message


def test_an_older_library_of_the_same_major_level(package):
    path = library_beside(package, bootstrap((1, 0), _abi.HASHES[1, 0]))
    program = """
import ctypes, int8q
from int8q import _abi
_abi.LEVEL = (1, 3)
_abi.PROTOTYPES["int8q_create_context"] = ((1, 3), ctypes.c_int32, [])
int8q.default_context()
"""
    message = run(program, package).stderr.splitlines()[-1]
    expected = f"int8q._abi.NeedsNewer: int8q_create_context needs ABI 1.3, loaded 1.0 at {path}. Run: {MEND}"
    assert message == expected


def test_a_chosen_library_that_is_missing_is_no_second_choice(package):
    shutil.copy(_abi.library().path, package / "int8q" / _abi.SONAME)
    result = run("import int8q; int8q.default_context()", package, INT8Q_LIBRARY="/nonexistent/libint8q.so.1")
    message = result.stderr.splitlines()[-1]
    assert "LibraryNotFound" in message and "/nonexistent/libint8q.so.1" in message
    assert message.endswith("Run: unset INT8Q_LIBRARY")
    assert run("import int8q; print(int8q.default_context())", package).returncode == 0


def test_the_python_of_the_readme(rng):
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    block = re.search(r"```python\n(.*?)```", readme.partition("\n## Python\n")[2], re.S)[1]
    weight, bias, x = (rng.standard_normal(shape, np.float32) for shape in [(4, 8), 4, (2, 3, 8)])
    names = {"weight": weight, "bias": bias, "x": x}
    exec(block, names)
    np.testing.assert_allclose(names["y"], x @ weight.T + bias, atol=0.2)
