"""What trains, judges and applies an autoencoder: arXiv:2112.10752, section 3.1 and appendix G; images [B, H, W, C].

Every loss and metric is one value for each example, [B], which the caller averages.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffusion_jax.errors import UserError

DATA_RANGE = 2.0
"""Of pixels in [-1, 1]."""

WINDOW, WINDOW_STD = 11, 1.5
"""Of the SSIM paper, section III."""


def sample_posterior(mean: Array, logvar: Array, noise: Array) -> Array:
    """z = mean + exp(logvar / 2) noise, the reparameterization of arXiv:1312.6114, section 2.4; all of one shape."""
    return mean + jnp.exp(0.5 * logvar) * noise


def kl_to_standard_normal(mean: Array, logvar: Array) -> Array:
    """KL(N(mean, exp(logvar)) || N(0, I)) in nats, summed over an example: [B, ...] -> [B]; arXiv:1312.6114, app. B."""
    nats = 0.5 * (mean**2 + jnp.exp(logvar) - 1.0 - logvar)
    return nats.reshape(len(nats), -1).sum(axis=1)


def hinge_discriminator(real: Array, fake: Array) -> Array:
    """Mean of (max(0, 1 - D(x)) + max(0, 1 + D(x'))) / 2 over the logits [B, ...] -> [B]; arXiv:1705.02894, halved."""
    return _mean(0.5 * (jax.nn.relu(1.0 - real) + jax.nn.relu(1.0 + fake)))


def hinge_generator(fake: Array) -> Array:
    """Mean of -D(x') over the logits [B, ...] -> [B]."""
    return _mean(-fake)


def non_saturating_discriminator(real: Array, fake: Array) -> Array:
    """Mean of (-log p(x) - log(1 - p(x'))) / 2, p = sigmoid of the logits [B, ...] -> [B]; arXiv:1406.2661, eq. 1."""
    return _mean(0.5 * (jax.nn.softplus(-real) + jax.nn.softplus(fake)))


def non_saturating_generator(fake: Array) -> Array:
    """Mean of -log p(x') over the logits [B, ...] -> [B]; arXiv:1406.2661, section 3."""
    return _mean(jax.nn.softplus(-fake))


def adaptive_weight(reconstruction_gradient: Array, gan_gradient: Array) -> Array:
    """lambda = |grad L_rec| / (|grad L_GAN| + 1e-4), at most 1e4 and a constant to gradients.

    VQGAN's eq. 7 (arXiv:2012.09841) with the numbers of its code. Both gradients are by the kernel of the decoder's
    last convolution.
    """
    ratio = jnp.linalg.norm(reconstruction_gradient.ravel()) / (jnp.linalg.norm(gan_gradient.ravel()) + 1e-4)
    return jax.lax.stop_gradient(jnp.clip(ratio, 0.0, 1e4))


def psnr(x: Array, y: Array) -> Array:
    """10 log10(2^2 / mean squared error) in dB of images in [-1, 1]: [B, H, W, C] -> [B]; infinite where equal."""
    return 10.0 * jnp.log10(DATA_RANGE**2 / _mean((x.astype(jnp.float32) - y.astype(jnp.float32)) ** 2))


def ssim(x: Array, y: Array) -> Array:
    """Structural similarity (Wang et al. 2004, eq. 13) of images in [-1, 1], 1 where equal: [B, H, W, C] -> [B].

    Weighted by a Gaussian of 11 x 11 pixels and std 1.5, in each channel, at every place where it lies inside the
    image; K1 = 0.01, K2 = 0.03. Raises UserError where no such place exists.
    """
    if min(x.shape[1:3]) < WINDOW:
        raise UserError(f"SSIM looks through {WINDOW} x {WINDOW} pixels; got images of {x.shape[1]} x {x.shape[2]}")
    x, y = x.astype(jnp.float32), y.astype(jnp.float32)
    # Variances are indifferent to a shift, and E[x^2] - E[x]^2 loses no precision to a mean near 0.
    shift_x, shift_y = (v.mean(axis=(1, 2), keepdims=True) for v in (x, y))  # [B, 1, 1, C]
    x, y = x - shift_x, y - shift_y
    mean_x, mean_y, square_x, square_y, product = _window(jnp.stack([x, y, x * x, y * y, x * y]))
    variances = square_x - mean_x**2 + square_y - mean_y**2
    covariance = product - mean_x * mean_y
    mean_x, mean_y = mean_x + shift_x, mean_y + shift_y
    c1, c2 = (0.01 * DATA_RANGE) ** 2, (0.03 * DATA_RANGE) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return _mean(luminance * (2 * covariance + c2) / (variances + c2))


def decode_tiled(decode: Callable[[Array], Array], z: Array, tile: int, overlap: int) -> Array:
    """decode(z) with the memory of a tile: z [B, h, w, C] -> [B, f h, f w, C'], f the factor of `decode`.

    Tiles of tile x tile latents, spread evenly, share at least `overlap` with the next; there the one fades linearly
    into the other. What a place decodes to from several tiles alike comes out untouched, so a decoder that looks no
    further than its own latent gives decode(z) exactly; statistics and attention over the image see a tile alone.
    """
    if not 0 <= overlap < tile:
        raise UserError(f"tiles of {tile} latents overlap by 0 to {tile - 1}; got {overlap}")
    sides = z.shape[1:3]
    if max(sides) <= tile:
        return decode(z)
    height, width = (min(tile, side) for side in sides)
    tops, lefts = (_starts(side, tile, overlap) for side in sides)
    tiles = jnp.stack([z[:, i : i + height, j : j + width] for i in tops for j in lefts])  # [N, B, height, width, C]
    # One after the other: the decoder is compiled once and holds the activations of one tile.
    decoded = jax.lax.map(decode, tiles)  # [N, B, f height, f width, C']
    (down, odd), (right, odd_too) = divmod(decoded.shape[2], height), divmod(decoded.shape[3], width)
    if odd or odd_too:
        raise UserError(
            f"a decoder multiplies the sides of its latents by a whole number; this one made "
            f"{decoded.shape[2]} x {decoded.shape[3]} of {height} x {width}"
        )
    rows = decoded.reshape(len(tops), len(lefts), *decoded.shape[1:])
    strips = [_fade([*row], [right * left for left in lefts], axis=2) for row in rows]
    return _fade(strips, [down * top for top in tops], axis=1)


def _starts(side: int, tile: int, overlap: int) -> list[int]:
    """Where the fewest tiles that cover the side begin, evenly spread."""
    gaps = max(-(-(side - tile) // (tile - overlap)), 0)
    return [0] + [i * (side - tile) // gaps for i in range(1, gaps + 1)]


def _fade(parts: list[Array], starts: list[int], axis: int) -> Array:
    """Joins the parts, part i from starts[i] on; over what two share, the weight of the later rises from 0 to 1."""
    out = parts[0]
    for start, part in zip(starts[1:], parts[1:], strict=True):
        shared = out.shape[axis] - start
        kept, before = jnp.split(out, [start], axis)
        after, rest = jnp.split(part, [shared], axis)
        ramp = (np.arange(shared) + 0.5) / max(shared, 1)
        weight = jnp.asarray(np.expand_dims(ramp, [i for i in range(out.ndim) if i != axis]), out.dtype)
        # In this form equal values stay as they are, to the last bit.
        out = jnp.concatenate([kept, before + weight * (after - before), rest], axis)
    return out


def _window(v: Array) -> Array:
    """[..., H, W, C] -> [..., H - 10, W - 10, C]; sums of slices, as a TPU's convolution would round to bfloat16."""
    offsets = np.arange(WINDOW) - WINDOW // 2
    weights = np.exp(-(offsets**2) / (2 * WINDOW_STD**2))
    weights /= weights.sum()
    for axis in (-3, -2):
        kept = v.shape[axis] - WINDOW + 1
        slices = [float(w) * jax.lax.slice_in_dim(v, i, i + kept, axis=axis) for i, w in enumerate(weights)]
        v = sum(slices[1:], slices[0])
    return v


def _mean(v: Array) -> Array:
    """[B, ...] -> [B]."""
    return jnp.mean(v.reshape(len(v), -1), axis=1)
