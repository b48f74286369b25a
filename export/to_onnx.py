"""`upfield export`: a run's best model -> ONNX, with parity proved and recorded."""

import sys
from pathlib import Path
from typing import Any

from upfield.export.configuration import ExportConfig
from upfield.sharding.command import Command, execute
from upfield.sharding.errors import InputError

PARITY_SLICES = 4


def export(config: ExportConfig) -> None:
    """Export the run's best model and print how closely the file follows PyTorch."""
    import time

    from upfield.export.graph import prove_parity, write_graph
    from upfield.model.weights import read_best
    from upfield.sharding.atomic import atomic_path

    assert config.run is not None
    assert config.out is not None
    if config.out.suffix != ".onnx":
        raise InputError(f"{config.out}: expected a name ending in .onnx")
    if config.precision == "fp16":
        raise InputError("precision: expected fp32, found fp16, which this version cannot write yet")
    started = time.monotonic()
    try:
        best = read_best(config.run / "best")
    except ValueError as error:
        raise InputError(str(error)) from error
    network = best.network
    slices = parity_slices(config.shards or trained_on(best.config, config.run), best.context)
    card: dict[str, Any] = {
        "config": without_paths(best.config),
        "model": network.config.to_tree(),
        "context": best.context,
        "normalisation": best.normalisation,
        "data_sha256": best.data_sha256,
        "step": best.step,
        "metrics": {"validation": best.validation},
    }
    if config.evaluation:
        measured = read_json(config.evaluation)
        card["metrics"]["evaluation"] = {key: measured[key] for key in ("cubic", "model") if key in measured}
    with atomic_path(config.out) as temporary:
        write_graph(network, temporary, card)
        card["parity"] = prove_parity(network, temporary, slices)
        add_metadata(temporary, "parity", card["parity"])
    size = config.out.stat().st_size
    parity = card["parity"]
    print(
        f"{config.out}: {size / 1e6:.1f} MB in {time.monotonic() - started:.0f} s; largest difference to PyTorch "
        f"{parity['max_abs_difference']:.2g} on {parity['slices']} slices at {len(parity['sizes'])} sizes"
    )


def without_paths(training: dict[str, Any]) -> dict[str, Any]:
    """Give a training configuration without its folders: a model file travels, and they name people and machines."""
    paths = {"data": ("shards", "trace", "cache_dir"), "run": ("out",), "model": ("init",)}
    return {
        section: {key: value for key, value in values.items() if key not in paths.get(section, ())}
        if isinstance(values, dict)
        else values
        for section, values in training.items()
    }


def trained_on(training: dict[str, Any], run: Path) -> Path:
    """Give the shard set that a run was trained on.

    Raises:
        InputError: its configuration does not say.
    """
    try:
        return Path(training["data"]["shards"])
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{run}: expected data.shards in its configuration, found none; name it with --shards"
        ) from error


def parity_slices(shards: Path, context: int) -> Any:
    """Read a few validation slices `(N, 1 + 2*context, H, W)` float32, spread over the split.

    Raises:
        InputError: no such set, or one of another context.
    """
    import numpy as np

    from upfield.sharding.shardset import ShardSplit

    split = ShardSplit(shards, "val")
    if split.manifest.context != context:
        raise InputError(
            f"{shards}: expected shards of context {context} like the model's, found {split.manifest.context}; "
            "name the right set with --shards"
        )
    # Inner quarters: the outermost slices hold no anatomy.
    chosen = np.linspace(0.25, 0.75, PARITY_SLICES) * (split.num_samples - 1)
    low = np.empty((len(chosen), *split.low_shape), dtype=np.float16)
    high = np.empty((len(chosen), *split.high_shape), dtype=np.float16)
    split.read_into([int(sample) for sample in chosen], low, high)
    return low.astype(np.float32)


def add_metadata(path: Path, key: str, value: Any) -> None:
    """Add one entry to a model file's metadata."""
    import json

    import onnx

    model = onnx.load_model(path)
    model.metadata_props.add(key=key, value=json.dumps(value, sort_keys=True))
    onnx.save_model(model, path)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file.

    Raises:
        InputError: missing or not JSON.
    """
    import json

    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError) as error:
        raise InputError(f"{path}: expected a JSON file, found none that can be read: {error}") from error


COMMAND = Command("export", ExportConfig, export, positional=("run",), required=("run", "out"))


def main(argv: list[str] | None = None) -> int:
    """Run the command and give its exit code."""
    return execute(COMMAND, argv)


if __name__ == "__main__":
    sys.exit(main())
