"""fp16 with a loss scale that overflows: the step is counted, weights and average stay, and the scale is halved."""

import json
import math
from typing import Any

import torch
from accelerate import Accelerator

from acceptance.report import Report
from acceptance.stepping import SMALLEST, checkpoint, difference, log_lines, run_config, train, weights
from upfield.common.files import hash_file
from upfield.distributed import training_run
from upfield.distributed.configuration import ModelConfig, TrainConfig

STEPS, LARGE_SCALE = 3, 2.0**100


def run(report: Report) -> None:
    """Save a run, raise the loss scale in its checkpoint, and take one more step."""
    if not report.on_gpu:
        scale_on_cpu()
        report.needs_gpu("training in fp16, which needs a GPU; on a CPU, the check adds a loss scaler and autocast")
    model = report.pick(gpu=ModelConfig(preset="report"), cpu=SMALLEST)

    def configured(steps: int) -> TrainConfig:
        schedule = {"optim_warmup_steps": 100, "optim_ema_decay": 0.9}
        precision = report.pick(gpu="fp16", cpu="no")
        return run_config(report, "run", model, steps, 4, precision=precision, checkpoint_every=1, **schedule)

    before = train(configured(STEPS))
    report.figure("overflows_before", before.overflows)
    config = configured(STEPS + 1)
    set_scale(config, STEPS, LARGE_SCALE)
    after = train(config)
    last = log_lines(config)[-1]
    report.text("last line of the log", str(last))
    counted = after.overflows - before.overflows
    report.expect("the overflow is counted", counted == 1, f"{counted} counted")
    report.expect("the log shows the overflow", last["overflows"] == after.overflows)
    report.expect("the batch does not count as skipped", after.skipped == before.skipped)
    report.expect("the schedule does not move", after.updates == before.updates, f"{before.updates}, {after.updates}")
    rates = [line["lr"] for line in log_lines(config)]
    report.figure("learning_rates", rates)
    for name in ("model", "average"):
        apart = difference(weights(config, STEPS, name), weights(config, STEPS + 1, name))
        report.expect(f"the {name} is unchanged", apart == 0, f"{apart:.2g} apart")
    scale = read_optimizer(config, STEPS + 1)["scaler"]["scale"]
    report.figure("scale", scale)
    report.expect("the scale is halved", math.isclose(scale, LARGE_SCALE / 2), f"{scale:g}")
    set_scale(config, STEPS + 1, 2.0**10)
    final = train(configured(STEPS + 2))
    report.expect("the next step with a small scale changes the weights", final.updates == before.updates + 1)
    apart = difference(weights(config, STEPS + 1), weights(config, STEPS + 2))
    report.expect("the weights move again", apart > 0, f"{apart:.2g}")


def scale_on_cpu() -> None:
    """Make training on a CPU use a loss scaler and autocast in fp16."""
    make_accelerator = training_run.make_accelerator

    def with_scaler(*arguments: Any) -> Accelerator:
        accelerator = make_accelerator(*arguments)
        accelerator.scaler, accelerator.native_amp = torch.amp.GradScaler("cpu"), True
        accelerator.state._shared_state["_mixed_precision"] = "fp16"
        return accelerator

    training_run.make_accelerator = with_scaler


def read_optimizer(config: TrainConfig, step: int) -> dict[str, Any]:
    """Read the state of optimizer and scaler in a checkpoint."""
    return torch.load(checkpoint(config, step) / "optimizer.pt", map_location="cpu", weights_only=True)


def set_scale(config: TrainConfig, step: int, scale: float) -> None:
    """Change the loss scale in a checkpoint, and its checksum."""
    folder = checkpoint(config, step)
    state = read_optimizer(config, step)
    state["scaler"]["scale"] = scale
    torch.save(state, folder / "optimizer.pt")
    hashes = json.loads((folder / "sha256.json").read_text(encoding="utf-8"))
    hashes["optimizer.pt"] = hash_file(folder / "optimizer.pt")
    (folder / "sha256.json").write_text(json.dumps(hashes), encoding="utf-8")
