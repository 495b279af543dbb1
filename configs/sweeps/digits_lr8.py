"""Eight learning rates of the digits, trained together as one program.

diffusion-jax sweep --config=configs/digits.py --sweep=configs/sweeps/digits_lr8.py --workdir=runs/lr8 --vectorised
"""

from configs.sweeps.digits_lr import SHORT
from diffusion_jax.sweeps import Objective, Sweep, log_grid


def get_sweep() -> Sweep:
    return Sweep(
        space={"optimizer.learning_rate": log_grid(1e-4, 1e-2, 8)},
        objective=Objective("loss", "minimize", last=4),
        fixed=SHORT,
    )
