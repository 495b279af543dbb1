"""`diffusion-jax figures`: the theory and, of a checkpoint, the reverse path, loss by time, latents, attention maps."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jax import Array

from diffusion_jax import experiment
from diffusion_jax.core import process
from diffusion_jax.core.schedules import Level, Schedule
from diffusion_jax.data import transforms
from diffusion_jax.data.classes import NULL
from diffusion_jax.errors import UserError
from diffusion_jax.modalities import Image
from diffusion_jax.report import figures as drawings
from diffusion_jax.report.metrics import read_metrics
from diffusion_jax.runs.sample import attention_figure, batch_figure, latent_figures
from diffusion_jax.runs.sample import theory_figures as theory
from diffusion_jax.runs.sample.conditioning import SampleRequest, conditions
from diffusion_jax.runs.sample.reverse_path import ReversePath, decoded, reverse_path
from diffusion_jax.runs.workdir.output_folder import OutputFolder
from diffusion_jax.runs.workdir.paths import Workdir
from diffusion_jax.runs.workdir.restored import Trained, restore, seeds_from
from diffusion_jax.train.step import TIME_BINS

THEORY = ("forward.png", "schedules.png", "kl.png", "time_embedding.png", "unet.png")
"""The figures that need no trained model."""

LATENT = ("latents.png", "latent_diffusion.png")
"""The figures of a model of latents."""

NAMES = (*THEORY, "batch.png", "trajectory.png", "loss_by_time.png", *LATENT, "attention.png")

_WITHOUT = {
    "the network is no U-Net": ("unet.png",),
    "the data are not at hand as pixels": ("batch.png",),
    "no loss by time in metrics.jsonl": ("loss_by_time.png",),
    "no autoencoder of images": ("latents.png", "latent_diffusion.png"),
    "no caption, or no U-Net of images that is told one": ("attention.png",),
}
"""{what a workdir may lack: the figures that there are not without it}."""

DEFAULT_SCHEDULES = ("linear", "cosine")

_FORWARD_TIMES = np.arange(9) / 8

NOTHING = SampleRequest()

_COLUMNS = 11  # of a trajectory


@dataclasses.dataclass(frozen=True)
class Request:
    """Which schedules and which trained model the figures are of; fields are as the command's flags."""

    schedules: Sequence[str] = ()  # (): those of the workdir and `DEFAULT_SCHEDULES`
    image: Path | None = None  # for the forward process; None: `drawings.EXAMPLE_IMAGE`
    size: int = 64  # pixels that the image is cropped to, as high as wide
    root: Path | None = None  # the workdir; None: no figures of a trained model
    num: int = 8  # samples of which the trajectory is drawn
    seed: int = 0  # of the image's noise; sample i has seed + i
    sample_request: SampleRequest = NOTHING
    step: int | None = None  # of the checkpoint; None: the newest
    average: bool | float = True
    overrides: Mapping[str, object] = dataclasses.field(default_factory=dict)
    """They replace fields of the config's `Sampling` where not None."""


def figures(request: Request, out: Path, *, overwrite: bool = False) -> None:
    """Writes the figures of `THEORY` into the folder out and, if the request has a workdir, those of `NAMES` that it
    has.

    Raises UserError, before anything is written, where out has files and may not be overwritten, and where a schedule,
    the image, the workdir or the sampling does not fit.
    """
    folder = _checked(out, overwrite, request.size)
    seeds = seeds_from(request.seed, request.num)
    workdir = None if request.root is None else Workdir(request.root)
    config = None if workdir is None else workdir.read_config()
    diffusion = config is not None and config.task != "autoencoder"
    trained_on = [config.schedule] if config is not None and diffusion else []
    schedules = {text: experiment.schedule(text) for text in request.schedules or [*trained_on, *DEFAULT_SCHEDULES]}
    x0 = _image(request.image or drawings.EXAMPLE_IMAGE, request.size)

    drawn: dict[str, bytes | None] = {
        "forward.png": _draw_forward(schedules, x0, request.seed),
        "schedules.png": _draw_schedules(schedules),
        "kl.png": theory.draw_kl(schedules),
        "time_embedding.png": theory.draw_time_embedding(),
    }
    if workdir is not None and diffusion:
        drawn |= _draw_trained(request, workdir, seeds)
    else:
        network, shape = theory.default_unet()
        drawn["unet.png"] = theory.draw_unet(network, shape, {}, "DDPM's CIFAR-10 U-Net")
        drawn |= {} if workdir is None else {"latents.png": _draw_autoencoder(request, workdir.root)}
    for why, names in _WITHOUT.items():
        if missing := [name for name in names if name in drawn and drawn[name] is None]:
            print(f"{why}, so there is no {' and no '.join(missing)}")
    written = {name: picture for name, picture in drawn.items() if picture is not None}
    with folder.written() as partial:
        for name, picture in written.items():
            (partial / name).write_bytes(picture)
    print(f"figures in {out}: {', '.join(written)}")


