"""Training on images in buckets, end to end: what it says, compiles, saves and refuses."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest
from faults_driver import digest
from PIL import Image as Picture

from configs import tiny
from diffusion_jax import config as configs
from diffusion_jax import experiment
from diffusion_jax.errors import UserError
from diffusion_jax.experiment import training
from diffusion_jax.models.latent import Autoencoder
from diffusion_jax.models.model import Teacher
from diffusion_jax.nets.autoencoder import AutoencoderKL
from diffusion_jax.runs.sample.examples import first_batch
from diffusion_jax.runs.sweep import vectorised
from diffusion_jax.runs.sweep.trials import Trial
from diffusion_jax.runs.train import train

SIDES = ((20, 20), (20, 20), (16, 25))  # height, width of the pictures
SIZES = {(8, 8), (6, 10)}  # of 8 x 8 by units of 1; to others none of the pictures is nearest


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Thirteen grays of two shapes, of which nine are square."""
    folder = tmp_path_factory.mktemp("buckets") / "own"
    folder.mkdir()
    for i in range(13):
        height, width = SIDES[i % 3]
        Picture.new("L", (width, height), 10 * i).save(folder / f"{i:02d}.png")
    return folder


def config_of(folder, steps=7, **changes):
    config = tiny.get_config()
    config.data.source, config.data.shape = f"folder:{folder}", (8, 8, 1)
    config.data.modality, config.data.cache = "image(resize='buckets')", False
    config.model.update(channels=4, multipliers=(1,), blocks=0, attention=(), groups=2, num_classes=0)
    config.train.update(steps=steps, batch_size=4)
    config.log_every, config.checkpoint.every, config.sample.every = 1, 5, 0
    config.log.to = ()
    config.update_from_flattened_dict(changes)
    return config


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    """(the workdir of seven steps, the number of times that its step was traced)."""
    root, traced, step = tmp_path_factory.mktemp("whole") / "run", [], training.train_step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "train_step", lambda *args: traced.append(1) or step(*args))
        train(config_of(folder), root)
    return root, len(traced)


def test_the_step_is_compiled_once_for_each_size(whole):
    _, traced = whole
    assert traced == 1 + len(SIZES)  # one of them before the first batch, to raise what the first step would


def test_a_run_that_is_killed_goes_on_with_the_same_bits(whole, folder, tmp_path, capsys):
    """Killed after its seventh step: what is left is the checkpoint of the fifth."""
    root = shutil.copytree(whole[0], tmp_path / "run")
    shutil.rmtree(root / "checkpoints/7")
    train(config_of(folder), root)
    said = capsys.readouterr().out
    assert "data: to 2 sizes by shape: 8 x 8 (9), 6 x 10 (4), at least 94% of each picture\n" in said
    assert "resuming from step 5" in said
    assert digest(root / "checkpoints", 7) == digest(whole[0] / "checkpoints", 7)
    with pytest.raises(
        UserError, match=r"one of batches of 4 in 2 sizes \(.*\), and training has batches of 2 in 2 sizes"
    ):
        train(config_of(folder, 8, **{"train.batch_size": 2}), root)


def test_of_a_run_in_buckets_examples_have_the_size_that_is_asked_for(folder):
    config = config_of(folder)
    batch = first_batch(config, experiment.opened(config), None, None, 5)
    assert batch["x"].shape == (5, 8, 8, 1)


LATENT = Autoencoder(AutoencoderKL(channels=4, multipliers=(1, 1), blocks=1, groups=2), {}, 1.0)


@pytest.mark.parametrize(
    ("spatial", "latent"), [(("low_resolution(factor=4)", "inpaint()"), False), (("map(classes=3)",), True)]
)
def test_a_step_takes_a_batch_of_another_size_than_the_model_s(folder, spatial, latent):
    """Traced alone: of pixels and of latents, with conditions of the image's size."""
    config = config_of(
        folder,
        **{"data.shape": (16, 16, 3), "model.multipliers": (1, 1), "spatial": spatial, "latent": "somewhere" * latent},
    )
    model = experiment.model(config, LATENT if latent else None)
    weights = {"autoencoder": jax.eval_shape(LATENT.network.init, jax.random.key(0), np.zeros((1, 8, 8, 3)))["params"]}
    trainee = experiment.trainee(config, model)
    state = experiment.abstract_state(config, trainee)
    sizes = experiment.training_sizes(config, model)
    assert sizes == ((12, 20), (16, 16), (20, 12))
    shape = (*sizes[0], 3)
    batch = {"x": np.zeros((4, *shape), np.float32)}
    for condition in model.conditions:
        batch |= {name: np.zeros((4, *each.shape), each.dtype) for name, each in condition.batch(shape).items()}
    new, metrics = jax.eval_shape(
        lambda state, batch, weights: experiment.train_step(config, trainee, experiment.mesh(config), weights)(
            state, batch, jax.random.key(0)
        ),
        state,
        batch,
        weights,
    )
    assert metrics["loss"].shape == ()
    assert jax.tree.map(lambda a: a.shape, new) == jax.tree.map(lambda a: a.shape, state)


REFUSED = {
    "a transformer": ({"model": "dit"}, "has images of several sizes, and DiT takes one size alone, as it is told pos"),
    "a classifier": ({"task": "classifier"}, "of several sizes, and a classifier takes one size alone"),
    "odd sides": (
        {"data.shape": (10, 8, 1), "spatial": ("low_resolution(factor=4)",)},
        "has sizes whose sides are multiples of 4, and data.shape is 10 x 8 pixels; set it to 8 x 8$",
    ),
    "stacked batches": ({"train.steps_per_dispatch": 2}, "^train.steps_per_dispatch=2 stacks batches of one size, and"),
    "split tokens": ({"mesh.context": 2}, "^mesh.context=2 splits the tokens of one size, and data.modality="),
}


@pytest.mark.parametrize(("changes", "says"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_go_with_buckets_is_one_sentence(folder, changes, says):
    config = config_of(folder, **{k: v for k, v in changes.items() if k != "model"})
    if changes.get("model"):
        dit = configs.base("dit")
        dit.data, dit.model.width, dit.model.depth, dit.model.heads, dit.model.patch = config.data, 8, 1, 2, 2
        config = dit
    with pytest.raises(UserError, match=says):
        experiment.training_sizes(config, experiment.model(config) if config.task == "diffusion" else None)


def test_sizes_are_those_that_a_teacher_takes_too(folder):
    def built(**options):
        return experiment.model(config_of(folder, **{"data.shape": (16, 16, 1), **options}))

    config, student = config_of(folder, **{"data.shape": (16, 16, 1)}), built()
    taught = dataclasses.replace(student, teacher=Teacher(built(**{"model.multipliers": (1, 1, 1)}), {}))
    assert experiment.training_sizes(config, taught) == ((12, 20), (16, 16), (20, 12))
    assert (12, 21) in experiment.training_sizes(config, student)


def test_trials_of_one_program_have_one_size(folder):
    with pytest.raises(UserError, match="^--vectorised trains on batches of one size, and data.modality=image"):
        vectorised.check_trials([Trial(0, {"seed": 1}, config_of(folder), None)])


def test_latents_are_not_precomputed_of_several_sizes(folder):
    model = experiment.model(config_of(folder, **{"data.shape": (16, 16, 3), "latent": "somewhere"}), LATENT)
    assert experiment.precompute.parts(model) == ("autoencoder",)
    with pytest.raises(UserError, match=r"^nothing to precompute: .*, or images in buckets\)"):
        experiment.precompute.parts(model, one_size=False)
