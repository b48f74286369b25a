"""The ranges of the physics recipe, the key `synthetic.physics` of `cohorts.yaml`. No heavy imports."""

from dataclasses import dataclass

Range = tuple[float, float]


@dataclass(frozen=True)
class PhysicsConfig:
    """Ranges `[least, most]` of the simulated 64 mT scanner, drawn once per subject and variant."""
