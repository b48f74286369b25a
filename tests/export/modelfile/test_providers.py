"""ONNX Runtime gets the process's GPU, computes float32 in float32, and keeps TensorRT's engines apart."""

from pathlib import Path

import pytest

from upfield.common.errors import InputError
from upfield.export.modelfile import providers
from upfield.export.modelfile.card import ModelCard
from upfield.export.modelfile.providers import check_tensorrt_size, load_tensorrt, provider_options

CARD = ModelCard({"context": 2, "precision": "fp32"})


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file in place of a model, on a machine whose third GPU belongs to this process, with TensorRT."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(providers, "own_gpu", lambda: 2)
    monkeypatch.setattr(providers, "tensorrt_version", lambda: 101600)
    path = tmp_path / "model.onnx"
    path.write_bytes(b"weights")
    return path


def tensorrt(model: Path, card: ModelCard = CARD, batch_size: int = 8) -> dict[str, str]:
    (name, options), *others = provider_options("tensorrt", model, card, batch_size)
    assert [name, *(other for other, _ in others)] == list(providers.PROVIDERS.values())
    return options


def test_cuda_uses_the_own_gpu_without_tf32(model: Path) -> None:
    (name, options), _ = provider_options("cuda", model, CARD, 4)
    assert name == "CUDAExecutionProvider"
    assert (options["device_id"], options["use_tf32"]) == ("2", "0")


def test_tensorrt_follows_the_model(model: Path) -> None:
    options = tensorrt(model)
    assert (options["device_id"], options["trt_fp16_enable"]) == ("2", "0")
    assert options["trt_profile_min_shapes"] == "low:1x5x9x9"
    assert options["trt_profile_max_shapes"] == "low:8x5x256x256"
    assert tensorrt(model, ModelCard({"context": 0, "precision": "fp16"}))["trt_fp16_enable"] == "1"


def test_models_and_batch_sizes_share_no_engine(model: Path) -> None:
    folders = {tensorrt(model, batch_size=size)["trt_engine_cache_path"] for size in (4, 8)}
    model.write_bytes(b"other weights")
    folders.add(tensorrt(model)["trt_engine_cache_path"])
    assert len(folders) == 3
    assert all(Path(folder).stat().st_mode & 0o777 == 0o700 for folder in folders)


def test_without_a_cache_folder_engines_are_not_kept(model: Path) -> None:
    (model.parent / "cache").write_text("a file")
    assert "trt_engine_cache_path" not in tensorrt(model)


def test_missing_libraries_of_tensorrt_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    monkeypatch.setattr(providers, "TENSORRT_LIBRARIES", ("libmissing.so.10",))
    with pytest.raises(InputError, match=r"cannot load libmissing.so.10 .*pip install 'tensorrt-cu1\d-libs<11'"):
        load_tensorrt()


def test_slices_too_large_for_the_engine_are_refused() -> None:
    check_tensorrt_size(256, 256)
    with pytest.raises(InputError, match="up to 256 x 256 pixels, found 221 x 300"):
        check_tensorrt_size(221, 300)
