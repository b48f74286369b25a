"""The same steps twice, stopped in between, and with deterministic algorithms: equal bit for bit, or how far apart."""

from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context

import torch

from acceptance.report import Report
from acceptance.stepping import SMALLEST, checkpoint, difference, log_lines, run_config, train, weights
from upfield.common.tasks import end_with_parent
from upfield.distributed.configuration import ModelConfig, TrainConfig

STEPS, STOP, BATCH = 6, 3, 4


def run(report: Report) -> None:
    """Compare three runs of the same steps, first without and then with deterministic algorithms."""
    # Deterministic algorithms need a process that has not used the GPU before. Both run side by side.
    with ProcessPoolExecutor(1, get_context("spawn"), initializer=end_with_parent) as pool:
        deterministic = pool.submit(compare_runs, report, True)
        compare_runs(report, False)
        deterministic.result()


def compare_runs(report: Report, deterministic: bool) -> None:
    """Run the steps twice without and once with a stop, and compare losses, weights, averages and optimizer states."""
    model = report.pick(gpu=ModelConfig(preset="report"), cpu=SMALLEST)
    prefix = "deterministic" if deterministic else "default"

    def configured(name: str, steps: int) -> TrainConfig:
        extra = {"deterministic": True} if deterministic else {}
        return run_config(
            report, f"{prefix}-{name}", model, steps, BATCH, optim_ema_decay=0.9, data_num_workers=2, **extra
        )

    first, second = configured("first", STEPS), configured("second", STEPS)
    stopped = configured("stopped", STOP)
    for config in (first, second, stopped, replace(stopped, run=replace(stopped.run, max_steps=STEPS))):
        train(config)
    for name, other in (("again", second), ("resumed", stopped)):
        apart = distance(first, other)
        for what, value in apart.items():
            report.figure(f"{prefix}_{name}_{what}_apart", value)
        equal = not any(apart.values())
        report.figure(f"{prefix}_{name}_bit_for_bit", equal)
        if deterministic:
            report.expect(f"with run.deterministic, the {name} run is equal bit for bit", equal, str(apart))
    report.expect(
        f"{prefix}: the resumed run continues at step {STOP + 1}",
        [line["step"] for line in log_lines(stopped)] == list(range(1, STEPS + 1)),
    )


def distance(first: TrainConfig, other: TrainConfig) -> dict[str, float]:
    """Return the largest differences between two runs after the last step: losses, weights and averages."""
    pairs = zip(log_lines(first), log_lines(other), strict=True)
    return {
        "losses": max(abs(one["loss"] - two["loss"]) for one, two in pairs),
        "weights": difference(weights(first, STEPS), weights(other, STEPS)),
        "averages": difference(weights(first, STEPS, "average"), weights(other, STEPS, "average")),
        "moments": moments_apart(first, other),
    }


def moments_apart(first: TrainConfig, other: TrainConfig) -> float:
    """Return the largest difference between the optimizer's moments of two runs after the last step."""

    def tensors(config: TrainConfig) -> dict[str, torch.Tensor]:
        tree = torch.load(checkpoint(config, STEPS) / "optimizer.pt", weights_only=True, map_location="cpu")
        state = tree["optimizer"]["state"]
        return {f"{name}/{key}": torch.as_tensor(value) for name, each in state.items() for key, value in each.items()}

    return difference(tensors(first), tensors(other))
