"""The training of an autoencoder: reconstruction, KL and perceptual losses, and a discriminator in the same step."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from ml_collections import ConfigDict

from diffusion_jax.core import autoencoding as ae
from diffusion_jax.core.objectives import Drawn, Examples, Objective, Trained
from diffusion_jax.errors import UserError
from diffusion_jax.experiment import data
from diffusion_jax.experiment.training import Trainee
from diffusion_jax.interop import lpips_weights
from diffusion_jax.models.text import DTYPES
from diffusion_jax.nets import perceptual
from diffusion_jax.nets.autoencoder import AutoencoderKL
from diffusion_jax.nets.discriminator import PatchDiscriminator
from diffusion_jax.train.state import Params

DISTANCES = {"l1": jnp.abs, "l2": jnp.square}


def network(config: ConfigDict) -> AutoencoderKL:
    """The network that a config of task autoencoder trains; raises UserError where its sizes do not fit together."""
    options = config.autoencoder
    if options.dtype not in DTYPES:
        raise UserError(f"unknown autoencoder.dtype {options.dtype!r}; choose from {', '.join(DTYPES)}")
    names = ("channels", "latent_channels", "multipliers", "blocks", "attention", "mid_attention", "groups")
    return AutoencoderKL(
        out_channels=data.shape(config)[-1],
        dtype=DTYPES[options.dtype],
        quant_convs=options.quant_convs,
        **{name: options[name] for name in names},
    )


def discriminator(config: ConfigDict) -> PatchDiscriminator | None:
    """What judges the autoencoder's images from step adversarial_start on; None where that is never."""
    options = config.autoencoder
    if options.adversarial_start < 0:
        return None
    return PatchDiscriminator(options.discriminator_channels, options.discriminator_layers)


class Coded(NamedTuple):
    """What an autoencoder's objective draws."""

    x: Array  # [B, H, W, C]
    noise: Array  # [B, h, w, z], of the latents
    adversarial: Array  # [B]: 1 from the step on at which the discriminator counts, 0 before


def trainee(config: ConfigDict) -> Trainee:
    """The training of an autoencoder and, from a step on, of a discriminator that judges its images.

    Both networks' gradients are taken at the same parameters, from one backward pass. The weights that are not trained
    are {"perceptual"}, where config has a perceptual loss.
    """
    options = config.autoencoder
    net, judge = network(config), discriminator(config)
    if options.distance not in DISTANCES:
        raise UserError(f"unknown autoencoder.distance {options.distance!r}; choose from {', '.join(DISTANCES)}")
    if not options.kl_weight >= 0 or not options.adversarial_weight >= 0 or not options.perceptual_weight >= 0:
        raise UserError("autoencoder.kl_weight, perceptual_weight and adversarial_weight are not negative")

    def init(key: Array) -> Params:
        x = jnp.zeros((1, *data.shape(config)))
        params = {"autoencoder": net.init(key, x)["params"]}
        if judge is not None:
            params["discriminator"] = judge.init(jax.random.fold_in(key, 1), x)["params"]
        return params

    return Trainee(
        two_players(options, net, judge),
        init,
        lambda key, batch, pretrained: Examples(batch["x"], {}),
        lambda params, pretrained, key: Trained(params, pretrained),
        net.tensor_rules,
        net.outer_layers,
        players=("autoencoder", "discriminator"),
    )


