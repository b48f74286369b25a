"""`upfield export`: a run's best model -> ONNX, with parity proved and recorded."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from upfield.common.command import Command, execute
from upfield.common.errors import InputError, ShardSetError
from upfield.common.files import check_writable
from upfield.export.configuration import ExportConfig

if TYPE_CHECKING:
    from upfield.export.modelfile.parity import Slices
    from upfield.model.weights import BestModel
    from upfield.sharding.shardset.shard_split import ShardSplit

PARITY_SLICES = 4


def export(config: ExportConfig) -> None:
    """Export the run's best model and print how closely the file follows PyTorch."""
    import time

    from upfield.common.allocator import keep_freed_memory
    from upfield.export.modelfile.card import describe
    from upfield.export.modelfile.graph import add_metadata, build_graph, check_graph, written
    from upfield.export.modelfile.parity import prove_parity

    started = time.monotonic()
    claim(config.out)
    best = read_run(config.run)
    slices = parity_slices(config.shards or trained_on(best.config, config.run), best.context, config.shards is None)
    card = describe(best, config.run, config.precision, config.evaluation)
    keep_freed_memory()  # PyTorch's part of the comparison takes most of the time, and half of it otherwise.
    model = build_graph(best.network, half=config.precision == "fp16")
    # The restorer that proves it reads the metadata too.
    add_metadata(model, card)
    with written(model, config.out) as temporary:
        check_graph(temporary)
        card["parity"] = prove_parity(best.network, temporary, slices, config.precision)
        add_metadata(model, card)
    print(summary(config.out, card, time.monotonic() - started))


def summary(out: Path, card: dict[str, Any], seconds: float) -> str:
    """Say in a line what was written, and how close to PyTorch it is."""
    parity = card["parity"]
    loss = f", {parity['psnr_lost_db']:.4f} dB lost" if "psnr_lost_db" in parity else ""
    return (
        f"{out}: {card['precision']}, {out.stat().st_size / 1e6:.1f} MB in {seconds:.0f} s; largest difference to "
        f"PyTorch {parity['max_abs_difference']:.2g} on {parity['slices']} real slices and a drawn one at "
        f"{len(parity['sizes'])} sizes{loss}"
    )


def claim(out: Path) -> None:
    """Refuse a place that cannot be written, or holds something else than a model file, before the long work.

    Raises:
        InputError: one of these.
    """
    from upfield.export.scans.restorer import is_model_file

    if out.suffix != ".onnx":
        raise InputError(f"{out}: expected a name ending in .onnx, found another; change --out")
    if out.exists() and not is_model_file(out):
        raise InputError(f"{out}: expected a new file or an older model file, found another; choose another --out")
    check_writable(out.parent, "--out")


def read_run(run: Path) -> "BestModel":
    """Read a run's best model: where the run averaged its weights, the average, as that was what it validated.

    Raises:
        InputError: none there, or damaged.
    """
    from upfield.model.weights import MODEL, read_best

    if not run.is_dir():
        raise InputError(f"{run}: expected the folder of a run, found {'a file' if run.exists() else 'nothing'} there")
    if (run / MODEL).is_file():
        raise InputError(f"{run}: expected the folder of a run, found one within it; name {run.parent}")
    try:
        return read_best(run / "best")
    except ValueError as error:
        raise InputError(str(error)) from error


def trained_on(training: dict[str, Any], run: Path) -> Path:
    """Give the shard set that a run was trained on.

    Raises:
        InputError: its configuration does not say, or names one that is not on this machine.
    """
    try:
        shards = str(training["data"]["shards"])
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{run}: expected data.shards in its configuration, found none; name it with --shards"
        ) from error
    if "://" in shards:
        raise InputError(f"{run}: expected its shards on this machine, found {shards}; name a copy with --shards")
    return Path(shards)


def parity_slices(shards: Path, context: int, recorded: bool) -> "Slices":
    """Read a few validation slices with their targets, spread over the inner half of the head.

    Args:
        shards: the set.
        context: the model's.
        recorded: whether the run's record names the set, and not the user.

    Raises:
        InputError: no such set, an empty one, or one of another context.
    """
    import numpy as np

    from upfield.export.modelfile.parity import Slices
    from upfield.sharding.shardset.shard_split import ShardSplit

    try:
        split = ShardSplit(shards, "val")
    except ShardSetError as error:
        hint = "; the run was trained on it: name the place where it is now with --shards" if recorded else ""
        raise ShardSetError(f"{error}{hint}") from error
    if split.manifest.context != context:
        raise InputError(
            f"{shards}: expected shards of context {context} like the model's, found {split.manifest.context}; "
            "name the right set with --shards"
        )
    chosen = inner_samples(split)
    low = np.empty((len(chosen), *split.low_shape), dtype=np.float16)
    high = np.empty((len(chosen), *split.high_shape), dtype=np.float16)
    split.read_into(chosen, low, high)
    return Slices(low.astype(np.float32), high.astype(np.float32))


def inner_samples(split: "ShardSplit") -> list[int]:
    """Choose samples with anatomy: of real pairs where the split has them, from the first to the third quarter.

    Raises:
        InputError: the split is empty.
    """
    import numpy as np

    records = [split.record(sample) for sample in range(split.num_samples)]
    if not records:
        raise InputError(f"{split.root}: expected validation slices, found none; name another set with --shards")
    kinds = {record["kind"] for record in records}
    kind = "real" if "real" in kinds else min(kinds)
    places = [(record["slice"], number) for number, record in enumerate(records) if record["kind"] == kind]
    ordered = [number for _, number in sorted(places)]
    return [ordered[int(at)] for at in np.linspace(0.25, 0.75, PARITY_SLICES) * (len(ordered) - 1)]


COMMAND = Command("export", ExportConfig, export, positional=("run",))


def main(argv: list[str] | None = None) -> int:
    """Run the command and give its exit code."""
    return execute(COMMAND, argv)


if __name__ == "__main__":
    sys.exit(main())
