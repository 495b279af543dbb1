"""An autoencoder's latents, and training and sampling in them with the arrays at every arrow."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffusion_jax import experiment
from diffusion_jax.core import autoencoding, process
from diffusion_jax.data import transforms
from diffusion_jax.data.tokens import Tokenizer
from diffusion_jax.modalities import Image
from diffusion_jax.report import figures as drawings
from diffusion_jax.report import flow_figure, pictures
from diffusion_jax.report.flow_figure import Panel
from diffusion_jax.runs.sample.examples import batch_at_hand
from diffusion_jax.runs.sample.reverse_path import ReversePath, decoded
from diffusion_jax.runs.workdir import pretrained
from diffusion_jax.runs.workdir.paths import Workdir
from diffusion_jax.runs.workdir.restored import Trained
from diffusion_jax.train.state import Params

DIFFERENCE = 4.0
"""The factor by which the difference of a picture and its reconstruction is drawn."""

SPAN = 3.0
"""The latent that is drawn white; its negative is black."""

_CHANNELS = 16  # of latents that are drawn, at most
_TIME = 0.5  # of the training example that is drawn


_IMAGES = 4  # whose latents are drawn, at most

Arrays = dict[str, Array]


@dataclasses.dataclass(frozen=True)
class Example:
    """An image, and what the model is told of it in training."""

    x: np.ndarray  # [1, H, W, C]
    cond: Mapping[str, Array]  # as the network takes it, but for encoders that are trained with it
    tokens: np.ndarray | None  # of captions [B, N], the first of this image; None: the model is told none


def draw(
    trained: Trained, path: ReversePath, cond: Mapping[str, np.ndarray], captions: Sequence[str], image: Path
) -> tuple[bytes | None, bytes | None]:
    """The PNGs of `draw_latents` and `draw_latent_diffusion`; None each where the model has no latents of images.

    They are of the training data or, where these are not on this machine, of image, told cond [N, ...] of the path's
    samples. captions has the caption of each sample.
    """
    model, config = trained.model, trained.config
    if model.autoencoder is None or not isinstance(experiment.modality(config), Image):
        return None, None
    batch = batch_at_hand(config, model, trained.tokenizer, min(_IMAGES, len(captions)))
    if batch is None:
        x = _as_example(image, model.shape)
        told = model.encode_images(trained.pretrained, {name: jnp.asarray(a[:1]) for name, a in cond.items()})
        example = Example(x, told, cond.get("tokens"))
    else:
        x, first = batch["x"], {name: jnp.asarray(a[:1]) for name, a in batch.items()}
        told = model.draw_cond(jax.random.key(0), first, trained.pretrained, 0.0)
        example = Example(x[:1], told, batch.get("tokens"))
    return draw_latents(model.autoencoder, x), draw_latent_diffusion(trained, example, path, captions[0])


def draw_autoencoder(root: Path, image: Path, num: int) -> bytes | None:
    """The PNG of `draw_latents` of the autoencoder in the workdir root, of at most num images; as `draw`."""
    config = Workdir(root).read_config(quiet=True)
    if not isinstance(experiment.modality(config), Image):
        return None
    batch = batch_at_hand(config, None, None, min(_IMAGES, num))
    x = _as_example(image, experiment.shape(config)) if batch is None else batch["x"]
    return draw_latents(pretrained.read_autoencoder(root), x)


def _as_example(image: Path, shape: tuple[int, ...]) -> np.ndarray:
    """The picture of a file as the model has it, [1, H, W, C]."""
    pixels = transforms.decode(image.read_bytes(), channels=shape[-1], name=str(image))
    return transforms.to_float(transforms.resize_crop(pixels, *shape[:2]))[None]


def draw_latents(autoencoder: experiment.Autoencoder, x: np.ndarray) -> bytes:
    """A PNG with a row for each of images x [B, H, W, C]: it, each channel of its latent, its reconstruction, the
    difference.
    """
    z, again = latents_and_reconstructions(autoencoder, x)
    f, shown = autoencoder.network.factor, z[..., :_CHANNELS]
    wide = pictures.to_uint8(shown / SPAN).repeat(f, axis=1).repeat(f, axis=2)  # [B, H, W, z]
    of_channels = [np.repeat(wide[..., i : i + 1], x.shape[-1], axis=-1) for i in range(wide.shape[-1])]
    difference = pictures.to_uint8(DIFFERENCE * (again - x) / 2)
    columns = [pictures.to_uint8(x), *of_channels, pictures.to_uint8(again), difference]
    error = 10 * np.log10(4 / np.maximum(np.mean((again - x) ** 2, axis=(1, 2, 3)), 1e-10))  # images span 2
    rows = [f"PSNR {each:.1f} dB" for each in error]
    heads = [
        f"image {_sizes(x.shape[1:])}",
        *(f"latent {i}: mean {a.mean():.2f}, std {a.std():.2f}" for i, a in enumerate(np.moveaxis(shown, -1, 0))),
        "decoded",
        f"difference x {DIFFERENCE:g}",
    ]
    titles = [heads, *([[""] * len(heads)] * (len(x) - 1))]
    hidden = f", the first {_CHANNELS} channels" if z.shape[-1] > _CHANNELS else ""
    title = f"Scaled latents of {_sizes(z.shape[1:])}{hidden}, from {-SPAN:g}, black, to {SPAN:g}, white"
    return drawings.tiles_png(np.stack(columns, axis=1), rows, titles, title)


def latents_and_reconstructions(autoencoder: experiment.Autoencoder, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(the means of the scaled latents [B, h, w, z], the images [B, H, W, C] decoded from them) of images x."""

    @jax.jit
    def program(params: Params, x: Array) -> tuple[Array, Array]:
        z, _ = autoencoder.encode(params, x)
        return z, autoencoder.decode(params, z)

    z, again = program(autoencoder.params, jnp.asarray(x))
    return np.asarray(z, np.float32), np.asarray(again, np.float32)


