"""How well a model of drawn shapes does what it is told, on pictures of the test split that it has not seen.

python benchmarks/shapes_quality.py --workdir=runs/shapes_text --num=200 [--guidance=3]

text: the share of captions whose shapes and colours are all there and nothing else is, and with their relation.
low_resolution: PSNR of the enlarged, and of bicubic enlargement. map: mean IoU of the map read from the samples.
inpaint: the share of samples whose every region is a known shape. autoencoder: PSNR and SSIM.
"""

import argparse
import json
from pathlib import Path

import jax
import numpy as np

from diffusion_jax import experiment
from diffusion_jax.core.similarity import psnr, ssim
from diffusion_jax.data import shape_reader
from diffusion_jax.models.likelihood import own_conditions
from diffusion_jax.report import pictures
from diffusion_jax.runs.sample.examples import first_batch
from diffusion_jax.runs.workdir import pretrained
from diffusion_jax.runs.workdir.paths import Workdir
from diffusion_jax.runs.workdir.restored import restore


def measure(root: Path, num: int, out: Path | None, overrides: dict) -> dict[str, float]:
    workdir = Workdir(root)
    config = workdir.read_config()
    config.data.split = "test"
    source = experiment.source(config)
    if config.task == "autoencoder":
        return autoencoder(root, config, source, num)
    trained = restore(root, step=None, average=True, overrides=overrides)
    model = trained.model
    batch = first_batch(config, source, model, trained.tokenizer, num)
    cond = own_conditions(model, batch)
    program = experiment.sample_program(model, trained.how, trained.mesh)
    size = 50
    drawn = []
    for start in range(0, num, size):
        take = np.arange(start, start + size).clip(max=num - 1)
        told = {name: a[take] for name, a in cond.items()}
        drawn.append(np.asarray(program(trained.params, trained.pretrained, take.astype(np.int32), told)))
    images = np.concatenate(drawn)[:num]
    pixels = pictures.to_uint8(images)
    if out:
        pictures.save_png(out, pictures.grid(pixels[:64]))
    names = {condition.name for condition in model.conditions}
    found: dict[str, float] = {"num": num, "step": trained.step}
    if model.text:
        captions = [source[int(i)]["caption"] for i in batch["index"]]
        pairs = list(zip(pixels, captions, strict=True))
        found["captions right"] = float(np.mean([shape_reader.matches(*pair) for pair in pairs]))
        found["with relation"] = float(np.mean([shape_reader.related(*pair) for pair in pairs]))
    if "low_resolution" in names:
        found["psnr"] = float(psnr(images.clip(-1, 1), batch["x"]).mean())
        found["psnr bicubic"] = float(psnr(cond["low_resolution"], batch["x"]).mean())
    if "map" in names:
        found["mean IoU"] = mean_iou(pixels, batch["map"])
    if "inpaint" in names:
        known = ~batch["mask"][..., None]
        pasted = np.where(known, pictures.to_uint8(batch["x"]), pixels)
        found["all regions are shapes"] = float(
            np.mean([all(seen.shape for seen in shape_reader.read_picture(image)) for image in pasted])
        )
        found["mean error of known pixels"] = float(
            np.abs(images - batch["x"])[np.broadcast_to(known, images.shape)].mean()
        )
    return found


def mean_iou(pixels: np.ndarray, maps: np.ndarray) -> float:
    """The mean over classes of intersection over union, each shape of a picture drawn anew where it was seen."""
    counts = np.zeros((4, 2))
    for image, wanted in zip(pixels, maps, strict=True):
        seen = shape_reader.read_map(image)
        for k in range(4):
            counts[k] += [((seen == k) & (wanted == k)).sum(), ((seen == k) | (wanted == k)).sum()]
    return float((counts[:, 0] / counts[:, 1]).mean())


def autoencoder(root: Path, config, source, num: int) -> dict[str, float]:
    trained = pretrained.read_autoencoder(root)
    x = first_batch(config, source, None, None, num)["x"]
    run = jax.jit(lambda x: trained.network.apply({"params": trained.params}, x))
    parts = [run(x[i : i + 50]) for i in range(0, num, 50)]
    y, mean, logvar = (np.concatenate(part) for part in zip(*parts, strict=True))
    z = (mean + np.exp(0.5 * logvar) * np.random.default_rng(0).standard_normal(mean.shape)) * trained.scale
    return {
        "num": num,
        "psnr": float(np.mean(psnr(x, y))),
        "ssim": float(np.mean(ssim(x, y))),
        "scale": trained.scale,
        "scaled latent mean": float(z.mean()),
        "scaled latent std": float(z.std()),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--num", type=int, default=200)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--sampler")
    parser.add_argument("--steps", type=int)
    options = parser.parse_args()
    changed = {"guidance": options.guidance, "sampler": options.sampler, "steps": options.steps}
    print(json.dumps(measure(options.workdir, options.num, options.out, changed), indent=2))
