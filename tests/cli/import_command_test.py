"""Importing from the command line: what becomes a workdir, and what bad input is told. No torch is needed here."""

import json
import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from diffusion_jax.cli.main import main
from diffusion_jax.errors import UserError
from diffusion_jax.interop import diffusers_autoencoder, diffusers_unet
from diffusion_jax.interop.diffusers_options import autoencoder, unet
from diffusion_jax.interop.diffusers_scheduler import scheduler
from diffusion_jax.nets.autoencoder import AutoencoderKL
from diffusion_jax.nets.unet import UNet
from diffusion_jax.runs.sample.noise_request import NoiseRequest, starting_noise
from diffusion_jax.runs.workdir.pretrained import read_autoencoder
from diffusion_jax.runs.workdir.restored import restore

NET = UNet(
    3, channels=4, multipliers=(1, 2), blocks=1, attention=(), groups=2, head_channels=4, epsilon=1e-5, padding="both"
)
CODER = AutoencoderKL(channels=4, multipliers=(1, 2), blocks=1, groups=2)
UNET_CONFIG = {
    "_class_name": "UNet2DModel",
    "sample_size": 8,
    "block_out_channels": [4, 8],
    "layers_per_block": 1,
    "down_block_types": ["DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D"],
    "attention_head_dim": 4,
    "norm_num_groups": 2,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
}
VAE_CONFIG = {
    "_class_name": "AutoencoderKL",
    "sample_size": 16,
    "block_out_channels": [4, 8],
    "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D"],
    "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D"],
    "norm_num_groups": 2,
    "scaling_factor": 0.5,
}
WEIGHTS = "diffusion_pytorch_model.safetensors"


def random(net, *inputs):
    shapes = jax.eval_shape(net.init, jax.random.key(0), *inputs)["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda a: 0.3 * rng.standard_normal(a.shape, np.float32), shapes)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A DDIM pipeline of 8 x 8 images, and an autoencoder beside it."""
    root = tmp_path_factory.mktemp("published")
    params = random(NET, jnp.zeros((1, 8, 8, 3)), jnp.zeros(1))
    index = {"_class_name": "DDIMPipeline", "unet": ["diffusers", "UNet2DModel"]}
    index |= {"scheduler": ["diffusers", "DDIMScheduler"], "vae": ["diffusers", "AutoencoderKL"]}
    for name, said in (("unet", UNET_CONFIG), ("vae", VAE_CONFIG)):
        (root / name).mkdir()
        (root / name / "config.json").write_text(json.dumps(said))
    save_file(diffusers_unet.to_diffusers(params), root / "unet" / WEIGHTS)
    coder = random(CODER, jnp.zeros((1, 16, 16, 3)))
    save_file(diffusers_autoencoder.to_diffusers(coder), root / "vae" / WEIGHTS)
    (root / "model_index.json").write_text(json.dumps(index))
    (root / "scheduler").mkdir()
    options = {"_class_name": "DDIMScheduler", "clip_sample": False, "timestep_spacing": "trailing"}
    (root / "scheduler/scheduler_config.json").write_text(json.dumps(options))
    (root / "LICENSE").write_text("free")
    return root, params, coder


@pytest.fixture
def folder(published, tmp_path):
    """A copy to damage."""
    return shutil.copytree(published[0], tmp_path / "published")


def import_(folder, workdir, *flags):
    return main(["import", f"--from={folder}", f"--workdir={workdir}", *flags])


def refused(capsys, folder, *flags):
    """The one sentence of an import that fails and leaves nothing behind."""
    workdir = folder.parent / "w"
    before = sorted(folder.parent.iterdir())
    assert import_(folder, workdir, *flags) == 2
    assert sorted(folder.parent.iterdir()) == before
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


def test_an_import_is_a_workdir_that_samples(published, tmp_path):
    root, params, _ = published
    assert import_(root, tmp_path / "w") == 0
    trained = restore(tmp_path / "w", step=None, average=True, overrides={})
    jax.tree.map(np.testing.assert_array_equal, trained.params, params)
    assert (trained.step, trained.how.sampler, trained.how.grid, trained.how.steps) == (0, "ddim", "trailing", 50)
    assert (tmp_path / "w/LICENSE").read_text() == "free"
    assert json.loads((tmp_path / "w/imported.json").read_text())["left_out"] == ["vae"]
    sample = ["sample", f"--workdir={tmp_path}/w", "--num=2", "--steps=2"]
    assert main([*sample, f"--out={tmp_path}/a", "--save_noise"]) == 0
    # The noise of the seeds, given in a file, draws the same images; another draws others.
    assert main([*sample, f"--out={tmp_path}/b", f"--noise={tmp_path}/a/noise.npy", "--seed=9"]) == 0
    a, b = (np.load(tmp_path / name / "samples.npz")["images"] for name in "ab")
    np.testing.assert_array_equal(a, b)
    np.save(tmp_path / "other.npy", np.zeros((2, 8, 8, 3), np.float32))
    assert main([*sample, f"--out={tmp_path}/c", f"--noise={tmp_path}/other.npy"]) == 0
    assert (np.load(tmp_path / "c/samples.npz")["images"] != a).any()


@pytest.mark.parametrize("noise", [np.zeros((3, 8, 8, 3), np.float32), np.full((2, 8, 8, 3), np.nan), np.ones(2, int)])
def test_noise_that_does_not_fit_is_one_sentence(published, tmp_path, capsys, noise):
    assert import_(published[0], tmp_path / "w") == 0
    np.save(tmp_path / "noise.npy", noise)
    flags = [f"--workdir={tmp_path}/w", f"--out={tmp_path}/a", "--num=2", "--steps=2"]
    assert main(["sample", *flags, f"--noise={tmp_path}/noise.npy"]) == 2
    assert f"--noise={tmp_path}/noise.npy h" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file or directory"),
        (b"no array", "is no whole .npy file; write one with numpy.save"),
        (b"", "is no whole .npy file"),
        (b"\x93NUMPY\x01\x00v\x00{", "is no whole .npy file"),
    ],
)
def test_a_file_that_holds_no_noise_is_one_sentence(tmp_path, content, message):
    """And never numpy's own, which advises to unpickle the file."""
    file = tmp_path / "noise.npy"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError, match=f"^--noise={file} {message}") as raised:
        starting_noise(NoiseRequest(file), np.arange(2), (8, 8, 3))
    assert "pickle" not in str(raised.value)


