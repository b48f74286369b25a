"""The PyTorch engine as `--engine torch` runs it on a GPU: compiled."""

from acceptance.engines.engine_check import check_engine
from acceptance.report import Report
from upfield.export.modelfile.torch_restorer import TorchRestorer


def run(report: Report) -> None:
    """Measure both precisions. The first batch of each size contains the time of compiling."""
    if report.on_gpu:
        check_engine(report, lambda path: TorchRestorer(path, report.device), ("fp32", "fp16"))
    else:
        report.needs_gpu("the compiled engine; on a CPU it is the one without compiling")
