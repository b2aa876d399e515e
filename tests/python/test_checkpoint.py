# SPDX-License-Identifier: Apache-2.0
"""Safetensors in and out, and quantized checkpoints, beside what bitsandbytes wrote."""

import gc
import json
from pathlib import Path

import numpy as np
import pytest
from oracle import bits

import int8q

GOLDEN = Path(__file__).parents[1] / "golden"


def is_mapped(path):
    return str(path) in Path("/proc/self/maps").read_text()


@pytest.fixture
def tensors(rng):
    return {
        "f32": rng.standard_normal((3, 5), np.float32),
        "f16": rng.standard_normal((2, 2, 2)).astype(np.float16),
        "bf16": rng.standard_normal(7).astype(int8q.bfloat16),
        "f8_e4m3": np.arange(5, dtype=np.uint8).view(int8q.float8_e4m3fn),
        "f8_e5m2": np.arange(3, dtype=np.uint8).view(int8q.float8_e5m2),
        "bool": np.array([True, False, True]),
        "scalar": np.array(3, np.uint8),
        "empty": np.empty((0, 4), np.int64),
        "across": rng.standard_normal((4, 6)).T,
        **{name: np.arange(4).astype(name) for name in ("int8", "int16", "int32", "uint16", "uint32", "uint64")},
    }


