"""The command as a user runs it."""

import importlib
import importlib.util
import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax import experiment
from diffusion_jax.cli.main import main
from diffusion_jax.config import base
from diffusion_jax.errors import UserError
from diffusion_jax.experiment import plan as building
from diffusion_jax.launching.machines import CHIPS, Chip
from diffusion_jax.models.text import text_encoder
from diffusion_jax.report.plan import text
from diffusion_jax.runs.plan import compile_cache, preflight
from diffusion_jax.runs.plan import run as runs
from diffusion_jax.runs.plan.analysis import analyse
from diffusion_jax.runs.plan.breakdown import KINDS, OUTSIDE
from diffusion_jax.train import sharding

CONFIGS = Path(__file__).parents[2] / "configs"
SMALL = ["--config.model.multipliers=(1,)", "--config.model.attention=()"]

MEMORY = 2_000_000  # bytes

NOTHING_ELSE = {"parameters": 0, "state_bytes_a_chip": {}, "checkpoint_bytes": 0, "preflight": []}


def plan(*flags):
    return main(["plan", f"--config={CONFIGS / 'tiny.py'}", "--cache=", *SMALL, *flags])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A plan for 4 data x 2 fsdp of tiny.py's step, two of them in one dispatch, each accumulated twice."""
    out = tmp_path_factory.mktemp("plan") / "plan.json"
    several = [f"--config.{key}=10" for key in ("train.steps", "log_every", "checkpoint.every", "sample.every")]
    flags = ["--config.train.accumulate=2", "--config.train.steps_per_dispatch=2", "--config.mesh.fsdp=2", *several]
    flags += [
        "--config.model.channels=32",
        "--devices=8",
        "--chip=v5e",
        "--price=1.5",
        "--images=1000000000",
        "--sample",
        f"--out={out}",
    ]
    assert plan(*flags) == 0
    return json.loads(out.read_text())


def test_a_plan_splits_the_compilers_bytes_by_kind_and_level(made):
    kinds = {part["kind"] for part in made["train"]["parts_a_chip"]}
    assert kinds == set(KINDS)
    levels = {part["level"] for part in made["train"]["parts_a_chip"]}
    assert {"conv_in", "down_0", "mid", "up_0", "conv_out", OUTSIDE} <= levels
    for name in ("train", "sample"):
        total = sum(part["accessed"] for part in made[name]["parts_a_chip"])
        assert total == pytest.approx(made[name]["bytes_accessed_a_chip"], rel=0.1)


def test_a_plan_knows_what_training_holds(made):
    config = base()
    config.data.shape = (8, 8, 1)
    config.model.update(channels=32, multipliers=(1,), blocks=1, attention=(), groups=4, dropout=0.1, num_classes=10)
    config.data.cache = True
    state = experiment.abstract_state(config, experiment.trainee(config, experiment.model(config)))
    count = sum(a.size for a in jax.tree.leaves(state.params))
    assert made["parameters"] == count
    assert made["checkpoint_bytes"] == sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(state))
    held = made["state_bytes_a_chip"]
    assert held["parameters"] == held["average"]
    assert held["optimizer"] == pytest.approx(2 * held["parameters"], rel=0.01)  # Adam's two moments
    assert count * 4 / 2 <= held["parameters"] < count * 4  # fsdp = 2 halves the large arrays


def test_work_of_a_step_is_of_one_step_whatever_is_dispatched(made):
    step = made["train"]
    assert step["loop_factor"] == pytest.approx(4, rel=0.05)  # two steps of two micro-batches, the compiler sees one
    a_chip = step["flops"] / 8 * 2 / step["loop_factor"]
    assert 0.7 < a_chip / step["compiled_flops_a_chip"] < 1  # which has what is added beside matrices too
    assert step["fits"]
    assert step["roofline"]["bound"] == "hbm"
    assert step["images_per_second"] == pytest.approx(16 / step["roofline"]["seconds"])
    assert step["mfu"] == pytest.approx(step["roofline"]["compute"] / step["roofline"]["seconds"])
    gathered = step["collectives_a_chip"]["all-gather"]["bytes"]
    assert gathered > 0  # what fsdp splits is gathered to be used
    hours = 1e9 / step["images_per_second"] / 3600
    assert made["cost"]["total"] == pytest.approx(hours * 8 * 1.5)


