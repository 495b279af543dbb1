"""Learning rate, decay and width of the digits: 12 trials that TPE proposes and Hyperband ends early.

diffusion-jax sweep --config=configs/digits.py --sweep=configs/sweeps/digits_hyperband.py --workdir=runs/hyperband
"""

from configs.sweeps.digits_lr import SHORT
from diffusion_jax.sweeps import Objective, Sweep, choice, log_uniform


def get_sweep() -> Sweep:
    return Sweep(
        space={
            "optimizer.learning_rate": log_uniform(1e-5, 1e-2),
            "optimizer.decay": choice("constant", "cosine"),
            "model.channels": choice(16, 32),
        },
        objective=Objective("loss", "minimize", last=3),
        method="tpe(trials=12, startup=6)",
        pruner="hyperband(min_steps=20, reduction=2)",
        fixed=SHORT,
    )