def forward(x0: Array, eps: Array, schedule: Schedule, times: np.ndarray) -> tuple[Array, Array]:
    """(x, scale) at times [K]: x = alpha x0 + sigma eps [K, *x0.shape], and `unit_scale` [K]."""
    level = schedule.level(jnp.asarray(times, jnp.float32))
    each = (len(times), *x0.shape)
    x = process.diffuse(jnp.broadcast_to(x0, each), jnp.broadcast_to(eps, each), level)
    return x, unit_scale(level)


def unit_scale(level: Level) -> Array:
    """1 / sqrt(alpha^2 + sigma^2), the factor that gives x_t unit variance where the data have it."""
    return 1 / jnp.sqrt(level.alpha**2 + level.sigma**2)


def _draw_forward(schedules: dict[str, Schedule], x0: np.ndarray, seed: int) -> bytes:
    eps = jnp.asarray(np.random.default_rng(seed).standard_normal(x0.shape, np.float32))
    rows = [forward(jnp.asarray(x0), eps, schedule, _FORWARD_TIMES) for schedule in schedules.values()]
    x, scale = (np.stack(part) for part in zip(*rows, strict=True))
    title = "Forward process xₜ = α(t) x₀ + σ(t) ε, with the same noise ε in every row"  # noqa: RUF001
    if not np.allclose(scale, 1, atol=1e-3):
        title += "; shown as xₜ / √(α² + σ²)"
    return drawings.strips_png(x, scale, list(_FORWARD_TIMES), list(schedules), title)


def _draw_schedules(schedules: dict[str, Schedule]) -> bytes:
    t = np.linspace(0, 1, 501)[1:]
    at = jnp.asarray(t, jnp.float32)
    curves = {
        text: (np.asarray(schedule.alpha(at)), np.asarray(schedule.sigma(at)), np.asarray(schedule.logsnr(at)))
        for text, schedule in schedules.items()
    }
    return drawings.schedules_png(t, curves)


def _draw_trajectory(trained: Trained, seeds: np.ndarray, cond: Mapping[str, np.ndarray], path: ReversePath) -> bytes:
    """A PNG with two rows for each seed: x_t along its path, and the x_0 that is predicted from it."""
    model, sampling, num, times = trained.model, trained.how, len(seeds), path.times
    x, x0 = (decoded(trained, part).swapaxes(0, 1) for part in (path.x, path.x0))
    scale = np.asarray(unit_scale(model.schedule.level(jnp.asarray(times, jnp.float32))))
    if model.autoencoder is not None:  # decoded pixels keep their scale
        scale = np.ones_like(scale)
    rows = []
    names = trained.label_names(cond["label"]) if model.num_classes else [""] * num
    for number, name in zip(seeds, names, strict=True):
        class_text = "" if not model.num_classes else ", no class" if name == NULL else f", class {name}"
        rows += [f"seed {number}{class_text}: xₜ", "x₀ predicted"]
    both = np.stack([x, x0], axis=1).reshape(2 * num, *x.shape[1:])
    scales = np.tile(np.stack([scale, np.ones_like(scale)]), (num, 1))
    kind = experiment.modality(trained.config)
    if not isinstance(kind, Image):
        scaled = both * scales.reshape(*scales.shape, *(1,) * (both.ndim - 2))
        tiles = kind.tiles(kind.from_model(scaled.reshape(-1, *both.shape[2:])))
        both, scales = transforms.to_float(tiles.reshape(*scales.shape, *tiles.shape[1:])), np.ones_like(scales)
    title = f"Reverse trajectory of step {trained.step:,}: {sampling.sampler}, {sampling.steps} steps" + (
        f", guidance {sampling.guidance:g}" if sampling.guidance != 1 else ""
    )
    return drawings.strips_png(both, scales, list(times), rows, title)