def test_a_sampler_is_planned_for_all_its_steps(made):
    assert made["sample"]["batch_size"] == 24  # config.sample.num=20, rounded up to what the mesh divides
    assert made["sample"]["loop_factor"] == pytest.approx(5, rel=0.01)


def test_a_plan_is_printed(made):
    lines = text(made).splitlines()
    assert lines[0].startswith("machine")
    assert f"{made['parameters']:,}" in lines[1]
    assert any("at the peak: fits" in line for line in lines)
    assert any("bound by HBM bandwidth" in line for line in lines)
    assert any(line.startswith("all-gather x ") for line in lines)
    assert any(line.startswith("ok       label: [] int32, from 0 to 9") for line in lines)
    assert all("estimate" in line for line in lines if "images/s" in line or line.startswith(("time", "cost")))


def test_what_does_not_fit_is_told():
    mesh = sharding.mesh(devices=jax.devices()[:1])
    traced = jax.jit(lambda x: x @ x).trace(jax.ShapeDtypeStruct((64, 64), jnp.float32))
    small = Chip("toy", 1e12, 30_000, 1e9, 1e9)  # bytes: argument and result take 32,768
    for chip, fits in ((small, False), (CHIPS["v5e"], True)):
        step = {"batch_size": 1, **analyse("product", traced, mesh, chip, images=1)}
        assert step["fits"] is fits
        machine = {"name": "toy", "devices": 1, "device_kind": "cpu", "mesh": dict(mesh.shape), "chip": vars(chip)}
        told = text({"machine": machine, "train": step, **NOTHING_ELSE})
        assert ("DOES NOT FIT" in told) is not fits


def test_what_the_compiler_refuses_for_want_of_memory_does_not_fit():
    class Refused:
        """As libtpu refuses a program that is too large."""

        jaxpr = jax.make_jaxpr(lambda x: x @ x)(jnp.zeros((4, 4)))

        def lower(self):
            return self

        def compile(self):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Ran out of memory on HBM, 76.19G exceeds 15.75G")

    mesh = sharding.mesh()
    step = {"batch_size": 8, **analyse("product", Refused(), mesh, CHIPS["v5e"], images=8)}
    assert step["fits"] is False
    assert step["flops"] == 2 * 4**3
    assert runs.cost(step, 8, 1.5, 100)["total"] is None
    machine = {"name": "toy", "devices": 8, "device_kind": "cpu", "mesh": dict(mesh.shape), "chip": None}
    told = text({"machine": machine, "train": step, "cost": runs.cost(step, 8, 1.5, 100), **NOTHING_ELSE})
    assert "DOES NOT FIT: RESOURCE_EXHAUSTED: Ran out of memory on HBM" in told
    assert "no estimate" in told


def test_data_that_are_no_images_pass_the_preflight_in_their_own_units(tmp_path):
    np.save(tmp_path / "a.npy", 1000 + 50 * np.random.default_rng(0).standard_normal((40, 16, 2)))
    for source, shape in ((f"arrays:{tmp_path / 'a.npy'}", ()), ("notes:4000,0.128,40", (512, 1))):
        config = base()
        config.data.update(source=source, shape=shape)
        config.model.update(channels=8, multipliers=(1,), blocks=1, attention=(), groups=4)
        config.train.batch_size = 16
        config = runs._resolved(config)
        found = preflight.checks(config, experiment.model(config), sharding.mesh(), 0)
        assert {each["check"]: each["verdict"] for each in found} == {each["check"]: "ok" for each in found}
        assert "x" in {each["check"] for each in found}
    config.data.source = "audio:/nowhere"
    assert runs._resolved(config) is config  # its shape is known, which is all that a plan needs


