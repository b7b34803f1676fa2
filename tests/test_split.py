"""The split is stratified, repeatable, and cannot leak."""

import re
import zlib
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from train_network import (
    MAX_TWINS,
    check_classes,
    check_groups,
    choose_subsets,
    group_sounds,
    match_folds,
    split_folds,
    split_sounds,
    suggest_groups,
)
from utils import UserError, class_of, find_copies, find_group, save_csv


def make_spectrogram(seed):
    """A spectrogram unlike all others. [shape=(16, 20)]"""
    rng = np.random.default_rng(seed)
    return (rng.uniform(-40, 0, (16, 1)) + rng.uniform(-30, 0, (16, 20))).astype(np.float32)


def group_of(names, groups=None, spectrograms=None, earlier=None):
    """The Groups of sounds that are unlike one another, but for those in `spectrograms`."""
    copies = find_copies(names)
    made = {name: make_spectrogram(zlib.crc32(name.encode())) for name in names}
    source = SimpleNamespace(copies=copies)
    return group_sounds(source, made | (spectrograms or {}), groups, earlier)


def split(names, seed, test=None, groups=None, held_out=None, spectrograms=None):
    """The lists of training, validation and test sounds."""
    group = group_of(names, groups, spectrograms).of
    copies = find_copies(names)
    if groups:
        check_groups(group, groups, copies)
    found = split_sounds(group, copies, seed, test, held_out)
    return found["train"], found["validation"], found["test"]


NAMES = [
    f"{c}/{i:03d}.wav" for c, n in (("a", 100), ("b", 50), ("c", 7), ("d", 2)) for i in range(n)
]
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
    after = {
        name: side
        for side, names in enumerate(split([*NAMES, "a/new.wav"], seed))
        for name in names
    }
    assert sum(before[name] != after[name] for name in NAMES) <= 2


@pytest.mark.parametrize("seed", range(5))
def test_copies_stay_with_their_source_and_are_never_tested_on(seed):
    train, validation, test = split(NAMES + COPIES, seed)
    assert not set(validation + test) & set(COPIES)
    copies = find_copies(NAMES + COPIES)
    assert not {copies.get(name, name) for name in train} & set(validation + test)
    assert test == split(NAMES, seed)[2]


def test_copies_of_test_sounds_chosen_by_expression_are_not_trained_on():
    train, _, test = split(NAMES + COPIES, seed=0, test=re.compile(r"0\.wav$"))
    assert test == sorted(name for name in NAMES if name.endswith("0.wav"))
    copies = find_copies(NAMES + COPIES)
    assert not {copies.get(name, name) for name in train} & set(test)


def test_original_named_after_august_is_no_copy_unless_its_source_or_its_line_is_there(tmp_path):
    named = [f"a/garden_aug{day}.wav" for day in range(10, 20)]
    assert find_copies(named) == {} and len(split(named, seed=0)[2]) == 2
    assert find_copies([*named, "a/garden.flac"]) == dict.fromkeys(named, "a/garden.flac")
    assert find_copies([*named, "a/garden_aug15_aug1.wav"]) == {
        "a/garden_aug15_aug1.wav": "a/garden_aug15.wav"
    }
    (tmp_path / "a").mkdir()
    save_csv(tmp_path / "a/augmentations.csv", [["file", "copy"], ["garden.wav", 15]])
    assert find_copies(named, tmp_path) == {"a/garden_aug15.wav": "a/garden.wav"}
    (tmp_path / "a/augmentations.csv").write_bytes(b"\0torn\nfile")
    assert find_copies(named, tmp_path) == {}


def test_one_recording_in_two_formats_stays_on_one_side():
    names = [f"{c}/{i:02d}.{kind}" for c in "ab" for i in range(40) for kind in ("wav", "mp3")]
    sides = split(names, seed=0)
    stems = [{name[:-4] for name in side} for side in sides]
    assert (
        not stems[0] & stems[1]
        and not stems[0] & stems[2]
        and not stems[1] & stems[2]
        and len(sides[2]) == 32
    )
    train, _, test = split(names, seed=0, test=re.compile(r"0\.wav$"))
    assert len(test) == 16 and not {name[:-4] for name in train} & {name[:-4] for name in test}


