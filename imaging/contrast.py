"""Learn which contrast a scan shows from its name, its JSON file and its header, and compare it with what is expected.

A contrast is named by its BIDS suffix, such as `T1w`.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, Literal

# fmt: off
# BIDS suffixes (specification 1.10) of images that a scan could be taken for.
SUFFIXES = (
    "T1w", "T2w", "FLAIR", "PDw", "T2starw", "T1rho", "PDT2", "UNIT1", "MP2RAGE", "MPM", "MTR", "MTS", "MESE",
    "MEGRE", "VFA", "FLASH", "inplaneT1", "inplaneT2", "angio", "T1map", "T2map", "T2starmap", "R1map", "R2map",
    "R2starmap", "PDmap", "MTsat", "MTVmap", "MTRmap", "M0map", "S0map", "Chimap", "RB1map", "bold", "cbv",
    "sbref", "dwi", "ADC", "asl", "m0scan", "epi", "fieldmap", "phasediff", "magnitude", "magnitude1",
    "magnitude2", "phase1", "phase2", "swi", "mask", "dseg", "probseg",
)
# Words for some of them that scanners, IXI, BraTS and FreeSurfer use.
ALIASES = {
    "t1": "T1w", "t1c": "T1w", "t1ce": "T1w", "t1gd": "T1w", "t1n": "T1w", "t1mprage": "T1w", "t1mpr": "T1w",
    "mprage": "T1w", "mpr": "T1w", "bravo": "T1w", "spgr": "T1w", "fspgr": "T1w", "t2": "T2w", "t2f": "FLAIR",
    "t2flair": "FLAIR", "tirm": "FLAIR", "darkfluid": "FLAIR", "pd": "PDw", "t2star": "T2starw", "t2s": "T2starw",
    "t1wi": "T1w", "tfl3d1": "T1w", "t2wi": "T2w", "spcir": "FLAIR", "mra": "angio", "tof": "angio", "dti": "dwi",
}
# Keys of BIDS entities, whose values are no contrasts: in `space-T1w_bold`, T1w names a space.
ENTITIES = (
    "sub", "ses", "sample", "task", "tracksys", "acq", "nuc", "voi", "ce", "trc", "stain", "rec", "dir", "run",
    "mod", "echo", "flip", "inv", "mt", "part", "proc", "hemi", "space", "split", "recording", "chunk", "seg",
    "scale", "res", "den", "label", "desc", "from", "to", "mode", "cohort", "tpl", "atlas",
)
# fmt: on
NAMES = {suffix.lower(): suffix for suffix in SUFFIXES} | ALIASES
SHAPE = re.compile(r"[A-Za-z][A-Za-z0-9]{0,23}")
DECORATION = re.compile(r"^(?:[23]d|ax|axi|axial|sag|sagittal|cor|coronal|tra)+|(?:[23]d|ax|axi|axial|sag|cor|tra)+$")
# Words for one contrast that a separator divides: Siemens' names of FLAIR, and maps, which are not weighted images.
DIVIDED = re.compile(r"(?<![a-z0-9])(?:(dark)[-_ ](fluid)|([TR][12]|PD)[-_ ](map))(?![a-z])", re.IGNORECASE)
FILE_SUFFIXES = re.compile(r"(?:\.(?:nii|mgh|mgz|gz|img|hdr|json))+$", re.IGNORECASE)
MAX_SIDECAR_BYTES = 2**20
TEXT_FIELDS = ("SeriesDescription", "ProtocolName", "SequenceName", "PulseSequenceName")
# In descriptions such as `TE=2.9;TR=6;Time=115039.000`, by dcm2niix and SPM.
TIMING = re.compile(r"\b(TE|TR|TI) ?[=:] ?([0-9.]+(?:e[+-]?[0-9]+)?) ?(ms|s)?", re.IGNORECASE)
# Contrasts whose echo and repetition times are understood. For others, times prove nothing.
TIMED = ("T1w", "T2w", "FLAIR", "PDw")


@dataclass(frozen=True)
class Evidence:
    """What one source says about the contrast of a scan."""

    contrasts: tuple[str, ...]
    """The contrasts that are possible according to the source."""
    source: str
    """The source and what it says, such as `its name says T2w`."""
    kind: Literal["words", "times", "hint"] = "words"
    """`words` name the contrast, `times` are those of contrasts in `TIMED`, and a `hint` refuses no scan."""

    def allows(self, expected: Sequence[str]) -> bool:
        """Return whether one of the expected contrasts is possible according to this source."""
        return any(name in self.contrasts or (self.kind != "words" and name not in TIMED) for name in expected)


@dataclass(frozen=True)
class Judgement:
    """The result of comparing what is known about a scan's contrast with what is expected."""

    refusal: str | None = None
    """Why the scan must not be used, with the remedy; None if it may."""
    doubts: tuple[str, ...] = ()
    """Sentences without a full stop."""


