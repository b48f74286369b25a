"""The content of one model's report."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from upfield.distributed.logs.metrics_log import LOG, parse_log
from upfield.evaluation.measurements import ExampleSlice, VolumeImages
from upfield.evaluation.summary import EvaluationResult


@dataclass(frozen=True)
class TrainingRecord:
    """The log and the configuration of a model's training."""

    log: list[dict[str, Any]]
    """Lines of the run's metrics.jsonl; empty for a model file."""
    configuration: str
    """Training configuration as YAML."""

    @classmethod
    def of(cls, model: Path, configuration: str) -> "TrainingRecord":
        """Read the log of a run. A model file has no log."""
        log = model / LOG
        return cls(parse_log(log.read_text(encoding="utf-8")) if log.is_file() else [], configuration)


@dataclass(frozen=True)
class ReportContent:
    """The measurements of one model, summarised, with images."""

    metrics: dict[str, Any]
    """The contents of metrics.json."""
    result: EvaluationResult
    """The measurements that `metrics` summarises."""
    examples: Sequence[ExampleSlice]
    """Best, median and worst slice; empty if no slice has a finite PSNR."""
    images: VolumeImages
    """Images of the volume that the report shows."""
    training: TrainingRecord
    """Training of the model."""
