# SPDX-License-Identifier: Apache-2.0
"""What goes in: strides, alignment, other objects, DLPack, bfloat16 with and without ml_dtypes."""

import ctypes
import gc
import subprocess
import sys
import weakref

import numpy as np
import pytest
from oracle import bits

import int8q
from int8q import arrays

# ---------------------------------------------------------------------------------------------------- Strides

BASE = np.random.default_rng(3).standard_normal((12, 40), np.float32)


def misaligned(array):
    return np.frombuffer(b"\0" + array.tobytes(), np.uint8)[1:].view(array.dtype).reshape(array.shape)


@pytest.mark.parametrize(
    "x, copied",
    [
        (BASE, False),
        (BASE[::3], False),
        (BASE[:, 5:20], False),
        (misaligned(BASE), False),
        (BASE[3:4, :], False),
        (BASE[:, 7:8], False),
        (BASE[:0], False),
        (BASE.T, True),
        (BASE[:, ::2], True),
        (BASE[::-1], True),
        (BASE[:, ::-1], True),
        (np.broadcast_to(BASE[0], (4, 40)), True),
        (np.lib.stride_tricks.as_strided(BASE, (5, 8), (8, 4)), True),  # rows that overlap
        (np.zeros(100, np.uint8)[:90].view("V18")[:, np.newaxis].view(np.float16), False),
        (np.ndarray((4, 2), np.float32, BASE, strides=(10, 4)), True),  # rows not a number of elements apart
    ],
)
def test_strides(x, copied):
    taken = arrays.matrix(x, "x").array
    assert np.may_share_memory(taken, x) is not copied or not x.size
    for found, expected in zip(int8q.quantize_rows(x, 1.5), int8q.quantize_rows(x.copy(), 1.5)):
        assert bits(found) == bits(expected)


def test_vectors_are_copied_where_the_abi_needs_it():
    q, stats = np.ones((3, 2), np.int8), np.arange(6, dtype=np.float32)
    assert int8q.dequantize_rows(q, stats[::2]).tolist() == int8q.dequantize_rows(q, stats[::2].copy()).tolist()
    assert int8q.dequantize_rows(q, misaligned(stats[:3])).tolist() == int8q.dequantize_rows(q, stats[:3]).tolist()


def test_other_objects():
    class HasArray:
        def __array__(self, dtype=None, copy=None):
            return BASE

    assert bits(int8q.quantize_rows(HasArray()).q) == bits(int8q.quantize_rows(BASE).q)
    assert bits(int8q.quantize_rows(np.ma.masked_array(BASE)).q) == bits(int8q.quantize_rows(BASE).q)
    with pytest.raises(TypeError, match="x is float64"):
        int8q.quantize_rows([[1.0]])


class Unarrayable:
    def __array__(self, dtype=None, copy=None):
        raise ValueError("no rows")


def test_what_makes_no_array():
    with pytest.raises(ValueError, match="^x makes no array: no rows$"):
        int8q.quantize_rows(Unarrayable())


def test_an_output_that_would_be_copied():
    """What numpy.asarray makes of a list is another array, which nobody would see."""
    out, counts = [np.zeros(12, np.float32) for _ in BASE], [np.int64(0)] * 40
    with pytest.raises(TypeError, match="^out is a list; expected a NumPy array, or one that exports DLPack$"):
        int8q.Linear(BASE)(BASE, out)
    with pytest.raises(TypeError, match="^counts is a list; expected a NumPy array, or one that exports DLPack$"):
        int8q.count_outliers(BASE, counts=counts)
    with pytest.raises(TypeError, match=r"^outs\[0\] is a list; expected"):
        int8q.forward_many([int8q.Linear(BASE)], BASE, [out])


# ---------------------------------------------------------------------------------------------------- DLPack

CPU, CUDA = 1, 2
new_capsule = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)(
    ("PyCapsule_New", ctypes.pythonapi)
)


