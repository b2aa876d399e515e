# SPDX-License-Identifier: Apache-2.0
"""wheel.py DIST: the wheel holds the package and its library only, keeps what its tag promises, and runs in a fresh virtual
environment of each Python from 3.9 to 3.13 that the machine has; where its library is lost, the command that the error
names brings it back. The same of an editable install of the source distribution, in the newest of them."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
VERSION = re.search(r"project\(int8q VERSION ([\d.]+)", (ROOT / "CMakeLists.txt").read_text())[1]
PROGRAM = """
import sys
import numpy, int8q
from int8q import _abi
assert int8q.__version__ == sys.argv[1], int8q.__version__
assert _abi.library().path.startswith(sys.prefix), _abi.library().path
assert "torch" not in sys.modules
q, row_stats, outlier_cols = int8q.quantize_rows(numpy.array([[7, 1, 0.5], [5, 1, 0.5]], numpy.float32))
assert (q == [[0, 127, 64], [0, 25, 13]]).all() and (row_stats == [1, 5]).all() and outlier_cols == [0]
print(f"Python {sys.version.split()[0]}, NumPy {numpy.__version__}: {int8q.default_context()}")
"""


def only(pattern, folder):
    found = list(folder.glob(pattern))
    if len(found) != 1:
        sys.exit(f"{folder} holds {[f.name for f in found]}; expected one {pattern}")
    return found[0]


def check_contents(wheel, scratch):
    if not re.fullmatch(rf"int8q-{VERSION}-py3-none-manylinux_2_34_\w+\.whl", wheel.name):
        sys.exit(f"{wheel.name}: expected version {VERSION}, tags py3-none-manylinux_2_34")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(scratch)
        names = set(archive.namelist())
    sources = {f"int8q/{path.name}" for path in (ROOT / "python/int8q").glob("*.py")}
    package = {name for name in names if not name.startswith(f"int8q-{VERSION}.dist-info/")}
    if package != sources | {"int8q/libint8q.so.1"}:
        sys.exit(f"{wheel.name} differs from what is expected in {sorted(package ^ (sources | {'int8q/libint8q.so.1'}))}")
    manifest = max((ROOT / "docs/abi").glob("manifest-*.json"))
    check = [sys.executable, ROOT / "tests/checks/library.py", scratch / "int8q/libint8q.so.1", manifest]
    subprocess.run(check, check=True)  # glibc 2.34 and older, among others


def check_source(sdist):
    with tarfile.open(sdist) as archive:
        names = archive.getnames()
    missing = [
        name for name in ("CMakeLists.txt", "LICENSE", "tests/checks/wheel.py") if f"int8q-{VERSION}/{name}" not in names
    ]
    if missing:
        sys.exit(f"{sdist.name} lacks {missing}")


def interpreters():
    """The newest python3.N of each N from PATH and pyenv, by what it says itself."""
    for minor in range(9, 14):
        places = sorted(Path.home().glob(f".pyenv/versions/3.{minor}.*/bin/python"))
        on_path = shutil.which(f"python3.{minor}")
        for python in [*places[-1:], *([on_path] if on_path else [])]:
            say = subprocess.run([python, "-c", "import sys; print(sys.version_info[1])"], capture_output=True, text=True)
            if say.stdout.strip() == str(minor):
                yield python
                break


def check_install(python, venv, *what):
    """Installs and runs; loses the library, does what the error says, and runs again."""
    environment = {name: value for name, value in os.environ.items() if name not in ("INT8Q_LIBRARY", "PYTHONPATH")}
    environment["PIP_DISABLE_PIP_VERSION_CHECK"] = "1"
    subprocess.run([python, "-m", "venv", venv], check=True)

    def run(*command, check=True, **options):
        return subprocess.run(command, check=check, env=environment, cwd=venv, text=True, **options)

    own = venv / "bin/python"
    run(own, "-m", "pip", "install", "--quiet", *what)
    run(own, "-c", PROGRAM, VERSION)
    (library,) = venv.glob("lib/python*/site-packages/int8q/libint8q.so.1")
    library.write_text("no library")
    error = run(own, "-c", PROGRAM, VERSION, check=False, capture_output=True).stderr
    found, _, mend = error.rstrip().splitlines()[-1].partition(". Run: ")
    if not found.startswith("int8q._abi.LibraryNotFound: ") or str(library) not in found:
        sys.exit(f"a library that does not load is not told: {error}")
    run("bash", "-c", f"{mend} --quiet")
    run(own, "-c", PROGRAM, VERSION)
    shutil.rmtree(venv)


def check_runs(wheel, scratch):
    pythons = list(interpreters())
    if not pythons:
        sys.exit("no Python from 3.9 to 3.13 was found")
    for count, python in enumerate(pythons, 1):
        check_install(python, scratch / f"venv-{count}", "--only-binary", ":all:", wheel)
    print(f"{wheel.name} runs on {len(pythons)} versions of Python")
    return pythons[-1]


def check_editable(python, sdist, scratch):
    subprocess.run(["tar", "-xf", sdist, "-C", scratch], check=True)
    check_install(python, scratch / "editable", "-e", scratch / f"int8q-{VERSION}")
    print(f"{sdist.name} runs as an editable install")


def main(dist):
    wheel, sdist = only("*.whl", dist), only("*.tar.gz", dist)
    check_source(sdist)
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch).resolve()
        check_contents(wheel, scratch / "wheel")
        check_editable(check_runs(wheel, scratch), sdist, scratch)


main(Path(sys.argv[1]).resolve())
