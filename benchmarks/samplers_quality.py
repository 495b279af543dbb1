"""Do all samplers draw the digits that they are asked for? Every sampler of a trained digits workdir beside ddim.

    python benchmarks/samplers_quality.py --workdir=runs/digits [--num=500 --steps=20,50 --samplers=ddim,heun --out=DIR]

For each sampler and number of steps, one line: the share of samples that a support vector classifier of the real digits
sees as the label asked for, and the share of pixels that are black or white, which is 58% in the real digits. The
exit status is 1 where a sampler's agreement is over 3 points below that of ddim with as many steps.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from digits_quality import quality

from diffusion_jax import experiment
from diffusion_jax.core.samplers import SAMPLERS
from diffusion_jax.report import pictures
from diffusion_jax.runs.workdir.restored import restore

_BATCH = 250
_MARGIN = 0.03


def draw(root: Path, sampler: str, steps: int, num: int) -> tuple[np.ndarray, np.ndarray]:
    """(uint8 images [num, 8, 8, 1], the labels that they were asked for [num])."""
    trained = restore(root, step=None, average=True, overrides={"sampler": sampler, "steps": steps})
    program = experiment.sample_program(trained.model, trained.how, trained.mesh)
    seeds = np.arange(num, dtype=np.int32)
    labels = (seeds % 10).astype(np.int32)
    images = [
        program(trained.params, trained.pretrained, seeds[i : i + _BATCH], {"label": labels[i : i + _BATCH]})
        for i in range(0, num, _BATCH)
    ]
    return pictures.to_uint8(np.concatenate(images)), labels


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--num", type=int, default=500, help=f"a multiple of {_BATCH}")
    parser.add_argument("--steps", default="20,50")
    parser.add_argument("--samplers", default=",".join(SAMPLERS))
    parser.add_argument("--out", type=Path, default=None, help="a folder for a picture of each sampler's digits")
    arguments = parser.parse_args()
    worse = []
    for steps in map(int, arguments.steps.split(",")):
        reference = None
        for sampler in ["ddim", *(s for s in arguments.samplers.split(",") if s != "ddim")]:
            images, labels = draw(arguments.workdir, sampler, steps, arguments.num)
            agreement = quality(images, labels)["agreement"]
            extreme = np.isin(images, (0, 255)).mean()
            print(f"{sampler:20s} {steps:3d}: agreement {agreement:.1%}, extreme pixels {extreme:.0%}", flush=True)
            reference = agreement if reference is None else reference
            if agreement < reference - _MARGIN:
                worse.append(f"{sampler} at {steps} steps")
            if arguments.out is not None:
                arguments.out.mkdir(parents=True, exist_ok=True)
                pictures.save_png(arguments.out / f"{sampler}_{steps}.png", pictures.grid(images[:100]))
    if worse:
        sys.exit(f"over {_MARGIN:.0%} below ddim: {', '.join(worse)}")


if __name__ == "__main__":
    main()
