"""Inpainting pipelines of Stable Diffusion that diffusers saves, in and out: images painted from the same noise."""

import json

import diffusers_folders as folders
import jax.numpy as jnp
import numpy as np
import pytest
from imported_pipelines import GUIDANCE, NOISE, NUM, STEPS, import_, scheduler, with_scheduler
from PIL import Image

from diffusion_jax import experiment
from diffusion_jax.cli.main import main
from diffusion_jax.models.sampling import START
from diffusion_jax.runs.sample.edit import EditRequest, prepare
from diffusion_jax.runs.workdir.restored import restore

pytestmark = pytest.mark.parity

PICTURE = np.random.default_rng(1).integers(0, 256, (16, 16, 3), np.uint8)
MASK = np.zeros((16, 16), np.uint8)
MASK[2:14, 4:12] = 255  # in whole latents of 2 x 2 pixels
INSIDE = np.zeros((16, 16), bool)
INSIDE[4:12, 6:10] = True


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory):
    """{prediction: a pipeline whose U-Net has 9 channels in}, with any scheduler."""
    import diffusers

    found = {}
    for prediction, version in (("eps", 1), ("v", 2)):
        plain = folders.stable_diffusion(
            tmp_path_factory.mktemp("plain"), version, scheduler("DDIMScheduler", prediction)
        )
        said = {key: value for key, value in plain.unet.config.items() if not key.startswith("_")}
        unet = diffusers.UNet2DConditionModel(**said | {"in_channels": 9})
        parts = plain.components | {"unet": folders.randomized(unet, 2)}
        found[prediction] = diffusers.StableDiffusionInpaintPipeline(**parts, requires_safety_checker=False)
    return found


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    root = tmp_path_factory.mktemp("files")
    Image.fromarray(PICTURE).save(root / "image.png")
    Image.fromarray(MASK).save(root / "mask.png")
    np.save(root / "noise.npy", NOISE)
    return root


@pytest.fixture
def means(monkeypatch):
    """The latents of known images are means there too."""
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda latents, generator=None: latents.mode())


def painted(pipe):
    """diffusers' images [N, H, W, C] in [0, 1] of the prompt, painted where the mask is white."""
    import torch

    pipe.set_progress_bar_config(disable=True)
    first = lambda a: torch.from_numpy(np.moveaxis(a, -1, 1).astype(np.float32))  # noqa: E731
    return pipe(
        [folders.PROMPT] * NUM,
        image=first(PICTURE[None] / 255),
        mask_image=first(MASK[None, ..., None] / 255),
        latents=first(NOISE),
        strength=1.0,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        output_type="np",
    ).images


