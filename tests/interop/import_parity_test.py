"""Pipelines that diffusers saves, imported: the same noise and prompt give diffusers' own image."""

import functools
import hashlib
import json
import math

import diffusers_folders as folders
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from imported_pipelines import (
    GUIDANCE,
    NOISE,
    NUM,
    SD,
    STEPS,
    captioned_images,
    drawn,
    import_,
    scheduler,
    tuning_config,
    with_scheduler,
)

from diffusion_jax.cli.main import main
from diffusion_jax.core.samplers import start_noise
from diffusion_jax.core.samplers.loop import standard_normal
from diffusion_jax.runs.workdir.pretrained import read_autoencoder
from diffusion_jax.runs.workdir.restored import restore

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory):
    """{prediction: a pipeline, 1.x of eps and 2.x of v}, with any scheduler."""
    root = tmp_path_factory.mktemp("pipelines")
    plain = scheduler("DDIMScheduler", "eps")
    return {p: folders.stable_diffusion(root / p, v, plain) for p, v in (("eps", 1), ("v", 2))}


@pytest.fixture(scope="module")
def imported(pipelines, tmp_path_factory):
    """{prediction: (the folder of its pipeline, its workdir)}."""
    root = tmp_path_factory.mktemp("imported")
    found = {}
    for prediction, pipe in pipelines.items():
        pipe.scheduler = scheduler("DDIMScheduler", prediction, set_alpha_to_one=False, clip_sample=False)
        pipe.save_pretrained(root / prediction)
        assert import_(root / prediction, root / f"{prediction}_w") == 0
        found[prediction] = root / prediction, root / f"{prediction}_w"
    return found


@pytest.mark.parametrize(
    ("kind", "options", "prediction"), [(kind, options, p) for kind, options, predictions in SD for p in predictions]
)
def test_stable_diffusion(pipelines, tmp_path, kind, options, prediction):
    pipe = with_scheduler(pipelines[prediction], scheduler(kind, prediction, **options))
    theirs = folders.draw(pipe, NOISE, steps=STEPS, guidance=GUIDANCE)
    # With spacing linspace or trailing Euler's x_T is sigma z, in units of sqrt(1 + sigma^2), which the import says.
    start = float(getattr(pipe.scheduler, "init_noise_sigma", 1.0))
    ratio = start / math.sqrt(1 + start**2) if start > 1 and options.get("timestep_spacing") != "leading" else 1.0
    pipelines[prediction].scheduler = scheduler(kind, prediction, **options)
    pipelines[prediction].save_pretrained(tmp_path / "pipe")
    assert import_(tmp_path / "pipe", tmp_path / "w") == 0
    ours = drawn(tmp_path / "w", ratio * NOISE, folders.PROMPT)
    assert ours.shape == theirs.shape
    assert theirs.std() > 0.05
    print(kind, options, prediction, np.abs(ours - theirs).max())
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-3)


def test_the_command_draws_the_image_from_noise_in_a_file(pipelines, imported, tmp_path):
    """And what --save_noise keeps draws it again."""
    _, workdir = imported["eps"]
    np.save(tmp_path / "noise.npy", NOISE)
    flags = [f"--workdir={workdir}", f"--num={NUM}", f"--prompt={folders.PROMPT}", "--steps=5"]
    assert main(["sample", f"--out={tmp_path}/a", *flags, f"--noise={tmp_path}/noise.npy", "--save_noise"]) == 0
    np.testing.assert_array_equal(np.load(tmp_path / "a/noise.npy"), NOISE)
    pipelines["eps"].scheduler = scheduler("DDIMScheduler", "eps", set_alpha_to_one=False, clip_sample=False)
    theirs = folders.draw(pipelines["eps"], NOISE, steps=5, guidance=GUIDANCE)
    images = np.load(tmp_path / "a/samples.npz")["images"]
    assert np.abs(images / 255 - theirs).max() < 1 / 255