class Exporter:
    """A library that exports an array; counts what is given back."""

    alive = []

    def __init__(self, array, code=2, device=CPU, versioned=True, major=1, flags=0, dense=False):
        self.array, self.code, self.device, self.dense = array, code, device, dense
        self.versioned, self.major, self.flags, self.given_back = versioned, major, flags, 0

    def __dlpack_device__(self):
        return self.device, 0

    def __dlpack__(self, **arguments):
        if arguments and not self.versioned:
            raise TypeError("__dlpack__() got an unexpected keyword argument")
        kind = b"dltensor_versioned" if self.versioned else b"dltensor"
        struct = arrays._CAPSULES[kind][0]
        managed, array = struct(), self.array
        shape = (ctypes.c_int64 * array.ndim)(*array.shape)
        strides = (ctypes.c_int64 * array.ndim)(*(s // array.itemsize for s in array.strides))
        tensor = managed.tensor
        tensor.data, tensor.byte_offset = array.ctypes.data - 64, 64
        tensor.device_type, tensor.ndim = self.device, array.ndim
        tensor.code, tensor.bits, tensor.lanes = self.code, 8 * array.itemsize, 1
        tensor.shape = shape
        tensor.strides = None if self.dense else strides
        if self.versioned:
            managed.major, managed.flags = self.major, self.flags

        def give_back(address):
            assert address == ctypes.addressof(managed)
            self.given_back += 1

        deleter = arrays._Deleter(give_back)
        managed.deleter = ctypes.cast(deleter, ctypes.c_void_p)
        Exporter.alive.append((managed, shape, strides, deleter, array))
        self.capsule = new_capsule(ctypes.addressof(managed), kind, None)
        return self.capsule


@pytest.mark.parametrize("versioned", [False, True])
@pytest.mark.parametrize("dense", [False, True])
def test_dlpack_in(versioned, dense):
    exporter = Exporter(BASE if dense else BASE[::2], versioned=versioned, dense=dense)
    array = arrays.as_array(exporter, "x")
    assert bits(array.copy()) == bits(exporter.array.copy())
    assert array.ctypes.data == exporter.array.ctypes.data
    assert b"used_" in repr(exporter.capsule).encode()
    view = array[1:]
    del array
    gc.collect()
    assert exporter.given_back == 0
    del view
    gc.collect()
    assert exporter.given_back == 1


def test_dlpack_in_a_call_and_as_its_output():
    layer = int8q.Linear(BASE)
    x, out = Exporter(BASE), Exporter(np.zeros((12, 12), np.float32))
    assert layer(x, out=out) is out
    gc.collect()
    assert bits(out.array) == bits(layer(BASE))
    assert (x.given_back, out.given_back) == (1, 1)


def test_dlpack_of_bfloat16_and_codes():
    x = BASE.astype(int8q.bfloat16)
    assert bits(int8q.Linear(BASE)(Exporter(x, code=4))) == bits(int8q.Linear(BASE)(x))
    codes = np.arange(-6, 6, dtype=np.int8).reshape(3, 4)
    assert bits(int8q.multiply(Exporter(codes, code=0), codes)) == bits(int8q.multiply(codes, codes))
    for array, code in ((codes > 0, 6), (codes.view(int8q.float8_e4m3fn), 10), (codes.view(int8q.float8_e5m2), 12)):
        assert bits(arrays.as_array(Exporter(array, code=code), "x")) == bits(array)


def test_dlpack_that_is_read_only():
    exporter = Exporter(np.zeros((12, 12), np.float32), flags=1)
    with pytest.raises(ValueError, match="out is read-only"):
        int8q.Linear(BASE)(BASE, out=exporter)
    with pytest.raises(ValueError, match="^counts is read-only; expected a writable array$"):
        int8q.count_outliers(BASE, counts=Exporter(np.zeros(40, np.int64), code=0, flags=1))


def test_dlpack_counts_are_changed_in_place():
    counts = Exporter(np.ones(40, np.int64), code=0)
    assert int8q.count_outliers(BASE, 1.5, counts) is counts
    assert counts.array.tolist() == (1 + int8q.count_outliers(BASE, 1.5)).tolist()
    gc.collect()
    assert counts.given_back == 1


@pytest.mark.parametrize("error", [BufferError, RuntimeError, ValueError])
def test_an_exporter_that_refuses(error):
    class Refuses(Exporter):
        def __dlpack__(self, **arguments):
            raise error("has the conjugate bit set")

    with pytest.raises(ValueError, match="^x exports no array: has the conjugate bit set$"):
        int8q.quantize_rows(Refuses(BASE))


def test_tensors_of_torch():
    torch = pytest.importorskip("torch")
    layer, x = int8q.Linear(BASE), torch.from_numpy(BASE.copy())
    assert bits(layer(x)) == bits(layer(BASE))
    counts = torch.zeros(40, dtype=torch.int64)
    assert int8q.count_outliers(x, 1.5, counts) is counts
    assert counts.tolist() == int8q.count_outliers(BASE, 1.5).tolist()
    x.requires_grad_()
    out = torch.zeros(12, 12, requires_grad=True)
    for call, name in ((lambda: layer(x), "x"), (lambda: int8q.Linear(x), "weight"), (lambda: layer(BASE, out), "out")):
        with pytest.raises(ValueError, match=rf"^{name} requires grad, .*; pass {name}\.detach\(\)$"):
            call()
    layer(x.detach(), out.detach())
    assert bits(out.detach().numpy()) == bits(layer(BASE))


@pytest.mark.parametrize(
    "exporter, error, message",
    [
        (Exporter(BASE, device=CUDA), ValueError, "x is on DLPack device type 2; expected host memory"),
        (Exporter(BASE, code=5), TypeError, "x has DLPack type code 5, 32 bits, 1 lanes"),
        (Exporter(BASE, major=2), ValueError, "x is DLPack 2.0; expected 1.x"),
    ],
)
def test_dlpack_refused(exporter, error, message):
    with pytest.raises(error, match=message):
        int8q.quantize_rows(exporter)
    assert exporter.given_back == 0  # the capsule is still the exporter's


def test_dlpack_from_numpy_and_out():
    class Wrapped:
        def __init__(self, array):
            self.__dlpack__, self.__dlpack_device__ = array.__dlpack__, array.__dlpack_device__

    x = BASE.copy()
    reference = weakref.ref(x)
    array = arrays.as_array(Wrapped(x), "x")
    assert array.ctypes.data == x.ctypes.data
    del x, array
    gc.collect()
    assert reference() is None
    y = int8q.Linear(BASE)(BASE)
    assert np.from_dlpack(y).ctypes.data == y.ctypes.data


# ---------------------------------------------------------------------------------------------------- bfloat16

WITHOUT_ML_DTYPES = """
import sys
sys.modules["ml_dtypes"] = None
import numpy as np
import int8q
x = np.array([[1.0, -2.0, 0.5, 7.0]], np.float32)
bits = (x.view(np.uint32) >> 16).astype(np.uint16)
assert int8q.bfloat16.names == ("bfloat16",)
layer = int8q.Linear(bits.view(int8q.bfloat16))
y = layer(bits.view(int8q.bfloat16))
assert y.dtype == int8q.bfloat16 and y.shape == (1, 1)
assert y.view(np.uint16).astype(np.uint32) << 16 == layer(x).view(np.uint32) + 0x7fff & 0xffff0000
assert int8q.dequantize_rows(layer.weight, layer.col_stats, "bfloat16").dtype == int8q.bfloat16
try:
    layer(bits)
except TypeError as error:
    assert str(error) == "x is uint16; expected float32 or float16 or bfloat16", error
path = sys.argv[1]
int8q.save_safetensors({"x": bits.view(int8q.bfloat16)}, path)
loaded = int8q.load_safetensors(path)["x"]
assert loaded.dtype == int8q.bfloat16 and (loaded.view(np.uint16) == bits).all()
assert (loaded.view(np.int16) == bits.view(np.int16)).all()
"""


def test_bfloat16_leaves_for_torch_as_int16(rng):
    """torch 2.0 knows no uint16."""
    torch = pytest.importorskip("torch")
    x = torch.from_numpy(rng.standard_normal((3, 40), np.float32)).bfloat16()
    y = int8q.Linear(BASE)(x)
    assert y.dtype == int8q.bfloat16
    for take in (torch.from_numpy, torch.from_dlpack):
        tensor = take(y.view(np.int16)).view(torch.bfloat16)
        assert tensor.data_ptr() == y.ctypes.data and tensor.shape == (3, 12)
        assert bits(tensor.view(torch.int16).numpy()) == bits(y.view(np.int16))
    expected = int8q.Linear(BASE)(x.float().numpy())
    np.testing.assert_allclose(tensor.float().numpy(), expected, rtol=2**-8)


def test_without_ml_dtypes(tmp_path):
    subprocess.run([sys.executable, "-c", WITHOUT_ML_DTYPES, str(tmp_path / "x.safetensors")], check=True)


def test_with_ml_dtypes():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    assert int8q.bfloat16 == ml_dtypes.bfloat16
    assert int8q.Linear(BASE)(BASE.astype(ml_dtypes.bfloat16)).dtype == ml_dtypes.bfloat16
