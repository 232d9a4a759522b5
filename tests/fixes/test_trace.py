from __future__ import annotations

import json

from conftest import check

COMPILE = """
    import json, logging, torch, torch._dynamo
    # It forgets all callbacks for the start and the end of a compile.
    torch._dynamo.reset()

    def fail(graph, inputs):
        raise RuntimeError("a backend that fails")

    try:
        torch.compile(torch.neg, backend=fail)(torch.ones(3, 3))
    except Exception as error:
        assert "a backend that fails" in str(error)
    else:
        raise SystemExit("did not fail")
    for size in 3, 4:
        torch.compile(lambda x: x @ x, dynamic=False)(torch.ones(size, size))
    from torch_forwardfix.report import collect
    report = collect().as_json()
    states = {row["id"]: row["state"] for row in report["fixes"]}
    ours = [f for f in logging.getLogger("torch.__trace").filters if f.__module__ == "torch_forwardfix.trace"]
    print(json.dumps([report["fingerprint"], states, len(ours)]))
"""


def test_torch_trace_tells_the_fixes_once_also_where_the_first_compile_fails(python, tmp_path) -> None:
    fingerprint, states, ours = json.loads(check(python(COMPILE, TORCH_TRACE=str(tmp_path / "trace"))).splitlines()[-1])
    assert ours == 1
    (file,) = (tmp_path / "trace").iterdir()
    lines = file.read_text("utf-8").splitlines()
    (position,) = (number for number, line in enumerate(lines) if '"name": "torch_forwardfix"' in line)
    record = json.loads(lines[position][lines[position].index("{") :])
    assert (record["frame_id"], record["frame_compile_id"]) == (0, 0)
    payload = []
    for line in lines[position + 1 :]:
        if not line.startswith("\t"):
            break
        payload.append(line)
    told = json.loads("".join(payload))
    assert (told["fingerprint"], told["versions"]) == (fingerprint["digest"], fingerprint["versions"])
    assert told["in force"].keys() == fingerprint["fixes"].keys()
    assert told["in force"].keys() | told["not in force"].keys() == states.keys()
    # What that compile did not load may have been applied in a later one.
    assert all(state in (states[id], "waiting") for id, state in told["in force"].items())
    assert all(why.startswith(f"{states[id]}: ") for id, why in told["not in force"].items())
    assert "applied" in told["in force"].values()


def test_without_torch_trace_nothing_of_ours_waits_for_compiles(python) -> None:
    _, states, ours = json.loads(check(python(COMPILE)).splitlines()[-1])
    assert (ours, "applied" in states.values()) == (0, True)
