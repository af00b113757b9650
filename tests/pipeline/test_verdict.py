import json

import pytest

from pipeline.errors import PipelineError
from pipeline.verdict import Check, Thresholds, Verdict

CHECKS = (
    Check("accuracy", False, 0.31, "≥ 0.5500", "below the floor"),
    Check("memory", True, None, "≤ 1.5", "no process of ours"),
)


def test_one_refused_check_refuses(tmp_path):
    verdict = Verdict(CHECKS, "abc", 3, "def", "python -m serving")
    assert not verdict.blessed
    verdict.write(tmp_path / "validation.json")
    saved = json.loads((tmp_path / "validation.json").read_text())
    assert saved["blessed"] is False
    assert saved["reasons"] == ["accuracy: below the floor"]
    assert saved["checks"][0]["measured"] == 0.31
    assert (saved["manifest_sha256"], saved["baseline"]) == ("abc", 3)
    assert saved["baseline_sha256"] == "def"
    assert Verdict(CHECKS[1:], "abc", None, None, "").blessed


def test_the_table_has_a_line_per_check():
    assert Verdict(CHECKS, "abc", None, None, "").table().splitlines() == [
        "check     measured      limit",
        "accuracy  0.31          ≥ 0.5500  REFUSED  below the floor",
        "memory    not measured  ≤ 1.5     ok       no process of ours",
    ]


@pytest.mark.parametrize(("classes", "floor"), [(2, 0.75), (10, 0.55), (1000, 0.5005)])
def test_the_floor_is_half_way_from_chance_to_perfect(classes, floor):
    assert Thresholds().floor_of(classes) == pytest.approx(floor)
    assert Thresholds(floor=0.0).floor_of(classes) == 0


@pytest.mark.parametrize(
    "wrong", [{"floor": 93.0}, {"margin": -0.1}, {"latency_ratio": 0.0}, {"images": 0}]
)
def test_a_threshold_out_of_range_is_named(wrong):
    with pytest.raises(PipelineError, match=f"{next(iter(wrong))} is .* choose a value from"):
        Thresholds(**wrong)
