"""The search for the fastest layout that fits: mesh, rematerialization and micro-batches. The result stays the same."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence


@dataclasses.dataclass(frozen=True)
class Layout:
    """The layout of a step. A chip has batch / (data x fsdp x accumulate) examples of the global batch at once."""

    fsdp: int
    tensor: int
    remat: str | bool | None  # None of a network without the option
    accumulate: int

    @property
    def flags(self) -> str:
        """The layout as flags of the command line."""
        remat = "" if self.remat is None else f"--config.model.remat={self.remat} "
        return (
            f"--config.mesh.data=-1 --config.mesh.fsdp={self.fsdp} --config.mesh.tensor={self.tensor} "
            f"{remat}--config.train.accumulate={self.accumulate}"
        )


@dataclasses.dataclass(frozen=True)
class Estimate:
    """The estimate for a layout; images_per_second is 0 where it does not fit."""

    fits: bool
    images_per_second: float
    peak: int | None  # bytes on a chip


def meshes(devices: int, tensor: Sequence[int] = (1,)) -> list[tuple[int, int]]:
    """(fsdp, tensor) of every mesh of this number of devices, least split first; the data axis has the rest."""
    return [
        (fsdp, t)
        for t in tensor
        if devices % t == 0
        for fsdp in range(1, devices // t + 1)
        if (devices // t) % fsdp == 0
    ]


def search(
    meshes: Sequence[tuple[int, int]],
    remat: Sequence[str | bool | None],
    accumulate: Callable[[int, int], Sequence[int]],
    measure: Callable[[Layout], Estimate],
) -> Iterator[tuple[Layout, Estimate]]:
    """Yields layouts with estimates: for each mesh and rematerialization, up to the fewest micro-batches that fit.

    remat has its choices from the most memory to the least. accumulate(fsdp, tensor) gives the possible numbers of
    micro-batches, ascending. Layouts that cannot be faster are left out: those with at least as many micro-batches
    as a layout of the same mesh that fits with less rematerialization.
    """
    for fsdp, tensor in meshes:
        fitting: int | None = None
        for again in remat:
            for n in accumulate(fsdp, tensor):
                if fitting is not None and n >= fitting:
                    break
                layout = Layout(fsdp, tensor, again, n)
                estimate = measure(layout)
                yield layout, estimate
                if estimate.fits:
                    fitting = n
                    break


def best(found: Sequence[tuple[Layout, Estimate]]) -> Layout | None:
    """The fastest layout that fits; None where none does."""
    fitting = [(layout, estimate) for layout, estimate in found if estimate.fits]
    return max(fitting, key=lambda pair: pair[1].images_per_second, default=(None, None))[0]