def test_an_autoencoder_alone_is_a_latent_space(published, tmp_path):
    assert import_(published[0], tmp_path / "w", "--part=autoencoder") == 0
    found = read_autoencoder(tmp_path / "w")
    jax.tree.map(np.testing.assert_array_equal, found.params, published[2])
    assert found.scale == 0.5


def test_shards_are_one_state(folder, published, tmp_path):
    state = load_file(folder / "unet" / WEIGHTS)
    names = sorted(state)
    shards = {"a.safetensors": names[:7], "b.safetensors": names[7:]}
    for file, some in shards.items():
        save_file({name: state[name] for name in some}, folder / "unet" / file)
    index = {"weight_map": {name: file for file, some in shards.items() for name in some}}
    (folder / "unet" / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    (folder / "unet" / WEIGHTS).unlink()
    assert import_(folder, tmp_path / "w") == 0
    jax.tree.map(
        np.testing.assert_array_equal,
        restore(tmp_path / "w", step=None, average=True, overrides={}).params,
        published[1],
    )


def test_a_missing_shard_is_named(folder, capsys):
    (folder / "unet" / WEIGHTS).rename(folder / "unet" / "a.safetensors")
    index = {"weight_map": {"conv_in.weight": "a.safetensors", "conv_out.weight": "b.safetensors"}}
    file = folder / "unet" / f"{WEIGHTS}.index.json"
    file.write_text(json.dumps(index))
    assert f"{file} lists b.safetensors, which {folder}/unet lacks" in refused(capsys, folder)
    file.write_text(json.dumps({"weight_map": {"conv_in.weight": "a.safetensors"}}))
    assert "the index and the shards" in refused(capsys, folder)
    file.write_text(json.dumps({"weight_map": {"conv_in.weight": "../a.safetensors"}}))
    assert "no file beside it" in refused(capsys, folder)


@pytest.mark.parametrize("size", [0, 5, 1000])
def test_truncated_weights_are_said(folder, capsys, size):
    file = folder / "unet" / WEIGHTS
    file.write_bytes(file.read_bytes()[:size])
    assert f"{file} is no safetensors file that can be read" in refused(capsys, folder)


def test_missing_and_superfluous_arrays_are_both_listed(folder, capsys):
    file = folder / "unet" / WEIGHTS
    state = load_file(file)
    del state["conv_in.bias"]
    save_file(state | {"conv_extra.bias": np.zeros(3, np.float32)}, file)
    assert "missing ['conv_in.bias']; left over ['conv_extra.bias']" in refused(capsys, folder)


def test_pickles_are_refused_with_what_converts_them(folder, capsys):
    (folder / "unet" / WEIGHTS).rename(folder / "unet" / "diffusion_pytorch_model.bin")
    said = refused(capsys, folder)
    assert "a pickle is not read" in said
    assert f"P.from_pretrained('{folder}', use_safetensors=False)" in said
    checkpoint = folder.parent / "model.ckpt"
    checkpoint.write_bytes(b"\x80")
    assert import_(checkpoint, folder.parent / "w") == 2
    assert "from_single_file" in capsys.readouterr().err


def test_a_variant_is_asked_for(folder, capsys):
    (folder / "unet" / WEIGHTS).rename(folder / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    assert "give --variant=fp16" in refused(capsys, folder)
    assert import_(folder, folder.parent / "w", "--variant=fp16") == 0


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        ("unet/config.json", {"center_input_sample": True}, "center_input_sample=True has no twin here; False is what"),
        ("unet/config.json", {"new_option": 3}, "the option new_option=3 is unknown here"),
        ("unet/config.json", {"block_out_channels": [4, 6]}, "block_out_channels=[4, 6] has no twin"),
        ("unet/config.json", {"block_out_channels": "wide"}, "has a value that diffusers does not write"),
        ("unet/config.json", {"down_block_types": ["DownBlock2D", "SkipDownBlock2D"]}, "'SkipDownBlock2D' has no twin"),
        (
            "unet/config.json",
            {"in_channels": 4},
            "in_channels=4 and out_channels=3 have no twin here; they are 4 and 4",
        ),
        ("unet/config.json", {"sample_size": None}, "does not say sample_size"),
        ("scheduler/scheduler_config.json", {"beta_schedule": "sigmoid"}, "beta_schedule='sigmoid' has no twin"),
        ("scheduler/scheduler_config.json", {"_class_name": "LCMScheduler"}, "the scheduler LCMScheduler has no twin"),
        ("model_index.json", {"_class_name": "StableDiffusionXLPipeline"}, "has UNet2DModel as unet"),
        ("model_index.json", {"unet": [None, None]}, "has nothing as unet"),
    ],
)
def test_what_has_no_twin_is_refused_by_name_before_weights_are_read(folder, capsys, file, change, said):
    for weights in folder.rglob("*.safetensors"):
        weights.write_bytes(b"never read")
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert said in refused(capsys, folder)


