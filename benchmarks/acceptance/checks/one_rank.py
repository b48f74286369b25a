"""One rank through torchrun, on a GPU with NCCL: DDP, compiled and selective, and FSDP2; save, load, SIGUSR1."""

from acceptance.ranks import SAVED, STEPS, Job, losses, read_result, start
from acceptance.report import Report
from acceptance.stepping import checkpoint, distance, log_lines, train, weights

COMPILED = (("compile", True), ("activation_checkpointing", "selective"))
JOBS = (
    Job("ddp", stops=True),
    Job("ddp_compiled_selective", settings=COMPILED),
    Job("fsdp2", split=True, stops=True),
)
# bf16 rounds after 8 bits, and each kind of run adds in another order.
LOSS_TOLERANCE = 2e-2
# Distance between the weights of a resumed and a whole run, relative to that between the two checkpoints.
MOST_APART = 0.2


def run(report: Report) -> None:
    """Start all jobs side by side, because most of their time is start-up, and compare them with a run alone."""
    processes = {job: start(report, job, 1) for job in JOBS}
    alone = JOBS[0].config(report, "alone")
    train(alone)
    expected = losses(alone)
    for job, process in processes.items():
        code = process.wait()
        report.expect(f"{job.name} ends with exit code 0", code == 0, str(code))
        if code:
            continue
        try:
            compare(report, job, expected)
        except Exception as error:
            report.fail(job.name, error)
    if not report.on_gpu:
        report.needs_gpu("NCCL; on a CPU, the rank uses gloo")


def compare(report: Report, job: Job, expected: list[float]) -> None:
    """Compare a job's runs with each other, and their losses with those without ranks."""
    result = read_result(report, job)
    for key in ("network", "parameter", "device", "backend"):
        report.figure(f"{job.name}_{key}", result[key])
    wanted = "FSDP" if job.split else "DistributedDataParallel"
    report.expect(f"{job.name} wraps the network in {wanted}", wanted in result["network"], result["network"])
    if job.split:
        report.expect("fsdp2 splits the weights", result["parameter"] == "DTensor", result["parameter"])
    if report.on_gpu:
        report.expect(f"{job.name} uses NCCL", "nccl" in result["backend"], result["backend"])
    whole = job.config(report)
    apart = max(abs(one - two) / abs(two) for one, two in zip(losses(whole), expected, strict=True))
    report.figure(f"{job.name}_losses_relative_difference", apart)
    report.expect(f"{job.name} has the losses of a run without ranks", apart < LOSS_TOLERANCE, f"{apart:.2g}")
    report.expect(f"{job.name} saves after steps {SAVED} and {STEPS}", checkpoint(whole, STEPS).is_dir())
    if job.stops:
        resumed, stopped = job.config(report, "resumed"), job.config(report, "stopped")
        end = weights(whole, STEPS)
        # A run that did not resume would be at least as far from the end as the weights of the checkpoint.
        share = distance(weights(resumed, STEPS), end) / distance(weights(whole, SAVED), end)
        report.figure(f"{job.name}_resumed_distance_from_whole_run", share)
        report.expect(f"{job.name} resumes from step {SAVED}", share < MOST_APART, f"{share:.2g} of two steps apart")
        step = result["stopped"]
        report.expect(f"{job.name} stops early on SIGUSR1", step < 400, f"step {step}")
        report.expect(f"{job.name} saves where it stops", checkpoint(stopped, step).is_dir())
        report.expect(f"{job.name} logs up to where it stops", log_lines(stopped)[-1]["step"] == step)