def _draw_trained(request: Request, workdir: Workdir, seeds: np.ndarray) -> dict[str, bytes | None]:
    """The figures of the diffusion model of a workdir, None for those that it does not have."""
    trained = restore(workdir.root, step=request.step, average=request.average, overrides=request.overrides)
    cond = conditions(request.sample_request, trained, seeds)
    model, prompts = trained.model, request.sample_request.prompts
    path = reverse_path(trained, seeds, cond, _COLUMNS)
    captions = [prompts[i % len(prompts)] for i in range(len(seeds))] if prompts else [""] * len(seeds)
    image = request.image or drawings.EXAMPLE_IMAGE
    return {
        "unet.png": theory.draw_unet(model.network, model.x_shape, model.network_entries(), str(workdir.root)),
        "batch.png": batch_figure.draw_batch(trained),
        "trajectory.png": _draw_trajectory(trained, seeds, cond, path),
        "loss_by_time.png": _draw_loss_by_time(workdir),
        **dict(zip(LATENT, latent_figures.draw(trained, path, cond, captions, image), strict=True)),
        "attention.png": attention_figure.draw_attention(trained, path, cond, captions),
    }


def _draw_autoencoder(request: Request, root: Path) -> bytes | None:
    """The latents of the autoencoder in the workdir root. Raises UserError for a request that is of sampling."""
    chosen = request.step is not None or request.average is not True or request.sample_request.anything
    if chosen or any(value is not None for value in request.overrides.values()):
        raise UserError(
            f"{root} has a run of task autoencoder, whose newest averaged parameters are drawn; leave out the flags of "
            "sampling but --num"
        )
    return latent_figures.draw_autoencoder(root, request.image or drawings.EXAMPLE_IMAGE, request.num)


def _draw_loss_by_time(workdir: Workdir) -> bytes | None:
    """A PNG of the loss by time; None where the metrics have no such record."""
    names = [f"loss_by_time/{i / TIME_BINS:.1f}" for i in range(TIME_BINS)]  # as train.step.summarize writes them
    records = read_metrics(workdir.metrics) if workdir.metrics.is_file() else []
    records = [record for record in records if any(name in record for name in names)]
    if not records:
        return None
    losses = np.asarray([[record.get(name, np.nan) for name in names] for record in records], np.float64)
    return drawings.loss_by_time_png(np.asarray([record["step"] for record in records]), losses)


def _image(path: Path, size: int) -> np.ndarray:
    """The picture's central size x size pixels [H, W, 3] in [-1, 1]."""
    if not path.is_file():
        raise UserError(f"there is no image at {path}; check --image")
    pixels = transforms.decode(path.read_bytes(), channels=3, name=str(path))
    return transforms.to_float(transforms.resize_crop(pixels, size, size))


def _checked(out: Path, overwrite: bool, size: int) -> OutputFolder:
    """The folder of figures. All of `NAMES` are replaced, so that none is left of other schedules or another run."""
    folder = OutputFolder(out, replaces=NAMES.__contains__)
    folder.check()
    if folder.entries() and not overwrite:
        raise UserError(f"--out={out} already has files; give another folder, or --overwrite to replace its figures")
    if not 1 <= size <= 1024:
        raise UserError(f"--size is from 1 to 1024 pixels; got {size}")
    return folder