@pytest.mark.parametrize(
    "pattern, group",
    [
        (r"speaker\d", "speaker0"),
        (r"/take(\d)", "7"),
        ("^(nobody)?speaker", "speaker"),
        ("nothing", "a/speaker0/take7"),
        (".*", "speaker0/take7"),
    ],
)
def test_groups_match_subfolders_and_a_capture_group_is_the_part_that_counts(pattern, group):
    assert find_group("a/speaker0/take7.wav", re.compile(pattern)) == group
    names = [f"{c}/speaker{k}/{i}.wav" for c in "ab" for k in range(5) for i in range(4)]
    sides = split(names, seed=0, groups=re.compile(r"^speaker\d"))
    speakers = [{name.split("/")[1] for name in side} for side in sides]
    assert not speakers[0] & speakers[2] and not speakers[0] & speakers[1] and len(speakers[2]) == 1


FORTY = [f"{c}/{i:02d}.wav" for c in "ab" for i in range(40)]


def sides_of(sides, names):
    """The numbers of the subsets in which sounds are."""
    return {k for k, side in enumerate(sides) for name in names if name in side}


@pytest.mark.parametrize("seed", range(8))
def test_identical_sounds_and_their_copies_and_formats_are_in_one_subset(seed):
    twins = ["a/07.wav", "a/31.wav", "b/12.wav"]
    same = dict.fromkeys(twins, make_spectrogram(0))
    names = [*FORTY, "a/31_aug1.wav", "b/12_aug1.wav", "b/12.mp3"]
    sides = split(names, seed, spectrograms=same)
    assert len(sides_of(sides, names[80:] + twins)) == 1
    for fold in folds(names, 3, seed=seed, spectrograms=same):
        assert len(fold & {*names[80:], *twins}) in (0, 6)


@pytest.mark.parametrize("seed", range(8))
def test_one_recording_at_two_levels_and_lengths_is_in_one_subset(seed):
    first = make_spectrogram(0)
    padded = np.pad(first - 6, [(0, 0), (7, 9)], constant_values=-80)
    sides = split(FORTY, seed, spectrograms={"a/07.wav": first, "b/12.wav": padded})
    assert len(sides_of(sides, ["a/07.wav", "b/12.wav"])) == 1


def test_what_was_joined_is_printed(capsys):
    same = dict.fromkeys(["a/07.wav", "a/31.wav", "b/12.wav"], make_spectrogram(0))
    group_of(FORTY)
    assert capsys.readouterr().out == ""
    group_of(FORTY, spectrograms=same)
    said = "Sounds that hold the recording of another, and stay with it: 2, such as a/07.wav and "
    assert capsys.readouterr().out.startswith(said)


def test_steady_noises_are_no_group_and_steady_tones_are_groups_of_a_few():
    rng = np.random.default_rng(0)
    noises = {name: rng.normal(0, 1, (16, 60)).astype(np.float32) for name in FORTY[:40]}
    assert len(set(group_of(FORTY, spectrograms=noises).of.values())) == 80
    band = np.where(np.arange(16) == 3, 0, -60)[:, None] * np.ones(60)
    tones = {name: (band + rng.normal(0, 0.01, (16, 60))).astype(np.float32)
             for name in FORTY[:40]}
    group = group_of(FORTY, spectrograms=tones).of
    sizes = Counter(group[name] for name in FORTY[:40])
    assert 4 <= len(sizes) < 40 and max(sizes.values()) <= MAX_TWINS
    assert Counter(map(class_of, split(FORTY, 0, spectrograms=tones)[2]))["a"] >= 4


def test_class_of_identical_sounds_is_trained_on_and_not_tested():
    same = dict.fromkeys(FORTY[:40], make_spectrogram(0))
    sides = split(FORTY, 0, spectrograms=same)
    assert set(FORTY[:40]) <= set(sides[0])
    assert {class_of(name) for name in sides[2]} == {"b"}
    with pytest.raises(UserError, match="no sounds are left to test on, for the sounds of each"):
        split(FORTY, 0, spectrograms=dict.fromkeys(FORTY, make_spectrogram(0)))


