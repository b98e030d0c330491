"""A disk that fails during training, briefly: each kind of call, single and lasting faults; all of them under `long`."""

import pytest
from faults import report_of


def test_training_survives_a_failing_disk_with_its_checkpoints_intact() -> None:
    report = report_of("disk", "--every", "79", timeout=600)
    assert report["trials"] >= 10 and report["bit identical"] >= 5 and report["end not saved"] >= 2


@pytest.mark.long
def test_training_survives_every_single_and_lasting_fault() -> None:
    report = report_of("disk", timeout=7_200)
    assert report["trials"] > 800 and report["refused"] > 0 and report["end not saved"] > 100
