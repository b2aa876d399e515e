# SPDX-License-Identifier: Apache-2.0
"""Contexts: threads of Python, forks, the GIL; and the exceptions of status codes."""

import os
import pickle
import threading
import time

import numpy as np
import pytest
from oracle import bits

import int8q
from int8q import _abi
from int8q import context as context_module

RNG = np.random.default_rng(5)
W, X = RNG.standard_normal((96, 200), np.float32), 3 * RNG.standard_normal((64, 200), np.float32)


def test_attributes():
    context = int8q.Context(threads=3, isa="generic")
    assert (context.threads, context.isa) == (3, "generic")
    assert repr(context) == "int8q.Context(threads=3, isa='generic')"
    assert context.describe()["backend"] == "cpu"
    context.prepare()
    assert int8q.default_context() is int8q.default_context()
    assert int8q.Linear(W).context is int8q.default_context()
    assert "isas" in int8q.diagnose() or int8q.diagnose()


def test_results_do_not_depend_on_isa_or_threads():
    results = {
        bits(int8q.Linear(W, context=context)(X))
        for context in (int8q.Context(1, "generic"), int8q.Context(1), int8q.Context(3))
    }
    assert len(results) == 1


def test_the_environment_is_read_when_a_context_is_made(monkeypatch):
    monkeypatch.setenv("INT8Q_NUM_THREADS", "2")
    monkeypatch.setenv("INT8Q_CPU_ISA", "generic")
    context = int8q.Context()
    monkeypatch.setenv("INT8Q_CPU_ISA", "nonsense")
    first, second = context._take(), context._take()
    assert (context.threads, context.isa, first is second) == (2, "generic", False)


@pytest.mark.parametrize("arguments", [{"threads": 0}, {"threads": -1}, {"threads": 1025}])
def test_threads_out_of_range(arguments):
    with pytest.raises(ValueError, match=f"^threads is {arguments['threads']}; expected 1 to 1024, or None$"):
        int8q.Context(**arguments)


@pytest.mark.parametrize("name, value", [("threads", "2"), ("threads", 1.5), ("isa", 5)])
def test_arguments_of_another_type(name, value):
    with pytest.raises(TypeError, match=f"^{name} is {value!r}; expected "):
        int8q.Context(**{name: value})


@pytest.mark.parametrize(
    "written, read",
    [
        ("options->kept_cols[1] is 3; expected", "kept_cols[1] is 3; expected"),
        ("b->cols is 2; expected 3, to match", "b.shape[1] is 2; expected 3, to match"),
        ("x->rows is 2; expected 3, to match", "x.shape[0] is 2; expected 3, to match"),
        ("bias->cols is 2; expected 3, to match", "bias.shape[0] is 2; expected 3, to match"),
        ("y at 0x7f overlaps x at 0x7e; expected", "out at 0x7f overlaps x at 0x7e; expected"),
        ("dx at 0x7f overlaps dy at 0x7e; expected", "out at 0x7f overlaps dy at 0x7e; expected"),
        ("ys[i] at 0x7f overlaps an earlier one of ys at 0x7e", "out at 0x7f overlaps an earlier one of outs at 0x7e"),
        ("a->b.safetensors: not a regular file", "a->b.safetensors: not a regular file"),
    ],
)
def test_messages_have_the_names_of_python(written, read, monkeypatch):
    class Library:
        int8q_last_error = staticmethod(written.encode)
        int8q_status_name = staticmethod(lambda status: b"INT8Q_INVALID_ARGUMENT")

    monkeypatch.setattr(context_module, "library", Library)
    with pytest.raises(int8q.StatusValueError) as caught:
        context_module.check(_abi.INT8Q_INVALID_ARGUMENT)
    assert str(caught.value) == read


def test_an_unknown_isa():
    with pytest.raises(int8q.StatusError, match='^isa is "mmx".*expected one of generic') as caught:
        int8q.Context(isa="mmx")
    assert (caught.value.status, caught.value.name) == (_abi.INT8Q_UNSUPPORTED, "INT8Q_UNSUPPORTED")


def in_threads(count, run):
    failures, barrier = [], threading.Barrier(count)

    def body(i):
        try:
            barrier.wait()
            run(i)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=body, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures


def test_one_context_from_many_threads():
    context = int8q.Context(threads=2)
    layer = int8q.Linear(W, context=context)
    rows = [1, 3, 17, 64]
    expected = {m: (bits(layer(X[:m])), [bits(a) for a in int8q.quantize_rows(X[:m])]) for m in rows}

    def run(i):
        for repeat in range(40):
            m = rows[(i + repeat) % len(rows)]
            assert bits(layer(X[:m])) == expected[m][0]
            assert [bits(a) for a in int8q.quantize_rows(X[:m], context=context)] == expected[m][1]

    in_threads(6, run)
    assert 1 <= len(context._free) <= 6


def test_a_failed_call_gives_its_worker_back():
    context = int8q.Context(threads=1)
    for _ in range(3):
        with pytest.raises(ValueError):
            int8q.multiply(np.ones((2, 3), np.int8), np.ones((2, 2), np.int8), context=context)
        with pytest.raises(ValueError):
            int8q.Linear(W[:5, :5], context=context)(X[:5, :5], out=X[:5, :5])
    assert len(context._free) == 1


def test_fork():
    layer = int8q.Linear(W, context=int8q.Context(threads=2))
    expected = bits(layer(X))
    child = os.fork()
    if child == 0:
        same = bits(layer(X)) == expected and bits(int8q.Linear(W)(X)) == expected
        os._exit(0 if same else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert bits(layer(X)) == expected


def test_calls_release_the_gil():
    a = np.ones((1500, 4096), np.int8)
    context, span = int8q.Context(threads=1, isa="generic"), []

    def compute():
        start = time.monotonic()
        int8q.multiply(a, a, context=context)
        span.append((start, time.monotonic()))

    thread, moments = threading.Thread(target=compute), []
    thread.start()
    while thread.is_alive():
        moments.append(time.monotonic())
        time.sleep(1e-3)
    (start, end), middle = span[0], 0.1 * (span[0][1] - span[0][0])
    during = sum(start + middle < moment < end - middle for moment in moments)
    assert end - start > 0.05, "too short to tell"
    assert during >= 5, f"this thread ran {during} times during a call of {end - start:.3f} s"


@pytest.mark.parametrize(
    "status, parents",
    [
        ("INVALID_ARGUMENT", ValueError),
        ("INVALID_HANDLE", int8q.StatusError),
        ("INVALID_DTYPE", TypeError),
        ("SIZE_OVERFLOW", ValueError),
        ("OUT_OF_MEMORY", MemoryError),
        ("NOT_FOUND", FileNotFoundError),
        ("IO", OSError),
        ("CORRUPT", ValueError),
        ("UNSUPPORTED", int8q.StatusError),
        ("INTERNAL", int8q.StatusError),
    ],
)
def test_the_exception_of_a_status(status, parents):
    number = getattr(_abi, "INT8Q_" + status)
    with pytest.raises(parents) as caught:
        context_module.check(number)
    again = pickle.loads(pickle.dumps(caught.value))
    for error in (caught.value, again):
        assert isinstance(error, int8q.StatusError) and isinstance(error, parents)
        assert (error.status, error.name) == (number, "INT8Q_" + status)
        assert str(error) == caught.value.message
