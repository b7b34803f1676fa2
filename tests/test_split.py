"""The split is stratified, repeatable, and cannot leak."""
import re
from collections import Counter

import pytest

from train_network import check_classes, split
from utils import UserError, class_of, source_of

NAMES = [f"{c}/{i:03d}.wav" for c, n in (("a", 100), ("b", 50), ("c", 7), ("d", 2)) for i in range(n)]
COPIES = [f"{name[:-4]}_aug{k}.wav" for name in NAMES for k in (1, 2, 10)]


def test_one_in_five_of_each_class_is_for_testing():
    train, validation, test = split(NAMES, seed=0)
    assert Counter(map(class_of, test)) == {"a": 20, "b": 10, "c": 1, "d": 1}
    assert Counter(map(class_of, validation)) == {"a": 12, "b": 6, "c": 1}
    assert sorted(train + validation + test) == sorted(NAMES)


def test_order_of_listing_changes_nothing():
    assert split(NAMES, seed=0) == split(NAMES[::-1], seed=0)


def test_seed_decides():
    assert split(NAMES, seed=0) == split(NAMES, seed=0)
    assert split(NAMES, seed=0)[2] != split(NAMES, seed=1)[2]


def test_classes_share_no_fate():
    """Adding a class leaves the split of the others as it was."""
    more = NAMES + [f"aa/{i}.wav" for i in range(10)]
    assert [n for n in split(more, seed=0)[2] if class_of(n) != "aa"] == split(NAMES, seed=0)[2]


@pytest.mark.parametrize("seed", range(5))
def test_adding_a_sound_moves_at_most_two_others(seed):
    before = {name: side for side, names in enumerate(split(NAMES, seed)) for name in names}
    after = {name: side for side, names in enumerate(split([*NAMES, "a/new.wav"], seed)) for name in names}
    assert sum(before[name] != after[name] for name in NAMES) <= 2


@pytest.mark.parametrize("seed", range(5))
def test_copies_stay_with_their_source_and_are_never_tested_on(seed):
    train, validation, test = split(NAMES + COPIES, seed)
    assert not set(validation + test) & set(COPIES)
    assert not {source_of(name) for name in train} & set(validation + test)
    assert test == split(NAMES, seed)[2]


def test_copies_of_test_sounds_chosen_by_expression_are_not_trained_on():
    train, _, test = split(NAMES + COPIES, seed=0, test=re.compile(r"0\.wav$"))
    assert test == sorted(name for name in NAMES if name.endswith("0.wav"))
    assert not {source_of(name) for name in train} & set(test)


def test_groups_stay_on_one_side_across_classes():
    names = [f"{effect}/G{g:02d}-{setting}.wav" for effect in "xyz" for g in range(40) for setting in range(3)]
    sides = split(names, seed=0, groups=re.compile(r"^G\d\d"))
    notes = [{name.split("/")[1][:3] for name in side} for side in sides]
    assert not notes[0] & notes[1] and not notes[0] & notes[2] and not notes[1] & notes[2]
    assert len(notes[2]) == 8
    assert Counter(map(class_of, sides[2])) == {"x": 24, "y": 24, "z": 24}


def test_group_cut_by_the_test_expression_goes_to_the_test_side_whole():
    names = [f"{c}/{speaker}-{i}.wav" for c in "ab" for speaker in "klm" for i in range(4)]
    *_, test = split(names, 0, test=re.compile("k-0"), groups=re.compile("^[klm]"))
    assert test == sorted(name for name in names if "/k-" in name)


def test_copies_of_copies_stay_with_the_first_source():
    names = [*NAMES, *COPIES, *(f"{name[:-4]}_aug1_aug2.wav" for name in NAMES)]
    train, _, test = split(names, seed=0)
    assert {source_of(name) for name in names} == set(NAMES)
    assert not {source_of(name) for name in train} & set(test)


@pytest.mark.parametrize("n_groups, sizes", [
    (2, (1, 0, 1)), (3, (1, 1, 1)), (4, (2, 1, 1)), (5, (3, 1, 1)), (10, (7, 1, 2))])
def test_few_large_groups_are_parted_as_well_as_can_be(n_groups, sizes):
    names = [f"{c}/s{g}-{i:02d}.wav" for c in "ab" for g in range(n_groups) for i in range(20)]
    sides = split(names, seed=0, groups=re.compile(r"^s\d+"))
    assert tuple(len(side) // 40 for side in sides) == sizes


@pytest.mark.parametrize("pattern, words", [("speaker", "expected to match file names"),
                                            ("wav", "found one in a, b, c, d")])
def test_groups_that_match_nothing_or_swallow_a_class_are_refused(pattern, words):
    with pytest.raises(UserError, match=words):
        split(NAMES, 0, groups=re.compile(pattern))


def test_group_that_is_all_of_one_class_is_refused_by_the_name_of_the_class():
    names = [f"{c}/{'s0' if c == 'b' else f's{k}'}-{k}.wav" for c in "abc" for k in range(6)]
    with pytest.raises(UserError, match="two groups or more in every class, .*, found one in b$"):
        split(names, 0, groups=re.compile(r"^s\d"))


@pytest.mark.parametrize("pattern, words", [("nothing", "found none"), (".", "found none in a, b, c, d"),
                                            ("^b/", "found none in b")])
def test_expression_that_matches_nothing_or_all_of_a_class_is_refused(pattern, words):
    with pytest.raises(UserError, match=words):
        split(NAMES, 0, test=re.compile(pattern))


@pytest.mark.parametrize("names, classes, words", [
    (["a/1.wav", "a/2.wav"], ["a"], "at least 2 classes.*found 1: a"),
    (["a/1.wav", "a/2.wav", "b/1.wav"], ["a", "b"], "Samples/b: expected at least 2 sounds, found 1 and 0 copies"),
    (["a/1.wav", "a/2.wav", "b/1.wav", "b/1_aug1.wav"], ["a", "b"], "Samples/b: .* found 1 and 1 copies"),
    (["a/1.wav", "a/2.wav"], ["a", "b"], "Samples/b: .* found 0")])
def test_set_too_small_to_split_is_refused(names, classes, words):
    with pytest.raises(UserError, match=words):
        check_classes(names, classes, "Samples")
