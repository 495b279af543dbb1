"""Schedulers whose pipelines are imported, and the images that are drawn with an import."""

import json

import diffusers_folders as folders
import jax.numpy as jnp
import numpy as np
from PIL import Image

from diffusion_jax import experiment
from diffusion_jax.cli.main import main
from diffusion_jax.models.sampling import START
from diffusion_jax.runs.workdir.restored import restore

STEPS, GUIDANCE, NUM = 5, 7.5, 2
NOISE = np.random.default_rng(0).standard_normal((NUM, 8, 8, 4)).astype(np.float32)


def scheduler(name, prediction, **options):
    import diffusers

    options = {"prediction_type": {"eps": "epsilon", "v": "v_prediction"}[prediction], "steps_offset": 1} | options
    return getattr(diffusers, name)(**folders.BETAS, **options)


def with_scheduler(pipe, scheduler):
    """The pipeline made anew, which corrects what it takes for a mistake in the scheduler's config."""
    found = type(pipe)(**pipe.components | {"scheduler": scheduler}, requires_safety_checker=False)
    found.set_progress_bar_config(disable=True)
    return found


def import_(folder, workdir, *flags):
    return main(["import", f"--from={folder}", f"--workdir={workdir}", *flags])


def drawn(workdir, noise, prompt=None, **overrides):
    """Our images in [0, 1] from the workdir, as floats."""
    trained = restore(workdir, step=None, average=True, overrides={"steps": STEPS, **overrides})
    seeds = np.arange(len(noise), dtype=np.int32)
    cond = {START: jnp.asarray(noise)}
    if prompt is not None:
        cond["tokens"] = trained.model.text.encode(trained.tokenizer, [prompt] * len(noise))
    program = experiment.sample_program(trained.model, trained.how, trained.mesh)
    return np.clip(np.asarray(program(trained.params, trained.pretrained, seeds, cond)) / 2 + 0.5, 0, 1)


SD = [  # scheduler, its options, predictions
    ("DDIMScheduler", {"set_alpha_to_one": False}, ("eps", "v")),
    ("DDIMScheduler", {"timestep_spacing": "trailing", "rescale_betas_zero_snr": True}, ("v",)),
    ("DDIMScheduler", {"steps_offset": 0}, ("eps",)),  # which the pipeline sets to 1
    ("PNDMScheduler", {"skip_prk_steps": True}, ("eps",)),  # of v it extrapolates v, as the import says
    ("EulerDiscreteScheduler", {"timestep_spacing": "leading"}, ("eps",)),
    ("EulerDiscreteScheduler", {}, ("eps", "v")),
    ("HeunDiscreteScheduler", {"timestep_spacing": "leading"}, ("v",)),
    ("DPMSolverMultistepScheduler", {}, ("eps", "v")),
    ("DPMSolverMultistepScheduler", {"timestep_spacing": "leading"}, ("eps",)),
    ("UniPCMultistepScheduler", {}, ("eps", "v")),
    ("UniPCMultistepScheduler", {"timestep_spacing": "trailing", "solver_order": 3}, ("v",)),
]


def captioned_images(folder, sizes):
    """A new folder of random images of these sizes (H, W), each with a caption."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for i, size in enumerate(sizes):
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(folder / f"{i}.png")
    lines = [json.dumps({"file_name": f"{i}.png", "text": f"picture {i}!"}) for i in range(len(sizes))]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


def tuning_config(file, workdir, images, **changes):
    """Writes a config file for training on from an import, on a folder of images, with {section.key: value} changed."""
    lines = "".join(f"    config.{key.replace('__', '.')} = {value!r}\n" for key, value in changes.items())
    file.write_text(
        f"""
from pathlib import Path
from diffusion_jax.config import from_json

def get_config():
    config = from_json(Path({str(workdir / "config.json")!r}).read_text())
    config.init_from = {str(workdir)!r}
    config.data.source = {f"folder:{images}"!r}
{lines}    return config
"""
    )
    return file
