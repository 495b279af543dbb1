"""Pipelines that diffusers saves, imported: the same noise and prompt give diffusers' own image."""


import diffusers_folders as folders
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax import experiment
from diffusion_jax.cli.main import main
from diffusion_jax.models.sampling import START
from diffusion_jax.runs.workdir.restored import restore

pytestmark = pytest.mark.parity

STEPS, GUIDANCE, NUM = 5, 7.5, 2
NOISE = np.random.default_rng(0).standard_normal((NUM, 8, 8, 4)).astype(np.float32)


def scheduler(name, prediction, **options):
    import diffusers

    options = {"prediction_type": {"eps": "epsilon", "v": "v_prediction"}[prediction], "steps_offset": 1} | options
    return getattr(diffusers, name)(**folders.BETAS, **options)


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


SD = {
    "ddim": ("DDIMScheduler", {"set_alpha_to_one": False, "clip_sample": False}),
}


@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize("name", SD)
def test_stable_diffusion(tmp_path, name, prediction):
    kind, options = SD[name]
    pipe = folders.stable_diffusion(
        tmp_path / "pipe", 1 if prediction == "eps" else 2, scheduler(kind, prediction, **options)
    )
    theirs = folders.draw(pipe, NOISE, steps=STEPS, guidance=GUIDANCE)
    assert import_(tmp_path / "pipe", tmp_path / "w") == 0
    ours = drawn(tmp_path / "w", NOISE, folders.PROMPT)
    assert ours.shape == theirs.shape
    assert theirs.std() > 0.05
    print(np.abs(ours - theirs).max())
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-3)
