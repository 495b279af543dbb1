"""A trained model in Python: what `diffusion_jax.load` gives."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from jax import Array
from ml_collections import ConfigDict

from diffusion_jax import experiment, ranges
from diffusion_jax.core.denoisers import Denoiser
from diffusion_jax.data.classes import NULL
from diffusion_jax.errors import UserError, did_you_mean, naming_arguments
from diffusion_jax.report import pictures
from diffusion_jax.report.progress import progress
from diffusion_jax.runs.sample.conditioning import SampleRequest, conditions
from diffusion_jax.runs.sample.drawing import batch_size, check_memory, draw
from diffusion_jax.runs.sample.size import Size, of_size
from diffusion_jax.runs.workdir.restored import Trained, restore, seeds_from
from diffusion_jax.train.state import Params

Label = str | int | None
"""A class by its name or number; None and "none" are the null class."""


class Loaded:
    """The model of one checkpoint with its parameters, on every device of this machine.

    `sample` draws from it, `denoiser` is what a sampler sees of it; `model`, `params` and `config` are its parts.
    """

    def __init__(self, trained: Trained):
        self._trained = trained
        self._programs: dict[tuple[experiment.Sampling, tuple[int, ...]], Callable[..., Array]] = {}

    @property
    def config(self) -> ConfigDict:
        """The resolved config of the run."""
        return self._trained.config

    @property
    def model(self) -> experiment.Model:
        """The network together with schedule, prediction and conditions."""
        return self._trained.model

    @property
    def params(self) -> Params:
        """The parameters, averaged unless `load` was given ema=False."""
        return self._trained.params

    @property
    def step(self) -> int:
        """The training step of the checkpoint."""
        return self._trained.step

    @property
    def class_names(self) -> list[str] | None:
        """The names of the classes in the order of their numbers; None for a model without classes."""
        count = self._trained.num_classes
        return self._trained.label_names(np.arange(count)) if count else None

    def sample(
        self,
        num: int = 1,
        *,
        labels: Label | Sequence[Label] = (),
        prompts: str | Sequence[str] = (),
        negative_prompt: str | None = None,
        low_res: str | Path | None = None,
        augment: float = 0.0,
        map: str | Path | None = None,
        seed: int = 0,
        batch: int = 64,
        size: Size | None = None,
        show_progress: bool = False,
        **sampling: object,
    ) -> np.ndarray:
        """Draws num samples, float32 [num, *S, C] in the model's units: about [-1, 1] for images.

        Sample i has seed `seed` + i and depends on it alone. Samples take several labels or prompts in turn; without
        labels the class of a sample is drawn from its seed. low_res and map are files, as the command's. batch samples
        are drawn at once. size is (width, height) of images, where a model draws any size. Further keywords replace
        keys of config.sample: sampler, grid, steps, guidance, guidance_rescale, guidance_interval, threshold,
        decode_tile. The first call with a choice of these and of size compiles a program, which later calls use.

        Raises UserError where an argument is out of range or the model lacks the condition or the sampling.
        """
        numbers = {"num": num, "seed": seed, "batch": batch, "augment": augment}
        with naming_arguments():
            trained = of_size(self._sampled_by(sampling, numbers), size)
            request = SampleRequest(
                labels=_texts(labels),
                prompts=[prompts] if isinstance(prompts, str) else list(prompts),
                negative_prompt=negative_prompt,
                low_res=_path(low_res),
                augment=augment,
                map=_path(map),
            )
            seeds = seeds_from(seed, num)
            share = batch_size(trained, batch, num)
            check_memory(trained, share, trained.model.shape[:-1])
            cond = conditions(request, trained, seeds)
            program = self._program(trained)
            with progress(num, description="sample", unit="samples", show=show_progress) as bar:
                drawn = np.concatenate(list(draw(program, trained, seeds, cond, share, bar)))
            pictures.check_finite(drawn)
            return drawn

    def denoiser(self, cond: Mapping[str, Array] | None = None, **sampling: object) -> Denoiser:
        """The denoiser (x [B, *S, C], t [B]) -> Prediction(x0, eps) that samplers of `core` take, for conditions cond.

        cond has the entries of the model's conditions: "label" int [B] (`model.num_classes` is the null class),
        "tokens" int [B, N], images of spatial conditions. Keywords are those of `sample`; without them there is neither
        guidance nor a threshold. x is a latent of shape `model.x_shape` where the model has an autoencoder. Works
        inside `jax.jit`.
        """
        plain = {"guidance": 1.0, "guidance_rescale": 0.0, "guidance_interval": (), "threshold": "none"}
        with naming_arguments():
            trained = self._sampled_by(plain | sampling, {})
            guide = experiment.guided(trained.model, trained.how)
            return guide(trained.params, trained.pretrained, jax.tree.map(jax.numpy.asarray, dict(cond or {})))

    def _sampled_by(self, sampling: Mapping[str, object], numbers: Mapping[str, object]) -> Trained:
        """The model with the keywords of sampling in place of config.sample; raises as `checked_sampling`."""
        chosen = checked_sampling(sampling, numbers)
        return dataclasses.replace(self._trained, how=experiment.sampling(self.config, chosen))

    def _program(self, trained: Trained) -> Callable[..., Array]:
        key = trained.how, trained.model.shape
        if key not in self._programs:
            self._programs[key] = experiment.sample_program(trained.model, trained.how, trained.mesh, trained.guides)
        return self._programs[key]


def load(workdir: str | Path, step: int | None = None, ema: bool | float = True) -> Loaded:
    """The model of a workdir: of its newest checkpoint, or of that of step.

    ema True takes the averaged parameters, False those of the step itself, and a number the average of that length
    sigma_rel, which a run with ema.profiles gives. Raises UserError where there is no such workdir or checkpoint.
    """
    with naming_arguments():
        return Loaded(restore(Path(workdir), step=step, average=ema, overrides={}))


def checked_sampling(sampling: Mapping[str, object], numbers: Mapping[str, object]) -> dict[str, object]:
    """The keywords of sampling that are not None.

    Raises UserError for an unknown keyword, and where a number of sampling, or one of the other arguments numbers, is
    out of the range of its flag.
    """
    known = [field.name for field in dataclasses.fields(experiment.Sampling)]
    if unknown := [name for name in sampling if name not in known]:
        near = did_you_mean(unknown[0], [*known, *numbers])
        raise UserError(f"there is no argument {unknown[0]!r}; of sampling these are: {', '.join(known)}{near}")
    chosen = {name: value for name, value in sampling.items() if value is not None}
    for name, value in {**numbers, **chosen}.items():
        ranges.check_flag("sample", name, value)
    return chosen


def _texts(labels: Label | Sequence[Label]) -> list[str]:
    each = [labels] if labels is None or isinstance(labels, str | int | np.integer) else list(labels)
    return [NULL if label is None else str(label) for label in each]


def _path(file: str | Path | None) -> Path | None:
    return None if file is None else Path(file)