def test_round_trip(tensors, tmp_path):
    int8q.save_safetensors(tensors, tmp_path / "t.safetensors", {"format": "np"})
    loaded = int8q.load_safetensors(tmp_path / "t.safetensors")
    assert loaded.keys() == tensors.keys()
    for name, array in tensors.items():
        assert bits(loaded[name]) == bits(array), name
        assert not loaded[name].flags.writeable or not array.size
        assert loaded[name].flags.aligned
    text = (tmp_path / "t.safetensors").read_bytes()
    assert json.loads(text[8 : 8 + int.from_bytes(text[:8], "little")])["__metadata__"] == {"format": "np"}
    assert [path.name for path in tmp_path.iterdir()] == ["t.safetensors"]
    (tmp_path / "other").touch()
    assert (tmp_path / "t.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_file_without_tensors(tmp_path):
    int8q.save_safetensors({}, tmp_path / "none")
    assert int8q.load_safetensors(str(tmp_path / "none")) == {}


def test_views_hold_the_file(tmp_path, tensors):
    path = tmp_path / "t.safetensors"
    int8q.save_safetensors(tensors, path)
    loaded = int8q.load_safetensors(path)
    row = loaded["f32"][1]
    del loaded
    gc.collect()
    assert is_mapped(path)
    np.testing.assert_array_equal(row, tensors["f32"][1])
    del row
    gc.collect()
    assert not is_mapped(path)


def test_nothing_is_left_of_a_failed_save(tmp_path):
    with pytest.raises(TypeError, match=r"^tensors\['x'\] is complex128; expected a type that safetensors has"):
        int8q.save_safetensors({"x": np.ones(2, complex)}, tmp_path / "t")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError):
        int8q.save_safetensors({"x": np.ones(2)}, tmp_path / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


class Unexportable:
    def __array__(self, dtype=None, copy=None):
        raise ValueError("no data")


ONE = np.ones(2)


@pytest.mark.parametrize(
    "tensors, metadata, error, message",
    [
        ({"__metadata__": ONE}, None, ValueError, "tensors has the name '__metadata__'; expected another"),
        ({1: ONE}, None, TypeError, "tensors has the name 1; expected a str"),
        ({1: ONE, "1": ONE}, None, TypeError, "tensors has the name 1; expected a str"),
        ({None: ONE}, None, TypeError, "tensors has the name None; expected a str"),
        ({b"x": ONE}, None, TypeError, "tensors has the name b'x'; expected a str"),
        ({"a\ud800": ONE}, None, ValueError, r"tensors has the name 'a\\ud800'; expected text that UTF-8 can hold"),
        ({"a\0b": ONE}, None, ValueError, r"tensors has the name 'a\\x00b'; expected one without null"),
        ([ONE], None, TypeError, "tensors is a list; expected a mapping"),
        ({"x": Unexportable()}, None, ValueError, r"tensors\['x'\] makes no array: no data"),
        ({"x": ONE}, {"step": 3}, TypeError, r"metadata\['step'\] is 3; expected a str"),
        ({"x": ONE}, {"step": None}, TypeError, r"metadata\['step'\] is None; expected a str"),
        ({"x": ONE}, {3: "step"}, TypeError, "metadata has the name 3; expected a str"),
        ({"x": ONE}, {"a\udfff": ""}, ValueError, r"metadata has the name 'a\\udfff'; expected text"),
        ({"x": ONE}, {"a": "\ud800"}, ValueError, r"metadata\['a'\] is '\\ud800'; expected text"),
        ({"x": ONE}, {"a\0": ""}, ValueError, "metadata has the name .*; expected one without null"),
        ({"x": ONE}, "np", TypeError, "metadata is a str; expected a mapping"),
        ({"x": ONE}, {"a": "x" * 100_000_000}, ValueError, "tensors and metadata make a header of 1000000.. bytes"),
    ],
    ids=range(17),
)
def test_what_would_not_load_is_not_saved(tensors, metadata, error, message, tmp_path):
    (tmp_path / "t").write_text("as it was")
    with pytest.raises(error, match=f"^{message}"):
        int8q.save_safetensors(tensors, tmp_path / "t", metadata)
    assert (tmp_path / "t").read_text() == "as it was" and len(list(tmp_path.iterdir())) == 1


def test_names_and_metadata_of_all_kinds_load(tmp_path):
    names = ["", "ü.weight", "\U0001f600", 'quote"back\\slash', "tab\t", "line\n", "__metadata", np.str_("np")]
    int8q.save_safetensors({name: ONE for name in names}, tmp_path / "t", {name: name + "\0" for name in names})
    assert sorted(int8q.load_safetensors(tmp_path / "t")) == sorted(names)
    int8q.save_safetensors({"x": ONE}, tmp_path / "t", {})
    assert list(int8q.load_safetensors(tmp_path / "t")) == ["x"]


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda path: int8q.load_safetensors(None), TypeError, "path is None; expected a path"),
        (lambda path: int8q.save_safetensors({}, 3), TypeError, "path is 3; expected a path"),
        (lambda path: quantize(path, 3), TypeError, "dst is 3; expected a path"),
        (lambda path: quantize(path, None), ValueError, "dst is None; expected a path, or dry_run=True"),
        (lambda path: quantize(path, f"{path}/."), ValueError, 'dst is ".*"; expected a path that ends in a name'),
        (lambda path: quantize(path, path), ValueError, 'dst is ".*", which exists; pass another path or overwrite=True'),
        (
            lambda path: quantize(path, path.parent, overwrite=True),
            ValueError,
            'dst is ".*", a folder; expected a file as `src` is',
        ),
        (
            lambda path: int8q.quantize_checkpoint(path.parent, path.parent / "out"),
            ValueError,
            'dst is ".*" and src is ".*": one lies in the other',
        ),
        (lambda path: quantize(path, "out", threshold="6"), TypeError, "threshold is '6'; expected a finite number > 0"),
        (lambda path: quantize(path, "out", threshold=-1), ValueError, "threshold is -1; expected a finite number > 0"),
        (lambda path: quantize(path, "out", include="x"), TypeError, "include is 'x', a str; expected a list of regexes"),
        (lambda path: quantize(path, "out", exclude=[b"x"]), TypeError, "exclude has b'x'; expected a str"),
        (lambda path: quantize(path, "out", exclude=["a\0b"]), ValueError, "exclude has .*; expected regexes without null"),
    ],
)
def test_errors(call, error, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "in" / "model.safetensors"
    path.parent.mkdir()
    int8q.save_safetensors({"fc.weight": np.ones((4, 8), np.float32)}, path)
    with pytest.raises(error, match=f"^{message}"):
        call(path)


def quantize(path, out, **options):
    int8q.quantize_checkpoint(path, out, **options)


def test_bad_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        int8q.load_safetensors(tmp_path / "nowhere")
    (tmp_path / "short").write_bytes(b"\xff\0\0\0\0\0\0\0{}")
    with pytest.raises(int8q.StatusValueError) as caught:
        int8q.load_safetensors(tmp_path / "short")
    assert caught.value.name == "INT8Q_CORRUPT"
    with pytest.raises(ValueError, match="null byte"):
        int8q.load_safetensors(str(tmp_path / "short") + "\0.safetensors")


def test_a_quantized_checkpoint_is_bitsandbytes(tmp_path):
    seen = []
    out = tmp_path / "out.safetensors"
    int8q.quantize_checkpoint(GOLDEN / "linears_f16.safetensors", out, exclude=[], progress=seen.append)
    found, expected = int8q.load_safetensors(out), int8q.load_safetensors(GOLDEN / "linears_int8.safetensors")
    assert found.keys() == expected.keys()
    for name in expected:
        assert bits(found[name]) == bits(expected[name]), name
    assert [p.phase for p in seen if p.phase != "write"] == ["plan"] * 21 + ["finish"]
    plan = {p.tensor: p for p in seen if p.phase == "plan"}
    assert (plan["normal.weight"].action, plan["normal.weight"].rows, plan["normal.weight"].cols) == ("quantize", 64, 128)
    assert plan["position_ids"].action == "dtype" and seen[-1].tensor is None
    assert seen[-1].bytes_in == seen[-1].total_in > 0

    x = np.random.default_rng(1).standard_normal((3, 33)).astype(np.float16)
    layer = int8q.Linear(found["odd.weight"], found["odd.bias"], col_stats=found["odd.SCB"])
    assert layer(x).shape == (3, 17)


def test_selection_and_dry_run():
    seen = []
    options = {"include": [r"weight$"], "exclude": ["^normal", "odd"], "dry_run": True}
    int8q.quantize_checkpoint(GOLDEN / "linears_f16.safetensors", None, progress=seen.append, **options)
    actions = {p.tensor: p.action for p in seen}
    assert (actions["tall.weight"], actions["odd.weight"], actions["normal.bias"]) == ("quantize", "exclude", "shape")
    with pytest.raises(ValueError, match=r"\("):
        int8q.quantize_checkpoint(GOLDEN / "linears_f16.safetensors", None, include=["("], dry_run=True)
    with pytest.raises(TypeError, match="expected a list of regexes"):
        int8q.quantize_checkpoint(GOLDEN / "linears_f16.safetensors", None, include="weight", dry_run=True)


def test_an_existing_output(tmp_path):
    (tmp_path / "out.safetensors").write_text("mine")
    arguments = (GOLDEN / "linears_f16.safetensors", tmp_path / "out.safetensors")
    with pytest.raises(int8q.StatusError):
        int8q.quantize_checkpoint(*arguments)
    assert (tmp_path / "out.safetensors").read_text() == "mine"
    int8q.quantize_checkpoint(*arguments, overwrite=True)
    assert "odd.SCB" in int8q.load_safetensors(tmp_path / "out.safetensors")


def test_what_progress_raises_stops_the_call(tmp_path):
    def stop(progress):
        if progress.phase == "write":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        int8q.quantize_checkpoint(GOLDEN / "linears_f16.safetensors", tmp_path / "out.safetensors", progress=stop)
    assert list(tmp_path.iterdir()) == []
