"""Training goes on from an import: a step has the gradient of diffusers and torch, and a run is tuned on pictures."""

import io
import json
import zipfile

import diffusers_folders as folders
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from imported_pipelines import import_, scheduler
from PIL import Image

from diffusion_jax import experiment
from diffusion_jax.cli.main import main
from diffusion_jax.interop import diffusers_unet
from diffusion_jax.runs.workdir import pretrained
from diffusion_jax.runs.workdir.paths import Workdir
from diffusion_jax.runs.workdir.restored import restore
from diffusion_jax.train import sharding, state

pytestmark = pytest.mark.parity

CAPTIONS = ["a red cat", "the sea", "", "cat"]


@pytest.fixture(scope="module", params=["eps", "v"])
def imported(request, tmp_path_factory):
    """A pipeline of diffusers, and its workdir."""
    root, version = tmp_path_factory.mktemp("imported"), {"eps": 1, "v": 2}[request.param]
    plain = scheduler("DDIMScheduler", request.param, set_alpha_to_one=False, clip_sample=False)
    pipe = folders.stable_diffusion(root / "pipe", version, plain)
    assert import_(root / "pipe", root / "w") == 0
    return pipe, root / "w"


def channels_first(a):
    import torch

    return torch.from_numpy(np.moveaxis(np.asarray(a), -1, 1).copy())


def gradients_there(pipe, images, noise, eps, index):
    """(loss, {name: gradient}) of diffusers' U-Net: latents, their noise, text and the target are all torch's."""
    import torch
    from torch.nn.functional import mse_loss

    chain = pipe.scheduler
    with torch.no_grad():
        posterior = pipe.vae.encode(channels_first(images)).latent_dist
        latents = (posterior.mean + posterior.std * channels_first(noise)) * pipe.vae.config.scaling_factor
        words = pipe.tokenizer(CAPTIONS, padding="max_length", max_length=20, truncation=True, return_tensors="pt")
        text = pipe.text_encoder(words.input_ids)[0]
    eps, t = channels_first(eps), torch.from_numpy(np.asarray(index, np.int64))
    target = eps if chain.config.prediction_type == "epsilon" else chain.get_velocity(latents, eps, t)
    loss = mse_loss(pipe.unet(chain.add_noise(latents, eps, t), t, text).sample, target)
    pipe.unet.zero_grad()
    loss.backward()
    return float(loss.detach()), {name: p.grad.numpy() for name, p in pipe.unet.named_parameters()}


def test_the_gradient_of_a_step_is_that_of_torch(imported):
    """Of the step that `train` compiles, whose draws torch is given; and of its loss, array by array."""
    pipe, workdir = imported
    config = Workdir(workdir).read_config()
    config.condition_dropout = 0.0
    config.train.batch_size = len(CAPTIONS)
    model = pretrained.model(config, Workdir(workdir))
    trainee = experiment.trainee(config, model)
    images = np.random.default_rng(0).uniform(-1, 1, (len(CAPTIONS), 16, 16, 3)).astype(np.float32)
    tokens = model.text.encode(pretrained.read_tokenizer(Workdir(workdir)), CAPTIONS)
    batch = {"x": jnp.asarray(images), "tokens": jnp.asarray(tokens)}

    params = diffusers_unet.from_diffusers(
        {name: p.detach().numpy() for name, p in pipe.unet.named_parameters()}, model.abstract
    )
    begun = state.create(params, experiment.optimizer(config, trainee))
    seed = jax.random.key(5)
    step = experiment.train_step(config, trainee, sharding.mesh(devices=jax.devices()[:1]), model.pretrained)
    _, metrics = jax.jit(step)(begun, batch, seed)

    key, dropout = jax.random.split(jax.random.fold_in(seed, 0))
    drawn = trainee.objective.draw(key, trainee.examples(key, batch, model.pretrained), (), jnp.int32(0))

    @jax.jit
    @jax.value_and_grad
    def ours(params):
        return jnp.mean(
            drawn.weight * trainee.objective.loss(trainee.trained(params, model.pretrained, dropout), drawn.values)
        )

    loss, gradient = ours(params)
    steps = model.schedule.steps
    noise = jax.random.normal(jax.random.fold_in(key, 3), drawn.values.x0.shape)
    index = np.rint(np.asarray(drawn.values.t) * steps) - 1
    there, theirs = gradients_there(pipe, images, noise, drawn.values.eps, index)
    theirs = diffusers_unet.from_diffusers(theirs, model.abstract)
    np.testing.assert_allclose([loss, metrics["loss"]], there, rtol=1e-4)
    norm = np.sqrt(sum(np.square(g).sum() for g in jax.tree.leaves(theirs)))
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-3)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(gradient), jax.tree.leaves(theirs), strict=True):
        assert np.abs(b).max() > 0, path
        assert np.abs(a - b).max() <= 1e-3 * np.abs(b).max(), (path, np.abs(a - b).max(), np.abs(b).max())


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A zip of 24 x 24 pictures with captions, in the layout of Hugging Face's ImageFolder."""
    file, rng = tmp_path_factory.mktemp("data") / "pictures.zip", np.random.default_rng(0)
    with zipfile.ZipFile(file, "w") as held:
        lines = []
        for i in range(12):
            Image.fromarray(rng.integers(0, 256, (24, 24, 3), np.uint8)).save(png := io.BytesIO(), "png")
            held.writestr(f"{i}.png", png.getvalue())
            lines.append(json.dumps({"file_name": f"{i}.png", "text": f"picture {'abc'[i % 3]}"}))
        held.writestr("metadata.jsonl", "\n".join(lines))
    return file


