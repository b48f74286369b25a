"""Which key of `cohorts.yaml` changes a measure, and in which direction."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from upfield.sharding.coverage.measures import AXES


@dataclass(frozen=True)
class Lever:
    """A key that changes a measure."""

    key: str
    """Path of the key in `cohorts.yaml`."""
    direction: Literal["rises", "falls", "spreads"] = "rises"
    """What the measure does as the value grows. `spreads`: it varies more in both directions."""


FALLS = "falls"
NOISE, BLUR, BIAS = "synthetic.noise_std", "synthetic.sigma_vox", "synthetic.physics.log_bias_rms"
SNR, VOXEL, SLICE = "synthetic.physics.snr", "synthetic.physics.in_plane_mm", "synthetic.physics.thickness_mm"
TISSUES = Lever("synthetic.physics.relaxation_spread", "spreads")
# A scan is put on the grid of the set, so another grid would change scan and synthetic volumes alike.
FIELD_OF_VIEW = {f"fill_{axis}": Lever("synthetic.heads.scale") for axis in AXES}
# For each recipe and measure, the key that changes it most. A measure that no key of the recipe changes is left out.
LEVERS: dict[str, dict[str, Lever]] = {
    "report": {
        "air_floor": Lever(NOISE),
        "air_spread": Lever(NOISE),
        "snr": Lever(NOISE, FALLS),
        "texture": Lever("synthetic.noise_bright_ratio"),
        "dark_contrast": Lever("synthetic.gamma", FALLS),
        "bright_contrast": Lever("synthetic.gamma", FALLS),
        **{f"edge_{axis}": Lever(BLUR) for axis in AXES},
        **{f"bandwidth_{axis}": Lever(BLUR, FALLS) for axis in AXES},
        "slope": Lever(BLUR, FALLS),
        **FIELD_OF_VIEW,
    },
    "physics": {
        "air_floor": Lever(SNR, FALLS),
        "air_spread": Lever(SNR, FALLS),
        "air_ratio": Lever("synthetic.physics.smoothing"),
        "air_skewness": Lever("synthetic.physics.smoothing", FALLS),
        "snr": Lever(SNR),
        "texture": Lever(SNR, FALLS),
        "dark_contrast": TISSUES,
        "bright_contrast": TISSUES,
        "bias": Lever(BIAS),
        "edge_x": Lever(VOXEL),
        "edge_y": Lever(VOXEL),
        "edge_z": Lever(SLICE),
        "bandwidth_x": Lever(VOXEL, FALLS),
        "bandwidth_y": Lever(VOXEL, FALLS),
        "bandwidth_z": Lever(SLICE, FALLS),
        "slope": Lever(SNR, FALLS),
        **FIELD_OF_VIEW,
    },
}


@dataclass(frozen=True)
class Advice:
    """How to bring synthetic volumes to the value of a real scan."""

    key: str | None
    """The key of `cohorts.yaml` to change; None if no key of the recipe changes the measure."""
    change: str
    """What to do, a clause."""


def advise(recipe: str, measure: str, is_above: bool, config: Mapping[str, Any]) -> Advice:
    """Say what to change so that synthetic volumes reach the value of a real scan.

    Args:
        recipe: recipe of the synthetic volumes.
        measure: name of the measure.
        is_above: whether the scan's value lies above those of the synthetic volumes, instead of below.
        config: configuration of the set, as plain values.
    """
    lever = LEVERS.get(recipe, {}).get(measure)
    if measure in FIELD_OF_VIEW:
        # Volumes of the other recipes were made from scans.
        cohorts = config.get("cohorts", [])
        maps = [cohort for cohort in cohorts if cohort.get("labels") and cohort.get("recipe") in (recipe, "both")]
        if not maps:
            return Advice(None, "add heads of another size, because no key changes the size of scans")
        # A manifest records the ranges of heads with each cohort of label maps.
        config = {"synthetic": {"heads": maps[0].get("heads")}}
    if lever is None:
        nothing = f"no key of {recipe} changes this"
        if recipe == "physics":
            return Advice(None, nothing)
        return Advice("synthetic.recipe", f"{nothing}, so set synthetic.recipe to physics")
    is_raised = lever.direction == "spreads" or is_above == (lever.direction == "rises")
    verb, end = ("raise", "upper") if is_raised else ("lower", "lower")
    value: Any = config
    for name in lever.key.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    if isinstance(value, list | tuple) and len(value) == 2:
        number = value[1] if is_raised else value[0]
        return Advice(lever.key, f"{verb} the {end} end of {lever.key} ({number:g})")
    return Advice(lever.key, f"{verb} {lever.key}" + (f" ({value})" if value is not None else ""))