def test_sounds_that_earlier_training_saw_are_known_by_their_content_and_their_groups():
    args = SimpleNamespace(seed=0, test=re.compile(r"^a/0"), groups=None)
    before = group_of(FORTY)
    earlier = choose_subsets(before, {}, SimpleNamespace(seed=0, test=None))
    renamed = {name.replace("a/", "z/").replace(".wav", ".flac"): name for name in FORTY}
    held = {new: make_spectrogram(zlib.crc32(old.encode())) for new, old in renamed.items()}
    held["b/31.flac"] = held["b/31.flac"] - np.float32(6)  # of another level: not identical
    held |= {f"z/new{k}.wav": make_spectrogram(k) for k in range(20)}
    groups = group_sounds(SimpleNamespace(copies={}), held, None, earlier)
    args.test = re.compile(r"^z/")
    found = choose_subsets(groups, {}, SimpleNamespace(seed=3, test=None), earlier)
    learned = {new for new, old in renamed.items() if old in earlier["train"]}
    seen = learned | {new for new, old in renamed.items() if old in earlier["validation"]}
    assert found["test"] and not set(found["test"]) & (seen - {"b/31.flac"})
    assert found["validation"] and not set(found["validation"]) & (learned - {"b/31.flac"})


def test_names_that_earlier_training_saw_join_their_groups():
    names = [f"{c}/s{g}-{i}.wav" for c in "ab" for g in range(6) for i in range(4)]
    pattern = re.compile(r"^s\d")
    earlier = choose_subsets(group_of(names, pattern), {}, SimpleNamespace(seed=0, test=None))
    later = [name.replace("-", "-new") for name in names]
    groups = group_of(later, pattern, earlier=earlier)
    found = choose_subsets(groups, {}, SimpleNamespace(seed=3, test=None), earlier)
    speakers = {name.split("/")[1][:2] for name in earlier["train"]}
    assert not {name.split("/")[1][:2] for name in found["test"] + found["validation"]} & speakers


def source_of(classes, copies):
    return SimpleNamespace(folder="Samples", classes=classes, copies=copies)


@pytest.mark.parametrize("seed", range(5))
def test_few_recordings_in_two_formats_are_still_tested(seed):
    names = [
        f"{c}/{i:02d}.{kind}"
        for c, n in (("a", 40), ("b", 3))
        for i in range(n)
        for kind in ("wav", "mp3")
    ]
    assert Counter(map(class_of, split(names, seed)[2])) == {"a": 16, "b": 2}
    with pytest.raises(UserError, match="Samples/b: expected at least 2 sounds, found 1"):
        check_classes(["a/0.wav", "a/1.wav", "b/x.wav", "b/x.mp3"], source_of(["a", "b"], {}))


@pytest.mark.parametrize(
    "template, pattern",
    [
        ("{kit}-hit{i}.wav", "^([^-]+)-"),
        ("{c}_{kit}_{i}.wav", "^[^_]+_([^_]+)_"),
        ("{kit}/{i}.wav", "^([^/]+)/"),
        ("deep/{kit}-{i}.wav", "^([^-]+)-"),
        ("kit{i}x-{c}.wav", "^([^-]+)-"),
        ("{i:02d}.wav", None),
        ("{c}-{i}.wav", None),
        ("{i}-loud.wav", None),
        ("hit {i}.wav", None),
    ],
)
def test_groups_are_suggested_where_names_share_parts_in_each_class(template, pattern):
    names = [f"{c}/" + template.format(c=c, kit=f"k{i % 5}", i=i) for c in "abc" for i in range(20)]
    assert suggest_groups(names, {name: name for name in names}) == pattern
    if pattern:
        assert len({find_group(name, re.compile(pattern)) for name in names}) == (
            20 if "kit{i}" in template else 5
        )


