import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from upfield.imaging.contrast import (
    NAMES,
    SUFFIXES,
    description_evidence,
    from_value,
    gather_evidence,
    judge_scan,
    name_evidence,
    parse_contrast,
    read_sidecar,
    sidecar_evidence,
    to_value,
)


@pytest.mark.parametrize(
    ("name", "contrast"),
    [
        ("sub-01_ses-1_T1w.nii.gz", "T1w"),
        ("IXI012-HH-1211-T1.nii.gz", "T1w"),
        ("lowgan_MS017_64mT_FLAIR.nii.gz", "FLAIR"),
        ("sub-01_T2w_slice_012.nii.gz", "T2w"),
        # Values of BIDS entities are no contrasts.
        ("sub-01_space-T1w_desc-preproc_bold.nii.gz", "bold"),
        ("sub-02_ses-T2_mprage.nii", "T1w"),
        ("sub-1_acq-T1_PDw.nii", "PDw"),
        ("T2_FLAIR.nii", "FLAIR"),
        ("AX T2", "T2w"),
        ("3DFLAIR", "FLAIR"),
        ("t2_space_dark-fluid_sag_p2_iso.nii", "FLAIR"),
        ("IXI012-HH-1211-MRA.nii.gz", "angio"),
        ("IXI012-HH-1211-DTI-00.nii.gz", "dwi"),
        ("sub-01_T1_map.nii.gz", "T1map"),
        ("T1.mgz", "T1w"),
        ("sub-01_UNIT1.nii.gz", "T1w"),
        ("T1_reg_to_T2.nii.gz", None),
        ("scan.nii.gz", None),
        ("", None),
    ],
)
def test_names_state_contrasts(name, contrast):
    found = name_evidence(name)
    assert (found and found.contrasts[0]) == contrast


@pytest.mark.parametrize(
    ("tree", "contrasts"),
    [
        ({"EchoTime": 0.1, "RepetitionTime": 5}, [("T2w", "FLAIR")]),
        ({"EchoTime": 100, "RepetitionTime": 9000, "InversionTime": 2500}, [("FLAIR",)]),  # milliseconds
        ({"EchoTime": 0.0029, "RepetitionTime": 2.3, "InversionTime": 0.9}, [("T1w",)]),
        ({"EchoTime": 0.006, "RepetitionTime": 1.5, "InversionTime": 0.3}, [("T1w",)]),  # 64 mT
        ({"SeriesDescription": "FLAIR (AXI)", "EchoTime": 0.16}, [("FLAIR",), ("T2w", "FLAIR")]),
        ({"EchoTime": None, "SeriesDescription": 7}, []),
        ({"EchoTime": 0.03}, []),
        ({"SequenceName": "*tfl3d1_16ns"}, [("T1w",)]),
        ({"SequenceName": "spcir_278ns", "EchoTime": 0.4}, [("FLAIR",), ("T2w", "FLAIR")]),
        (["EchoTime"], []),
    ],
)
def test_json_files_state_contrasts(tree, contrasts):
    assert [found.contrasts for found in sidecar_evidence(tree)] == contrasts


def test_a_description_is_a_hint():
    found = description_evidence(b"TE=1.6e+02;Time=115826.000")
    assert (found and found.contrasts, found and found.kind) == (("T2w", "FLAIR"), "hint")
    assert description_evidence(b"FreeSurfer") is None


def judge(name="", tree=None, descrip=b"", accepted=("T1w",), stated=None):
    return judge_scan(gather_evidence(name_evidence(name), tree, descrip), accepted, stated)


def test_a_mismatch_is_refused_and_names_both_contrasts():
    assert judge("a_T2w.nii").refusal == (
        "its name says T2w, but the model was trained on T1w. Use a model for T2w, or state --contrast T1w if this is "
        "wrong."
    )
    assert "times in its JSON file are those of T2w or FLAIR, but" in (judge("a.nii", {"EchoTime": 0.1}).refusal or "")
    assert "stated as FLAIR" in (judge("a_T1w.nii", stated="FLAIR").refusal or "")
    assert judge("a_T2w.nii", accepted=("FLAIR", "T2w")).refusal is None


@pytest.mark.parametrize(
    ("scan", "doubt"),
    [
        ({"name": "a_T1w.nii"}, None),
        ({"name": "a_T1w.nii", "tree": {"EchoTime": 0.003}, "descrip": b"TE=3"}, None),
        ({"name": "scan.nii"}, "the contrast of the scan is not known, and the model was trained on T1w"),
        ({"name": "scan.nii", "descrip": b"TE=3"}, "not known"),
        ({"name": "scan.nii", "descrip": b"TE=160"}, "the echo time in its description is that of T2w or FLAIR, but"),
        ({"name": "a_T1w.nii", "tree": {"EchoTime": 0.1}}, "its name says T1w, but the times in its JSON file"),
        ({"name": "a_T2w.nii", "stated": "T1w"}, "its name says T2w, but T1w was stated"),
        ({"name": "a_T2w.nii", "accepted": None}, None),
        # Times say nothing about contrasts that they are not known for.
        ({"tree": {"EchoTime": 0.1}, "accepted": ("T1rho",)}, None),
    ],
)
def test_what_is_not_certain_is_a_doubt(scan, doubt):
    judgement = judge(**scan)
    assert judgement.refusal is None
    assert [doubt in found for found in judgement.doubts] == [True] if doubt else judgement.doubts == ()


def test_users_may_write_aliases():
    assert [parse_contrast(text) for text in ("T1", "t2W", "flair", "myContrast")] == [
        "T1w",
        "T2w",
        "FLAIR",
        "myContrast",
    ]
    for text in ("", "T1 w", "T1;", "ü", "T" * 30):
        with pytest.raises(ValueError, match="BIDS suffix"):
            parse_contrast(text)


def test_files_record_one_contrast_or_several():
    for contrasts in (None, ("T1w",), ("FLAIR", "T1w")):
        assert from_value(json.loads(json.dumps(to_value(contrasts)))) == contrasts


def test_a_sidecar_that_cannot_be_read_says_nothing(tmp_path):
    (tmp_path / "a.json").write_bytes(b"[" * 100_000)
    (tmp_path / "b.json").write_text('{"EchoTime": 0.1}')
    (tmp_path / "c.json").mkdir()
    assert [read_sidecar(tmp_path / f"{name}.nii.gz") for name in "abcd"] == [None, {"EchoTime": 0.1}, None, None]


WORDS = st.lists(st.sampled_from([*NAMES, *SUFFIXES, "sub-01", "space-T1w", "_", "-", " ", "*"]) | st.text(max_size=4))
FIELDS = st.sampled_from(["EchoTime", "RepetitionTime", "InversionTime", "SeriesDescription", "ProtocolName"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | WORDS.map("".join),
    lambda inner: st.lists(inner),
    max_leaves=3,
)


@pytest.mark.generated
@given(name=WORDS.map("".join), tree=st.dictionaries(FIELDS, JSON) | JSON, descrip=st.binary(max_size=80))
@example(name="", tree={"EchoTime": 10**400}, descrip=b"TE=1e999")
@example(name="T1*_*", tree={"EchoTime": "nan"}, descrip=b"TE=.")
def test_anything_else_is_a_known_contrast_or_unknown(name, tree, descrip):
    for found in gather_evidence(name_evidence(name), tree, descrip):
        assert set(found.contrasts) <= set(SUFFIXES)
        judge_scan([found], ("T1w",), None)
