# SPDX-License-Identifier: Apache-2.0
"""Tensors of a GPU: torch's, where there is one; else in the memory of a driver without one (tests/cuda_emulation), where
they call themselves tensors of a GPU. Where there is neither, files that import this are skipped.

A pytest plug-in, too: pytest_plugins = ("gpu_tensors",) gives a file the fixture to_gpu.
"""

import ctypes
import os

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not in this environment")
_packed = pytest.importorskip("int8q._packed")
_torch = pytest.importorskip("int8q._torch")

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
K, N = 96, 40
ON_A_GPU = "INT8Q_STUB_GPUS" not in os.environ and torch.cuda.is_available()
if not ON_A_GPU and "INT8Q_STUB_GPUS" not in os.environ:
    pytest.skip("neither a GPU nor the driver that plays one (LD_LIBRARY_PATH, INT8Q_STUB_GPUS)", allow_module_level=True)
on_a_gpu = pytest.mark.skipif(not ON_A_GPU, reason="torch has no GPU here")
emulated = pytest.mark.skipif(ON_A_GPU, reason="asks the driver that plays a GPU")


class _Driver:
    """libcuda.so.1 as far as tensors need it. Their memory is one block, which a test has to itself from its start on."""

    BYTES = 8 << 20

    def __init__(self):
        self.lib = ctypes.CDLL("libcuda.so.1")
        context, at = ctypes.c_void_p(), ctypes.c_uint64()
        self.call("cuInit", 0)
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), 0)
        self.call("cuCtxPushCurrent_v2", context)
        self.call("cuMemAlloc_v2", ctypes.byref(at), ctypes.c_size_t(self.BYTES))
        # The emulator takes for written what was uploaded, and knows nothing of what the host stores.
        noise = np.full(self.BYTES, 0x5A, np.uint8)
        self.call("cuMemcpyHtoDAsync_v2", at, ctypes.c_void_p(noise.ctypes.data), ctypes.c_size_t(self.BYTES), None)
        self.call("cuStreamSynchronize", None)
        self.memory, self.taken, self.stream = at.value, 0, 0

    def call(self, name, *arguments):
        status = getattr(self.lib, name)(*arguments)
        assert status == 0, f"{name} of the driver's stub returns {status}"

    def count(self, name):
        self.lib.int8q_stub_count.restype = ctypes.c_int64
        return self.lib.int8q_stub_count(name.encode())

    def empty(self, shape, dtype):
        like = torch.empty(shape, dtype=dtype, device="meta")
        size = like.numel() * like.element_size()
        begin, self.taken = self.taken, self.taken + -(-size // 512) * 512
        assert self.taken <= self.BYTES
        block = (ctypes.c_uint8 * size).from_address(self.memory + begin)
        return torch.from_numpy(np.ctypeslib.as_array(block)).view(dtype).view(shape)


class Emulated(torch.Tensor):
    """A tensor in the memory of the driver's stub. What torch itself computes of it is an Emulated in the host's."""

    driver = None
    is_cuda, is_cpu = True, False

    def get_device(self):
        return 0

    def new_empty(self, *shape, dtype=None):
        shape = shape[0] if isinstance(shape[0], (tuple, list)) else shape
        return self.driver.empty(shape, dtype or self.dtype).as_subclass(Emulated)

    def new_zeros(self, *shape, dtype=None):
        return self.new_empty(*shape, dtype=dtype).zero_()

    def cpu(self):
        return self.as_subclass(torch.Tensor).clone()

    def contiguous(self):
        return self if self.is_contiguous() else Emulated.of(self)

    def __deepcopy__(self, memo):
        made = Emulated.of(self.detach())
        return torch.nn.Parameter(made) if isinstance(self, torch.nn.Parameter) else made

    @classmethod
    def of(cls, tensor):
        return cls.driver.empty(tensor.shape, tensor.dtype).copy_(tensor).as_subclass(cls)


@pytest.fixture
def to_gpu(monkeypatch):
    """A function that brings a tensor to the GPU."""
    if ON_A_GPU:
        yield lambda tensor: tensor.cuda()
        return
    Emulated.driver = Emulated.driver or _Driver()
    Emulated.driver.taken = 0
    monkeypatch.setattr(_packed, "stream_of", lambda tensor: Emulated.driver.stream)
    # What the dispatcher would do with a tensor of a GPU; it takes these for the CPU's.
    monkeypatch.setattr(_torch, "_operator", _torch._linear)
    # A parameter's memory would be exchanged else, and not its class.
    overwrites = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    yield Emulated.of
    torch.__future__.set_overwrite_module_params_on_conversion(overwrites)


def to_cpu(tensor):
    return tensor.detach().cpu()
