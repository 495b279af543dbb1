"""What cannot fit in memory is refused before anything is compiled, and what fits is not."""

import jax
import jax.numpy as jnp
import pytest

from configs.tiny import get_config
from diffusion_jax import experiment
from diffusion_jax.errors import UserError
from diffusion_jax.experiment import plan
from diffusion_jax.runs.plan import preflight
from diffusion_jax.train import memory, sharding
from diffusion_jax.train.arrays import abstract_like


@pytest.fixture(scope="module")
def model():
    return experiment.model(get_config())


@pytest.fixture(scope="module")
def saved(model):
    return plan.saved_bytes(model)


def check(model, batch_size, **train):
    config = get_config()
    config.train.update(batch_size=batch_size, **train)
    mesh = sharding.mesh()
    trainee = experiment.trainee(config, model)
    state = experiment.abstract_state(config, trainee)
    preflight.check_memory(config, model, abstract_like(state, experiment.layout(config, trainee, mesh)), mesh)


@pytest.mark.slow
def test_the_compiled_gradient_needs_no_less_than_is_counted(model, saved):
    """The compiler's own figure of what its program holds, of which the batch's share is the slope over its size."""

    def held(n):
        shape = jax.ShapeDtypeStruct
        params = jax.eval_shape(model.init, jax.random.key(0))
        gradient = jax.jit(jax.grad(lambda p, x, t, label: model.apply(p, x, t, {"label": label}).sum()))
        examples = shape((n, *model.x_shape), jnp.float32), shape((n,), jnp.float32), shape((n,), jnp.int32)
        return gradient.lower(params, *examples).compile().memory_analysis().temp_size_in_bytes

    assert 0 < saved / 2 <= (held(40) - held(8)) / 32


def test_a_batch_that_does_not_fit_is_refused_and_one_that_does_is_not(model, saved, monkeypatch):
    """On two devices, which share the host's memory."""
    monkeypatch.setattr(preflight.building, "saved_bytes", lambda model: saved)
    monkeypatch.setattr(memory, "host", lambda: 2 * 2**30)
    most = 2 * 2**30 // (saved // 2)
    check(model, most // 2)
    with pytest.raises(
        UserError, match=r"batch_size=\d+ takes at least .* GiB a device .*, and 1.0 GiB are free; make"
    ):
        check(model, 2 * most)
    check(model, 2 * most, accumulate=8)
    monkeypatch.setattr(memory, "host", lambda: 10**5)
    with pytest.raises(UserError, match="the state"):
        check(model, 8)
    monkeypatch.setattr(memory, "host", lambda: None)
    check(model, 10**9)
