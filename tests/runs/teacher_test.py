"""A run with a teacher has a copy of it, goes on without the original, and takes no other."""

import shutil

import jax
import numpy as np
import pytest
from random_workdir import save_state

from configs.tiny import get_config as tiny
from diffusion_jax import experiment
from diffusion_jax.errors import UserError
from diffusion_jax.runs.train import tasks
from diffusion_jax.runs.workdir.paths import Workdir


def config_of(**changes):
    config = tiny()
    config.train.batch_size, config.sample.every = 4, 0
    config.update(changes)
    return config


def save(workdir, config, task, seed):
    save_state(workdir, config, abstract=task.abstract, scale=0.1, step=5, seed=seed)


def start(config, workdir):
    """The task of config in workdir, with its copies kept as `train` does."""
    task = tasks.task(config, workdir, experiment.mesh(config))
    workdir.write_config(config)
    task.keep()
    task.batches.close()
    return task


@pytest.fixture
def teacher(tmp_path):
    workdir = Workdir(tmp_path / "teacher")
    save(workdir, config_of(), start(config_of(), workdir), seed=0)
    return workdir


def student_of(workdir, **changes):
    return config_of(**({"teacher": str(workdir.root), "objective": "progressive(steps=5)"} | changes))


def test_a_run_goes_on_with_its_copy_of_the_teacher(teacher, tmp_path):
    config, workdir = student_of(teacher, init_from=str(teacher.root)), Workdir(tmp_path / "run")
    first = start(config, workdir)
    kept = first.model.teacher.params
    save(workdir, config, first, seed=1)
    shutil.rmtree(teacher.root)
    again = start(config, workdir).model.teacher.params
    jax.tree.map(np.testing.assert_array_equal, again, kept)


def test_a_run_that_goes_on_takes_no_other_teacher(teacher, tmp_path):
    config, workdir = student_of(teacher), Workdir(tmp_path / "run")
    save(workdir, config, start(config, workdir), seed=1)
    other = shutil.copytree(teacher.root, tmp_path / "other")
    with pytest.raises(UserError, match="leave it as it was"):
        start(student_of(Workdir(other)), workdir)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": "simple"}, "learns from no teacher"),
        ({"teacher": ""}, "give teacher=ITS_WORKDIR"),
        ({"schedule": "cosine(steps=30)"}, "another schedule"),
        ({"model": {"num_classes": 0}}, "the teacher is told label of 10 classes, and this model nothing"),
        ({"teacher": "nowhere"}, "nowhere is not a workdir: it has no config.json; check the path"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused(teacher, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        start(student_of(teacher, **changes), Workdir(tmp_path / "run"))
