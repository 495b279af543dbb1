"""CLIP's score and its view of images: closed forms, and Pillow's own resize."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from diffusion_jax.errors import UserError
from diffusion_jax.nets.clip import MEAN, STD, ClipVision, clip_score, preprocess

SMALL = {"side": 16, "patch": 4, "width": 8, "layers": 1, "heads": 2, "hidden": 16}


def test_the_score_is_a_hundred_times_the_cosine_and_never_below_0():
    image = jnp.array([[3.0, 4.0], [3.0, 4.0], [3.0, 4.0]])
    text = jnp.array([[0.3, 0.4], [-4.0, 3.0], [-3.0, -4.0]])
    np.testing.assert_allclose(clip_score(image, text), [100, 0, 0], atol=1e-5)


@pytest.mark.parametrize("shape", [(20, 28, 3), (64, 40, 3), (32, 32, 1)])
def test_images_are_resized_as_pillow_does(shape):
    """Up and down, of either orientation; where a sum is half-way between two bytes, one in a thousand may be next."""
    images = np.random.default_rng(0).integers(0, 256, (2, *shape), np.uint8)
    found = np.asarray(preprocess(jnp.asarray(images), 32)) * np.asarray(STD) + np.asarray(MEAN)
    scale = 32 / min(shape[:2])
    size = [max(32, int(n * scale)) for n in shape[:2]]
    for ours, image in zip(np.rint(found * 255), images, strict=True):
        theirs = Image.fromarray(np.broadcast_to(image, (*shape[:2], 3)).copy()).resize(size[::-1], Image.BICUBIC)
        top, left = ((n - 32) // 2 for n in size)
        away = np.abs(ours - np.asarray(theirs)[top : top + 32, left : left + 32])
        assert away.max() <= 1
        assert (away > 0).mean() < 1e-3


def test_a_patch_s_place_counts_and_each_image_is_by_itself():
    net = ClipVision(**SMALL)
    x = jax.random.normal(jax.random.key(0), (2, 16, 16, 3))
    params = jax.tree.map(lambda a: 20 * a, jax.jit(net.init)(jax.random.key(1), x)["params"])
    both, alone, rolled = (np.asarray(net.apply({"params": params}, a)) for a in (x, x[1:], jnp.roll(x, 4, axis=1)))
    np.testing.assert_allclose(both[1], alone[0], atol=1e-5)
    assert np.abs(both - rolled).max() > 1e-3


def test_images_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match="takes images 16 x 16 x 3; got"):
        jax.eval_shape(ClipVision(**SMALL).init, jax.random.key(0), jnp.zeros((1, 8, 16, 3)))
    with pytest.raises(UserError, match="patches of 5 pixels do not fill a side of 16"):
        jax.eval_shape(ClipVision(**SMALL | {"patch": 5}).init, jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
    with pytest.raises(UserError, match="gray or RGB images of bytes"):
        preprocess(jnp.zeros((1, 8, 8, 4), jnp.uint8), 16)
