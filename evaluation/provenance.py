"""Provenance of an evaluation: the models, the data, the machine, and the software versions."""

import os
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import onnxruntime
import torch

from upfield.common.command import to_tree
from upfield.common.cores import processor_name
from upfield.evaluation.configuration import EvaluateConfig
from upfield.evaluation.measurements import AGAINST, MODEL, VolumeMeasurements
from upfield.evaluation.process_group import world_size
from upfield.evaluation.restorers import ModelRestorer
from upfield.imaging.contrast import to_value
from upfield.sharding.shardset.shard_split import ShardSplit

PACKAGES = ("upfield", "numpy", "scipy", "scikit-image", "torchmetrics")


def describe_evaluation(
    config: EvaluateConfig,
    restorers: Mapping[str, ModelRestorer],
    split: ShardSplit,
    volumes: Sequence[VolumeMeasurements],
    failed: Sequence[Mapping[str, str]] = (),
) -> dict[str, Any]:
    """Describe the models, the data, the machine and the configuration, as metrics.json holds them under `about`.

    Args:
        config: configuration of the command.
        restorers: the model as `MODEL` and, if there is one, the model that it is compared with as `AGAINST`.
        split: the split that was measured.
        volumes: measurements of the split.
        failed: volumes that could not be measured, each with the method and the reason.
    """
    return {
        "restorer": restorers[MODEL].origin.description,
        "against": restorers[AGAINST].origin.description if AGAINST in restorers else None,
        "models": {role: asdict(restorer.origin) for role, restorer in restorers.items()},
        "split": config.split,
        "data_sha256": split.manifest.data_sha256,
        "contrast": to_value(split.manifest.contrasts),
        **count_volumes(volumes, failed),
        "machine": describe_machine(),
        "configuration": to_tree(config),
    }


def count_volumes(volumes: Sequence[VolumeMeasurements], failed: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """Return the numbers of measured slices, subjects and volumes of each kind, and the volumes that were left out."""
    return {
        "slices": sum(len(volume.keys) for volume in volumes),
        "subjects": len({(volume.cohort, volume.subject) for volume in volumes}),
        "volumes": dict(sorted(Counter(volume.kind for volume in volumes).items())),
        "failed_volumes": list(failed),
    }


def describe_machine() -> dict[str, Any]:
    """Return the time, the machine, the number of processes and the software versions."""
    gpu = {"GPU": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    return {
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "system": platform.platform(),
        "processor": processor_name(),
        "cores": len(os.sched_getaffinity(0)),
        **gpu,
        "processes": world_size(),
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "onnxruntime": onnxruntime.__version__,
        **{name: version(name) for name in PACKAGES},
    }