def test_preflight_sees_labels_out_of_range_and_guidance_never_trained(monkeypatch):
    config = base()
    config.data.shape = (8, 8, 1)
    config.model.update(channels=8, multipliers=(1,), blocks=1, attention=(), groups=4, num_classes=10)
    config.train.batch_size = 16
    config.sample.guidance = 2.0
    model, mesh = experiment.model(config), sharding.mesh()

    def verdicts():
        return {c["check"]: c["verdict"] for c in preflight.checks(config, model, mesh, 0)}

    assert set(verdicts().values()) == {"ok"}
    config.condition_dropout = 0.0
    assert verdicts()["guidance"] == "warning"
    first_batch = preflight.examples.first_batch

    def broken(*args):
        batch = first_batch(*args)
        return batch | {"label": batch["label"] + 1, "x": batch["x"] * 127.5 + 127.5}

    monkeypatch.setattr(preflight.examples, "first_batch", broken)
    assert verdicts()["label"] == verdicts()["x"] == "warning"
    for source, told in (
        ("folder:/nowhere", "/nowhere"),
        ("tfds:cifar10", "not prepared"),
        ("shapes:16", "not prepared"),
    ):
        config.data.source = source
        data = next(c for c in preflight.checks(config, model, mesh, 0) if c["check"] == "data")
        assert data["verdict"] == "warning"
        assert told in data["says"]
    disk = next(c for c in preflight.checks(config, model, mesh, 10**18) if c["check"] == "disk")
    assert disk["verdict"] == "warning"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--topology=v9:2x2"], "unknown topology 'v9:2x2'; known are v5e:"),
        (["--chip=abacus"], "unknown chip 'abacus'; choose from v4, v5e"),
        (["--price=2"], "both --price=PER_CHIP_HOUR and --images=NUMBER"),
        (["--topology=v5e:2x2", "--devices=8"], "choose one machine"),
        (["--devices=0"], "--devices is at least 1"),
        (["--devices=3"], "train.batch_size=16 is not divisible by 3"),
        (["--sample", "--config.task=classifier"], "draws no samples"),
        (["--config.task=poem"], "unknown task 'poem'"),
        (["--search", "--devices=2"], "--search compares by the peaks of a chip"),
        (
            ["--config.latent=absent"],
            "no run of an autoencoder in latent=absent; plan with the shapes of one by --auto",
        ),
        (["--autoencoder=absent.py"], "no config file absent.py"),
        ([f"--autoencoder={CONFIGS / 'tiny.py'}"], "this one works in pixels"),
        (
            [f"--autoencoder={CONFIGS / 'tiny.py'}", "--config.latent=x"],
            "config of task autoencoder; got one of task diff",
        ),
    ],
)
def test_what_cannot_be_planned_is_one_sentence(flags, message, capsys):
    assert plan(*flags) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu, of the tpu extra")
def test_a_tpu_slice_is_planned_without_a_tpu(tmp_path, capsys):
    out = tmp_path / "plan.json"
    assert plan("--topology=v5e:2x2", f"--out={out}") == 0
    made = json.loads(out.read_text())
    assert made["machine"]["device_kind"] == "TPU v5 lite"
    step = made["train"]
    assert step["fits"]
    gradient = step["collectives_a_chip"]["all-reduce"]["bytes"]  # beside it, sums of the loss
    assert gradient == pytest.approx(4 * made["parameters"], rel=0.05)
    assert "4 x TPU v5 lite" in capsys.readouterr().out


def test_what_was_compiled_once_is_kept_until_the_program_changes(tmp_path, capsys):
    f = lambda x: x @ x  # noqa: E731
    mesh = sharding.mesh(devices=jax.devices()[:1])

    def made(n):
        traced = jax.jit(f).trace(jax.ShapeDtypeStruct((n, n), jnp.float32))
        return analyse("product", traced, mesh, CHIPS["v5e"], images=1, kept=tmp_path)

    first = made(64)
    assert "compiled in" in capsys.readouterr().err
    assert made(64) == first
    assert "was compiled before" in capsys.readouterr().err
    assert made(65)["flops"] > first["flops"]
    before = jax.config.jax_optimization_level
    try:
        jax.config.update("jax_optimization_level", "O0")
        made(64)
    finally:
        jax.config.update("jax_optimization_level", before)
    assert len(list(tmp_path.iterdir())) == 3
    for file in tmp_path.iterdir():
        file.write_text("{")
    assert made(64)["memory_a_chip"] == first["memory_a_chip"]  # half a file is made anew


