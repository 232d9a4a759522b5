from types import ModuleType

import pytest

from torch_forwardfix import patching
from torch_forwardfix.fix import Drifted


class Owner:
    @staticmethod
    def static(x):
        """Double."""
        return x * 2

    @classmethod
    def of_class(cls, x):
        return cls, x

    def plain(self, x):
        return self, x

    number = 1


@pytest.fixture
def undo():
    with patching.journal() as undo:
        yield undo
    patching.roll_back(undo)


def test_static_and_class_methods_stay_what_they_are(undo):
    before = dict(vars(Owner))
    module = ModuleType("module")
    module.Owner = Owner
    owner = Owner()
    for name in "static", "of_class", "plain":
        patching.wrap(Owner, name, lambda original: lambda *args: [original(*args)])
        found = patching.lookup(module, f"Owner.{name}")
        assert type(found) is type(before[name])
        assert patching.is_ours(found)
        assert not patching.is_ours(before[name])
        assert next(patching.code_objects(before[name])).co_name == name
        assert patching.foreign_owner(before[name], "other") == __name__
    assert Owner.static(2) == owner.static(2) == [4]
    assert Owner.of_class(2) == owner.of_class(2) == [(Owner, 2)]
    assert owner.plain(2) == [(owner, 2)]
    assert (Owner.static.__name__, Owner.static.__doc__) == ("static", "Double.")
    patching.roll_back(undo)
    assert {name: vars(Owner)[name] for name in before} == before


@pytest.mark.parametrize("name", ["gone", "number"])
def test_what_is_no_function_is_drift(undo, name):
    with pytest.raises(Drifted, match=rf"Owner\.{name} is not a function"):
        patching.wrap(Owner, name, lambda original: original)
    assert not undo
