"""Everything that one model's report shows."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from upfield.distributed.logs.metrics_log import LOG, parse_log
from upfield.evaluation.measurements import ExampleSlice, VolumeImages
from upfield.evaluation.summary import EvaluationResult


@dataclass(frozen=True)
class TrainingRecord:
    """What is known about a model's training."""

    log: list[dict[str, Any]]
    """Lines of its run's metrics.jsonl; empty for a model file."""
    configuration: str
    """As YAML."""

    @classmethod
    def of(cls, model: Path, configuration: str) -> "TrainingRecord":
        """Read the log of a run; a model file has none."""
        log = model / LOG
        return cls(parse_log(log.read_text(encoding="utf-8")) if log.is_file() else [], configuration)


@dataclass(frozen=True)
class ReportContent:
    """The measurements of one model, summarised, with images."""

    metrics: dict[str, Any]
    """The contents of metrics.json."""
    result: EvaluationResult
    """The measurements behind `metrics`."""
    examples: Sequence[ExampleSlice]
    """Best, median and worst slice; empty if no slice has a finite PSNR."""
    images: VolumeImages
    """Images of the volume that is shown."""
    training: TrainingRecord
    """Of the model."""
