"""Compare a scan with what a model was trained on: its contrast, resolution, and whether it shows a head at all."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from upfield.common.errors import VolumeError
from upfield.export.modelfile.card import ModelCard
from upfield.export.scans.provenance import is_provenance
from upfield.imaging.contrast import gather_evidence, judge_scan, name_evidence
from upfield.imaging.formats.header_findings import is_enhanced
from upfield.imaging.header import Header
from upfield.imaging.plausibility.brains import stripped_doubt
from upfield.imaging.plausibility.field_strength import strength_doubt
from upfield.imaging.plausibility.labels import label_doubt
from upfield.imaging.plausibility.resolution import sharp_doubt
from upfield.imaging.volume import Volume

ENHANCED_BEFORE = (
    "the JSON file beside it says that it has been enhanced already, but models are not trained on such scans; use the "
    "original scan"
)
UNKNOWN_CONTRAST = "the model file does not say which contrast it was trained on, so all contrasts are accepted"


@dataclass(frozen=True)
class ScanClaim:
    """What is known about a scan besides its file's content."""

    name: str = ""
    """The scan's file name; empty if it is not known."""
    sidecar: Any = None
    """Content of the JSON file beside it, or None."""
    stated: str | None = None
    """Contrast that the user states."""
    option: str = "--contrast "
    """How the user states the contrast."""


def plausibility_doubts(scan: Volume, header: Header, claim: ScanClaim, card: ModelCard, where: str) -> tuple[str, ...]:
    """Return a sentence for each sign that a scan is not what the model was trained on.

    Args:
        scan: voxels `(I, J, K)` in RAS+.
        header: header of the scan's file.
        claim: what else is known about the scan.
        card: metadata of the model.
        where: name of the scan in error messages.

    Raises:
        VolumeError: the scan shows a contrast that the model was not trained on.
    """
    evidence = gather_evidence(name_evidence(claim.name), claim.sidecar, header.descrip)
    judgement = judge_scan(evidence, card.contrasts, claim.stated, claim.option)
    if judgement.refusal:
        raise VolumeError(where, judgement.refusal)
    labels = label_doubt(scan.voxels)
    # A label map has no skull either.
    stripped = None if labels else stripped_doubt(scan, card.skull_stripped)
    # An enhanced scan whose description is intact is one of the doubtful headers.
    repeated = ENHANCED_BEFORE if is_provenance(claim.sidecar) and not is_enhanced(header) else None
    # What the scanner stated needs no second sign.
    resolution = strength_doubt(claim.sidecar) or sharp_doubt(scan, np.array(card.geometry.high_spacing_mm))
    found = (resolution, labels, stripped, repeated)
    return judgement.doubts + tuple(doubt for doubt in found if doubt)
