"""The kill harness, briefly; a thousand trials under `long`."""

import pytest
from faults import report_of


def test_fifty_kills_lose_no_acknowledged_checkpoint_and_every_resumed_run_ends_bit_identical() -> None:
    report = report_of("kill9", "--trials", "50", timeout=600)
    assert report["trials"] == 50 and report["killed"] > 15 and report["killed_inside_a_save"] > 5
    assert all(report["at"][call] for call in ("write", "fsync", "rename", "unlink")), report["at"]
    assert report["resumed_bit_identical"] > 15 and report["lost"] == 0


@pytest.mark.long
def test_a_thousand_kills() -> None:
    report = report_of("kill9", "--trials", "1000", timeout=7_200)
    assert report["trials"] == 1_000 and report["lost"] == 0