def draw_latent_diffusion(trained: Trained, example: Example, path: ReversePath, prompt: str) -> bytes:
    """A PNG of training a model of latents on one example and of sampling, with the array at every arrow.

    prompt is the caption of the path's first sample.
    """
    model = trained.model
    rows = [("Training", _training(trained, example))]
    if model.text is not None and trained.tokenizer is not None and example.tokens is not None:
        rows.insert(0, ("Its caption", _caption(trained, trained.tokenizer, example.tokens[:1])))
    told = f"\n“{prompt}”" if prompt else ""
    rows.append((f"Sampling\n{trained.how.sampler}, {trained.how.steps} steps{told}", _sampling(trained, path)))
    title = f"Latent diffusion, step {trained.step:,}: latents from {-SPAN:g}, black, to {SPAN:g}, white"
    return flow_figure.flow_png(rows, title)


def _caption(trained: Trained, tokenizer: Tokenizer, ids: np.ndarray) -> list[Panel]:
    """A caption, its tokens ids [1, N], and their features."""
    encoded = trained.model.encode(trained.params, trained.pretrained, {"tokens": jnp.asarray(ids)})
    features = np.asarray(encoded["text"], np.float32)
    listed = " ".join(str(i) for i in ids[0])
    text = tokenizer.decode(ids)[0]
    return [
        Panel("caption", text=text or "(none)", arrow="tokenizer"),
        Panel("tokens", _array_text(ids), text=listed, arrow="text encoder"),
        Panel("features", _array_text(features), picture=_heat(features[0]), arrow="read by\nthe network"),
    ]


def _training(trained: Trained, example: Example) -> list[Panel]:
    """An image, its latent, that with noise, the network's output and what it is compared with."""
    x = example.x
    arrays = training_arrays(trained.model, trained.params, trained.pretrained, example)
    loss = np.mean((arrays["output"] - arrays["target"]) ** 2)
    return [
        Panel("image", _array_text(x), picture=_pixels(x[0]), arrow="encoder,\ntimes scale"),
        Panel("latent z₀", _array_text(arrays["z"]), picture=_mosaic(arrays["z"][0]), arrow=f"noise ε,\nt = {_TIME:g}"),
        Panel("zₜ = α z₀ + σ ε", _array_text(arrays["z_t"]), picture=_mosaic(arrays["z_t"][0]), arrow="network"),  # noqa: RUF001
        Panel(
            f"prediction of {trained.config.prediction}",
            _array_text(arrays["output"]),
            picture=_mosaic(arrays["output"][0]),
            arrow=f"mean squared\ndifference\n{loss:.3f}",
        ),
        Panel("target", _array_text(arrays["target"]), picture=_mosaic(arrays["target"][0])),
    ]


