# SPDX-License-Identifier: Apache-2.0
"""The package as it is installed: what its import loads, and what it says beside a library that cannot serve it.
INT8Q_CC is a C compiler."""

import json
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

MEND = "export INT8Q_LIBRARY=YOUR_LIBINT8Q.so.1"  # of a copy, which pip did not put there


def run(program, *folders, **environment):
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(map(str, folders)), **environment}
    return subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)


@pytest.fixture
def package(tmp_path):
    """A copy of the package that has no library beside it."""
    shutil.copytree(Path(int8q.__file__).parent, tmp_path / "int8q", ignore=shutil.ignore_patterns("*.so*", "__pycache__"))
    return tmp_path


def library_beside(package, source):
    target = package / "int8q" / _abi.SONAME
    target.parent.mkdir(exist_ok=True)
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


# As the finder of an editable install does it: the package has the folder of its build, then that of its sources.
EDITABLE = """
import sys
from importlib.util import module_from_spec, spec_from_file_location
build, sources = (f"{folder}/int8q" for folder in sys.path[1:3])
spec = spec_from_file_location("int8q", f"{sources}/__init__.py", submodule_search_locations=[build, sources])
sys.modules["int8q"] = module_from_spec(spec)
spec.loader.exec_module(sys.modules["int8q"])
import int8q
from int8q import _abi
"""
SAY = EDITABLE + "print(_abi.library().path)"
TRY = "from int8q import _facts; library = _facts._try(_facts._TRY_LIBRARY, _facts._package(), 60)\n"


@pytest.fixture
def build(tmp_path):
    (tmp_path / "build/int8q").mkdir(parents=True)
    shutil.copy(_abi.library().path, tmp_path / "build/int8q" / _abi.SONAME)
    return tmp_path / "build"


def test_an_editable_install(build, package):
    """The library lies in one folder of the package, its Python files in another."""
    library = build / "int8q" / _abi.SONAME
    assert run(SAY, build, package).stdout == f"{library}\n"
    (package / "int8q" / _abi.SONAME).touch()  # the folders have an order
    assert run(SAY, build, package).stdout == f"{library}\n"
    found = run(EDITABLE + TRY + "print(library['path'])", build, package)
    assert found.stdout == f"{library}\n", found.stderr


def test_an_editable_install_has_no_second_choice(build, package):
    library = build / "int8q" / _abi.SONAME
    good = shutil.copy(library, package / "int8q" / _abi.SONAME)
    message = run(SAY, build, package, INT8Q_LIBRARY="/nonexistent.so").stderr
    assert "LibraryNotFound" in message and "/nonexistent.so does not load" in message
    library.write_text("no library")
    message = run(SAY, build, package).stderr
    assert "LibraryNotFound" in message and f"{library} does not load" in message
    library.unlink()
    assert run(SAY, build, package).stdout == f"{good}\n"
    os.unlink(good)
    message = run(SAY, build, package).stderr
    assert "LibraryNotFound" in message and f"; {_abi.SONAME} does not load" in message
    tried = run(EDITABLE + TRY + "print(*(row['path'] for row in library['tried']))", build, package)
    assert tried.stdout.split() == [str(library), str(good), _abi.SONAME]


def test_the_command_that_mends_is_that_of_doctor(tmp_path):
    """In site-packages, by this interpreter, from where pip got it, and forced, since the version is there already."""
    (wheel := tmp_path / "int8q 0.1.whl").touch()
    site = tmp_path / "site-packages"
    shutil.copytree(Path(int8q.__file__).parent, site / "int8q", ignore=shutil.ignore_patterns("*.so*", "__pycache__"))
    (site / "int8q-0.1.dist-info").mkdir()
    (site / "int8q-0.1.dist-info/METADATA").write_text("Name: int8q\nVersion: 0.1\n")
    (site / "int8q-0.1.dist-info/direct_url.json").write_text(json.dumps({"url": wheel.as_uri()}))
    path = library_beside(site, bootstrap((2, 0), ""))
    program = f"""
import site
site.getsitepackages = lambda: [{str(site)!r}]
import int8q
from int8q import _rules, doctor
{TRY}
print(_rules.reinstall())
print(doctor._library(library, {{"environment": {{}}}})[0]["do"])
int8q.default_context()
"""
    result = run(program, site)
    first, second = result.stdout.splitlines()
    assert first == second and first.endswith(f" --force-reinstall --no-deps {wheel.as_uri()}"), first
    assert sys.executable in first and " install" in first
    assert result.stderr.endswith(f"loaded 2.0 at {path}. Run: {first}\n")
    wheel.unlink()
    assert result.stdout.replace(wheel.as_uri(), "YOUR_WHEEL_OR_SOURCES_OF_INT8Q") == run(program, site).stdout


def test_the_binding_without_its_package():
    """Its messages need no more than the file."""
    program = "import _abi\ntry: _abi.Library('/nonexistent')\nexcept _abi.LibraryNotFound as error: print(error)"
    message = run(program, Path(_abi.__file__).parent).stdout
    assert message.endswith(f"Run: {sys.executable} -m pip install --force-reinstall --no-deps YOUR_SOURCES_OF_INT8Q\n")


def test_the_python_of_the_readme(rng):
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    block = re.search(r"```python\n(.*?)```", readme.partition("\n## Python\n")[2], re.S)[1]
    weight, bias, x = (rng.standard_normal(shape, np.float32) for shape in [(4, 8), 4, (2, 3, 8)])
    names = {"weight": weight, "bias": bias, "x": x}
    exec(block, names)
    np.testing.assert_allclose(names["y"], x @ weight.T + bias, atol=0.2)
