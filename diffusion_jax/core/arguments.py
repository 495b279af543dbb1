"""Checks of the shapes of arguments at the public entries of `core`.

They look at shapes alone, while a program is traced, so the compiled program has nothing of them. Without them, arrays
of other shapes would broadcast to a wrong result of the right shape.
"""

import chex


def check_same_shape(**arrays: chex.Array) -> None:
    """Raises AssertionError, which names the arguments, unless all arrays have one shape."""
    shapes = ", ".join(f"{name} {tuple(a.shape)}" for name, a in arrays.items())
    message = f"{' and '.join(arrays)} have one shape; got {shapes}"
    chex.assert_equal_shape(list(arrays.values()), custom_message=message)


def check_one_each(x: chex.Array, **values: chex.Array) -> None:
    """Raises AssertionError, which names the argument, unless each of values is [B] for x [B, ...]."""
    for name, value in values.items():
        message = f"{name} has one value for each of the {x.shape[0]} examples; got shape {tuple(value.shape)}"
        chex.assert_shape(value, x.shape[:1], custom_message=message)


def check_output(out: chex.Array, x: chex.Array, *, learned_variance: bool) -> None:
    """Raises AssertionError unless a network's output is like its x [B, *S, C], or has 2 C with a learned variance."""
    shape = (*x.shape[:-1], x.shape[-1] * (2 if learned_variance else 1))
    message = f"the network's output for x {tuple(x.shape)} is to be of shape {shape}; got {tuple(out.shape)}"
    chex.assert_shape(out, shape, custom_message=message)
