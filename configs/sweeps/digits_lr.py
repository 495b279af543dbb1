"""Learning rate and dropout of the digits, a grid of 6 short trials.

diffusion-jax sweep --config=configs/digits.py --sweep=configs/sweeps/digits_lr.py --workdir=runs/digits_lr
"""

from diffusion_jax.sweeps import Objective, Sweep, choice, log_grid

SHORT = {
    "train.steps": 80,
    "train.batch_size": 32,
    "optimizer.warmup": 10,
    "log_every": 5,
    "checkpoint.every": 20,
    "sample.every": 80,
    "sample.num": 40,
    "sample.steps": 10,
}
"""What makes a trial short; the other sweeps of digits take it too."""


def get_sweep() -> Sweep:
    return Sweep(
        space={"optimizer.learning_rate": log_grid(3e-4, 3e-3, 3), "model.dropout": choice(0.0, 0.1)},
        objective=Objective("loss", "minimize", last=4),
        fixed=SHORT,
    )
