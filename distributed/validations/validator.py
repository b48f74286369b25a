"""Validates a run during and after training, and keeps its best model."""

import math
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from upfield.common.errors import RunError
from upfield.common.progress import say
from upfield.common.stop_signals import StopReason, StopRequest
from upfield.common.stores.transfer import TransferCancelledError
from upfield.distributed.agreement import agree_to_stop, run_on_main_process, write_on_main_process
from upfield.distributed.checkpoint import (
    CHOSEN_BY,
    read_best_record,
    save_best,
    save_best_figures,
    save_best_score,
    save_progress,
)
from upfield.distributed.failures.memory_shortage import explain_memory_shortage
from upfield.distributed.logs.run_log import RunLog
from upfield.distributed.samples.reader import count_readers
from upfield.distributed.samples.validation_batches import choose_spread
from upfield.distributed.training_run import Figures, TrainingRun
from upfield.distributed.validations.validation import Validation, ValidationStoppedError, validate
from upfield.imaging.contrast import to_value
from upfield.model.amir import Amir, AmirConfig
from upfield.model.weights import MODEL, load_model

OUTLOOK = "Stopping now. The run is saved, and this validation is repeated when the run continues."


def read_network(path: Path) -> tuple[AmirConfig, dict[str, Tensor]]:
    """Read the sizes and the weights of a saved network, tensors of any shape by name.

    Raises:
        RunError: the file is missing or damaged.
    """
    try:
        network = load_model(path)
    except (OSError, ValueError) as error:
        raise RunError(f"{error} Train the run again from a checkpoint.") from error
    return network.config, network.state_dict()


