"""What a compiled function adds to a set of its caller, or removes from it, can be lost.

Dynamo replays mutations of existing objects after the graph has run. For some kinds of sets it does not. Sets of other
things than literals (functions, classes, modules, objects since 2.10) are tracked as objects that have attributes, so a
change of their contents is not noted; likewise ``OrderedSet`` of torch since 2.11. Sub-classes of ``set`` note it, but
nothing replays it: they keep their old contents, and new ones come back empty. And since 2.13 ``-=`` does not say that
it removed something. Upstream tracks and replays them since 2.15 (pytorch#192874, #196167, #193679).
"""

from __future__ import annotations

from typing import Any

from torch_forwardfix.fix import BugPresent, Unfixed


def reproduce() -> None:
    import torch
    from torch.utils._ordered_set import OrderedSet

    class Names(set[str]):
        pass

    def register(x: torch.Tensor, names: Any, kinds: Any, ordered: Any, left: Any) -> torch.Tensor:
        names.add("new")
        kinds.add(float)
        ordered.discard("a")
        ordered.add("a")
        left -= {1}
        return x + 1

    def sets() -> Any:
        return Names({"old"}), {int, str}, OrderedSet(["a", "b"]), {1, 2}

    expected, found = sets(), sets()
    register(torch.zeros(1), *expected)
    try:
        torch.compile(register, backend="eager")(torch.zeros(1), *found)
    except AssertionError as error:
        if "Guard failed on the same frame" in str(error):
            raise BugPresent(f"a guard on an OrderedSet fails at once: {str(error).splitlines()[-1]}") from error
        raise
    lost = [f"{list(new)}, in eager {list(old)}" for old, new in zip(expected, found, strict=True) if old != new]
    if list(expected[2]) != list(found[2]):
        lost.append(f"{list(found[2])}, in eager {list(expected[2])}")
    if lost:
        raise BugPresent(f"after a compiled call sets of the caller are {'; '.join(lost)}")


BUG = Unfixed(
    id="set-mutation-lost",
    title="what a compiled function adds to a set or removes from it may not reach the caller",
    kind="wrong-result",
    upstream=("pytorch/pytorch#192874", "pytorch/pytorch#196167", "pytorch/pytorch#193679"),
    affects={"torch": ">=2.9.0.dev0,<2.15.0rc99"},
    fixed_in="2.15.0",
    why="once contents are replayed, the elements of such sets have to be guarded, which dynamo does not do: a patch "
    "that replays alone would write back what was traced for other elements",
    workaround="return the set from the compiled function, or change it outside",
    reproduce=reproduce,
)
