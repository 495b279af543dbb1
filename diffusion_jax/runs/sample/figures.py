"""`diffusion-jax figures`: schedules, the forward process, a checkpoint's reverse trajectory and its loss by time."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
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
from diffusion_jax.runs.sample.conditions import SampleRequest, conditions
from diffusion_jax.runs.workdir.output_folder import OutputFolder
from diffusion_jax.runs.workdir.paths import Workdir
from diffusion_jax.runs.workdir.restored import Trained, restore, seeds_from
from diffusion_jax.train.interruptible import interruptible
from diffusion_jax.train.step import TIME_BINS

NAMES = ("forward.png", "schedules.png", "trajectory.png", "loss_by_time.png")

DEFAULT_SCHEDULES = ("linear", "cosine")

_FORWARD_TIMES = np.arange(9) / 8

NOTHING = SampleRequest()

_COLUMNS = 11  # of a trajectory


def figures(
    out: Path,
    *,
    schedules: Sequence[str] = (),
    image: Path | None = None,
    size: int = 64,
    root: Path | None = None,
    num: int = 8,
    seed: int = 0,
    sample_request: SampleRequest = NOTHING,
    step: int | None = None,
    average: bool = True,
    overwrite: bool = False,
    **overrides: object,
) -> None:
    """Writes the figures of `NAMES` into the folder out, the last two if there is a workdir root.

    schedules default to the workdir's and `DEFAULT_SCHEDULES`. image is cropped to size x size pixels; its noise is
    drawn from seed. num, seed, asked, step, average and overrides are `sample`'s. What a user can get wrong raises
    UserError before anything is written.
    """
    folder = _checked(out, overwrite, size)
    seeds = seeds_from(seed, num)
    workdir = None if root is None else Workdir(root)
    own = [] if workdir is None else [workdir.read_config().schedule]
    texts = schedules or [*own, *DEFAULT_SCHEDULES]
    chosen = {text: experiment.schedule(text) for text in texts}
    x0 = _image(image or drawings.EXAMPLE_IMAGE, size)

    drawn = {"forward.png": _draw_forward(chosen, x0, seed), "schedules.png": _draw_schedules(chosen)}
    if workdir is not None:
        trained = restore(workdir.root, step=step, average=average, overrides=overrides)
        cond = conditions(sample_request, trained, seeds)
        drawn["trajectory.png"] = _draw_trajectory(trained, seeds, cond)
        if loss := _draw_loss_by_time(workdir):
            drawn["loss_by_time.png"] = loss
        else:
            print(f"no loss by time in {workdir.metrics}, so there is no loss_by_time.png")
    with folder.written() as partial:
        for name, picture in drawn.items():
            (partial / name).write_bytes(picture)
    print(f"figures in {out}: {', '.join(drawn)}")


def forward(x0: Array, eps: Array, schedule: Schedule, times: np.ndarray) -> tuple[Array, Array]:
    """(x, scale) at times [K]: x = alpha x0 + sigma eps [K, *x0.shape], and `unit_scale` [K]."""
    level = schedule.level(jnp.asarray(times, jnp.float32))
    x = process.diffuse(jnp.broadcast_to(x0, (len(times), *x0.shape)), eps, level)
    return x, unit_scale(level)


def unit_scale(level: Level) -> Array:
    """1 / sqrt(alpha^2 + sigma^2): what gives x_t of data of unit variance unit variance; 1 where it has."""
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


def _draw_trajectory(trained: Trained, seeds: np.ndarray, cond: Mapping[str, np.ndarray]) -> bytes:
    model, how, num = trained.model, trained.how, len(seeds)
    program, times = experiment.trajectory_program(model, how, trained.mesh, columns=_COLUMNS)
    take = np.arange(-(-num // trained.share) * trained.share).clip(max=num - 1)
    told = {name: a[take] for name, a in cond.items()}
    drawn = interruptible(lambda: jax.device_get(program(trained.params, trained.pretrained, seeds[take], told)))
    x, x0 = (part[:, :num].swapaxes(0, 1) for part in drawn)
    scale = np.asarray(unit_scale(model.schedule.level(jnp.asarray(times, jnp.float32))))
    if model.autoencoder is not None:  # decoded pixels have no noise to be shown smaller
        scale = np.ones_like(scale)
    rows = []
    names = trained.label_names(cond["label"]) if model.num_classes else [""] * num
    for number, name in zip(seeds, names, strict=True):
        of = "" if not model.num_classes else ", no class" if name == NULL else f", class {name}"
        rows += [f"seed {number}{of}: xₜ", "x₀ predicted"]
    both = np.stack([x, x0], axis=1).reshape(2 * num, *x.shape[1:])
    scales = np.tile(np.stack([scale, np.ones_like(scale)]), (num, 1))
    kind = experiment.modality(trained.config)
    if not isinstance(kind, Image):
        scaled = both * scales.reshape(*scales.shape, *(1,) * (both.ndim - 2))
        tiles = kind.tiles(kind.from_model(scaled.reshape(-1, *both.shape[2:])))
        both, scales = transforms.to_float(tiles.reshape(*scales.shape, *tiles.shape[1:])), np.ones_like(scales)
    title = f"Reverse trajectory of step {trained.step:,}: {how.sampler}, {how.steps} steps" + (
        f", guidance {how.guidance:g}" if how.guidance != 1 else ""
    )
    return drawings.strips_png(both, scales, list(times), rows, title)


def _draw_loss_by_time(workdir: Workdir) -> bytes | None:
    """None if the metrics hold none."""
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
    """The folder of figures, all of which are replaced: others would be of other schedules or another run."""
    folder = OutputFolder(out, replaces=NAMES.__contains__)
    folder.check()
    if folder.entries() and not overwrite:
        raise UserError(f"--out={out} already has files; give another folder, or --overwrite to replace its figures")
    if not 1 <= size <= 1024:
        raise UserError(f"--size is from 1 to 1024 pixels; got {size}")
    return folder
