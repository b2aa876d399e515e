# SPDX-License-Identifier: Apache-2.0
"""What the tests share. INT8Q_LIBRARY names the library, PYTHONPATH the package (cmake/Checks.cmake)."""

import numpy as np
import pytest

import int8q

FLOATS = [np.dtype(np.float32), np.dtype(np.float16), int8q.bfloat16]


@pytest.fixture(params=FLOATS, ids=lambda dtype: dtype.name)
def dtype(request):
    return request.param


@pytest.fixture(params=["column", "element", "off"])
def outliers(request):
    return request.param


@pytest.fixture
def rng():
    return np.random.default_rng(7)


@pytest.fixture
def activations(rng):
    """make(rows, cols, dtype): normal numbers with outliers in two columns, and in one more of the last row alone."""

    def make(rows, cols, dtype=np.float32):
        x = rng.standard_normal((rows, cols), np.float32)
        if rows and cols > 4:
            x[:, 1] *= 20
            x[::2, cols // 2] = -17
            x[-1, 2] = 6
        return x.astype(dtype)

    return make