@pytest.mark.parametrize(
    ("kind", "options", "prediction"),
    [
        ("DDIMScheduler", {"set_alpha_to_one": False, "clip_sample": False}, "eps"),
        ("EulerDiscreteScheduler", {"timestep_spacing": "leading"}, "eps"),
        ("DPMSolverMultistepScheduler", {}, "v"),
    ],
)
def test_an_inpainting_pipeline(pipelines, files, means, tmp_path, kind, options, prediction, capsys):
    theirs = painted(with_scheduler(pipelines[prediction], scheduler(kind, prediction, **options)))
    pipelines[prediction].scheduler = scheduler(kind, prediction, **options)
    pipelines[prediction].save_pretrained(tmp_path / "pipe")
    assert import_(tmp_path / "pipe", tmp_path / "w") == 0
    assert "by a draw of its latent" in capsys.readouterr().out
    trained = restore(tmp_path / "w", step=None, average=True, overrides={"steps": STEPS})
    kind_of_data = experiment.modality(trained.config)
    edit = prepare(EditRequest(files / "image.png", files / "mask.png"), trained.model.shape, kind_of_data)
    program = experiment.edit_program(trained.model, trained.how, trained.mesh, edit.edit)
    cond = {
        START: jnp.asarray(NOISE),
        "tokens": trained.model.text.encode(trained.tokenizer, [folders.PROMPT] * NUM),
    }
    seeds = np.arange(NUM, dtype=np.int32)
    x = np.asarray(program(trained.params, trained.pretrained, seeds, cond, edit.image, edit.unknown))
    ours = np.clip(x / 2 + 0.5, 0, 1)
    inside = ours[:, INSIDE], theirs[:, INSIDE]  # where theirs is not blended with what is known
    assert (inside[1] - PICTURE[INSIDE] / 255).std() > 0.05
    print(kind, prediction, np.abs(np.subtract(*inside)).max())
    np.testing.assert_allclose(*inside, rtol=0, atol=2e-3)
    np.testing.assert_allclose(ours[:, MASK == 0], np.broadcast_to(PICTURE[MASK == 0] / 255, (NUM, 160, 3)), atol=1e-6)
    # Without an edit's border, the whole image is theirs.
    told = trained.model.conditions[0].of_edit(edit.image[None], edit.unknown[None])
    told = {name: jnp.repeat(a, NUM, axis=0) for name, a in told.items()}
    whole = experiment.sample_program(trained.model, trained.how, trained.mesh)
    x = np.asarray(whole(trained.params, trained.pretrained, seeds, cond | told))
    np.testing.assert_allclose(np.clip(x / 2 + 0.5, 0, 1), theirs, rtol=0, atol=2e-3)
    # The command paints the same.
    flags = [f"--workdir={tmp_path}/w", f"--out={tmp_path}/s", f"--num={NUM}", f"--prompt={folders.PROMPT}"]
    given = [f"--init_image={files}/image.png", f"--mask={files}/mask.png", f"--noise={files}/noise.npy"]
    assert main(["sample", *flags, *given, f"--steps={STEPS}"]) == 0
    assert np.abs(np.load(tmp_path / "s/samples.npz")["images"] / 255 - ours).max() < 1 / 255


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_an_inpainting_pipeline_comes_back(pipelines, means, tmp_path, prediction):
    """Bit for bit, and painting the same."""
    import diffusers
    import torch

    pipe = pipelines[prediction]
    pipe.scheduler = scheduler("DDIMScheduler", prediction, set_alpha_to_one=False, clip_sample=False)
    pipe.save_pretrained(tmp_path / "pipe")
    assert import_(tmp_path / "pipe", tmp_path / "w") == 0
    assert main(["export", f"--workdir={tmp_path}/w", f"--out={tmp_path}/out", "--check"]) == 0
    compared = json.loads((tmp_path / "out/check.json").read_text())["compared"]
    assert set(compared) == {"network", "encoded", "decoded", "text", "sample"}
    assert all(each["agrees"] for each in compared.values())
    after = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "out", local_files_only=True)
    assert type(after) is diffusers.StableDiffusionInpaintPipeline
    for part in ("unet", "vae", "text_encoder"):
        a, b = (getattr(each, part).state_dict() for each in (after, pipe))
        assert set(a) == set(b)
        assert all(torch.equal(a[key], b[key]) for key in a)
    np.testing.assert_allclose(painted(after), painted(pipe), rtol=0, atol=1e-6)
    assert "mask_image=mask" in (tmp_path / "out/README.md").read_text()


def test_an_inpainting_pipeline_may_have_a_u_net_of_latents_alone(pipelines, tmp_path):
    """Which is that of text to image."""
    import diffusers

    plain = folders.stable_diffusion(tmp_path / "plain", 1, scheduler("DDIMScheduler", "eps"))
    pipe = diffusers.StableDiffusionInpaintPipeline(**plain.components, requires_safety_checker=False)
    pipe.save_pretrained(tmp_path / "pipe")
    assert import_(tmp_path / "pipe", tmp_path / "w") == 0
    assert restore(tmp_path / "w", step=None, average=True, overrides={}).model.network.concat == ()