def test_what_is_imported_is_recorded(imported):
    folder, workdir = imported["v"]
    record = json.loads((workdir / "imported.json").read_text())
    assert record["model"] == "StableDiffusionPipeline"
    weights = "unet/diffusion_pytorch_model.safetensors"
    assert record["files"][weights] == hashlib.sha256((folder / weights).read_bytes()).hexdigest()
    assert {"model_index.json", "scheduler/scheduler_config.json", "text_encoder/model.safetensors"} <= set(
        record["files"]
    )
    assert main(["checkpoint", "verify", f"--workdir={workdir}"]) == 0


@pytest.mark.parametrize("kind", ["fp16", "sharded"])
def test_variants_and_shards_are_the_same_weights(pipelines, imported, tmp_path, kind):
    import torch

    pipe, (folder, whole) = pipelines["eps"], imported["eps"]
    flags = []
    if kind == "fp16":
        pipe = type(pipe).from_pretrained(folder, dtype=torch.float16, local_files_only=True)
        pipe.save_pretrained(tmp_path / "pipe", variant="fp16")
        assert import_(tmp_path / "pipe", tmp_path / "w") == 2
        flags = ["--variant=fp16"]
    else:
        pipe.save_pretrained(tmp_path / "pipe", max_shard_size="60KB")
        assert len(list((tmp_path / "pipe/unet").glob("*-of-*.safetensors"))) > 1
    assert import_(tmp_path / "pipe", tmp_path / "w", *flags) == 0
    close = {"fp16": 1e-3, "sharded": 0}[kind]
    for part in ("params", "pretrained"):
        ours, theirs = (
            getattr(restore(w, step=None, average=True, overrides={}), part) for w in (tmp_path / "w", whole)
        )
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=close, atol=close), ours, theirs)


def given_noise(monkeypatch, module, like):
    """Has a scheduler of diffusers draw the noise of our steps, for x like [N, H, W, C] and the seeds 0, 1, ..."""
    import torch

    keys = jax.vmap(jax.random.split, out_axes=1)(jax.vmap(jax.random.key)(jnp.arange(len(like))))[1]
    ours = (np.array(standard_normal(keys, step, 0, like)) for step in range(STEPS))
    draws = (torch.from_numpy(np.moveaxis(a, -1, 1).copy()) for a in ours)
    monkeypatch.setattr(module, "randn_tensor", lambda *args, **kwargs: next(draws))


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_euler_ancestral_with_its_noise(pipelines, tmp_path, monkeypatch, prediction):
    """Every draw of the scheduler is ours."""
    from diffusers.schedulers import scheduling_euler_ancestral_discrete

    found = scheduler("EulerAncestralDiscreteScheduler", prediction, timestep_spacing="leading")
    pipe = with_scheduler(pipelines[prediction], found)
    given_noise(monkeypatch, scheduling_euler_ancestral_discrete, NOISE)
    theirs = folders.draw(pipe, NOISE, steps=STEPS, guidance=GUIDANCE)
    pipelines[prediction].scheduler = found
    pipelines[prediction].save_pretrained(tmp_path / "pipe")
    assert import_(tmp_path / "pipe", tmp_path / "w") == 0
    ours = drawn(tmp_path / "w", NOISE, folders.PROMPT)
    print(prediction, np.abs(ours - theirs).max())
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-3)


def test_ddpm_pipeline_with_its_noise(tmp_path, monkeypatch):
    """Every draw of the scheduler is ours; clipped to [-1, 1] as DDPM is."""
    import diffusers
    import torch
    from diffusers.schedulers import scheduling_ddpm

    pipe = folders.unconditional(tmp_path / "pipe", "DDPMPipeline", diffusers.DDPMScheduler())
    assert import_(tmp_path / "pipe", tmp_path / "w") == 0
    noise = np.asarray(start_noise(jnp.arange(NUM), (8, 8, 3)))
    given_noise(monkeypatch, scheduling_ddpm, noise)
    pipe.scheduler.set_timesteps(STEPS)
    x = torch.from_numpy(np.moveaxis(noise, -1, 1).copy())
    with torch.no_grad():
        for t in pipe.scheduler.timesteps:
            x = pipe.scheduler.step(pipe.unet(x, t).sample, t, x).prev_sample
    theirs = np.moveaxis((x / 2 + 0.5).clamp(0, 1).numpy(), 1, -1)
    ours = drawn(tmp_path / "w", noise)
    print(np.abs(ours - theirs).max())
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-3)