def test_other_folders_are_no_checkpoint(tmp_path, capsys):
    empty = tmp_path / "source" / "empty"
    empty.mkdir(parents=True)
    assert "neither model_index.json, of a pipeline, nor config.json" in refused(capsys, empty)
    (empty / "config.json").write_text('{"_class_name": "FluxTransformer2DModel"}')
    assert "FluxTransformer2DModel, which is not imported" in refused(capsys, empty)
    (empty / "config.json").write_text('{"_class_name": "Transformer2DModel"}')
    assert f"diffusion-jax: {empty}/config.json does not say num_embeds_ada_norm; add it\n" == refused(capsys, empty)
    (empty / "config.json").write_text("{")
    assert "is not JSON" in refused(capsys, empty)
    assert import_(tmp_path / "absent", tmp_path / "w") == 2
    assert "is no folder" in capsys.readouterr().err
    assert import_("https://owner/name", tmp_path / "w") == 2
    assert "fetch it first" in capsys.readouterr().err


def test_a_folder_with_files_is_not_overwritten(folder, capsys):
    workdir = folder.parent / "w"
    workdir.mkdir()
    (workdir / "mine").write_text("kept")
    assert "exists already and is not overwritten" in refused(capsys, folder)
    assert [path.name for path in workdir.iterdir()] == ["mine"]