def judge_scan(
    evidence: Sequence[Evidence], accepted: Sequence[str] | None, stated: str | None, option: str = "--contrast "
) -> Judgement:
    """Compare a scan's contrast with those that a model was trained on.

    A statement decides before the scan's name, the name before the JSON file, and the description is only a hint.

    Args:
        evidence: what is known about the scan, the best source first.
        accepted: contrasts that the model was trained on; None if they are not known, and every scan is accepted.
        stated: contrast that the user states, or None.
        option: how a user states the contrast, up to its value, for the remedy.
    """
    if accepted is None:
        return Judgement()
    model = f"the model was trained on {format_contrasts(accepted)}"
    if stated is not None:
        if stated not in accepted:
            return Judgement(f"its contrast was stated as {stated}, but {model}. Use a model for {stated}.")
        return Judgement(
            doubts=tuple(f"{sign.source}, but {stated} was stated" for sign in evidence if not sign.allows([stated]))
        )
    deciding = next((sign for sign in evidence if sign.kind != "hint"), None)
    if deciding is None:
        others = [sign for sign in evidence if not sign.allows(accepted)]
        if others:
            return Judgement(doubts=tuple(f"{sign.source}, but {model}; check the contrast" for sign in others))
        if any(len(sign.contrasts) == 1 for sign in evidence):
            return Judgement()
        state = f"state it with {option.rstrip(' =')}"
        return Judgement(doubts=(f"the contrast of the scan is not known, and {model}; {state}",))
    if not deciding.allows(accepted):
        remedy = (
            f"Use a model for {format_contrasts(deciding.contrasts)}, or state {option}{accepted[0]} if this is wrong."
        )
        return Judgement(f"{deciding.source}, but {model}. {remedy}")
    others = [sign for sign in evidence if not sign.allows(deciding.contrasts)]
    return Judgement(doubts=tuple(f"{deciding.source}, but {sign.source}" for sign in others))


def parse_contrast(text: str) -> str:
    """Return the name of a contrast that a user states: a BIDS suffix in any case, or an alias such as `T1`.

    Raises:
        ValueError: the text is not a name of letters and digits.
    """
    if not SHAPE.fullmatch(text):
        raise ValueError(f"expected the BIDS suffix of a contrast, such as T1w, T2w or FLAIR, found {text!r}")
    return _canonical(NAMES.get(text.lower(), text))


def to_value(contrasts: Sequence[str] | None) -> str | list[str] | None:
    """Return contrasts as files record them: one name, or a list of several; None if they are unknown."""
    return None if not contrasts else contrasts[0] if len(contrasts) == 1 else list(contrasts)


def from_value(value: Any) -> tuple[str, ...] | None:
    """Return the contrasts that a file records; None if it records none."""
    names = [value] if isinstance(value, str) else value if isinstance(value, list) else []
    return tuple(map(str, names)) or None


def format_contrasts(contrasts: Iterable[str]) -> str:
    """Return contrasts for a sentence, such as `T1w or T2w`."""
    return " or ".join(contrasts)


def name_evidence(name: str, what: str = "its name") -> Evidence | None:
    """Return what the name of a file says; None if it names no contrast, or several.

    Args:
        name: file name, with or without its suffix.
        what: name of the source in sentences.
    """
    joined = DIVIDED.sub(lambda match: "".join(filter(None, match.groups())), FILE_SUFFIXES.sub("", name))
    words = [word for word in re.split(r"[_\s]+", joined) if word]
    found = [_canonical(words[-1])] if words and words[-1] in SUFFIXES else list(_contrasts_in(words))
    return Evidence((found[0],), f"{what} says {found[0]}") if len(found) == 1 else None


