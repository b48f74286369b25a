"""An independent description of the sample order, for the tests of the order and of the downloads."""

from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from upfield.distributed.samples.mixture import Mixture
from upfield.distributed.samples.order import SampleOrder


@dataclass(frozen=True)
class Case:
    """A set of shards and the settings of its order."""

    seed: int
    sizes: list[int]
    batch_size: int
    groups: int
    window_shards: int
    shares: tuple[float, ...] = ()
    per: str = "batch"

    @property
    def shard_of(self) -> NDArray[np.int64]:
        return np.repeat(np.arange(len(self.sizes)), self.sizes)

    @property
    def classes(self) -> NDArray[np.uint8]:
        """The class of each sample. One class more than there are shares has none."""
        rng = np.random.default_rng((self.seed, 1))
        numbers = rng.integers(len(self.shares) + 1, size=sum(self.sizes), dtype=np.uint8)
        each = np.arange(self.groups * len(self.shares)) % max(1, len(self.shares))
        numbers[: len(each)] = each
        return numbers

    def order(self) -> SampleOrder:
        mixture = None
        if self.shares:
            names = tuple(f"class{number}" for number in range(len(self.shares)))
            mixture = Mixture(names, self.shares, "epoch" if self.per == "epoch" else "batch", self.classes)
        sizes = np.array(self.sizes)
        return SampleOrder(self.seed, sizes, self.batch_size, self.window_shards, self.groups, mixture)


@st.composite
def cases(draw: st.DrawFn, mixed: bool = False) -> Case:
    batch_size = draw(st.integers(1, 12))
    groups = draw(st.sampled_from([number for number in range(1, batch_size + 1) if batch_size % number == 0]))
    weights = draw(st.lists(st.integers(1, 20), min_size=1, max_size=5)) if mixed else []
    sizes = draw(st.lists(st.integers(1, 30), min_size=1, max_size=20))
    sizes.append(max(batch_size, groups * len(weights)))
    shares = tuple(weight / sum(weights) for weight in weights)
    per = draw(st.sampled_from(["batch", "epoch"]))
    return Case(draw(st.integers(0, 2**40)), sizes, batch_size, groups, draw(st.integers(1, 9)), shares, per)


def global_batches(order: SampleOrder, epoch: int) -> NDArray[np.int64]:
    """Return the sample numbers of all global batches of an epoch: `(steps, batch_size)`."""
    steps = range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch)
    return np.stack([order.share(step, 0, 1) for step in steps])
