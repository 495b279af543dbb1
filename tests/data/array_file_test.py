"""Files of plain arrays: each kind gives the same examples, and what is wrong with one is said."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import zarr

from diffusion_jax.data.array_file import array_file
from diffusion_jax.data.sources import open_source
from diffusion_jax.errors import UserError

VALUES = np.random.default_rng(0).standard_normal((12, 6, 5, 2)).astype(np.float32)
LABELS = np.arange(12) % 3


def write(folder, kind, values=VALUES, labels=None):
    """The path of a file of the kind with these arrays."""
    path = folder / f"a.{kind}"
    entries = {"x": values} | ({} if labels is None else {"labels": labels})
    if kind == "npy":
        np.save(path, values)
    elif kind == "npz":
        np.savez(path, **entries)
    else:
        group = zarr.open_group(path, mode="w")
        for name, array in entries.items():
            group.create_array(name, data=array, chunks=(5, *array.shape[1:]))
    return str(path)


@pytest.mark.parametrize("kind", ["npy", "npz", "zarr"])
def test_every_kind_of_file_gives_the_arrays_that_were_written(tmp_path, kind):
    path = write(tmp_path, kind)
    source = open_source(f"arrays:{path}")
    assert (len(source), source.num_classes, source.modality) == (12, None, "array")
    for each in (source, pickle.loads(pickle.dumps(source))):
        np.testing.assert_array_equal(np.stack([each[i]["array"] for i in range(12)]), VALUES)
    assert source[3]["name"] == f"{path}[3]"


@pytest.mark.parametrize("kind", ["npz", "zarr"])
def test_labels_are_a_second_entry(tmp_path, kind):
    source = array_file(write(tmp_path, kind, labels=LABELS), "train")
    assert source.num_classes == 3
    assert [source[i]["label"] for i in range(12)] == LABELS.tolist()


def test_a_single_array_of_zarr_is_one_too(tmp_path):
    path = tmp_path / "one.zarr"
    zarr.create_array(path, data=VALUES)
    np.testing.assert_array_equal(array_file(str(path), "train")[5]["array"], VALUES[5])


@pytest.mark.parametrize(
    ("sides", "given", "read"),
    [
        ((40,), (), (40, 1)),
        ((40, 2), (), (40, 2)),
        ((40, 7), (), (40, 7, 1)),
        ((40, 7), (40, 7), (40, 7)),
        ((40, 2), (40, 2, 1), (40, 2, 1)),
        ((6, 5, 3), (), (6, 5, 3)),
        ((6, 5, 8), (), (6, 5, 8, 1)),
    ],
)
def test_the_last_side_is_channels_where_the_shape_says_so_or_it_is_short(tmp_path, sides, given, read):
    source = array_file(write(tmp_path, "npy", np.zeros((3, *sides), np.float32)), "train", given)
    assert source[0]["array"].shape == read


def test_equal_files_have_equal_fingerprints_wherever_they_lie(tmp_path):
    for name, values in (("a", VALUES), ("b", VALUES), ("c", VALUES + 1), ("d", VALUES[:-1])):
        (tmp_path / name).mkdir()
        write(tmp_path / name, "npy", values)
    a, b, c, d = (array_file(str(tmp_path / name / "a.npy"), "train").fingerprint for name in "abcd")
    assert a == b
    assert len({a, c, d}) == 3
    classes = [
        array_file(write(tmp_path, "npz", labels=labels), "train").fingerprint for labels in (LABELS, LABELS[::-1])
    ]
    assert classes[0] != classes[1]


def _of_another_kind(folder, name):
    (folder / name).write_bytes(b"no array")
    return str(folder / name)


def _damaged(folder):
    path = Path(write(folder, "npy", np.zeros((3, 4))))
    path.write_bytes(path.read_bytes()[:-1])
    return str(path)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda f: str(f / "none.npy"), "no such file"),
        (lambda f: str(f / "a.h5"), "none of the kinds .npy, .npz, .zarr"),
        (_damaged, "cannot be read"),
        (lambda f: _of_another_kind(f, "a.npy"), "is no .npy file, whatever its name; write it by np.save"),
        (lambda f: _of_another_kind(f, "a.npz"), "is no .npz file, whatever its name; write it by np.savez"),
        (lambda f: write(f, "npy", np.zeros((0, 4))), r"holds an array \[0, 4\]"),
        (lambda f: write(f, "npy", np.zeros(4)), r"holds an array \[4\]"),
        (lambda f: write(f, "npy", np.zeros((2, 4), complex)), "holds complex128; expected numbers"),
        (lambda f: write(f, "npz", labels=LABELS[:5]), r"holds labels \[5\] of int64; expected integers from 0"),
        (lambda f: write(f, "npz", labels=LABELS - 1), "holds labels .* expected integers from 0"),
        (lambda f: write(f, "npz", labels=LABELS.astype(float)), "holds labels .* of float64"),
    ],
)
def test_a_file_that_is_no_data_is_said(tmp_path, make, said):
    with pytest.raises(UserError, match=said):
        array_file(make(tmp_path), "train")


def test_what_else_does_not_fit_is_said(tmp_path):
    path = write(tmp_path, "npy")
    with pytest.raises(UserError, match=r"holds arrays of shape \(6, 5, 2\), and data.shape is \(4, 5, 2\)"):
        array_file(path, "train", (4, 5, 2))
    with pytest.raises(UserError, match="the split train alone; got 'test'"):
        array_file(path, "test")
    np.savez(tmp_path / "two.npz", a=VALUES, b=VALUES)
    with pytest.raises(UserError, match="has the entries a, b; expected one of arrays"):
        array_file(str(tmp_path / "two.npz"), "train")
