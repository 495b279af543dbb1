"""Measures a checkpoint, and writes each number to a JSON file with all that it depends on.

diffusion-jax evaluate --workdir=runs/digits --metrics=bits_per_dim --num=256 --split=test --method=ode
diffusion-jax evaluate --workdir=runs/digits --metrics=fd,kid,precision_recall --features=runs/digits_classifier
diffusion-jax evaluate --workdir=runs/cifar --metrics=fd --num=50000 --features=inception --weights=fid.safetensors
diffusion-jax evaluate reference --config=configs/digits.py --features=runs/digits_classifier --out=digits.npz
diffusion-jax evaluate compare --a=runs/digits/evaluations/A.json --b=runs/digits/evaluations/B.json

bits_per_dim is measured on num real images and needs a model of pixels. fd (FID, with InceptionV3's features), sfd,
kid, precision_recall, inception_score and memorisation compare num samples, drawn as by `sample`, with real images.
psnr and ssim are for models that restore an image and for autoencoders, clip_score for models with captions. The same
command continues an evaluation that was killed.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from diffusion_jax.cli import sampling
from diffusion_jax.errors import UserError

if TYPE_CHECKING:  # it imports jax, for which --help does not wait
    from diffusion_jax.runs.evaluate.run import Request
    from diffusion_jax.runs.workdir.restored import GuideRequest


def define(values: flags.FlagValues, arguments: Sequence[str]) -> None:
    """The command's flags."""
    define_measuring(values)
    sampling.define_guides(values)
    flags.DEFINE_string("out", None, "New JSON file; in WORKDIR/evaluations if left out.", flag_values=values)


def define_measuring(values: flags.FlagValues) -> None:
    """The flags of every command that measures a checkpoint."""
    flags.DEFINE_string("workdir", None, "Folder of the run to measure.", flag_values=values)
    flags.DEFINE_list(
        "metrics",
        [],
        "Of bits_per_dim, fd, sfd, kid, precision_recall, inception_score, memorisation, psnr, ssim, clip_score.",
        flag_values=values,
    )
    sampling.define(values, num=1000)
    flags.DEFINE_integer("batch", 64, "Images at once; changes no result but by rounding.", flag_values=values)
    flags.DEFINE_string(
        "data",
        None,
        "Real images, as data.source names them, folder:PATH; else the config's.",
        flag_values=values,
    )
    flags.DEFINE_string("split", None, "Split of the data; the config's if left out.", flag_values=values)
    flags.DEFINE_string("method", "bound", "Of bits_per_dim: bound (variational) or ode.", flag_values=values)
    flags.DEFINE_integer(
        "likelihood_steps",
        0,
        "Of bits_per_dim: steps of the chain, draws in continuous time or steps of the ODE; 0 is the whole chain, 64 "
        "draws, adaptive steps.",
        flag_values=values,
    )
    flags.DEFINE_string("features", "", "inception, clip, or the workdir of a classifier.", flag_values=values)
    flags.DEFINE_string("weights", None, "Inception's .safetensors file, or CLIP's folder.", flag_values=values)
    flags.DEFINE_string("clip", None, "Of clip_score: folder of a CLIP model.", flag_values=values)
    flags.DEFINE_string(
        "reference", None, "Of fd and sfd: .npz of statistics, not the config's data.", flag_values=values
    )
    flags.DEFINE_integer("kid_size", 1000, "Images in a subset of kid.", flag_values=values)
    flags.DEFINE_integer("kid_subsets", 100, "Subsets of kid.", flag_values=values)
    flags.DEFINE_integer(
        "real", None, "Real images to compare with, 0 for all; as many as samples if left out.", flag_values=values
    )
    flags.DEFINE_float(
        "save_seconds", 60.0, "Seconds between saves of what is done, to go on from.", flag_values=values
    )


def run(values: flags.FlagValues) -> None:
    """Evaluates."""
    if not values.workdir:
        raise UserError("evaluate needs --workdir=FOLDER and --metrics=NAME,...")
    from diffusion_jax.runs.evaluate.run import evaluate

    out = Path(values.out) if values.out else None
    evaluate(request(values, guided_by=sampling.guided_by(values)), out=out, save_seconds=values.save_seconds)


def request(values: flags.FlagValues, guided_by: "GuideRequest | None" = None) -> "Request":
    """The evaluation that the flags ask for, with the networks that guide the samples."""
    from diffusion_jax.runs.evaluate.run import Likelihood, MetricRequest, Request
    from diffusion_jax.runs.workdir.restored import NO_GUIDES

    weights, reference, clip = (Path(p) if p else None for p in (values.weights, values.reference, values.clip))
    arguments = sampling.arguments(values)
    overrides = {name: arguments.pop(name) for name in sampling.OVERRIDES}
    return Request(
        Path(values.workdir),
        metrics=tuple(values.metrics),
        batch=values.batch,
        data=values.data,
        split=values.split,
        likelihood=Likelihood(values.method, values.likelihood_steps),
        metric_request=MetricRequest(values.features, weights, reference, values.kid_size, values.kid_subsets, clip),
        real=values.real,
        overrides=overrides,
        guided_by=guided_by or NO_GUIDES,
        **arguments,
    )