class Validator:
    """Validates a run on the slices that its configuration chooses. ALL ranks call each method together."""

    def __init__(self, run: TrainingRun, log: RunLog, stop: StopRequest, measure_whole: bool) -> None:
        """Choose the slices.

        Args:
            run: run to validate.
            log: log of the run.
            stop: request that ends a validation; its field `agreed` is set if one was ended.
            measure_whole: whether to measure the best model on the whole split at the end.
        """
        self._run, self._log, self._stop, self._measures_whole = run, log, stop, measure_whole
        self._samples = choose_spread(run.validation, run.config.run.validation_slices)

    def validate_and_report(self, saved: bool) -> None:
        """Validate, keep the best model, and report the figures, unless a signal ends the validation.

        Args:
            saved: whether this step has a checkpoint; if so, the progress in the checkpoint is updated.
        """
        run = self._run
        figures = self._validate_and_keep_best()
        if figures is None:
            return
        if saved:
            what = f"{run.out}: the progress of step {run.progress.step}"
            write_on_main_process(what, lambda: save_progress(run.out, run.progress))
        run.on_validation(run.progress, run.epoch, figures)

    def measure_best_again(self) -> None:
        """Measure the best model on the slices of this job if it was chosen on others, so that scores compare."""
        run, progress = self._run, self._run.progress
        if progress.best_psnr is None or progress.best_slices == len(self._samples):
            return
        if run.accelerator.is_main_process:
            say(
                f"the best model (step {progress.best_step}) was chosen on {progress.best_slices} validation slices, "
                f"and is measured again on the {len(self._samples)} slices of this job"
            )
        measured = self._measure_best(self._samples)
        if measured is None:
            return
        figures = measured.figures
        progress.best_psnr, progress.best_slices = figures["psnr_slice"], len(self._samples)

        def write() -> None:
            save_best_score(run.out, figures["psnr_slice"], len(self._samples))
            if len(self._samples) == run.validation.num_samples:
                save_best_figures(run.out, figures)

        write_on_main_process(f"{run.out}: the figures of the best model", write)

    def measure_best_on_whole_split(self) -> None:
        """Measure the best model on the whole validation split, unless that has been done."""
        run, whole = self._run, self._run.validation.num_samples
        if not self._measures_whole or len(self._samples) == whole or run.progress.best_step is None:
            return
        record = run_on_main_process(lambda: read_best_record(run.out))
        if record is None or record["validation"].get("slices") == whole:
            return
        measured = self._measure_best(np.arange(whole))
        if measured is None:
            return
        figures = measured.figures
        what = f"{run.out}: the figures of the best model"
        write_on_main_process(what, lambda: save_best_figures(run.out, figures))
        self._log.metrics("best", record["step"], record["epoch"], figures)

    def _measure_best(self, samples: NDArray[np.int64]) -> Validation | None:
        run = self._run
        # A node might still see the file of an earlier best model.
        sizes, weights = run_on_main_process(lambda: read_network(run.out / "best" / MODEL))
        network = Amir(sizes).eval()
        network.load_state_dict(weights)
        network.to(run.accelerator.device)
        network.use_kernels(run.config.run.kernels)
        return self._measure(network, samples, 0)

    def _measure(
        self, restore: Callable[[Tensor], Tensor], samples: NDArray[np.int64], num_pictures: int
    ) -> Validation | None:
        """Measure a network; return None if a signal ended the validation."""
        run, stop, config = self._run, self._stop, self._run.config
        num_own = math.ceil(len(samples) / run.accelerator.num_processes)
        num_workers = count_readers(config.data, run.accelerator.device.type == "cuda")
        outlook, stop.outlook = stop.outlook, OUTLOOK
        try:
            with (
                explain_memory_shortage("validating", "Choose a smaller --run.validation_batch_size."),
                self._log.validation(num_own) as advance,
            ):
                return validate(
                    run.accelerator,
                    restore,
                    run.validation,
                    config.run.validation_batch_size,
                    num_pictures,
                    num_workers,
                    config.data.prefetch,
                    samples,
                    advance,
                    lambda: agree_to_stop(stop),
                )
        except ValidationStoppedError:
            return None
        except TransferCancelledError:
            # A single process cancels its downloads when a signal arrives.
            if not stop.asked:
                raise
            stop.agreed = StopReason.SIGNAL
            return None
        finally:
            stop.outlook = outlook

    def _validate_and_keep_best(self) -> Figures | None:
        """Validate, save the model if its mean PSNR is the best so far, and return the figures.

        If the run keeps an average of the weights, the average is validated and saved.
        """
        run = self._run
        learner, progress, step = run.learner, run.progress, run.progress.step
        with learner.average.swapped_in() if learner.average is not None else nullcontext():
            learner.network.eval()
            validation = self._measure(learner.network, self._samples, run.config.run.pictures)
            learner.network.train()
            if validation is None:
                return None
            figures, psnr = validation.figures, validation.figures["psnr_slice"]
            progress.validated_step = step
            is_best = math.isfinite(psnr) and (progress.best_psnr is None or psnr > progress.best_psnr)
            if is_best:
                progress.best_psnr, progress.best_step, progress.best_slices = psnr, step, len(self._samples)
            self._log.metrics("validation", step, run.epoch, figures)
            self._log.pictures(step, validation.pictures)
            if not math.isfinite(psnr) and run.accelerator.is_main_process:
                say(f"validation at step {step} has no finite PSNR; the best model is unchanged")
            if is_best:
                self._keep_best(figures)
        return figures

    def _keep_best(self, figures: Figures) -> None:
        """Write the current weights as the best model."""
        run = self._run
        weights, sizes = run.learner.weights(), run.learner.network.config
        manifest, step = run.validation.manifest, run.progress.step
        record = {
            "step": step,
            "epoch": run.epoch,
            "validation": figures,
            CHOSEN_BY: {"psnr_slice": figures["psnr_slice"], "slices": len(self._samples)},
            "data_sha256": manifest.data_sha256,
            "normalisation": manifest.normalisation,
            "geometry": manifest.geometry,
            "context": manifest.context,
            "contrast": to_value(manifest.contrasts),
            "skull_stripped": manifest.skull_stripped,
        }
        what = f"{run.out}: the best model of step {step}"
        write_on_main_process(what, lambda: save_best(run.out, weights, sizes, run.config, record))
