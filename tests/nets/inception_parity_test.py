"""InceptionV3 on random weights against torch-fidelity's, by way of the file that a user would convert."""

import hashlib
import importlib.util
import shlex
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.interop import inception_weights
from diffusion_jax.nets.inception import InceptionV3, resize

pytestmark = pytest.mark.parity

NAMES = ("2048", "logits_unbiased", "logits")


@pytest.fixture(scope="module", autouse=True)
def without_torchvision():
    """torch-fidelity's package file imports torchvision for its other metrics; its modules are imported without it."""
    package = types.ModuleType("torch_fidelity")
    package.__path__ = list(importlib.util.find_spec("torch_fidelity").submodule_search_locations)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "torch_fidelity", package)
        yield


@pytest.fixture(scope="module")
def like():
    return jax.eval_shape(InceptionV3().init, jax.random.key(0), jnp.zeros((1, 8, 8, 3), jnp.uint8))["params"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of random weights under which activations stay of order 1, no norm being the identity."""
    import torch
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    torch.set_num_threads(2)
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("weights")
    file = folder / "pt_inception-2015-12-05-6726825d.pth"
    torch.save({}, file)
    with pytest.MonkeyPatch.context() as patch:  # the constructor reads weights; there are none yet
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        state = FeatureExtractorInceptionV3("random", list(NAMES), str(file)).state_dict()
    for name, value in state.items():
        if name.endswith(("bn.weight", "running_var")):
            value.uniform_(0.5, 1.5)
        elif value.ndim == 1:
            value.normal_(0, 0.2)
        elif value.ndim:
            value.normal_(0, (1.6 / value[0].numel()) ** 0.5)
    torch.save(state, file)
    return file


@pytest.fixture(scope="module")
def theirs(weights):
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    return FeatureExtractorInceptionV3("random", list(NAMES), str(weights))


@pytest.fixture(scope="module")
def params(weights, like):
    """Of the .safetensors file that the command in the error message writes."""
    python, _, program = shlex.split(inception_weights.CONVERT)
    assert python == "python"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(weights.parent)
        exec(program, {})
    file = weights.with_name("inception.safetensors")
    return inception_weights.load(file, hashlib.sha256(file.read_bytes()).hexdigest(), like)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (64, 48)])
def test_features_equal_torch_fidelitys(theirs, params, height, width):
    import torch

    images = np.random.default_rng(height).integers(0, 256, (2, height, width, 3), np.uint8)
    images[1, : height // 2] = 255  # a picture with an edge, and an average that is not the noise's
    spatial = []
    hook = theirs.Mixed_6d.branch1x1.register_forward_hook(lambda *args: spatial.append(args[2]))
    expected = dict(zip(NAMES, theirs(torch.from_numpy(images).permute(0, 3, 1, 2)), strict=True))
    hook.remove()
    expected["spatial"] = spatial[0][:, :7].permute(0, 2, 3, 1).flatten(1)
    ours = jax.jit(InceptionV3().apply)({"params": params}, jnp.asarray(images))
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        value = value.numpy()
        error = np.abs(ours[name] - value).max() / np.abs(value).max()
        print(f"{height} x {width} {name}: |max| {np.abs(value).max():.3g}, relative error {error:.2g}")
        assert 0.1 < np.abs(value).max() < 100  # else the comparison would be of zeros, or of one outlier
        assert ours[name].shape == value.shape
        assert error < 1e-4
        difference = np.abs(value[0] - value[1]).mean() / np.abs(value).mean()
        assert difference > 0.01  # the images are told apart, by far more than the error


@pytest.mark.parametrize("size", [(1, 1), (32, 32), (64, 48), (299, 299), (512, 400)])
def test_resize_is_tensorflow_1s(size):
    import torch
    from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

    images = np.random.default_rng(0).integers(0, 256, (2, *size, 3), np.uint8)
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    expected = interpolate_bilinear_2d_like_tensorflow1x(x, size=(299, 299), align_corners=False).permute(0, 2, 3, 1)
    np.testing.assert_allclose(resize(images), expected, atol=1e-3)
