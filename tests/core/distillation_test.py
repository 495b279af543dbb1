"""Progressive distillation: a student that learned its target goes in N steps where its teacher goes in 2 N."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.core import OBJECTIVES, PREDICTIONS, SAMPLERS, SCHEDULES, TIMES, WEIGHTINGS, Prediction, integrate
from diffusion_jax.core.distillation import one_step_for_two
from diffusion_jax.core.losses import l2
from diffusion_jax.core.objectives import Examples, Noised, Setting, Trained
from diffusion_jax.errors import UserError

STEPS = 4


def teacher(schedule):
    """The optimal denoiser of data that are 1 or -1 in every entry with equal probability: a tanh."""

    def denoise(x, t):
        level = schedule.level(t).like(x)
        x0 = jnp.tanh(x * level.alpha / level.sigma**2)
        return Prediction(x0, (x - level.alpha * x0) / level.sigma)

    return denoise


@pytest.mark.parametrize("name", ["vp", "linear", "rectified_flow"])
def test_the_student_ends_where_twice_as_many_steps_of_its_teacher_end(name):
    schedule = SCHEDULES[name]()
    taught = teacher(schedule)

    def student(x, t):
        x0 = one_step_for_two(taught, schedule, x, t, t - 1 / STEPS)
        level = schedule.level(t).like(x)
        return Prediction(x0, (x - level.alpha * x0) / level.sigma)

    x = jax.random.normal(jax.random.key(0), (16, 8, 1))
    keys, ddim = jax.random.split(jax.random.key(1), 16), SAMPLERS["ddim"]()
    in_few = integrate(student, ddim, schedule, np.linspace(1, 0, STEPS + 1), x, keys)
    in_many = integrate(taught, ddim, schedule, np.linspace(1, 0, 2 * STEPS + 1), x, keys)
    plain = integrate(taught, ddim, schedule, np.linspace(1, 0, STEPS + 1), x, keys)
    np.testing.assert_allclose(in_few, in_many, atol=2e-4)
    assert np.abs(plain - in_many).max() > 0.05  # the teacher itself does not get there in so few steps


def test_the_target_is_that_of_the_papers_algorithm_in_float64():
    schedule = SCHEDULES["vp"]()
    alpha = lambda t: float(schedule.alpha(jnp.float32(t)))  # noqa: E731
    sigma = lambda t: float(schedule.sigma(jnp.float32(t)))  # noqa: E731
    z, t = 0.7, 0.75
    tanh = lambda z, t: np.tanh(z * alpha(t) / sigma(t) ** 2)  # noqa: E731
    half, end = t - 0.5 / STEPS, t - 1 / STEPS
    z_half = alpha(half) * tanh(z, t) + sigma(half) / sigma(t) * (z - alpha(t) * tanh(z, t))
    z_end = alpha(end) * tanh(z_half, half) + sigma(end) / sigma(half) * (z_half - alpha(half) * tanh(z_half, half))
    expected = (z_end - sigma(end) / sigma(t) * z) / (alpha(end) - sigma(end) / sigma(t) * alpha(t))
    found = one_step_for_two(teacher(schedule), schedule, jnp.full((1, 1), z), jnp.array([t]), jnp.array([end]))
    np.testing.assert_allclose(found, [[expected]], rtol=1e-4)


def setting(schedule, prediction="v", **options):
    return Setting(schedule, PREDICTIONS[prediction](**options), TIMES["uniform"](), WEIGHTINGS["constant"](), l2())


def test_a_student_that_predicts_the_target_has_no_loss_and_times_are_those_of_its_steps():
    schedule = SCHEDULES["vp"]()
    objective = OBJECTIVES["progressive"](steps=STEPS)(setting(schedule))
    assert objective.learns_from_teacher
    examples = Examples(jnp.sign(jax.random.normal(jax.random.key(0), (64, 8, 1))), {})
    values = objective.draw(jax.random.key(1), examples, (), jnp.int32(0)).values
    assert set(np.unique(values.t * STEPS)) == {1.0, 2.0, 3.0, 4.0}
    taught = teacher(schedule)

    def learned(x, conditioning, cond):
        target = one_step_for_two(taught, schedule, x, values.t, values.t - 1 / STEPS)
        level = schedule.level(values.t).like(x)
        return level.alpha * (x - level.alpha * target) / level.sigma - level.sigma * target  # v

    def loss(apply):
        trained = Trained({}, {}, apply, schedule, (), lambda x, t, cond: taught(x, t))
        return objective.loss(trained, Noised(*values))

    assert float(loss(learned).max()) < 1e-6
    assert float(loss(lambda *a: learned(*a) + 0.1).min()) == pytest.approx(0.01, rel=0.05)


@pytest.mark.parametrize(
    ("options", "message"), [({"steps": 0}, "steps >= 1"), ({"steps": 2, "learned_variance": True}, "no variances")]
)
def test_what_it_cannot_learn_is_refused(options, message):
    of = setting(SCHEDULES["linear"](), "eps", learned_variance=options.pop("learned_variance", False))
    with pytest.raises(UserError, match=message):
        OBJECTIVES["progressive"](**options)(of)
