"""Training of diffusion models in JAX: schedules, networks, sharded step, samplers and commands.

    import diffusion_jax as dj

    dj.train(config, "runs/digits")
    images = dj.load("runs/digits").sample(num=16, labels=3, guidance=2.0)  # float32 [16, 8, 8, 1] in [-1, 1]
    result = dj.evaluate("runs/digits", metrics="bits_per_dim", num=256)
    dj.report("runs/digits", "digits.html")

`dj.config.base()` is the config to start from, and `dj.core` the mathematics as functions of arrays. These names are
imported at their first use, so that a command's `--help` does not wait for jax.
"""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

from diffusion_jax import report as _report
from diffusion_jax import train as _train

if TYPE_CHECKING:
    from diffusion_jax import config as config
    from diffusion_jax import core as core
    from diffusion_jax.errors import UserError as UserError
    from diffusion_jax.extensions import trust as trust
    from diffusion_jax.functions import Loaded as Loaded
    from diffusion_jax.functions import evaluate as evaluate
    from diffusion_jax.functions import load as load
    from diffusion_jax.functions import report as report
    from diffusion_jax.functions import train as train

__version__ = "0.2.0.dev0"

__all__ = ["Loaded", "UserError", "config", "core", "evaluate", "load", "report", "train", "trust"]

_WHERE = {
    "Loaded": "functions",
    "evaluate": "functions",
    "load": "functions",
    "UserError": "errors",
    "trust": "extensions",
}
_MODULES = ("config", "core")


class _Callable(ModuleType):
    """The type of a package that can be called as the function of the same name."""

    def __call__(self, *args: object, **kwargs: object) -> object:
        """The function of `functions`."""
        function = getattr(importlib.import_module("diffusion_jax.functions"), self.__name__.rpartition(".")[2])
        return function(*args, **kwargs)


_train.__class__ = _report.__class__ = _Callable


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _WHERE:
        return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