def test_a_long_compilation_shows_that_it_lives(monkeypatch, capsys):
    monkeypatch.setattr(compile_cache, "_SIGN", 0.01)
    with compile_cache._signs_of_life("compiling x"):
        time.sleep(0.2)
    assert "compiling x: 0 s so far" in capsys.readouterr().err


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """A search on one device, whose memory holds a half of the batch's activations and not all of them."""
    folder = tmp_path_factory.mktemp("search")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(CHIPS, "toy", Chip("toy", 1e12, MEMORY, 1e9, 1e9))
        flags = ["--devices=1", "--chip=toy", "--search", f"--cache={folder / 'kept'}", f"--out={folder / 'plan.json'}"]
        assert plan(*flags) == 0
    return json.loads((folder / "plan.json").read_text())


@pytest.mark.slow
def test_a_search_plans_the_fastest_that_fits(searched):
    tried = searched["search"]
    assert [(each["remat"], each["accumulate"]) for each in tried] == [
        ("none", 1),
        ("none", 2),
        ("attention", 1),
        ("dots", 1),
        ("blocks", 1),
    ]
    assert any(not each["fits"] for each in tried)
    fitting = [each for each in tried if each["fits"]]
    fastest = max(fitting, key=lambda each: each["images_per_second"])
    assert searched["train"]["fits"]
    assert searched["train"]["images_per_second"] == pytest.approx(fastest["images_per_second"])
    assert searched["machine"]["mesh"]["fsdp"] == fastest["fsdp"]
    assert searched["train"]["memory_a_chip"]["peak"] == fastest["peak"] <= MEMORY


def test_a_search_leaves_the_training_as_it_is(monkeypatch, capsys):
    """With made-up figures: three micro-batches' worth fit; what comes back is the config in another layout alone."""

    def step(config, autoencoder, mesh, peaks, kept):
        at_once = config.train.batch_size // config.train.accumulate // mesh.size
        speed = 1000.0 * at_once / (1 if config.model.remat == "none" else 2) / mesh.shape["fsdp"]
        return {"fits": at_once <= 4, "images_per_second": speed, "memory_a_chip": {"peak": at_once}}

    monkeypatch.setattr(runs, "_step", step)
    config = importlib.import_module("configs.tiny").get_config()
    machine = runs.Machine("two", jax.devices()[:2], CHIPS["v5e"])
    chosen, tried = runs._searched(config, runs.Request(config), machine, CHIPS["v5e"])
    assert (chosen.train.accumulate, chosen.model.remat, chosen.mesh.fsdp) == (2, "none", 1)
    assert {each["fsdp"] for each in tried} == {1, 2}
    same = building.laid_out(chosen, fsdp=config.mesh.fsdp, tensor=1, remat="none", accumulate=1)
    assert same.to_dict() == config.to_dict()
    assert "plan: the fastest that fits: --config.mesh.data=-1 --config.mesh.fsdp=1" in capsys.readouterr().err


def test_a_latent_model_is_planned_before_its_autoencoder_is_trained():
    """Its step reads latents and features of captions that were precomputed, where the config says so."""
    config = importlib.import_module("configs.shapes_latent").get_config()
    config.text = "clip(width=16, layers=1, heads=1, length=7)"
    model = building.model(config, importlib.import_module("configs.shapes_autoencoder").get_config())
    assert model.x_shape == (16, 16, 4)
    assert model.pretrained.keys() == {"autoencoder", "text"}
    batch = {name: a.shape[1:] for name, a in building.abstract_batch(config, model).items()}
    assert batch == {"x": (64, 64, 3), "tokens": (7,)}
    config.data.precomputed = "somewhere"
    batch = {name: a.shape[1:] for name, a in building.abstract_batch(config, model).items()}
    assert batch == {
        "mean": (16, 16, 4),
        "logvar": (16, 16, 4),
        "text": (7, 16),
        "text_mask": (7,),
        "text_pooled": (16,),
    }
    traced = building.traced_step(config, model, sharding.mesh(devices=jax.devices()[:1]))
    assert traced.jaxpr


def test_an_encoder_without_weights_is_for_plans_alone():
    with pytest.raises(UserError, match=r"has sizes and no weights.*huggingface"):
        text_encoder("clip(width=16, layers=1, heads=1, length=7)").learn_tokenizer(["a cat"])
