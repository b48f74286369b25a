"""Runs of `fit` in processes that torchrun starts: data parallelism and split weights, saved, resumed and stopped."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from acceptance.report import Report, Settings
from acceptance.runner import PROGRAM, ROOT
from acceptance.stepping import NEVER, SMALLEST, log_lines, make_compiling_cheap, run_config
from upfield.common.tasks import end_with_parent
from upfield.distributed.configuration import TrainConfig

STEPS, SAVED = 4, 2
RESULT = "rank.json"


@dataclass(frozen=True)
class Job:
    """A run in one or more processes."""

    name: str
    split: bool = False
    """Whether FSDP splits the weights."""
    gloo: bool = False
    """Whether the ranks share one device through gloo."""
    settings: tuple[tuple[str, Any], ...] = ()
    """Settings of the run, as for `run_config`."""
    stops: bool = False
    """Whether the run is also resumed from its first checkpoint, and stopped by SIGUSR1 in a third run."""

    def config(self, report: Report, kind: str = "whole") -> TrainConfig:
        """Configure one of the runs of the job: `whole`, `resumed`, `stopped`, or `alone`, outside the job."""
        steps = 400 if kind == "stopped" else STEPS
        settings = {"checkpoint_every": SAVED, "optim_ema_decay": 0.9, "timeout_s": 60.0} | dict(self.settings)
        return run_config(report, f"{self.name}-{kind}", SMALLEST, steps, 2, **settings)


def start(report: Report, job: Job, processes: int) -> "subprocess.Popen[bytes]":
    """Start a job through torchrun."""
    text = json.dumps([asdict(report.settings), asdict(job)])
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    environment = dict(os.environ)
    if not report.on_gpu:
        environment |= {"OMP_NUM_THREADS": "1"}
    if job.split:
        environment |= split_environment()
    return subprocess.Popen(
        [*torchrun, str(PROGRAM), "--rank", text], env=environment, cwd=report.work, preexec_fn=end_with_parent
    )


def split_environment() -> dict[str, str]:
    """Return the variables that `accelerate launch` sets for the committed FSDP configuration."""
    file = ROOT / "cluster/accelerate/fsdp.yaml"
    settings = yaml.safe_load(file.read_text(encoding="utf-8"))["fsdp_config"]
    names = {key.upper().replace("_LAYER_CLS", "_CLS"): str(value) for key, value in settings.items()}
    return {"ACCELERATE_USE_FSDP": "true"} | {
        name: value.lower() if value in ("True", "False") else value for name, value in names.items()
    }


def run_rank(text: str) -> int:
    """Run the runs of a job as one of its ranks, and return the exit code."""
    end_with_parent()
    settings, job = json.loads(text)
    # The ranks write into the folder of their check, and report nothing themselves.
    report = Report(Settings(**settings | {"records": os.devnull}))
    job = Job(**job)
    prepare(report, job)
    result: dict[str, Any] = {}
    result["whole"] = train_as_rank(job.config(report), result)
    if job.stops:
        whole = job.config(report)
        resumed = job.config(report, "resumed")
        first = whole.run.out / "checkpoints" / f"step-{SAVED:08d}"
        train_as_rank(replace(resumed, run=replace(resumed.run, resume=str(first))))
        stopped = job.config(report, "stopped")
        threading.Thread(target=send_when_saved, args=(stopped.run.out,), daemon=True).start()
        result["stopped"] = train_as_rank(stopped)
    if os.environ["RANK"] == "0":
        (report.work / f"{job.name}-{RESULT}").write_text(json.dumps(result), encoding="utf-8")
    return 0


def train_as_rank(config: TrainConfig, result: dict[str, Any] | None = None) -> int:
    """Train, note how the network was wrapped, and return the last step."""
    from accelerate import Accelerator

    from acceptance.stepping import train

    prepared = Accelerator.prepare

    def noting(self: Accelerator, network: Any, *others: Any) -> Any:
        wrapped = prepared(self, network, *others)
        if result is not None:
            first = wrapped[0] if isinstance(wrapped, tuple | list) else wrapped
            result["network"] = type(first).__name__
            result["parameter"] = type(next(first.parameters())).__name__
            result["device"] = str(self.device)
            result["backend"] = str(self.state.backend)
        return wrapped

    Accelerator.prepare = noting
    try:
        return train(config).step
    finally:
        Accelerator.prepare = prepared


def prepare(report: Report, job: Job) -> None:
    """Bend what one device cannot have by itself: DDP around one rank, two ranks on one GPU, FSDP on a CPU."""
    from accelerate import Accelerator, PartialState
    from accelerate.utils import DistributedType

    from acceptance.profiling import set_tf32
    from upfield.distributed import process_group, training_run

    set_tf32(False)
    make_compiling_cheap(report.device)
    if job.gloo and report.on_gpu:
        # NCCL refuses two ranks on one GPU. Both ranks take the first one.
        os.environ["LOCAL_RANK"] = "0"
        process_group.InitProcessGroupKwargs = partial(process_group.InitProcessGroupKwargs, backend="gloo")
    if not job.gloo and not job.split:
        # Accelerate does not wrap the network of a single rank.
        if report.on_gpu:
            Accelerator.multi_device = property(lambda self: True)  # pyright: ignore[reportAttributeAccessIssue]
        else:
            wrap_on_cpu(Accelerator)
    if job.split and not report.on_gpu:
        make_accelerator = training_run.make_accelerator

        def with_fsdp(*arguments: Any) -> Accelerator:
            # On CPUs, Accelerate would silently use plain data parallelism. Declared one of GPUs, the process group
            # takes the same path as there.
            PartialState(cpu=True)
            PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
            return make_accelerator(*arguments)

        training_run.make_accelerator = with_fsdp


def wrap_on_cpu(accelerator_class: Any) -> None:
    """Wrap the network of a single rank on a CPU for data parallelism, as Accelerate wraps that of several."""
    from accelerate.utils import DistributedType
    from torch.nn.parallel import DistributedDataParallel

    prepare_model = accelerator_class.prepare_model

    def wrapping(self: Any, model: Any, *arguments: Any, **named: Any) -> Any:
        if self.distributed_type == DistributedType.MULTI_CPU and self.num_processes == 1:
            model = DistributedDataParallel(model, **(self.ddp_handler.to_kwargs() if self.ddp_handler else {}))
        return prepare_model(self, model, *arguments, **named)

    accelerator_class.prepare_model = wrapping


def send_when_saved(out: Path) -> None:
    """Send SIGUSR1 to this process once the run has saved a checkpoint."""
    while not (out / "checkpoints/last").exists():
        time.sleep(0.02)
    os.kill(os.getpid(), signal.SIGUSR1)


def read_result(report: Report, job: Job) -> dict[str, Any]:
    """Read what the first rank noted."""
    return json.loads((report.work / f"{job.name}-{RESULT}").read_text(encoding="utf-8"))


def losses(config: TrainConfig) -> list[float]:
    """Return the loss of each step of a run."""
    return [line["loss"] for line in log_lines(config)]


__all__ = ["NEVER", "SAVED", "STEPS", "Job", "losses", "read_result", "run_rank", "start"]