def sidecar_evidence(tree: Any) -> list[Evidence]:
    """Return what a JSON sidecar says, the names of its series and sequence first, then its times.

    Args:
        tree: the parsed file, or anything else, which says nothing.
    """
    if not isinstance(tree, Mapping):
        return []
    found: list[Evidence] = []
    for key in TEXT_FIELDS:
        if isinstance(text := tree.get(key), str) and (
            evidence := name_evidence(text[:200], f"{key} in its JSON file")
        ):
            found.append(evidence)
            break
    echo, repetition, inversion = (_number(tree.get(f"{what}Time")) for what in ("Echo", "Repetition", "Inversion"))
    if contrasts := _timed_contrasts(*_seconds(echo, repetition, inversion)):
        said = f"the times in its JSON file are those of {format_contrasts(contrasts)}"
        found.append(Evidence(contrasts, said, "times"))
    return found


def description_evidence(descrip: bytes) -> Evidence | None:
    """Return what a header's description says, which is only a hint; None if it says nothing."""
    text = descrip[:80].decode("ascii", "replace")
    times: dict[str, float | None] = {}
    for name, number, unit in TIMING.findall(text):
        value = _number(number)
        times[name.upper()] = value / 1000 if value is not None and unit.lower() != "s" else value
    if contrasts := _timed_contrasts(times.get("TE"), times.get("TI")):
        stated = f"the echo time in its description is that of {format_contrasts(contrasts)}"
        return Evidence(contrasts, stated, "hint")
    return None


def read_sidecar(scan: Path) -> Any:
    """Return the parsed JSON file beside a scan, with the same name; None if there is none or it cannot be read."""
    path = scan.with_name(f"{FILE_SUFFIXES.sub('', scan.name)}.json")
    try:
        if path.stat().st_size > MAX_SIDECAR_BYTES:
            return None
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None


def gather_evidence(named: Evidence | None, sidecar: Any, descrip: bytes) -> list[Evidence]:
    """Return what is known about a scan, the best source first.

    Args:
        named: what its name says.
        sidecar: content of the JSON file beside it, or None.
        descrip: description in its header.
    """
    signs = [named, *sidecar_evidence(sidecar), description_evidence(descrip)]
    return [sign for sign in signs if sign is not None]


def _canonical(name: str) -> str:
    # The uniform image of MP2RAGE is T1-weighted.
    return "T1w" if name == "UNIT1" else name


def _contrasts_in(words: Sequence[str]) -> set[str]:
    """Return the contrasts that the words of a name state, without the values of BIDS entities."""
    found: set[str] = set()
    for word in words:
        parts = [part for part in re.split(r"[^A-Za-z0-9*]+", word) if part]
        if len(parts) > 1 and "-" in word and parts[0] in ENTITIES:
            continue
        for part in parts:
            plain = part.lower().lstrip("*").replace("*", "star")
            if name := NAMES.get(plain) or NAMES.get(DECORATION.sub("", plain)):
                found.add(_canonical(name))
    # `T2_FLAIR` is a FLAIR.
    return found - {"T2w"} if "FLAIR" in found else found


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if isfinite(number) and number > 0 and not isinstance(value, bool) else None


def _seconds(
    echo: float | None, repetition: float | None, inversion: float | None
) -> tuple[float | None, float | None]:
    """Return echo and inversion time in seconds, as BIDS wants them, also if a file states milliseconds."""
    # No echo comes after a second, nor an inversion after 20 s; no repetition takes 60 s.
    in_ms = bool(echo and echo > 1) or bool(inversion and inversion > 20) or bool(repetition and repetition > 60)
    echo_s, inversion_s = (time and time / (1000 if in_ms else 1) for time in (echo, inversion))
    return echo_s, inversion_s


def _timed_contrasts(echo_s: float | None, inversion_s: float | None) -> tuple[str, ...]:
    """Return the contrasts that times allow; none if they do not decide.

    At 3 T and at 64 mT alike, T2w and FLAIR have echo times of 80 to 250 ms (effective, of a train of echoes), and
    FLAIR inverts more than 1.2 s before. T1w has echoes before 20 ms, and often an inversion 0.2 to 1.3 s before.
    """
    if echo_s is None:
        return ()
    if echo_s >= 0.07:
        if inversion_s is not None and inversion_s >= 1.2:
            return ("FLAIR",)
        return ("T2w", "FLAIR")
    if echo_s > 0.02:
        return ()
    if inversion_s is not None and 0.2 <= inversion_s <= 1.3:
        return ("T1w",)
    return ("T1w", "PDw")
