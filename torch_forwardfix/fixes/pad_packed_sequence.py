"""Code that unpacks a ``PackedSequence`` does not compile.

What ``pad_packed_sequence`` returns has the shape that the values in ``batch_sizes`` say, and tensors have no values
while dynamo traces: "data is not allocated yet". ``pack_padded_sequence`` is on dynamo's list of functions that run
eagerly, between two graphs, so a function that packs, runs an RNN and unpacks often gets by. But one that unpacks a
sequence that is handed to it, a decoder or a loss, ends with a TorchRuntimeError, and so does ``unpack_sequence``.

Upstream put ``pad_packed_sequence`` on the list (pytorch#162374, #185143), and so does the patch. With
``fullgraph=True`` dynamo still refuses, and says that it does not trace this function.
"""

from __future__ import annotations

from types import ModuleType

from torch_forwardfix.fix import BugPresent, Fix
from torch_forwardfix.patching import lookup, replace

_RULES = "torch_name_rule_map"
_PACK = "torch.nn.utils.rnn.pack_padded_sequence"
_PAD = "torch.nn.utils.rnn.pad_packed_sequence"


def is_present(module: ModuleType) -> bool | str:
    rules = lookup(module, _RULES)
    if any(_PAD in each for each in rules):
        return False
    if not any(each.get(_PACK) is lookup(module, "SkipFunctionVariable") for each in rules):
        return f"{_RULES} no longer says that {_PACK} is to be skipped"
    return True


def apply(module: ModuleType) -> None:
    replace(module, _RULES, [*module.torch_name_rule_map, {_PAD: module.SkipFunctionVariable}])
    # Empty, unless the module was loaded before this fix came.
    module.get_torch_obj_rule_map.cache_clear()


def reproduce() -> None:
    import torch
    from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

    def total(packed: PackedSequence) -> torch.Tensor:
        padded, lengths = pad_packed_sequence(packed, batch_first=True)
        return padded.sum(1) + lengths[:, None]

    packed = pack_padded_sequence(torch.arange(24.0).reshape(4, 3, 2), torch.tensor([2, 4, 1]), enforce_sorted=False)
    try:
        result = torch.compile(total, backend="aot_eager")(packed)
    except Exception as error:
        if "_pad_packed_sequence" in str(error) and "data is not allocated" in str(error):
            raise BugPresent(
                "a function that unpacks a PackedSequence does not compile: no data while tracing"
            ) from error
        raise
    if not torch.equal(result, total(packed)):
        raise BugPresent(f"compiled {result} differs from eager {total(packed)}")


FIX = Fix(
    id="pad-packed-sequence",
    title="pad_packed_sequence on a packed input: TorchRuntimeError, the tensor's data is not allocated yet",
    kind="crash",
    upstream=("pytorch/pytorch#162374", "pytorch/pytorch#162375", "pytorch/pytorch#178260", "pytorch/pytorch#185143"),
    affects={"torch": ">=2.9.0.dev0,<2.13.0rc99"},
    fixed_in="2.13.0",
    targets=(f"torch._dynamo.trace_rules:{_RULES}",),
    changes_codegen=False,
    is_present=is_present,
    apply=apply,
    reproduce=reproduce,
)
