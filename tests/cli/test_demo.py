"""The report and the table of the demonstration show what its stages wrote."""

from pathlib import Path

import pytest

from upfield.cli.demo_folder import Places
from upfield.cli.demonstration import final_table, write_demo_report
from upfield.evaluation.evaluate import main as evaluate
from upfield.sharding.preview import main as preview


@pytest.fixture(scope="module")
def places(tiny_cohort: Path, tiny_shards: Path, tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Places:
    """A demonstration assembled from the stages of the tiny cohort."""
    places = Places(tmp_path_factory.mktemp("demo"))
    for link, folder in ((places.cohort, tiny_cohort), (places.shards, tiny_shards), (places.run, tiny_run)):
        link.symlink_to(folder)
    for folder in (places.enhanced, places.out / "scan"):
        folder.mkdir()
        (folder / "sub-00.nii.gz").touch()
    assert preview([str(tiny_shards), "--out", str(places.out / "pairs.png")]) == 0
    arguments = ["--shards", str(tiny_shards), "--out", str(places.evaluation), "--perturb", "false"]
    assert evaluate([str(tiny_run), *arguments]) == 0
    return places


def test_the_report_shows_every_stage(places: Places) -> None:
    write_demo_report(places, {"training": 3.0, "evaluation": 2.0})
    text = (places.out / "report.html").read_text()
    assert text.count("<img ") == 3
    for words in ("PSNR slice (dB)", "ULF-EnC score", "say nothing about patients", 'href="evaluation/report.html"'):
        assert words in text


def test_the_table_compares_the_model_with_cubic_interpolation(places: Places) -> None:
    lines = final_table(places, {"training": 3.0, "evaluation": 2.0}).splitlines()
    assert lines[2].split() == ["cubic", "mean", "model", "mean", "model", "-", "cubic"]
    (psnr,) = (line.split() for line in lines if line.startswith("psnr_slice "))
    cubic, model, gain = map(float, psnr[1:])
    assert gain == pytest.approx(model - cubic, abs=0.011)
    assert "Time: 5 s" in lines
