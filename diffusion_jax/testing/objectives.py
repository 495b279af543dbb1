"""The conformance suite of objectives of a diffusion model."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffusion_jax.core.denoisers import Condition, from_network
from diffusion_jax.core.losses import Network, l2
from diffusion_jax.core.objectives import Examples, MakeObjective, Setting, Trained, Tree
from diffusion_jax.core.predictions import PREDICTIONS
from diffusion_jax.core.schedules import SCHEDULES, Schedule
from diffusion_jax.core.times import low_discrepancy
from diffusion_jax.core.weightings import WEIGHTINGS


def check_objective(make: MakeObjective, schedule: Schedule | None = None, batch: int = 6) -> None:
    """Raises AssertionError unless the objective that `make` gives keeps the protocol of `Objective`.

    The suite checks that draws are deterministic and lead with the batch; that the loss is one finite number an
    example, which depends on that example alone; that it has a finite gradient, which is not 0; and that `update` keeps
    the structure of the history. The loss is that of a linear network which predicts v from x, t and a class, on the
    schedule, by default DDPM's linear chain; a teacher is such a network too.
    """
    schedule = schedule or SCHEDULES["linear"]()
    setting = Setting(schedule, PREDICTIONS["v"](), low_discrepancy(), WEIGHTINGS["constant"](), l2(), vlb_weight=0.001)
    objective = make(setting)
    key = jax.random.key(0)
    examples = Examples(
        jax.random.uniform(key, (batch, 4, 4, 2), minval=-1.0), {"label": jnp.arange(batch, dtype=jnp.int32) % 3}
    )
    memory = objective.init(key)
    chex.assert_trees_all_equal(memory, objective.init(key))
    draw = jax.jit(objective.draw)
    drawn = draw(key, examples, memory.history, jnp.int32(0))
    chex.assert_trees_all_equal(drawn, draw(key, examples, memory.history, jnp.int32(0)))
    for leaf in jax.tree.leaves(drawn):
        assert leaf.shape[:1] == (batch,), f"every array that is drawn leads with the batch; got shape {leaf.shape}"
    if drawn.t is not None:
        assert np.all((drawn.t > 0) & (drawn.t <= 1)), "times are in (0, 1]"

    def network(scale: Array | float) -> Network:
        def apply(x: Array, t: Array, cond: Condition) -> Array:
            label = cond["label"].reshape(-1, 1, 1, 1)
            return scale * (x + 1e-3 * t.reshape(-1, 1, 1, 1) + 0.1 * label)

        return apply

    teacher = from_network(network(0.3), schedule, setting.parameterization) if objective.learns_from_teacher else None

    def losses(scale: Array, objective_params: Tree, values: Tree) -> Array:
        trained = Trained({"scale": scale}, {}, network(scale), schedule, objective_params, teacher)
        return objective.loss(trained, values)

    scale = jnp.float32(0.5)
    whole = jax.jit(losses)(scale, memory.params, drawn.values)
    assert whole.shape == (batch,), f"a loss is one number an example, ({batch},); got shape {whole.shape}"
    chex.assert_tree_all_finite(whole)
    part = jax.tree.map(lambda a: a[batch // 2 :], drawn.values)
    np.testing.assert_allclose(
        jax.jit(losses)(scale, memory.params, part),
        whole[batch // 2 :],
        rtol=1e-5,
        atol=1e-6,
        err_msg="the loss of an example depends on no other example",
    )
    mean = lambda scale, params: jnp.mean(drawn.weight * losses(scale, params, drawn.values))  # noqa: E731
    gradients = jax.jit(jax.grad(mean, argnums=(0, 1)))(scale, memory.params)
    chex.assert_tree_all_finite(gradients)
    assert float(jnp.abs(gradients[0])) > 0, "the loss has a gradient by what is trained"
    history = objective.update(memory.history, drawn, whole)
    chex.assert_trees_all_equal_shapes_and_dtypes(history, memory.history)
