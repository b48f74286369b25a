"""The training log of a model is read from its run."""

from pathlib import Path

from upfield.evaluation.reports.report_content import TrainingRecord


def test_a_truncated_log_line_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "best").mkdir()
    (tmp_path / "best" / "config.yaml").write_text("{}")
    (tmp_path / "metrics.jsonl").write_text('{"event": "train", "step": 1}\n{"event": "tr')
    record = TrainingRecord.of(tmp_path, "")
    assert [line["step"] for line in record.log] == [1]
