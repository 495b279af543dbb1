"""Exporting from the command line: what an export holds, and what is refused. No torch is needed here."""

import importlib.util
import json

import jax
import numpy as np
import pytest
from random_workdir import save_state
from safetensors.numpy import load_file, safe_open

from configs.tiny import get_config as tiny
from diffusion_jax import config as configs
from diffusion_jax.cli.main import main
from diffusion_jax.interop import diffusers_unet
from diffusion_jax.runs.interchange.model_card import _without_folders
from diffusion_jax.runs.workdir.paths import Workdir
from diffusion_jax.runs.workdir.pretrained import read_autoencoder
from diffusion_jax.runs.workdir.restored import restore

WEIGHTS = "diffusion_pytorch_model.safetensors"


def save(root, config, measured=None):
    """A workdir with random parameters at step 7, and an average that is another."""
    save_state(Workdir(root), configs.check(config), measured=measured)
    return root


def digits(**model):
    config = tiny()
    config.model.update(channels=4, multipliers=(1,), blocks=1, groups=2, dropout=0.0, **model)
    return config


def coder():
    config = tiny()
    config.task = "autoencoder"
    config.autoencoder.update(channels=4, multipliers=(1, 2), blocks=1, groups=2)
    return config


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """Digits by class, measured twice, with a licence."""
    root = save(tmp_path_factory.mktemp("run") / "w", digits())
    (root / "LICENSE").write_text("free")
    (root / "evaluations").mkdir()
    for step in (7, 8):
        about = {
            "checkpoint_step": step,
            "weights": "ema",
            "seeds": [0, 99],
            "sampling": {"sampler": "ddim", "steps": 5},
        }
        fd = {"label": "FD", "value": 12.5 * step, "std": 0.25, "how": {"n": 100}}
        result = {"subject": about, "data": {"source": "digits", "split": "test"}, "metrics": {"fd": fd}}
        (root / f"evaluations/{step}.json").write_text(json.dumps(result))
    (root / "evaluations/other.json").write_text("[]")
    return root


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory):
    return save(tmp_path_factory.mktemp("run") / "coder", coder(), {"latent_std": 1 / 0.3})


def export(workdir, out, *flags):
    return main(["export", f"--workdir={workdir}", f"--out={out}", *flags])


def refused(capsys, workdir, out, *flags):
    """The one sentence of an export that fails and leaves nothing behind."""
    before = sorted(out.parent.iterdir())
    assert export(workdir, out, *flags) == 2
    assert sorted(out.parent.iterdir()) == before
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


def test_an_export_is_a_pipeline_and_its_card(workdir, tmp_path, capsys):
    assert export(workdir, tmp_path / "out") == 0
    said = capsys.readouterr().out
    assert f"step 7 (ema) of {workdir} as DDIMPipeline: {tmp_path}/out" in said
    assert "another in diffusers than here: no pipeline there tells" in said
    files = {str(file.relative_to(tmp_path / "out")) for file in (tmp_path / "out").rglob("*") if file.is_file()}
    parts = {"unet/config.json", f"unet/{WEIGHTS}", "scheduler/scheduler_config.json", "model_index.json"}
    assert files == parts | {"README.md", "LICENSE", "export.json"}
    index = json.loads((tmp_path / "out/model_index.json").read_text())
    assert index["unet"] == ["diffusers", "UNet2DModel"]
    assert index["scheduler"] == ["diffusers", "DDIMScheduler"]
    assert json.loads((tmp_path / "out/unet/config.json").read_text())["num_class_embeds"] == 11
    record = json.loads((tmp_path / "out/export.json").read_text())
    assert (record["checkpoint_step"], record["weights"], record["dtype"]) == (7, "ema", "float32")
    assert record["call"] == {"num_inference_steps": 5, "use_clipped_model_output": True}
    card = (tmp_path / "out/README.md").read_text()
    assert "license: other\nlicense_link: LICENSE" in card
    assert "7 steps of 16 examples of digits (split train)" in card
    assert "| `model.channels` | `4` |" in card
    row = "| FD | 87.5 ± 0.25 | n = 100, digits (test), seeds [0, 99] | sampler ddim, steps 5 | `7.json` |"
    assert row in card
    assert "8.json" not in card
    code = card.partition("```python\n")[2].partition("```")[0]
    compile(code, "README.md", "exec")
    assert "labels = torch.arange(10)" in code


