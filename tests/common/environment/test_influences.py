"""The table lists each variable that Accelerate and Ray read, so that a new version's new variables are noticed."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from upfield.common.environment.influences import TABLE, find
from upfield.common.environment.treatments import Treatment

READS = re.compile(
    r"(?:environ\.get\(|environ\[|getenv\(|_from_env\(|environ\.pop\(|env_\w+\()\s*f?\[?\"([A-Z][A-Z0-9_]+)\""
)
# Read by functions that upfield does not call: tests, the launcher's own menus, and other kinds of devices.
FOREIGN = {"FOO", "NPROC", "PATH_DATASETS", "RUN_SLOW", "EDITOR", "TEST_OUTPUT_JSON", "MY_ENV_VAR", "DMLC_TASK_ID"}


def variables_of(package: str, *folders: str) -> set[str]:
    spec = find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    root = Path(spec.origin).parent
    files = [file for folder in folders or ("",) for file in (root / folder).rglob("*.py")]
    texts = (file.read_text(encoding="utf-8") for file in files if "test" not in str(file.relative_to(root)))
    return {name for text in texts for name in READS.findall(text)}


@pytest.mark.parametrize(("package", "folders"), [("accelerate", ()), ("ray", ("train", "tune", "air"))])
def test_every_variable_that_a_library_reads_is_listed(package: str, folders: tuple[str, ...]) -> None:
    names = variables_of(package, *folders)
    assert len(names) > 30
    own = re.compile(r"NEURON_|JAX_|XLA_|FI_|MEGASCALE_|ANYSCALE_|TF_USE")
    assert not {name for name in names - FOREIGN if not find(name) and not own.match(name)}


def test_the_first_entry_that_matches_counts() -> None:
    for name, treatment in {
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": Treatment.REMOVED,
        "FSDP_IGNORED_MODULES": Treatment.REFUSED,
        "FSDP_VERSION": Treatment.RECORDED,
        "TORCHINDUCTOR_CACHE_DIR": Treatment.ALLOWED,
        "TORCHINDUCTOR_USE_FAST_MATH": Treatment.REMOVED,
        "NVIDIA_TF32_OVERRIDE": Treatment.REMOVED,
        "ORT_TENSORRT_FP16_ENABLE": Treatment.REMOVED,
        "WORLD_SIZE": Treatment.ALLOWED,
    }.items():
        entry = find(name)
        assert entry is not None
        assert entry.treatment == treatment, name
    assert find("SOME_OTHER_VARIABLE") is None


def test_no_pattern_stands_behind_one_that_hides_it() -> None:
    for influence in TABLE:
        if influence.is_variable:
            assert all(find(pattern.replace("*", "X")) is influence for pattern in influence.names.split()), influence
