"""Exports a run: reads its best model, writes the ONNX file, and compares the file with PyTorch."""

import time
from pathlib import Path
from typing import Any

from upfield.common.allocator import keep_freed_memory
from upfield.common.cores import leave_busy_cores
from upfield.common.errors import InputError
from upfield.common.files import check_writable_file
from upfield.common.places import recognise, shown_whole
from upfield.common.progress import ProgressBar, say
from upfield.export.configuration import ExportConfig
from upfield.export.modelfile.card import is_model_file, seal_graph, write_card
from upfield.export.modelfile.graph import build_graph, check_graph, write_model
from upfield.export.modelfile.parity import count_parity_slices, prove_parity
from upfield.export.modelfile.parity_slices import open_parity_set, read_parity_slices, training_geometry
from upfield.export.modelfile.run_metadata import describe_run
from upfield.model.baseline import warn_if_below_cubic
from upfield.model.weights import MODEL, BestModel, read_best


def export_run(config: ExportConfig) -> None:
    """Export a run's best model, and print how closely the file's results match PyTorch's.

    Raises:
        InputError: the run, its shards, the evaluation or the output path cannot be used.
        RunError: the file's results differ from PyTorch's; the file is not written.
    """
    started = time.monotonic()
    check_out(config.out)
    best = read_run(config.run)
    shards = open_parity_set(config, best)
    slices = read_parity_slices(shards, best.context)
    card = describe_run(best, config.run, config.precision, config.evaluation)
    card["geometry"] = training_geometry(best, shards, config.run)
    # PyTorch takes most of the export's time, and takes 1.6 times as long if freed memory goes back to the system.
    keep_freed_memory()
    leave_busy_cores()
    say(f"{config.run}: building the graph of the best model (step {best.step})")
    model = build_graph(best.network, half=config.precision == "fp16")
    seal_graph(model)
    # The comparison opens the file as `upfield enhance` does, which needs the metadata.
    write_card(model, card)
    with write_model(model, config.out) as temporary:
        check_graph(temporary)
        with ProgressBar("slices compared with PyTorch", count_parity_slices(slices)) as bar:
            card["parity"] = prove_parity(best.network, temporary, slices, config.precision, bar.advance)
        write_card(model, card)
    print(summarise_export(config.out, card, time.monotonic() - started), flush=True)
    if warning := warn_if_below_cubic(str(config.run), best.step, best.validation):
        say(warning)


def summarise_export(out: Path, card: dict[str, Any], seconds: float) -> str:
    """Return a line with the written file's precision, size and largest difference from PyTorch."""
    parity = card["parity"]
    loss = f", {parity['psnr_lost_db']:z.4f} dB lost" if "psnr_lost_db" in parity else ""
    return (
        f"{out}: {card['precision']}, {out.stat().st_size / 1e6:.1f} MB in {seconds:.0f} s; largest difference from "
        f"PyTorch {parity['max_abs_difference']:.2g} on {parity['slices']} real slices and a test image at "
        f"{len(parity['sizes'])} sizes{loss}"
    )


def check_out(out: Path) -> None:
    """Check that the model file can be written, before the export spends minutes on it.

    Raises:
        InputError: the name does not end in .onnx, the folder cannot be written, or `out` is another kind of file.
    """
    check_writable_file(out, "--out", [".onnx"])
    if out.exists() and not is_model_file(out):
        raise InputError(f"{out} exists and is not a model file of upfield. Choose another --out.")


def read_run(run: Path) -> BestModel:
    """Read a run's best model. If the run averaged its weights, these are the averaged weights, which were validated.

    Raises:
        InputError: the folder is not a run, or its best model is missing or damaged.
    """
    if not run.is_dir():
        found = recognise(run)
        problem = f" is {found.kind if found else 'a file'}, not the folder of a run"
        problem = problem if run.exists() else ": there is no such folder"
        raise InputError(f"{run}{problem}. Name the folder that upfield train wrote.")
    if (run / MODEL).is_file():
        raise InputError(f"{run} is a folder inside a run. Name {run.parent}.")
    if (found := recognise(run)) and found.kind != "the folder of a run":
        remedy = f"Name the folder {shown_whole(found)}" if found.kind == "a part of a run" else "Name that folder"
        raise InputError(f"{run} is {found.kind}, not the folder of a run that upfield train wrote. {remedy}.")
    try:
        return read_best(run / "best")
    except ValueError as error:
        raise InputError(str(error)) from error
