# SPDX-License-Identifier: Apache-2.0
"""What the tests share. INT8Q_LIBRARY names the library, PYTHONPATH the package (cmake/Checks.cmake)."""

import numpy as np
import pytest

import int8q

# Without ml_dtypes int8q.bfloat16 is a structured type, which NumPy does not cast to.
casts_to_bfloat16 = pytest.mark.skipif(
    int8q.bfloat16.fields is not None, reason="NumPy casts to bfloat16 with ml_dtypes only"
)
FLOATS = [np.float32, np.float16, pytest.param(int8q.bfloat16, id="bfloat16", marks=casts_to_bfloat16)]


@pytest.fixture(params=FLOATS)
def dtype(request):
    return np.dtype(request.param)


@pytest.fixture(params=["column", "element", "off", "all"])
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