def test_groups_stay_on_one_side_across_classes():
    names = [
        f"{effect}/G{g:02d}-{setting}.wav"
        for effect in "xyz"
        for g in range(40)
        for setting in range(3)
    ]
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
    copies = find_copies(names)
    assert set(copies.values()) == set(NAMES) and not set(copies) & set(NAMES)
    assert not {copies.get(name, name) for name in train} & set(test)


@pytest.mark.parametrize(
    "n_groups, sizes",
    [(2, (1, 0, 1)), (3, (1, 1, 1)), (4, (2, 1, 1)), (5, (3, 1, 1)), (10, (7, 1, 2))],
)
def test_few_large_groups_are_parted_as_well_as_can_be(n_groups, sizes):
    names = [f"{c}/s{g}-{i:02d}.wav" for c in "ab" for g in range(n_groups) for i in range(20)]
    sides = split(names, seed=0, groups=re.compile(r"^s\d+"))
    assert tuple(len(side) // 40 for side in sides) == sizes


@pytest.mark.parametrize(
    "pattern, words",
    [
        ("speaker", "matches no path below a class folder; use a"),
        ("wav", "found 1 in a, b, c, d"),
    ],
)
def test_groups_that_match_nothing_or_swallow_a_class_are_refused(pattern, words):
    with pytest.raises(UserError, match=words):
        split(NAMES, 0, groups=re.compile(pattern))


def test_group_that_is_all_of_one_class_is_refused_by_the_name_of_the_class():
    names = [f"{c}/{'s0' if c == 'b' else f's{k}'}-{k}.wav" for c in "abc" for k in range(6)]
    with pytest.raises(UserError, match="at least 2 groups in every class, .*, found 1 in b;"):
        split(names, 0, groups=re.compile(r"^s\d"))


@pytest.mark.parametrize(
    "pattern, words",
    [
        ("nothing", "matches no sound; use a pattern"),
        (".", "leaves no sound to train on in a, b, c, d"),
        ("^b/", "leaves no sound to train on in b"),
    ],
)
def test_expression_that_matches_nothing_or_all_of_a_class_is_refused(pattern, words):
    with pytest.raises(UserError, match=words):
        split(NAMES, 0, test=re.compile(pattern))


@pytest.mark.parametrize(
    "names, classes, words",
    [
        (["a/1.wav", "a/2.wav"], ["a"], "at least 2 classes.*found 1: a"),
        (
            ["a/1.wav", "a/2.wav", "b/1.wav"],
            ["a", "b"],
            "Samples/b: expected at least 2 sounds, found 1 and 0 copies",
        ),
        (
            ["a/1.wav", "a/2.wav", "b/1.wav", "b/1_aug1.wav"],
            ["a", "b"],
            "Samples/b: .* found 1 and 1 copies",
        ),
        (["a/1.wav", "a/2.wav"], ["a", "b"], "Samples/b: .* found 0"),
    ],
)
def test_set_too_small_to_split_is_refused(names, classes, words):
    with pytest.raises(UserError, match=words):
        check_classes(names, source_of(classes, find_copies(names)))


# ---------------------------------------------------------------- folds


def folds(names, n_folds=None, by=None, groups=None, seed=0, spectrograms=None):
    args = SimpleNamespace(folds=n_folds, folds_by=by and re.compile(by), seed=seed)
    group = group_of(names, groups and re.compile(groups), spectrograms).of
    return split_folds(group, args, find_copies(names))


def test_folds_hold_every_sound_once_and_each_class_evenly():
    found = folds(NAMES + COPIES, 5)
    assert sorted(name for fold in found for name in fold) == sorted(NAMES + COPIES)
    copies = find_copies(NAMES + COPIES)
    for fold in found:
        assert {copies.get(name, name) for name in fold} == fold & set(NAMES)
        counts = Counter(map(class_of, fold & set(NAMES)))
        assert counts["a"] == 20 and counts["b"] == 10 and counts["c"] in (1, 2)
    assert found == folds(NAMES[::-1] + COPIES, 5) != folds(NAMES + COPIES, 5, seed=1)


def test_folds_keep_groups_whole():
    names = [f"{c}/s{g}-{i}.wav" for c in "ab" for g in range(9) for i in range(5 + g)]
    found = folds(names, 3, groups=r"^s\d+")
    groups = [{name.split("/")[1][:2] for name in fold} for fold in found]
    assert sum(map(len, groups)) == 9
    assert all(40 < len(fold) < 70 for fold in found)  # of 162 in all


def test_official_folds_are_those_of_the_names():
    names = [f"{c}/{k}-{i}.wav" for c in "ab" for k in (1, 2, 10) for i in range(4)]
    copy = "a/1-0_aug1.wav"
    found = folds([*names, copy], by=r"/(\d+)-")
    assert [{name.split("/")[1].split("-")[0] for name in fold} for fold in found] == [
        {"1"}, {"10"}, {"2"}]
    assert copy in found[0]
    parts = folds(names, by=r"/(1)0-|/[12]-")  # without the capture group, the whole match counts
    assert [{name.split("/")[1].split("-")[0] for name in fold} for fold in parts] == [
        {"1"}, {"2"}, {"10"}]
    assert folds(names, by=r"/\d+-") == folds(names, by=r"/(\d+)-")


def test_test_sounds_of_a_fold_are_the_held_out_originals():
    held_out = folds(NAMES + COPIES, 5)[2]
    train, validation, test = split(NAMES + COPIES, 0, held_out=held_out)
    assert test == sorted(held_out & set(NAMES))
    assert not held_out & {*train, *validation} and validation


def test_copies_are_in_the_official_fold_of_their_source():
    copies = {"a/x-1_aug2.wav": "a/x-1.wav"}
    group = {"a/x-1.wav": "a/x-1", "a/x-2.wav": "a/x-2", "a/x-1_aug2.wav": "a/x-1"}
    found = match_folds(group, re.compile(r"-(\d)\.wav"), copies)
    assert found == [{"a/x-1.wav", "a/x-1_aug2.wav"}, {"a/x-2.wav"}]


def test_group_that_official_folds_would_cut_is_in_the_fold_of_its_first_sound(capsys):
    same = dict.fromkeys(["a/1-0.wav", "b/2-0.wav"], make_spectrogram(0))
    names = [f"{c}/{k}-{i}.wav" for c in "ab" for k in (1, 2) for i in range(4)]
    first, second = folds(names, by=r"/(\d)-", spectrograms=same)
    assert "b/2-0.wav" in first and len(first) == 9 and len(second) == 7
    assert r"--folds-by /(\d)-: 1 sounds, such as b/2-0.wav, are in the fold" in (
        capsys.readouterr().out)


@pytest.mark.parametrize("layout, pattern", [
    (("01-01-{k}.mp3", "03-01-{k}.wav"), None), (("low/mp3/{k}.mp3", "low/wav/{k}.wav"), None),
    (("01/s{i}/{k}.mp3", "03/s{i}/{k}.wav"), "^[^/]+/([^/]+)/")])
def test_no_groups_are_suggested_that_part_two_formats_of_a_recording(layout, pattern):
    names = []
    spectrograms = {}
    for k in range(40):
        for kind in layout:
            name = f"{'ab'[k % 2]}/" + kind.format(i=k // 2 % 2, k=k)
            names.append(name)
            spectrograms[name] = make_spectrogram(1000 + k)
    assert suggest_groups(names, group_of(names, spectrograms=spectrograms).of) == pattern
    assert suggest_groups(names, {name: name for name in names})  # alone, the names would do


@pytest.mark.parametrize("flags, words", [
    ({"n_folds": 101}, "--folds 101: there are too few sounds"),
    ({"by": "^a"}, "--folds-by \\^a: does not match b/000.wav"),
    ({"by": "^."}, "--folds-by \\^.: all sounds of a are in one fold"),
    ({"by": "wav"}, "all sounds of a, b, c, d are in one fold"),
])
def test_folds_that_cannot_be_are_refused(flags, words):
    with pytest.raises(UserError, match=words):
        folds(NAMES, **flags)
