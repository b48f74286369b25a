"""The PyTorch engine without compiling, and whether the comparison would notice TF32."""

import torch

from acceptance.engines.engine_check import NUM_COMPARED, check_engine
from acceptance.report import Report
from upfield.export.modelfile.torch_restorer import TorchRestorer


def run(report: Report) -> None:
    """Measure both precisions, then float32 once more with TF32."""
    checks = check_engine(report, lambda path: TorchRestorer(path, report.device, compiled=False), ("fp32", "fp16"))
    if not report.on_gpu:
        report.needs_gpu("TF32, and half precision in half precision")
    elif "fp32" in checks:
        check, restorer = checks["fp32"]
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        check.show_tf32(restorer.run(check.low[:NUM_COMPARED]))
