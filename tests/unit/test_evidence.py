"""The evidence file and the code say the same about every fix."""

import re

import pytest

from torch_forwardfix import Fix, catalog, gates

ROWS = catalog.evidence()
FIXES = catalog.load().fixes
UNFIXED = catalog.unfixed()
BUGS = {**FIXES, **UNFIXED}


def name(row):
    return f"{row['fix']} on {row['release']}, {row['by']}"


def test_evidence_is_about_exactly_the_bugs_that_are_known():
    assert {row["fix"] for row in ROWS} == set(BUGS)


def test_every_bug_was_seen_and_shown_absent_elsewhere_if_there_is_an_elsewhere():
    for fix in BUGS.values():
        assert catalog.proved_on(fix) if isinstance(fix, Fix) else catalog.seen_on(fix), fix.id
        if fix.fixed_in:
            distribution = next(iter(fix.affects))
            release = f"{distribution} {fix.fixed_in}"
            first_fixed = [row["without"] for row in ROWS if (row["fix"], row["release"]) == (fix.id, release)]
            assert set(first_fixed) == {"absent"}, fix.id


@pytest.mark.parametrize("row", ROWS, ids=name)
def test_the_range_is_what_was_seen(row):
    distribution, _, version = row["release"].partition(" ")
    affects = BUGS[row["fix"]].affects
    if row["without"] == "not applicable":
        assert distribution not in affects
        assert (row["with"], row["state"]) == ("not applicable", "not-affected")
        return
    affected = gates.in_range(version, affects[distribution])
    assert row["without"] == ("present" if affected else "absent")
    if row["fix"] in UNFIXED:
        assert (row["with"], row["state"]) == (row["without"], "no fix")
        return
    assert row["with"] == "absent"
    assert row["state"] == ("applied" if affected else "not-affected")


@pytest.mark.parametrize("row", ROWS, ids=name)
def test_every_row_says_where_it_was_seen(row):
    assert set(row) == {"fix", "release", "without", "with", "state", "by", "python", "torch"}
    assert re.fullmatch(r"cpu|generated|gpu \S.*", row["by"])
    assert re.fullmatch(r"3\.\d+\.\d+", row["python"])
    assert re.match(r"2\.\d+\.\d+", row["torch"])


def test_no_row_is_there_twice():
    assert len({name(row) for row in ROWS}) == len(ROWS)
