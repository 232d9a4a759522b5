"""Every fix on the torch of this environment: proved where its range says so, not applied elsewhere."""

import json

import pytest
from conftest import FIXES, check, in_range

from torch_forwardfix import catalog, gates, verify
from torch_forwardfix.fixes import cache_dir_unknown_uid

UNFIXED = catalog.unfixed()
INSTALLED = [id for id, fix in FIXES.items() if all(gates.installed_version(name) for name in fix.affects)]


def skip_where_the_machine_cannot(run):
    if run.verdict == "error" and cache_dir_unknown_uid.FORBIDDEN in run.detail:
        pytest.skip(run.detail)  # names the machine's refusal; any other error fails


@pytest.mark.parametrize("id", INSTALLED)
def test_bug_is_there_without_and_gone_with_the_fix_exactly_in_its_range(id):
    if in_range(id):
        proof = verify.prove(FIXES[id])
        skip_where_the_machine_cannot(proof.without)
        assert proof.holds, proof
    else:
        run = verify.observe(FIXES[id])
        skip_where_the_machine_cannot(run)
        assert (run.verdict, run.state) == ("absent", "not-affected"), run


@pytest.mark.parametrize("id", UNFIXED)
def test_bug_that_stays_is_there_exactly_in_its_range(id):
    affected = gates.why_not_affected(UNFIXED[id].affects) is None
    assert verify.observe(UNFIXED[id]).verdict == ("present" if affected else "absent")


def test_live_status_applies_what_is_in_range_and_nothing_else(python):
    report = json.loads(
        check(python("import sys; from torch_forwardfix.cli import main; main(['status', '--json', '--live'])"))
    )
    assert report["live"]
    assert report["active"]
    states = {fix["id"]: fix["state"] for fix in report["fixes"]}
    assert states == {id: "applied" if in_range(id) else "not-affected" for id in FIXES}


def test_plain_status_predicts_what_the_live_one_finds(python):
    report = json.loads(check(python("from torch_forwardfix.cli import main; main(['status', '--json'])")))
    states = {fix["id"]: fix["state"] for fix in report["fixes"]}
    assert states == {id: "waiting" if in_range(id) else "not-affected" for id in FIXES}
    assert report["torch"].startswith(gates.installed_version("torch").partition("+")[0])


def test_check_passes_here(python):
    check(python("from torch_forwardfix.cli import main; raise SystemExit(main(['status', '--live', '--check']))"))


def test_import_torch_alone_loads_none_of_our_modules_but_the_boot(python):
    assert (
        check(python("import torch, sys; print([name for name in sys.modules if name.startswith('torch_forwardfix')])"))
        == "['torch_forwardfix']\n"
    )


def test_nothing_stays_on_the_import_path_under_the_opt_out(python):
    program = "import sys, torch._dynamo, torch._inductor; print([n for n in sys.modules if 'forwardfix' in n])"
    assert check(python(program, TORCH_FORWARDFIX="0")) == "['torch_forwardfix']\n"
