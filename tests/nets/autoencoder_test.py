"""The autoencoder and the nets of its losses: sizes, invariances, what a user can get wrong."""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.errors import UserError
from diffusion_jax.interop import lpips_weights
from diffusion_jax.nets import perceptual
from diffusion_jax.nets.autoencoder import AutoencoderKL, Block
from diffusion_jax.nets.discriminator import PatchDiscriminator
from diffusion_jax.nets.perceptual import LPIPS

NET = AutoencoderKL(latent_channels=2, channels=4, multipliers=(1, 2), blocks=1, groups=2)


def normal(*shape, seed=0, scale=1.0):
    return np.asarray(scale * np.random.default_rng(seed).standard_normal(shape), np.float32)


def randomized(shapes, scale=0.3):
    leaves, tree = jax.tree.flatten(shapes)
    return tree.unflatten([normal(*p.shape, seed=i, scale=scale) for i, p in enumerate(leaves)])


@pytest.fixture(scope="module")
def params():
    return randomized(jax.eval_shape(NET.init, jax.random.key(0), jnp.zeros((1, 4, 4, 3)))["params"])


class TestAutoencoder:
    def test_the_defaults_are_stable_diffusions(self):
        net = AutoencoderKL()
        x = jax.ShapeDtypeStruct((1, 512, 512, 3), jnp.float32)
        (decoded, mean, logvar), variables = jax.eval_shape(net.init_with_output, jax.random.key(0), x)
        assert sum(p.size for p in jax.tree.leaves(variables)) == 83_653_863
        assert mean.shape == logvar.shape == (1, 64, 64, 4)
        assert decoded.shape == x.shape

    @pytest.mark.parametrize("size", [(8,), (4, 12), (4, 8, 4)])
    def test_every_rank_is_made_smaller_by_the_factor_and_back(self, size):
        net = NET.clone(multipliers=(1, 2, 2), out_channels=1, attention=(4,))
        x = jax.ShapeDtypeStruct((3, *size, 2), jnp.float32)
        (decoded, mean, logvar), _ = jax.eval_shape(net.init_with_output, jax.random.key(0), x)
        assert net.factor == 4
        assert mean.shape == logvar.shape == (3, *(n // 4 for n in size), 2)
        assert decoded.shape == (3, *size, 1)

    def test_a_call_decodes_a_sample_of_the_posterior(self, params):
        x, noise = normal(2, 4, 6, 3), normal(2, 2, 3, 2, seed=1)
        variables = {"params": params}
        decoded, mean, logvar = jax.jit(NET.apply)(variables, x, noise)
        z = np.asarray(mean) + np.exp(np.asarray(logvar) / 2) * noise
        expected = jax.jit(lambda z: NET.apply(variables, z, method="decode"))(z)
        np.testing.assert_allclose(decoded, expected, rtol=1e-4, atol=1e-5)
        assert np.abs(decoded - jax.jit(NET.apply)(variables, x)[0]).max() > 1e-2

    def test_the_log_variance_stays_within_its_bounds(self, params):
        bias = jnp.array([0.0, 0.0, 100.0, -100.0])
        variables = {"params": {**params, "quant": {**params["quant"], "bias": bias}}}
        logvar = jax.jit(lambda x: NET.apply(variables, x, method="encode"))(normal(1, 4, 6, 3))[1]
        np.testing.assert_array_equal(logvar[..., 0], 20.0)
        np.testing.assert_array_equal(logvar[..., 1], -30.0)

    def test_an_image_does_not_see_the_others_of_its_batch(self, params):
        x = normal(2, 4, 6, 3)
        encode = jax.jit(lambda x: NET.apply({"params": params}, x, method="encode")[0])
        changed = encode(np.stack([x[0], 5 * x[1] + 1]))
        np.testing.assert_allclose(changed[0], encode(x)[0], rtol=1e-5, atol=1e-6)
        assert np.abs(changed[1] - encode(x)[1]).max() > 1e-2

    def test_bfloat16_is_near_and_gives_float32(self, params):
        x = normal(1, 4, 6, 3)
        exact = jax.jit(NET.apply)({"params": params}, x)
        for got, expected in zip(
            jax.jit(NET.clone(dtype=jnp.bfloat16).apply)({"params": params}, x), exact, strict=True
        ):
            assert got.dtype == jnp.float32
            np.testing.assert_allclose(got, expected, atol=0.05 * np.abs(expected).max())
            assert np.any(got != expected)

    def test_a_block_starts_as_its_shortcut(self):
        x = normal(1, 4, 4, 4)
        np.testing.assert_array_equal(jax.jit(Block(4, groups=2).init_with_output)(jax.random.key(0), x)[0], x)

    @pytest.mark.parametrize(
        ("net", "shape", "message"),
        [
            (NET.clone(multipliers=(1, 1, 2, 2)), (1, 100, 64, 3), "a multiple of 8; got 100 x 64; .* fits is 96 x 64"),
            (NET, (4, 6, 3)[:2], "one to three spatial axes"),
            (NET.clone(attention=(4,)), (1, 4, 4, 3), r"of the levels, \[1, 2\]; got \[4\]"),
            (NET.clone(groups=3), (1, 4, 4, 3), "cannot be normalized in 3 groups"),
        ],
    )
    def test_what_does_not_fit_is_refused(self, net, shape, message):
        with pytest.raises(UserError, match=message):
            jax.eval_shape(net.init, jax.random.key(0), jnp.zeros(shape))

    def test_latents_of_other_channels_are_refused(self, params):
        with pytest.raises(UserError, match=r"have 2 channels, last; got shape \(1, 2, 2, 4\)"):
            NET.apply({"params": params}, jnp.zeros((1, 2, 2, 4)), method="decode")


class TestDiscriminator:
    def test_a_logit_judges_70_pixels_and_its_neighbour_8_pixels_on(self):
        net = PatchDiscriminator(channels=4, groups=None)
        x = normal(1, 112, 96, 3)
        logits, variables = jax.jit(net.init_with_output)(jax.random.key(0), x)
        assert logits.shape == (1, 12, 10)

        @jax.jit
        def seen(i, j):
            """First and last row and column of the pixels that logit i, j depends on."""
            gradient = jax.grad(lambda x: net.apply(variables, x)[0, i, j])(x)[0].any(axis=-1)
            rows, columns = gradient.any(axis=1), gradient.any(axis=0)
            return [jnp.argmax(rows), jnp.sum(rows), jnp.argmax(columns), jnp.sum(columns)]

        first, below, beside = (np.array(seen(i, j)) for i, j in [(5, 4), (6, 4), (5, 5)])
        assert list(first[[1, 3]]) == [70, 70]
        assert list(below - first) == [8, 0, 0, 0]
        assert list(beside - first) == [0, 0, 8, 0]

    def test_an_image_does_not_see_the_others_of_its_batch(self):
        net = PatchDiscriminator(channels=4, groups=2)
        x = normal(2, 24, 32, 3)
        variables = jax.jit(net.init)(jax.random.key(0), x)
        together = jax.jit(net.apply)(variables, x)
        alone = jax.jit(net.apply)(variables, x[:1])
        np.testing.assert_allclose(together[:1], alone, rtol=1e-4, atol=1e-6)

    def test_an_image_too_small_for_a_patch_is_refused(self):
        with pytest.raises(UserError, match="at least 24 x 24 pixels; got 23 x 64; use fewer layers"):
            PatchDiscriminator().init(jax.random.key(0), jnp.zeros((1, 23, 64, 3)))


def from_arrays(arrays):
    return lpips_weights.from_arrays(arrays, perceptual.shapes())


def load(path, sha256):
    return lpips_weights.load(path, sha256, perceptual.shapes())


@pytest.fixture(scope="module")
def arrays():
    """Random weights as the lpips package names them."""
    params = perceptual.shapes()
    rng = np.random.default_rng(0)
    named = {f"lin{k}.model.1.weight": rng.random((1, params[f"head_{k}"].size, 1, 1), np.float32) for k in range(5)}
    convs = sorted(name for name in params if name.startswith("conv"))
    for index, ours in zip(lpips_weights.PLACES, convs, strict=True):
        kernel = rng.standard_normal(params[ours]["kernel"].shape[::-1], np.float32).swapaxes(2, 3)
        # safetensors writes the memory as it lies, whatever the strides.
        kernel = np.ascontiguousarray(kernel / np.sqrt(kernel[0].size / 2), np.float32)
        named[f"net.slice{int(ours[5]) + 1}.{index}.weight"] = kernel
        named[f"net.slice{int(ours[5]) + 1}.{index}.bias"] = np.zeros(len(kernel), np.float32)
    return named


@pytest.fixture(scope="module")
def file(arrays, tmp_path_factory):
    from safetensors.numpy import save_file

    path = tmp_path_factory.mktemp("lpips") / "lpips.safetensors"
    save_file(arrays, path)
    return path


@jax.jit
def lpips(params, x, y):
    """The distances [B] and the gradient of their sum by x."""
    distance, pullback = jax.vjp(lambda x: LPIPS().apply({"params": params}, x, y), x)
    return distance, pullback(jnp.ones_like(distance))[0]


class TestLPIPS:
    def test_it_is_a_symmetric_distance_of_each_pair(self, arrays):
        params = from_arrays(arrays)
        x, y = (np.random.default_rng(i).uniform(-1, 1, (2, 16, 16, 3)).astype(np.float32) for i in range(2))
        y[1] = x[1]
        distance, gradient = lpips(params, x, y)
        assert distance[0] > 0.01
        assert np.any(gradient[0])
        np.testing.assert_allclose(lpips(params, y, x)[0], distance, rtol=1e-4)
        # The second pair is equal: no distance, and no gradient, but for rounding.
        assert distance[1] < 1e-9
        assert np.abs(gradient[1]).max() < 1e-6 * np.abs(gradient[0]).max()

    def test_features_whose_squares_vanish_have_a_finite_gradient(self, arrays):
        params = from_arrays(arrays)
        # Positive, so that the ReLU lets a gradient through, and of a square below float32's smallest number.
        params["conv_0_1"] = jax.tree.map(lambda v: 1e-25 * v, params["conv_0_1"])
        x = normal(2, 16, 16, 3)
        distance, gradient = lpips(params, x, 0.5 * x)
        np.testing.assert_allclose(distance, 0, atol=1e-12)
        assert np.all(np.isfinite(gradient))

    def test_a_file_with_its_sha256_is_read(self, arrays, file):
        params = load(file, hashlib.sha256(file.read_bytes()).hexdigest().upper())
        kernel = arrays["net.slice3.12.weight"]
        assert params["conv_2_1"]["kernel"][0, 2, 5, 7] == kernel[7, 5, 0, 2]
        np.testing.assert_array_equal(params["head_4"], arrays["lin4.model.1.weight"][0, :, 0, 0])
        torchvision = {
            f"features.{name.split('.', 2)[2]}" if "slice" in name else name: v for name, v in arrays.items()
        }
        jax.tree.map(np.testing.assert_array_equal, from_arrays(torchvision), params)

    def test_another_sha256_is_refused_and_told(self, file):
        found = hashlib.sha256(file.read_bytes()).hexdigest()
        with pytest.raises(UserError, match=f"has SHA-256 {found}, not {'0' * 64}"):
            load(file, "0" * 64)

    @pytest.mark.parametrize("name", ["vgg.pth", "vgg.pt", "vgg.bin"])
    def test_a_pickle_is_refused_with_the_way_out_before_it_is_opened(self, tmp_path, name):
        with pytest.raises(UserError, match=r"a pickle such as .pth is not read.*lpips.LPIPS\(net='vgg'\)"):
            load(tmp_path / name, "0" * 64)

    def test_no_file_and_a_file_of_something_else_are_refused(self, tmp_path):
        path = tmp_path / "vgg.safetensors"
        with pytest.raises(UserError, match="no file .*vgg.safetensors"):
            load(path, "0" * 64)
        path.write_bytes(b"\x80\x04 not at all")
        with pytest.raises(UserError, match="not a safetensors file that can be read"):
            load(path, hashlib.sha256(path.read_bytes()).hexdigest())

    def test_missing_left_over_and_misshapen_arrays_are_all_told(self, arrays):
        some = {name: v for name, v in arrays.items() if name not in ("net.slice1.2.bias", "lin3.model.1.weight")}
        with pytest.raises(
            UserError, match=r"missing \['conv_0_1/bias', 'head_3'\]; left over \['classifier.0.bias'\]"
        ):
            from_arrays({**some, "classifier.0.bias": np.zeros(3)})
        with pytest.raises(UserError, match=r"left over \['classifier.0.bias', 'net.slice1.1.weight'\]"):
            from_arrays({**arrays, "classifier.0.bias": np.zeros(3), "net.slice1.1.weight": np.zeros(3)})
        with pytest.raises(UserError, match=r"conv_0_0/bias \(3,\), not \(64,\); head_0 \(32,\), not \(64,\)"):
            from_arrays({**arrays, "net.slice1.0.bias": np.zeros(3), "lin0.model.1.weight": np.zeros((1, 32, 1, 1))})

    def test_heads_given_twice_and_the_scaling_must_agree(self, arrays):
        twice = {f"lins.{k}.model.1.weight": arrays[f"lin{k}.model.1.weight"] for k in range(5)}
        scaling = {
            "scaling_layer.shift": perceptual.SHIFT.reshape(1, 3, 1, 1),
            "scaling_layer.scale": perceptual.SCALE.reshape(1, 3, 1, 1),
        }
        jax.tree.map(np.testing.assert_array_equal, from_arrays({**arrays, **twice, **scaling}), from_arrays(arrays))
        twice["lins.2.model.1.weight"] = 2 * twice["lins.2.model.1.weight"]
        scaling["scaling_layer.shift"] = np.zeros((1, 3, 1, 1))
        with pytest.raises(UserError, match=r"under \['lins.2.model.1.weight', 'scaling_layer.shift'\]"):
            from_arrays({**arrays, **twice, **scaling})

    def test_images_of_other_shapes_are_refused(self):
        with pytest.raises(UserError, match="at least 16 x 16; got"):
            LPIPS().init(jax.random.key(0), jnp.zeros((1, 8, 16, 3)), jnp.zeros((1, 8, 16, 3)))
