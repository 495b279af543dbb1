"""InceptionV3's weights from a file: every array accounted for, nothing unpickled, no other file."""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from diffusion_jax.errors import UserError
from diffusion_jax.interop.inception_weights import PUBLISHED, from_arrays, load

# The whole net has 189 MB; a block of it has every kind of array.
LIKE = {
    "Mixed_5b": {
        "branch5x5_2": {
            "kernel": jax.ShapeDtypeStruct((5, 3, 2, 4), jnp.float32),
            **{name: jax.ShapeDtypeStruct((4,), jnp.float32) for name in ("scale", "bias", "mean", "var")},
        }
    },
    "fc_kernel": jax.ShapeDtypeStruct((6, 3), jnp.float32),
    "fc_bias": jax.ShapeDtypeStruct((3,), jnp.float32),
}
PREFIX = "Mixed_5b.branch5x5_2"


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    shapes = {
        f"{PREFIX}.conv.weight": (4, 2, 5, 3),
        f"{PREFIX}.bn.weight": (4,),
        f"{PREFIX}.bn.bias": (4,),
        f"{PREFIX}.bn.running_mean": (4,),
        f"{PREFIX}.bn.running_var": (4,),
        "fc.weight": (3, 6),
        "fc.bias": (3,),
    }
    arrays = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    return {**arrays, f"{PREFIX}.bn.num_batches_tracked": np.array(7)}


def write(path, arrays) -> str:
    safetensors.numpy.save_file(arrays, path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_file_is_read_to_its_places(tmp_path, arrays):
    digest = write(tmp_path / "w.safetensors", arrays)
    params = load(tmp_path / "w.safetensors", digest.upper(), LIKE)
    block = params["Mixed_5b"]["branch5x5_2"]
    assert block["kernel"][4, 2, 1, 3] == arrays[f"{PREFIX}.conv.weight"][3, 1, 4, 2]
    theirs = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
    for name, their in theirs.items():
        np.testing.assert_array_equal(block[name], arrays[f"{PREFIX}.bn.{their}"])
    np.testing.assert_array_equal(params["fc_kernel"], arrays["fc.weight"].T)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), params) == jax.tree.map(lambda x: (x.shape, x.dtype), LIKE)


def test_missing_and_left_over_arrays_are_named_together(arrays):
    del arrays["fc.bias"], arrays[f"{PREFIX}.bn.running_var"]
    arrays["AuxLogits.fc.weight"] = arrays["AuxLogits.conv0.conv.weight"] = np.zeros(1)
    with pytest.raises(UserError) as error:
        from_arrays(arrays, LIKE)
    assert "missing ['Mixed_5b.branch5x5_2.bn.running_var', 'fc.bias']" in str(error.value)
    assert "left over ['AuxLogits.conv0.conv.weight', 'AuxLogits.fc.weight']" in str(error.value)


def test_other_sizes_are_named(arrays):
    arrays["fc.weight"], arrays["fc.bias"] = np.zeros((2, 6)), np.zeros(2)  # ImageNet's 1,000 classes, say
    with pytest.raises(UserError, match=r"fc.bias \(2,\), not \(3,\); fc.weight \(6, 2\), not \(6, 3\)"):
        from_arrays(arrays, LIKE)


def test_another_file_is_refused_before_it_is_read(tmp_path, arrays):
    write(tmp_path / "w.safetensors", arrays)
    with pytest.raises(UserError, match=f"has SHA-256 [0-9a-f]{{64}}, not {PUBLISHED}"):
        load(tmp_path / "w.safetensors", PUBLISHED, LIKE)


def test_a_pickle_is_refused_with_what_to_do(tmp_path):
    (tmp_path / "inception.pth").write_bytes(b"cos\nsystem\n(S'touch harm'\ntR.")
    with pytest.raises(UserError, match=rf"can run code; fetch https.*{PUBLISHED}.*write one with: python -c"):
        load(tmp_path / "inception.pth", PUBLISHED, LIKE)


def test_no_file_says_where_to_get_it(tmp_path):
    with pytest.raises(UserError, match=rf"no file .*none.safetensors.*fetch https.*{PUBLISHED}"):
        load(tmp_path / "none.safetensors", PUBLISHED, LIKE)


def test_a_damaged_file_is_one_sentence(tmp_path):
    path = tmp_path / "w.safetensors"
    path.write_bytes(b"no header")
    with pytest.raises(UserError, match="cannot be read|can be read"):
        load(path, hashlib.sha256(b"no header").hexdigest(), LIKE)
