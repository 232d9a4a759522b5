"""What holds for every version and for every text in the environment, not only for those that somebody thought of."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

from torch_forwardfix import gates
from torch_forwardfix.fix import check_specifier
from torch_forwardfix.settings import DISABLE, ONLY, STRICT, SWITCH, disabling, read

settings.register_profile("steady", deadline=None, derandomize=True, max_examples=100)
settings.load_profile("steady")

numbers = st.integers(0, 40)
releases = st.lists(numbers, min_size=1, max_size=4).map(lambda parts: ".".join(map(str, parts)))
locals_ = st.from_regex(r"[a-z0-9]{1,10}([._-][a-z0-9]{1,10}){0,3}", fullmatch=True)
pre_releases = st.one_of(
    st.builds("{}{}".format, st.sampled_from(["a", "b", "rc"]), numbers),
    st.builds(".dev{}".format, numbers),
    st.builds("{}{}.dev{}".format, st.sampled_from(["a", "b", "rc"]), numbers, numbers),
    st.builds("a{}.post{}".format, numbers, numbers),
)
post_releases = st.builds(".post{}".format, numbers)
versions = st.builds("{}{}".format, releases, st.one_of(st.just(""), pre_releases, post_releases))
# The forms that a fix may state its range in.
clauses = st.one_of(
    st.builds(">={}.dev0".format, releases),
    st.builds("<{}rc99".format, releases),
    st.builds("=={}".format, releases),
    st.builds("!={}".format, releases),
)
specifiers = st.lists(clauses, min_size=1, max_size=4).map(",".join)


@given(versions, st.one_of(st.just(""), locals_.map("+{}".format)), specifiers)
@example(version="2.12.0rc99", local="+cpu", specifier="<2.12rc99")
@example(version="1!2.12.0", local="", specifier="<2.12rc99")
@example(version="2.9.0.post1", local="", specifier="==2.9.0")
def test_range_holds_what_packaging_says(version: str, local: str, specifier: str) -> None:
    expected = SpecifierSet(specifier).contains(version + local, prereleases=True)
    assert gates.in_range(version + local, specifier) is expected


@given(versions, locals_, specifiers)
def test_local_part_does_not_matter(version: str, local: str, specifier: str) -> None:
    check_specifier(specifier)
    assert gates.in_range(f"{version}+{local}", specifier) == gates.in_range(version, specifier)


@given(versions, st.lists(clauses, min_size=1, max_size=4), st.randoms(), st.sampled_from(["", " ", "  "]))
def test_order_and_spaces_of_a_range_do_not_matter(version: str, clauses: list[str], random, space: str) -> None:
    expected = gates.in_range(version, ",".join(clauses))
    random.shuffle(clauses)
    assert gates.in_range(f"{space}{version}{space}", f"{space},{space}".join(clauses)) is expected


@given(releases, pre_releases)
def test_pre_release_of_a_bound_is_in_the_range_on_both_sides_of_it(release: str, suffix: str) -> None:
    assert gates.in_range(release + suffix, f"<{release}rc99")
    assert gates.in_range(release + suffix, f">={release}.dev0")


@given(releases, st.one_of(st.just(""), post_releases))
def test_release_and_its_post_releases_are_beyond_the_upper_bound(release: str, suffix: str) -> None:
    assert not gates.in_range(release + suffix, f"<{release}rc99")
    assert gates.in_range(release + suffix, f">={release}.dev0")


@given(versions, releases, releases)
def test_range_holds_what_lies_between_its_bounds(version: str, lower: str, upper: str) -> None:
    inside = Version(f"{lower}.dev0") <= Version(version) < Version(f"{upper}rc99")
    assert gates.in_range(version, f">={lower}.dev0,<{upper}rc99") is inside


@given(versions, specifiers, specifiers)
def test_range_of_two_lists_is_what_lies_in_both(version: str, one: str, other: str) -> None:
    both = gates.in_range(version, one) and gates.in_range(version, other)
    assert gates.in_range(version, f"{one},{other}") is both


@pytest.fixture(scope="module")
def pretender():
    """A loaded distribution that calls itself what a test likes."""
    module = ModuleType("forwardfix_pretender")
    sys.modules[module.__name__] = module
    yield module
    del sys.modules[module.__name__]


@given(version=st.one_of(versions, st.text()), specifier=specifiers)
@example(version="9" * 5000, specifier="<2rc99")
def test_gate_says_in_range_or_why_not_or_that_the_version_cannot_be_read(
    pretender: ModuleType, version: str, specifier: str
) -> None:
    pretender.__dict__["__version__"] = version
    affects = {"forwardfix-pretender": specifier}
    try:
        within = gates.in_range(version, specifier)
    except InvalidVersion:
        with pytest.raises(ValueError, match="is not a PEP 440 version") as caught:
            gates.why_not_affected(affects)
        assert repr(version) in str(caught.value)
    except ValueError:
        with pytest.raises(ValueError, match=r"."):
            gates.why_not_affected(affects)
    else:
        reason = gates.why_not_affected(affects)
        assert (reason is None) is within
        assert reason is None or f"{version} is not in {specifier}" in reason


IDS = ("aot-builtins", "compile-disable", "mul-zero-nan", "third-one")
SWITCHES = (SWITCH, STRICT)
LISTS = (DISABLE, ONLY)
# All that an environment can hold: no NUL, and bytes that are no UTF-8 come as surrogates.
texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]) | st.characters(categories=["Cs"]))
items = st.one_of(st.sampled_from(IDS), st.sampled_from(["", " ", "aot_builtins", "Third-One"]), texts)
lists = st.lists(items, max_size=6).map(",".join)
words = st.one_of(st.sampled_from(["", "0", "1", "OFF", " no\n", "True", "yes", "on", "2"]), texts)
environments = st.fixed_dictionaries({}, optional={SWITCH: words, STRICT: words, DISABLE: lists, ONLY: lists})


def named(text: str) -> set[str]:
    return {item.strip() for item in text.split(",")} - {""}


@given(environments)
@example({SWITCH: "2\n3", DISABLE: "x,x", ONLY: "\x1b[2J"})
def test_any_environment_is_read_and_only_known_ids_and_words_have_an_effect(environ: dict[str, str]) -> None:
    made = read(IDS, environ)
    word = {name: environ.get(name, "").strip().lower() for name in SWITCHES}
    assert made.enabled is (word[SWITCH] not in ("0", "off", "false", "no"))
    assert made.strict is (word[STRICT] in ("1", "on", "true", "yes"))
    disabled, only = (named(environ.get(name, "")) & set(IDS) for name in LISTS)
    expected = disabled | (set(IDS) - only if only else set()) if made.enabled else set(IDS)
    assert set(made.disabled) == expected
    assert read(IDS, environ) == made


@given(environments)
@example({SWITCH: "2\n3", DISABLE: "x,x", ONLY: "\x1b[2J"})
def test_every_value_that_is_ignored_is_named_once_in_one_line(environ: dict[str, str]) -> None:
    made = read(IDS, environ)
    expected = 0
    for name in SWITCHES:
        value = environ.get(name, "")
        if value.strip().lower() not in ("", "0", "1", "on", "off", "true", "false", "yes", "no"):
            expected += 1
            said = (f"{name}={value} is ignored: ", f"{name}={value!r} is ignored: ")
            assert [problem for problem in made.problems if problem.startswith(said)]
    for name in LISTS:
        for item in named(environ.get(name, "")) - set(IDS):
            expected += 1
            said = f"{name} names the unknown fix {item!r} "
            assert [problem for problem in made.problems if problem.startswith(said)]
    assert len(made.problems) == expected
    for line in (*made.problems, *made.disabled.values()):
        assert line.isprintable(), line


@given(environments, st.randoms(), st.sampled_from(["", " ", "\t"]))
def test_order_spaces_and_repetitions_in_lists_do_not_matter(environ: dict[str, str], random, space: str) -> None:
    shuffled = dict(environ)
    for name in set(LISTS) & set(environ):
        items = environ[name].split(",")
        items += items[:2]
        random.shuffle(items)
        shuffled[name] = f"{space},{space}".join(items)
    one, other = read(IDS, environ), read(IDS, shuffled)
    assert (one.enabled, one.strict, one.disabled) == (other.enabled, other.strict, other.disabled)
    assert sorted(one.problems) == sorted(other.problems)


@given(environments, st.sets(st.sampled_from(IDS)))
def test_switching_off_adds_to_what_the_user_has_switched_off(environ: dict[str, str], ids: set[str]) -> None:
    before = read(IDS, environ)
    assume(before.enabled)
    after = {**environ, **disabling(ids, environ)}
    assert set(read(IDS, after).disabled) == set(before.disabled) | ids
    assert disabling(ids, after) == disabling(ids, environ)
