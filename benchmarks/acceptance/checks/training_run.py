"""A short run of `report` through `fit`: a finite, falling loss, the speed, and the time spent waiting for data."""

import math
import statistics

import torch

from acceptance.measuring import product_rate
from acceptance.report import Report
from acceptance.stepping import SMALLEST, log_lines, run_config, train
from acceptance.tracing import WHOLE_SLICE, trace_step
from upfield.distributed.configuration import ModelConfig

STEPS, BATCH, INTERVAL = 30, 4, 5


def run(report: Report) -> None:
    """Train and read the log."""
    model = report.pick(gpu=ModelConfig(preset="report"), cpu=SMALLEST)
    # The default rate changes the smallest network too little in 30 steps.
    rate = report.pick(gpu=2e-4, cpu=4e-3)
    config = run_config(
        report, "run", model, STEPS, BATCH, log_every=INTERVAL, data_num_workers=2, optim_lr=rate, precision="bf16"
    )
    train(config)
    lines = log_lines(config)
    losses = [line["loss"] for line in lines]
    report.text("log", "\n".join(map(str, lines)))
    report.expect(
        "loss and gradient norm are finite at every logged step",
        all(math.isfinite(line[name] or math.nan) for line in lines for name in ("loss", "grad_norm", "load")),
    )
    report.expect("no step is skipped", lines[-1]["skipped"] == 0, f"{lines[-1]['skipped']} skipped")
    report.expect(
        f"the mean loss of the last {INTERVAL} steps is below that of the first {INTERVAL}",
        losses[-1] < losses[0],
        f"{losses[0]:.4f} to {losses[-1]:.4f}",
    )
    settled = lines[2:]
    slices_s = statistics.median(line["slices_per_s"] for line in settled)
    report.figure("slices_per_s", slices_s)
    report.figure("data_wait", max(line["data_wait"] for line in settled))
    report.figure("memory_gb", max(line["memory_gb"] for line in lines))
    size = report.pick(gpu=WHOLE_SLICE, cpu=(32, 24))
    _, operations = trace_step(model.amir(context=0), size, report.device, torch.bfloat16)
    report.figure("share_of_product_rate", operations * slices_s / product_rate(report.device, torch.bfloat16))
    validation = log_lines(config, "validation")[-1]
    report.figure("validation_psnr_db", validation["psnr_slice"])
    report.expect("the final validation is finite", math.isfinite(validation["psnr_slice"] or math.nan))