def test_ddim_pipeline(tmp_path, monkeypatch):
    import diffusers
    import torch
    from diffusers.pipelines.ddim import pipeline_ddim

    plain = diffusers.DDIMScheduler(clip_sample=False)
    pipe = folders.unconditional(tmp_path / "pipe", "DDIMPipeline", plain)
    noise = np.random.default_rng(1).standard_normal((NUM, 8, 8, 3)).astype(np.float32)
    given = torch.from_numpy(np.moveaxis(noise, -1, 1).copy())
    monkeypatch.setattr(pipeline_ddim, "randn_tensor", lambda *args, **kwargs: given)
    theirs = pipe(NUM, num_inference_steps=STEPS, output_type="np").images
    assert import_(tmp_path / "pipe", tmp_path / "w") == 0
    np.testing.assert_allclose(drawn(tmp_path / "w", noise), theirs, rtol=0, atol=2e-3)


@pytest.mark.parametrize("where", ["a pipeline", "a folder of its own"])
def test_an_autoencoder_is_imported_as_a_run_of_its_own(pipelines, imported, tmp_path, where):
    import torch

    folder, flags = imported["eps"][0], ["--part=autoencoder"]
    if where != "a pipeline":
        folder, flags = folder / "vae", []
    assert import_(folder, tmp_path / "w", *flags) == 0
    ours = read_autoencoder(tmp_path / "w")
    x = np.random.default_rng(0).uniform(-1, 1, (1, 16, 16, 3)).astype(np.float32)
    vae = pipelines["eps"].vae
    with torch.no_grad():
        latent = vae.encode(torch.from_numpy(np.moveaxis(x, -1, 1).copy())).latent_dist
        image = np.moveaxis(vae.decode(latent.mean).sample.numpy(), 1, -1)
        scaled = np.moveaxis(latent.mean.numpy(), 1, -1) * vae.config.scaling_factor
    mean, _ = ours.encode(ours.params, jnp.asarray(x))
    np.testing.assert_allclose(mean, scaled, rtol=0, atol=1e-4)
    np.testing.assert_allclose(ours.decode(ours.params, mean), image, rtol=0, atol=1e-4)


def test_an_import_is_edited_planned_and_trained_from(imported, tmp_path, capsys):
    _, workdir = imported["eps"]
    images = captioned_images(tmp_path / "images", 4 * [(16, 16)])
    tuning_config(tmp_path / "tuned.py", workdir, images, train__steps=2, train__batch_size=8, sample__every=0)
    edit = [f"--workdir={workdir}", f"--out={tmp_path}/edited", "--num=1", "--prompt=cat", "--steps=5"]
    assert main(["sample", *edit, f"--init_image={images}/0.png"]) == 0
    tuned = [f"--config={tmp_path}/tuned.py"]
    assert main(["train", *tuned, f"--workdir={tmp_path}/run"]) == 0
    assert "starting with the averaged parameters of step 0" in capsys.readouterr().out
    assert (
        main(["sample", f"--workdir={tmp_path}/run", f"--out={tmp_path}/s", "--num=1", "--prompt=cat", "--steps=5"])
        == 0
    )
    capsys.readouterr()
    assert main(["train", *tuned, f"--workdir={workdir}"]) == 2
    assert "was imported and has no optimizer to go on with" in capsys.readouterr().err
    assert main(["plan", *tuned]) == 0
