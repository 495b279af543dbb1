"""Which mesh, rematerialization and number of micro-batches train fastest, among what fits; none changes the result."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a step is laid out. The global batch stays: a chip has batch / (data x fsdp x accumulate) of it at once."""

    fsdp: int
    tensor: int
    remat: str | bool | None  # None of a network without the option
    accumulate: int

    @property
    def flags(self) -> str:
        """Of the command line."""
        remat = "" if self.remat is None else f"--config.model.remat={self.remat} "
        return (
            f"--config.mesh.data=-1 --config.mesh.fsdp={self.fsdp} --config.mesh.tensor={self.tensor} "
            f"{remat}--config.train.accumulate={self.accumulate}"
        )


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What a layout comes to; images a second is 0 where it does not fit."""

    fits: bool
    images_per_second: float
    peak: int | None  # bytes on a chip


def meshes(devices: int, tensor: Sequence[int] = (1,)) -> list[tuple[int, int]]:
    """(fsdp, tensor) of every mesh of so many devices, data taking the rest; the least split first."""
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
    """Measures, for each mesh and each choice of rematerialization, the largest batch a chip that fits.

    remat has its choices from the most memory to the least. accumulate(fsdp, tensor) are the numbers of micro-batches
    that the batch can be split into, rising. Left out is what cannot be better: more micro-batches than fit already,
    and rematerialization that does not make room for fewer.
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
    """The fastest that fits; None where nothing does."""
    fitting = [(layout, estimate) for layout, estimate in found if estimate.fits]
    return max(fitting, key=lambda pair: pair[1].images_per_second, default=(None, None))[0]