def test_a_card_says_nothing_of_where_files_lie():
    said = "huggingface(folder='/home/me/clip', length=12) folder:/data/images gs://bucket/run rel/a 1/2"
    assert _without_folders(said) == "huggingface(folder='clip', length=12) folder:images gs://bucket/run rel/a 1/2"


@pytest.mark.parametrize("flag", ["--ema=true", "--noema"])
def test_its_arrays_are_those_of_the_checkpoint(workdir, tmp_path, flag):
    assert export(workdir, tmp_path / "out", flag) == 0
    found = load_file(tmp_path / "out/unet" / WEIGHTS)
    wanted = restore(workdir, step=None, average=flag == "--ema=true", overrides={}).params
    jax.tree.map(np.testing.assert_array_equal, diffusers_unet.from_diffusers(found, wanted), wanted)


def test_what_is_exported_is_imported_again(workdir, autoencoder, tmp_path):
    assert export(workdir, tmp_path / "out") == 0
    assert main(["import", f"--from={tmp_path}/out", f"--workdir={tmp_path}/w"]) == 0
    before, after = (restore(root, step=None, average=True, overrides={}) for root in (workdir, tmp_path / "w"))
    jax.tree.map(np.testing.assert_array_equal, after.params, before.params)
    assert after.model.network == before.model.network
    assert after.model.shape == before.model.shape
    assert after.how.sampler == before.how.sampler
    t = np.linspace(0, 1, 101)
    np.testing.assert_array_equal(after.model.schedule.alpha(t), before.model.schedule.alpha(t))
    assert export(autoencoder, tmp_path / "vae") == 0
    assert main(["import", f"--from={tmp_path}/vae", f"--workdir={tmp_path}/v"]) == 0
    one, other = read_autoencoder(autoencoder), read_autoencoder(tmp_path / "v")
    jax.tree.map(np.testing.assert_array_equal, one.params, other.params)
    assert (one.network, one.scale) == (other.network, other.scale)


def test_half_the_bytes(workdir, tmp_path, capsys):
    assert export(workdir, tmp_path / "out", "--dtype=float16") == 0
    half = load_file(tmp_path / "out/unet" / WEIGHTS)
    assert {value.dtype.name for value in half.values()} == {"float16"}
    params = restore(workdir, step=None, average=True, overrides={}).params
    for name, value in diffusers_unet.to_diffusers(params).items():
        np.testing.assert_array_equal(half[name], value.astype(np.float16))


def test_a_value_that_float16_cannot_hold_is_said(tmp_path, capsys, monkeypatch):
    root = save(tmp_path / "w", digits())
    right = diffusers_unet.to_diffusers
    large = lambda params, **options: right(params, **options) | {"conv_in.bias": np.full(4, 7e4, np.float32)}  # noqa: E731
    monkeypatch.setattr(diffusers_unet, "to_diffusers", large)
    said = refused(capsys, root, tmp_path / "out", "--dtype=float16")
    assert "conv_in.bias has values up to 7e+04, which float16 cannot hold" in said
    assert export(root, tmp_path / "out") == 0


def test_our_own_names(workdir, autoencoder, tmp_path):
    assert export(workdir, tmp_path / "out", "--format=safetensors") == 0
    found = load_file(tmp_path / "out/model.safetensors")
    params = restore(workdir, step=None, average=True, overrides={}).params
    np.testing.assert_array_equal(found["down_0/block_0/conv1/kernel"], params["down_0"]["block_0"]["conv1"]["kernel"])
    assert len(found) == len(jax.tree.leaves(params))
    with safe_open(tmp_path / "out/model.safetensors", "numpy") as file:
        assert file.metadata() == {"format": "diffusion_jax", "step": "7", "weights": "ema"}
    config = configs.from_json((tmp_path / "out/config.json").read_text())
    assert config.model.channels == 4
    assert export(autoencoder, tmp_path / "coder", "--format=safetensors", "--dtype=float16") == 0
    assert "autoencoder/decoder/conv_in/kernel" in load_file(tmp_path / "coder/model.safetensors")