def test_a_disk_that_is_full_leaves_nothing_behind(folder, capsys, monkeypatch):
    from diffusion_jax.runs.interchange import importing

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(importing, "_write_record", full)
    assert "No space left on device" in refused(capsys, folder)


SD_1 = {  # as published
    "_class_name": "UNet2DConditionModel",
    "_diffusers_version": "0.6.0",
    "act_fn": "silu",
    "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280],
    "center_input_sample": False,
    "cross_attention_dim": 768,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "out_channels": 4,
    "sample_size": 64,
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
}
SD_2 = SD_1 | {
    "attention_head_dim": [5, 10, 20, 20],
    "cross_attention_dim": 1024,
    "dual_cross_attention": False,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "sample_size": 96,
    "upcast_attention": True,
    "use_linear_projection": True,
}


@pytest.mark.slow
@pytest.mark.parametrize(("config", "count"), [(SD_1, 859_520_964), (SD_2, 865_910_724)])
def test_published_configs_have_the_published_number_of_parameters(config, count):
    found = unet(config, "there")
    net = UNet(found.out_channels, text_features=found.text_features, **found.options)
    text = {"text": jnp.zeros((1, 77, found.text_features))}
    shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 64, 64, 4)), jnp.zeros(1), text)["params"]
    assert sum(math.prod(a.shape) for a in jax.tree.leaves(shapes)) == count


def test_the_published_autoencoder_has_the_defaults_of_ours():
    config = {  # Stable Diffusion 1's
        "act_fn": "silu",
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "layers_per_block": 2,
        "sample_size": 512,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
    }
    found = autoencoder(config, "there")
    assert AutoencoderKL(**found.options) == AutoencoderKL()  # of 83,653,863 parameters
    assert (found.channels, found.size, found.scaling_factor) == (3, (512, 512), 0.18215)


@pytest.mark.parametrize(
    ("config", "latent", "sampler", "grid"),
    [
        (  # as published: Stable Diffusion 1.4, PNDM
            {"_class_name": "PNDMScheduler", "skip_prk_steps": True, "steps_offset": 1},
            True,
            "plms",
            "leading(offset=1, last='t_min')",
        ),
        (  # XL's
            {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading", "steps_offset": 1},
            True,
            "euler",
            "leading(offset=1)",
        ),
        (
            {"_class_name": "DPMSolverMultistepScheduler"},
            True,
            "dpmpp_2m(solver='midpoint')",
            "linspace(skip_first=True)",
        ),
        (
            {"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver++", "solver_type": "heun"},
            True,
            "dpmpp_2m_sde(solver='heun')",
            "linspace(skip_first=True)",
        ),
        ({"_class_name": "DDPMScheduler"}, False, "ddpm(variance='small')", "leading"),
    ],
)
def test_published_schedulers_have_twins(config, latent, sampler, grid):
    twin = scheduler(config, "there", latent=latent)
    assert (twin.sampler, twin.grid, twin.notes) == (sampler, grid, ())
    assert twin.threshold == ("none" if latent else "static")


@pytest.mark.parametrize(
    ("config", "note"),
    [
        ({"_class_name": "DEISMultistepScheduler"}, "DEISMultistepScheduler has no twin: dpmpp_2m"),
        ({"_class_name": "PNDMScheduler"}, "Runge-Kutta start"),
        ({"_class_name": "DDIMScheduler", "set_alpha_to_one": False, "clip_sample": False}, "would not move"),
        ({"_class_name": "DDIMScheduler", "timestep_spacing": "linspace", "clip_sample": False}, "steps by T // N"),
        ({"_class_name": "EulerDiscreteScheduler"}, "0.2% less"),
        ({"_class_name": "DPMSolverMultistepScheduler", "use_karras_sigmas": True}, "use_karras_sigmas rounds"),
    ],
)
def test_the_nearest_is_said(config, note):
    assert note in " ".join(scheduler(config, "there", latent=False).notes)
