"""Two ranks that share one device through gloo, against one process: the same losses and weights in float32."""

from acceptance.ranks import STEPS, Job, losses, read_result, start
from acceptance.report import Report
from acceptance.stepping import difference, log_lines, train, weights
from upfield.model.numerics import use_exact_float32

JOB = Job("two", gloo=True, settings=(("precision", "no"), ("optim_lr", 1e-3)))
TOLERANCE = 1e-4


def run(report: Report) -> None:
    """Train the same steps both ways and compare."""
    use_exact_float32()
    process = start(report, JOB, 2)
    alone = JOB.config(report, "alone")
    train(alone)
    code = process.wait()
    report.expect("both ranks end with exit code 0", code == 0, str(code))
    if code:
        return
    whole, result = JOB.config(report), read_result(report, JOB)
    for key in ("network", "device", "backend"):
        report.figure(key, result[key])
    report.expect("the ranks meet through gloo", "gloo" in result["backend"], result["backend"])
    apart = max(abs(one - two) / abs(two) for one, two in zip(losses(whole), losses(alone), strict=True))
    report.figure("losses_relative_difference", apart)
    report.expect("two ranks have the losses of one process", apart < TOLERANCE, f"{apart:.2g}")
    pairs = zip(log_lines(whole), log_lines(alone), strict=True)
    norms = max(abs(one["grad_norm"] / two["grad_norm"] - 1) for one, two in pairs)
    report.figure("gradient_norms_relative_difference", norms)
    report.expect("two ranks have the gradient norms of one process", norms < 10 * TOLERANCE, f"{norms:.2g}")
    for name in ("model", "average"):
        apart = difference(weights(whole, STEPS, name), weights(alone, STEPS, name))
        report.figure(f"{name}_apart", apart)
        report.expect(f"two ranks have the {name} of one process", apart < TOLERANCE, f"{apart:.2g}")
    if not report.on_gpu:
        report.needs_gpu("two ranks with CUDA tensors on one GPU")
