"""Classes are named as in the set, and a mix that does not fit the set is refused."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from upfield.common.errors import InputError
from upfield.distributed.configuration import MixConfig
from upfield.distributed.samples.sample_classes import SampleClasses, choose_mixture, describe_mix, find_classes
from upfield.sharding.shardset.sample_key import SampleKey
from upfield.sharding.shardset.shard_split import ShardSplit

CLASSES = SampleClasses("set", ("real", "synthetic"), np.array([0] * 3 + [1] * 17, dtype=np.uint8))


def mixture_of(shares: dict[str, float], groups: int = 1, classes: SampleClasses = CLASSES):
    return choose_mixture(MixConfig(kind=shares), classes, groups)


def test_kinds_and_cohorts_are_those_of_the_keys(tiny_shards: Path) -> None:
    split = ShardSplit(tiny_shards, "train")
    keys = [SampleKey.parse(split.key(sample)) for sample in range(split.num_samples)]
    kinds, cohorts = find_classes(split, MixConfig(cohort={"ixi": 1.0}))
    assert kinds.sizes == Counter(key.kind for key in keys)
    assert cohorts.sizes == Counter(key.cohort for key in keys)
    assert cohorts.shares(np.arange(2)) == {
        f"share_cohort_{name}": [key.cohort for key in keys[:2]].count(name) / 2 for name in cohorts.names
    }


@pytest.mark.parametrize(
    ("shares", "groups", "message"),
    [
        (
            {"reel": 1.0},
            1,
            r"data\.mix\.kind: .* no samples of reel\. It has real \(3 samples\), synthetic \(17 samples\)",
        ),
        ({"real": 0.5, "synthetic": 0.5}, 4, r"data\.groups: expected at most 3, the number of real samples"),
    ],
)
def test_a_mix_that_does_not_fit_the_split_is_refused(shares: dict[str, float], groups: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        mixture_of(shares, groups)


def test_the_mix_does_not_depend_on_the_order_in_which_shares_are_written() -> None:
    one, other = mixture_of({"synthetic": 0.75, "real": 0.25}), mixture_of({"real": 0.25, "synthetic": 0.75})
    assert (one.names, one.shares) == (other.names, other.shares)
    assert (one.numbers == other.numbers).all()


def test_a_job_says_what_its_mix_repeats_and_leaves_out() -> None:
    said = describe_mix(mixture_of({"real": 0.5, "synthetic": 0.5}), CLASSES, steps=5, batch_size=4)
    assert "an epoch has 5 steps with 20 samples" in said
    assert "real 0.5, 10 samples, each of 3 about 3.33 times; synthetic 0.5, 10 of 17 samples" in said
    assert describe_mix(mixture_of({"real": 1.0}), CLASSES, 5, 4).endswith("no share for synthetic")