def tuned(folder, workdir, images):
    """A config that goes on from the import in workdir, as docs/weights.md writes it."""
    file = folder / "tuned.py"
    file.write_text(f"""
from pathlib import Path
from diffusion_jax.config import from_json

def get_config():
    config = from_json(Path({str(workdir / "config.json")!r}).read_text())
    config.init_from = {str(workdir)!r}
    config.data.source = {f"folder:{images}"!r}
    config.optimizer.learning_rate = 1e-3
    config.ema.decay = 0.5
    config.train.update(steps=4, batch_size=8)
    config.checkpoint.every = 2
    config.sample.every = 0
    return config
""")
    return file


def params_of(workdir):
    return restore(workdir, step=None, average=False, overrides={}).params


def test_a_run_from_an_import_is_resumed_sampled_exported_and_loaded(imported, pictures, tmp_path):
    """Interrupted in the middle it ends with the parameters of a run that was not."""
    import diffusers

    _, workdir = imported
    config = tuned(tmp_path, workdir, pictures)
    train = lambda root, *flags: main(["train", f"--config={config}", f"--workdir={root}", *flags])  # noqa: E731
    assert train(tmp_path / "whole") == 0
    assert train(tmp_path / "parts", "--config.train.steps=2") == 0
    assert train(tmp_path / "parts") == 0
    jax.tree.map(np.testing.assert_array_equal, params_of(tmp_path / "parts"), params_of(tmp_path / "whole"))
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), params_of(tmp_path / "parts"), params_of(workdir))
    assert min(jax.tree.leaves(moved)) > 1e-5
    sample = ["sample", f"--workdir={tmp_path}/parts", f"--out={tmp_path}/s", "--num=2", "--steps=3", "--save_noise"]
    assert main([*sample, "--prompt=cat"]) == 0
    assert main(["export", f"--workdir={tmp_path}/parts", f"--out={tmp_path}/out", "--check"]) == 0
    assert json.loads((tmp_path / "out/check.json").read_text())["agrees"]
    loaded = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "out", local_files_only=True)
    loaded.set_progress_bar_config(disable=True)
    latents = channels_first(np.load(tmp_path / "s/noise.npy"))
    theirs = loaded(["cat"] * 2, latents=latents, num_inference_steps=3, guidance_scale=7.5, output_type="np").images
    ours = np.load(tmp_path / "s/samples.npz")["images"] / 255
    assert np.abs(ours - theirs).max() < 2e-3 + 0.5 / 255