def training_arrays(
    model: experiment.Model, params: Params, pretrained: Mapping[str, Params], example: Example
) -> dict[str, np.ndarray]:
    """The arrays of a training step at t = 1/2 by name, without dropout: z, z_t, output and target, each [1, h, w, z].

    z is a sample of the latent's distribution, as a step takes it.
    """
    autoencoder = model.autoencoder
    assert autoencoder is not None

    @jax.jit
    def program(params: Params, pretrained: Mapping[str, Params], x: Array, cond: Mapping[str, Array]) -> Arrays:
        bound, of_latent, of_noise = model.bind(params), *jax.random.split(jax.random.key(0))
        mean, logvar = autoencoder.encode(pretrained["autoencoder"], x)
        z = autoencoding.sample_posterior(mean, logvar, jax.random.normal(of_latent, mean.shape))
        eps, t = jax.random.normal(of_noise, mean.shape), jnp.full(len(mean), _TIME)
        level = bound.schedule.level(t)
        z_t = process.diffuse(z, eps, level)
        cond = model.encode(params, pretrained, cond)
        given = model.parameterization.network_input(z_t, level)
        output = model.apply(params, given, bound.schedule.conditioning(t), cond)[..., : z.shape[-1]]
        return {"z": z, "z_t": z_t, "output": output, "target": model.parameterization.target(z, eps, level)}

    found = program(params, pretrained, jnp.asarray(example.x), example.cond)
    return {name: np.asarray(a, np.float32) for name, a in found.items()}


def _sampling(trained: Trained, path: ReversePath) -> list[Panel]:
    """The states of one sample at four times, from noise to a latent, and its image."""
    shown = np.linspace(0, len(path.times) - 1, min(4, len(path.times))).round().astype(int)
    image = decoded(trained, path.x[-1:, :1])[0]
    panels = []
    for i in shown:
        z, last = path.x[i, :1], i == shown[-1]
        name = "noise" if i == 0 else "latent z₀" if last else "zₜ"
        arrow = "times 1 / scale,\ndecoder" if last else "network,\nsteps"
        panels.append(Panel(f"{name}, t = {path.times[i]:.2g}", _array_text(z), picture=_mosaic(z[0]), arrow=arrow))
    return [*panels, Panel("image", _array_text(image), picture=_pixels(image[0]))]


def _array_text(a: np.ndarray) -> str:
    """The type and shape of an array and, of floats, their mean and standard deviation."""
    numbers = f"\nmean {a.mean():.2f}, std {a.std():.2f}" if a.dtype.kind == "f" else ""
    return f"{a.dtype} [{', '.join(map(str, a.shape))}]{numbers}"


def _sizes(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _pixels(x: np.ndarray) -> np.ndarray:
    """The pixels uint8 of an image [H, W, C] that a PNG can show: [H, W] or [H, W, C]."""
    pixels = pictures.to_uint8(x)
    return pixels[..., 0] if pixels.shape[-1] == 1 else pixels


def _mosaic(z: np.ndarray) -> np.ndarray:
    """The channels of a latent [h, w, z] as gray pictures beside each other, uint8 [H, W]."""
    gray = pictures.to_uint8(np.moveaxis(z[..., :_CHANNELS], -1, 0)[..., None] / SPAN)
    return pictures.grid(gray, padding=1, scale=1)[..., 0]


def _heat(features: np.ndarray) -> np.ndarray:
    """Features [N, D] as a gray picture, uint8: from -2 standard deviations, black, to 2, white."""
    return pictures.to_uint8(features / (2 * max(float(features.std()), 1e-6)))