def test_what_has_no_twin_there_is_written_under_our_names(tmp_path, capsys):
    config = digits(head_channels=4)
    config.task = "classifier"
    root = save(tmp_path / "w", config)
    assert "a run of task classifier has no twin in diffusers" in refused(capsys, root, tmp_path / "out")
    assert export(root, tmp_path / "out", "--format=safetensors") == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"spatial": ("inpaint()",)}, "a model that is told inpaint has no twin in diffusers"),
        ({"schedule": "vp", "sample.grid": "uniform"}, "schedule 'vp', which is no chain"),
        ({"sample.grid": "uniform"}, "time grid uniform has no twin in diffusers; give --grid=trailing"),
        ({"sample.sampler": "heun"}, "a pipeline that draws pixels with HeunDiscreteScheduler"),
        ({"model.heads": 2, "model.multipliers": (1, 2), "model.attention": (1,)}, "model.heads=2 at levels of [4, 8]"),
    ],
)
def test_a_model_without_a_twin_is_refused_by_name(tmp_path, capsys, change, said):
    config = digits(num_classes=0)
    config.update_from_flattened_dict(change)
    found = refused(capsys, save(tmp_path / "w", config), tmp_path / "out")
    assert said in found
    assert "--format=safetensors" in found


def test_a_dit_of_pixels_is_its_transformer_and_a_scheduler(tmp_path, capsys):
    config = configs.base("dit")
    config.data.shape = (8, 8, 1)
    config.schedule = "cosine(steps=100)"
    config.model.update(width=8, depth=2, heads=2, sinusoids="ddpm", num_classes=10)
    config.sample.update(sampler="ddim", steps=5, guidance=2.0, threshold="none")
    root = save(tmp_path / "w", config)
    assert "guidance 0.5, below 1, has no twin" in refused(capsys, root, tmp_path / "out", "--guidance=0.5")
    assert export(root, tmp_path / "out") == 0
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert (config["_class_name"], config["num_embeds_ada_norm"]) == ("DiTTransformer2DModel", 10)
    assert (tmp_path / "out" / WEIGHTS).is_file()
    assert (tmp_path / "out/scheduler/scheduler_config.json").is_file()
    assert not (tmp_path / "out/model_index.json").exists()
    assert "DiTTransformer2DModel.from_pretrained('out')" in (tmp_path / "out/README.md").read_text()


def test_what_a_user_asks_amiss_is_one_sentence(workdir, autoencoder, tmp_path, capsys):
    out = tmp_path / "out"
    wrong = refused(capsys, workdir, out, "--format=onnx")
    assert "--format is one of diffusers, safetensors, stablehlo; got 'onnx'" in wrong
    assert "--dtype is one of float32, float16" in refused(capsys, workdir, out, "--dtype=int8")
    assert "no checkpoint of step 3" in refused(capsys, workdir, out, "--step=3")
    assert "is not a workdir" in refused(capsys, tmp_path / "absent", out)
    assert "--sampler is of a diffusion model" in refused(capsys, autoencoder, out, "--sampler=ddim")
    assert "leave out one" in refused(capsys, workdir, out, "--check", "--format=safetensors")
    assert main(["export", f"--workdir={workdir}"]) == 2
    assert "export needs --workdir=FOLDER and --out=FOLDER" in capsys.readouterr().err


def test_a_folder_is_replaced_where_it_is_an_export_and_that_is_asked(workdir, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("kept")
    assert "already has files" in refused(capsys, workdir, out)
    assert "so it is not a folder of exports" in refused(capsys, workdir, out, "--overwrite")
    assert [path.name for path in out.iterdir()] == ["mine"]
    assert export(workdir, tmp_path / "new", "--format=safetensors") == 0
    assert export(workdir, tmp_path / "new", "--overwrite") == 0
    assert not (tmp_path / "new/model.safetensors").exists()


def test_a_check_needs_torch(workdir, tmp_path, capsys, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "torch" else found(name, *rest)
    )
    said = refused(capsys, workdir, tmp_path / "out", "--check")
    assert "torch cannot be found; install with pip install torch" in said.replace(
        "torch and diffusers cannot", "torch cannot"
    )


def test_a_disk_that_is_full_leaves_nothing_behind(workdir, tmp_path, capsys, monkeypatch):
    from diffusion_jax.runs.interchange import exporting

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(exporting, "model_card", full)
    assert "No space left on device" in refused(capsys, workdir, tmp_path / "out")
