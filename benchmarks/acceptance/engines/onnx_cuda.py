"""ONNX Runtime's CUDA provider, and whether the comparison would notice TF32; on a CPU, its CPU provider."""

import onnxruntime as ort

from acceptance.engines.engine_check import NUM_COMPARED, EngineCheck, check_engine
from acceptance.report import Report
from upfield.export.modelfile.card import read_card
from upfield.export.modelfile.onnx_restorer import OnnxRestorer
from upfield.export.modelfile.providers import provider_options


def run(report: Report) -> None:
    """Measure both precisions, then float32 once more with TF32."""
    checks = check_engine(report, lambda path: OnnxRestorer(path, report.device), ("fp32", "fp16"))
    if not report.on_gpu:
        report.needs_gpu("the CUDA provider and TF32")
    elif "fp32" in checks:
        show_tf32(checks["fp32"][0])


def show_tf32(check: EngineCheck) -> None:
    """Restore slices in a session that may use TF32, and expect the comparison to notice."""
    known = provider_options("cuda", check.path, read_card(check.path), batch_size=0)
    providers = [
        (name, {key: "1" if key == "use_tf32" else value for key, value in each.items()}) for name, each in known
    ]
    session = ort.InferenceSession(check.path, providers=providers)
    check.show_tf32(session.run(["high"], {"low": check.low[:NUM_COMPARED]})[0])