def two_players(options: ConfigDict, net: AutoencoderKL, judge: PatchDiscriminator | None) -> Objective:
    """L = distance + perceptual + kl_weight KL / pixels + weight lambda L_G + L_D; options are config.autoencoder.

    arXiv:2112.10752, eq. 25 over the number of pixels. L_G sees a constant discriminator and L_D a constant image.
    """

    def draw(key: Array, examples: Examples, history: Any, step: Array) -> Drawn:
        x = examples.x0
        latent = jax.eval_shape(lambda x: net.init_with_output(key, x)[0][1], x)
        adversarial = jnp.full(len(x), step >= options.adversarial_start, jnp.float32)
        return Drawn(Coded(x, jax.random.normal(key, latent.shape), adversarial), jnp.ones(len(x)))

    def loss(trained: Trained, values: Coded) -> Array:
        params, (x, noise, adversarial) = trained.params, values
        y, mean, logvar = net.apply({"params": params["autoencoder"]}, x, noise)  # type: ignore[misc]

        def reconstruction(y: Array) -> Array:
            found = _mean(DISTANCES[options.distance](x - y))
            if "perceptual" in trained.pretrained:
                lpips = perceptual.LPIPS().apply({"params": trained.pretrained["perceptual"]}, x, y)
                found += options.perceptual_weight * lpips
            return found

        total = reconstruction(y) + options.kl_weight * ae.kl_to_standard_normal(mean, logvar) / x[0].size
        if judge is None:
            return total

        def logits(params: Params, x: Array) -> Array:
            return judge.apply({"params": params}, x)  # type: ignore[return-value]

        constant = jax.lax.stop_gradient(params)
        generator = ae.hinge_generator(logits(constant["discriminator"], y))
        weight = _weight(
            net,
            constant["autoencoder"],
            jax.lax.stop_gradient(ae.sample_posterior(mean, logvar, noise)),
            lambda y: jnp.mean(reconstruction(y)),
            lambda y: jnp.mean(ae.hinge_generator(logits(constant["discriminator"], y))),
        )
        judged = ae.hinge_discriminator(
            logits(params["discriminator"], x), logits(params["discriminator"], jax.lax.stop_gradient(y))
        )
        return total + adversarial * (options.adversarial_weight * weight * generator + judged)

    return Objective(draw, loss)


def _weight(net: AutoencoderKL, params: Params, z: Array, reconstruction: Any, generator: Any) -> Array:
    """lambda of `core.autoencoding.adaptive_weight`, from the two losses' gradients by the last kernel."""

    def decode(kernel: Array) -> Array:
        decoder = params["decoder"]
        last = {**decoder["conv_out"], "kernel": kernel}
        changed = {**params, "decoder": {**decoder, "conv_out": last}}
        return net.apply({"params": changed}, z, method="decode")  # type: ignore[return-value]

    y, pull = jax.vjp(decode, params["decoder"]["conv_out"]["kernel"])
    return ae.adaptive_weight(*(pull(jax.grad(f)(y))[0] for f in (reconstruction, generator)))


def pretrained(config: ConfigDict) -> dict[str, Params]:
    """The weights of the perceptual loss, where there is one, from the file that config names."""
    options = config.autoencoder
    if not options.perceptual:
        return {}
    return {"perceptual": lpips_weights.load(options.perceptual, options.perceptual_sha256, perceptual.shapes())}


class Reconstruction(NamedTuple):
    """What an autoencoder makes of images, and how well."""

    images: Array  # [B, H, W, C]
    latent_mean: Array  # scalars: over all latents of the batch, noise included
    latent_std: Array
    psnr: Array
    ssim: Array


def reconstruct_program(config: ConfigDict) -> Any:
    """(params, images [B, H, W, C]) -> `Reconstruction` of the latents' means, compiled."""
    net = network(config)

    def program(params: Params, x: Array) -> Reconstruction:
        y, mean, logvar = net.apply({"params": params["autoencoder"]}, x)  # type: ignore[misc]
        std = jnp.sqrt(jnp.var(mean) + jnp.mean(jnp.exp(logvar)))
        ssim = jnp.mean(ae.ssim(x, y)) if min(x.shape[1:3]) >= ae.WINDOW else jnp.nan
        return Reconstruction(y, jnp.mean(mean), std, jnp.mean(ae.psnr(x, y)), jnp.asarray(ssim))

    return jax.jit(program)


def _mean(a: Array) -> Array:
    return a.reshape(len(a), -1).mean(axis=1)
