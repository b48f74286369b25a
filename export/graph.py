"""A trained network -> an ONNX graph with its metadata, and the proof that both compute the same."""

import contextlib
import io
import json
import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from upfield.export.restorer import FORMAT, VERSION, OnnxRestorer
from upfield.model.amir import MIN_SIZE, Amir
from upfield.sharding.errors import RunError

OPSET = 20
MAX_SIZE = 4096
MAX_DIFFERENCE = 1e-3


def write_graph(network: Amir, path: Path, card: dict[str, Any]) -> None:
    """Export a network: input `low` (N, C, H, W), output `high` (N, 1, H, W), all of N, H, W dynamic.

    Args:
        network: in evaluation mode, on the CPU.
        path: the file to write.
        card: metadata; format and version are added.
    """
    # An example unlike any slice, and no multiple of 8: what would be frozen into the graph would show.
    example = torch.linspace(0, 1, 2 * network.config.in_channels * 45 * 38)
    example = example.reshape(2, network.config.in_channels, 45, 38)
    shape = {
        0: torch.export.Dim("N", min=1, max=65536),
        2: torch.export.Dim("H", min=MIN_SIZE, max=MAX_SIZE),
        3: torch.export.Dim("W", min=MIN_SIZE, max=MAX_SIZE),
    }
    with _quiet():
        program = torch.onnx.export(
            network,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=["low"],
            output_names=["high"],
            dynamic_shapes=(shape,),
        )
    assert program is not None
    model = program.model_proto
    # Traces of where it was exported are nobody's business, and differ from one machine to the next.
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    del model.metadata_props[:]
    # The exporter states the sizes of the output as formulas; they are those of the input.
    for dim, name in ((0, "N"), (2, "H"), (3, "W")):
        model.graph.output[0].type.tensor_type.shape.dim[dim].dim_param = name
    for key, value in ({"format": FORMAT, "format_version": VERSION} | card).items():
        model.metadata_props.add(key=key, value=json.dumps(value, sort_keys=True))
    onnx.checker.check_model(model)
    onnx.save_model(model, path)


def prove_parity(network: Amir, path: Path, slices: NDArray[np.float32]) -> dict[str, Any]:
    """Compare an exported graph with PyTorch on real slices, whole and cut to two other sizes.

    Args:
        network: what was exported, in evaluation mode, on the CPU.
        path: the exported file.
        slices: `(N, 1 + 2*context, H, W)` float32 in [0, 1].

    Returns:
        `max_abs_difference`, `psnr_db` against PyTorch (None where nothing differs), and what was compared.

    Raises:
        RunError: the two differ.
    """
    restorer = OnnxRestorer(path, "cpu")
    _, _, height, width = slices.shape
    sizes = [(height, width), (max(height * 2 // 3, MIN_SIZE), max(width // 2, MIN_SIZE)), (height - 1, width - 3)]
    largest, squared, count = 0.0, 0.0, 0
    for rows, columns in sizes:
        low = np.ascontiguousarray(slices[..., :rows, :columns])
        with torch.inference_mode():
            expected = network(torch.from_numpy(low)).numpy()
        difference = restorer.run(low) - expected
        largest = max(largest, float(np.abs(difference).max()))
        squared, count = squared + float(np.square(difference, dtype=np.float64).sum()), count + difference.size
    if not largest <= MAX_DIFFERENCE:
        raise RunError(
            f"{path}: expected the graph to give PyTorch's values within {MAX_DIFFERENCE}, found {largest:.3g}; "
            "the export is wrong, nothing was written"
        )
    psnr = 10 * float(np.log10(count / squared)) if squared else None
    return {"max_abs_difference": largest, "psnr_db": psnr, "slices": len(slices), "sizes": [list(s) for s in sizes]}


@contextlib.contextmanager
def _quiet() -> Any:
    """Keep the exporter's progress and its remarks on packages that we do not use off the terminal."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
