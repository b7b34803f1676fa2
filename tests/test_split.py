"""The split is stratified, repeatable, and cannot leak."""
import itertools
import re
import zlib
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

import train_network
import utils
from train_network import MAX_TWINS, check_classes, check_groups, choose_split, suggest_groups
from utils import SUBSETS, UserError, class_of, find_copies, find_group, hash_content, save_csv

SIZES = {"a": 100, "b": 50, "c": 7, "d": 2}
NAMES = [f"{c}/{i:03d}.wav" for c, n in SIZES.items() for i in range(n)]
COPIES = [f"{name[:-4]}_aug{k}.wav" for name in NAMES for k in ("1", "10", "1_aug2")]
FORTY = [f"{c}/{i:02d}.wav" for c in "ab" for i in range(40)]


@pytest.fixture(autouse=True)
def small_sets_have_validation_sounds(monkeypatch):
    monkeypatch.setattr(utils, "MIN_VALIDATION", 0)


def make_spectrogram(key):
    """A spectrogram unlike those of other keys. [shape=(16, 20)]"""
    rng = np.random.default_rng(zlib.crc32(str(key).encode()))
    return (rng.uniform(-40, 0, (16, 1)) + rng.uniform(-30, 0, (16, 20))).astype(np.float32)


def group(names, groups=None, special=None, earlier=None):
    """Group sounds that are unlike one another, but for the spectrograms in `special`.

    Returns the Groups and the hash of each spectrogram.
    """
    spectrograms = {name: make_spectrogram(name) for name in names} | (special or {})
    contents = {name: hash_content(s) for name, s in spectrograms.items()}
    pattern = groups and re.compile(groups)
    found = train_network.group_sounds(contents, spectrograms, find_copies(names), pattern, earlier)
    return found, contents


def split(names, seed=0, test=None, groups=None, special=None, held_out=None, earlier=None):
    """The Split of sounds. The arguments are those of training and of group()."""
    found, contents = group(names, groups, special, earlier)
    copies = find_copies(names)
    if groups:
        check_groups(found.of, re.compile(groups), copies)
    return choose_split(found, contents, copies, seed, test and re.compile(test), held_out, earlier)


def subsets(*args, **kwargs):
    """The lists of training, validation and test sounds."""
    found = split(*args, **kwargs)
    return [getattr(found, subset) for subset in SUBSETS]


def part(sides, key):
    """The keys of the sounds on each side. Checks that no key is on two sides."""
    found = [set(map(key, side)) for side in sides]
    assert sum(map(len, found)) == len(set().union(*found))
    return found


def part_of(pattern):
    """A function from a name to what the pattern matches in it."""
    return lambda name: re.search(pattern, name)[0]


def test_one_in_five_of_each_class_is_for_testing(capsys):
    train, validation, test = subsets(NAMES)
    assert capsys.readouterr().out == ""  # nothing is joined, moved or left out
    assert Counter(map(class_of, test)) == {"a": 20, "b": 10, "c": 1, "d": 1}
    assert Counter(map(class_of, validation)) == {"a": 12, "b": 6, "c": 1}
    assert sorted(train + validation + test) == sorted(NAMES)


def test_all_but_the_test_sounds_train_where_too_few_would_validate(monkeypatch):
    names = [f"{c}/{i:03d}.wav" for c in "ab" for i in range(100)]
    copies = [f"{name[:-4]}_aug1.wav" for name in names]
    _, validation, test = before = subsets(names + copies)
    assert len(validation) == 24
    monkeypatch.setattr(utils, "MIN_VALIDATION", 24)  # copies do not count
    assert subsets(names + copies) == before
    monkeypatch.setattr(utils, "MIN_VALIDATION", 25)
    train, validation, same = subsets(names + copies)
    assert not validation and same == test
    assert sorted({*train, *same} & {*names}) == names and len(train) == 2 * (200 - len(test))
    second = split(names, 1, earlier=SimpleNamespace(split=split(names)))  # which moves some more
    assert not second.validation and len(second.train) == 160 and len(second.test) < 40
    threes = [f"{c}/{i}.wav" for c in range(200) for i in range(3)]  # one of two would be too many
    assert list(map(len, subsets(threes))) == [400, 0, 200]


def test_seed_decides_and_order_of_listing_changes_nothing():
    assert subsets(NAMES) == subsets(NAMES[::-1])
    assert subsets(NAMES)[2] != subsets(NAMES, seed=1)[2]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("more, n_moved", [(["a/new.wav"], 2), ([f"aa/{i}" for i in range(9)], 0)])
def test_adding_a_sound_moves_at_most_two_others_and_adding_a_class_none(seed, more, n_moved):
    before, after = ({name: side for side, some in enumerate(subsets(names, seed)) for name in some}
                     for names in (NAMES, NAMES + more))
    assert sum(before[name] != after[name] for name in NAMES) <= n_moved


@pytest.mark.parametrize("test", [None, r"0\.wav$"])
@pytest.mark.parametrize("seed", range(5))
def test_copies_stay_with_their_source_and_are_never_tested_on(seed, test):
    copies = find_copies(NAMES + COPIES)
    assert set(copies) == set(COPIES) and set(copies.values()) == set(NAMES)
    sides = subsets(NAMES + COPIES, seed, test)
    part(sides, lambda name: copies.get(name, name))
    assert not {*sides[1], *sides[2]} & set(COPIES)
    assert sides[2] == subsets(NAMES, seed, test)[2]
    if test:
        assert sides[2] == sorted(name for name in NAMES if name.endswith("0.wav"))


def test_original_named_after_august_is_no_copy_unless_its_source_or_its_line_is_there(tmp_path):
    named = [f"a/garden_aug{day}.wav" for day in range(10, 20)]
    assert find_copies(named) == {}
    assert find_copies([*named, "a/garden.flac"]) == dict.fromkeys(named, "a/garden.flac")
    assert find_copies([*named, "a/garden_aug15_aug1.wav"]) == {
        "a/garden_aug15_aug1.wav": "a/garden_aug15.wav"}
    (tmp_path / "a").mkdir()
    save_csv(tmp_path / "a/augmentations.csv", [["file", "copy"], ["garden.wav", 15]])
    assert find_copies(named, tmp_path) == {"a/garden_aug15.wav": "a/garden.wav"}
    (tmp_path / "a/augmentations.csv").write_bytes(b"\0torn\nfile")
    assert find_copies(named, tmp_path) == {}


@pytest.mark.parametrize("seed", range(3))
def test_few_recordings_in_two_formats_stay_on_one_side_and_are_tested(seed):
    names = [f"{c}/{i:02d}.{kind}" for c, n in (("a", 40), ("b", 3)) for i in range(n)
             for kind in ("wav", "mp3")]
    for test, counts in ((None, {"a": 16, "b": 2}), (r"0\.wav$", {"a": 8, "b": 2})):
        sides = subsets(names, seed, test)
        part(sides, lambda name: name[:-4])
        assert Counter(map(class_of, sides[2])) == counts


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("change", [lambda s: s, lambda s: np.pad(
    s - 6, [(0, 0), (7, 9)], constant_values=-80)])
def test_identical_sounds_and_two_levels_of_a_recording_stay_with_copies_and_formats(seed, change):
    first = make_spectrogram("first")
    special = {"a/07.wav": first, "a/31.wav": first, "b/12.wav": change(first)}
    names = [*FORTY, "a/31_aug1.wav", "b/12_aug1.wav", "b/12.mp3"]
    together = {*names[80:], *special}
    found = split(names, seed, special=special)
    sides = [{*found.train}, {*found.validation, *found.unused}, {*found.test, *found.unused}]
    assert any(together <= side for side in sides)
    assert len({found.groups[name] for name in together & found.groups.keys()}) <= 1
    for fold in folds(names, 3, seed=seed, special=special):
        assert len(fold & together) in (0, 6)


def test_steady_noises_are_no_group_and_steady_tones_are_groups_of_a_few():
    rng = np.random.default_rng(0)
    noises = {name: rng.normal(0, 1, (16, 60)).astype(np.float32) for name in FORTY[:40]}
    assert len(set(group(FORTY, special=noises)[0].of.values())) == 80
    band = np.where(np.arange(16) == 3, 0, -60)[:, None] * np.ones(60)
    tones = {name: (band + rng.normal(0, 0.01, (16, 60))).astype(np.float32)
             for name in FORTY[:40]}
    of = group(FORTY, special=tones)[0].of
    sizes = Counter(of[name] for name in FORTY[:40])
    assert 4 <= len(sizes) < 40 and max(sizes.values()) <= MAX_TWINS
    assert Counter(map(class_of, subsets(FORTY, special=tones)[2]))["a"] >= 4


def test_class_of_identical_sounds_is_trained_on_and_not_tested(capsys):
    train, _, test = subsets(FORTY, special=dict.fromkeys(FORTY[:40], make_spectrogram(0)))
    said = "Sounds that hold the recording of another, and stay with it: 39, such as a/00.wav and "
    assert capsys.readouterr().out.startswith(said)
    assert set(FORTY[:40]) <= set(train)
    assert {class_of(name) for name in test} == {"b"}
    with pytest.raises(UserError, match="no sounds are left to test on, for the sounds of each"):
        split(FORTY, special=dict.fromkeys(FORTY, make_spectrogram(0)))


@pytest.mark.parametrize("seed", range(1, 4))
def test_sounds_that_earlier_training_saw_are_known_by_their_content_and_never_tested(seed):
    """The second training starts from the first, the third from the second."""
    first = split(FORTY)
    second = split([f"b/new{k}.wav" for k in range(20)] + FORTY[40:], seed,
                   earlier=SimpleNamespace(split=first))
    renamed = {name.replace("a/", "z/").replace(".wav", ".flac"): name for name in FORTY}
    special = {new: make_spectrogram(old) for new, old in renamed.items()}
    special["b/31.flac"] = special["b/31.flac"] - np.float32(6)  # known by its name alone
    names = [*renamed, *(f"z/new{k}.wav" for k in range(20))]
    third = split(names, seed, special=special, earlier=SimpleNamespace(split=second))
    learned = {new for new, old in renamed.items() if old in {*first.train, *second.train}}
    seen = learned | {new for new, old in renamed.items()
                      if old in {*first.validation, *second.validation}}
    assert third.test and not seen & set(third.test)
    assert third.validation and not learned & set(third.validation)
    assert learned <= {*third.train, *third.unused}


def test_names_that_earlier_training_saw_join_their_groups():
    names = [f"{c}/s{g}-{i}.wav" for c in "ab" for g in range(6) for i in range(4)]
    first = split(names, groups=r"^s\d")
    later = [name.replace("-", "-new") for name in names]
    second = split(later, 3, groups=r"^s\d", earlier=SimpleNamespace(split=first))
    speakers = part_of(r"s\d")
    assert not set(map(speakers, first.train)) & set(
        map(speakers, second.test + second.validation))


@pytest.mark.parametrize("pattern, expected", [
    (r"speaker\d", "speaker0"), (r"/take(\d)", "7"), ("^(nobody)?speaker", "speaker"),
    ("nothing", "a/speaker0/take7"), (".*", "speaker0/take7")])
def test_groups_match_subfolders_and_a_capture_group_is_the_part_that_counts(pattern, expected):
    assert find_group("a/speaker0/take7.wav", re.compile(pattern)) == expected


@pytest.mark.parametrize("n_groups, sizes", [
    (2, [1, 0, 1]), (3, [1, 1, 1]), (4, [2, 1, 1]), (5, [3, 1, 1]), (10, [7, 1, 2]),
    (40, [27, 5, 8])])
def test_groups_stay_on_one_side_across_classes_and_few_are_parted_well(n_groups, sizes):
    names = [f"{c}/s{g:02d}{'/-'[g % 2]}{i}.wav"
             for c in "xyz" for g in range(n_groups) for i in range(4)]
    sides = subsets(names, groups=r"^s\d\d")
    assert [len(keys) for keys in part(sides, part_of(r"s\d\d"))] == sizes
    assert Counter(map(class_of, sides[2])) == dict.fromkeys("xyz", 4 * sizes[2])


def test_groups_are_drawn_again_until_each_class_is_tested_and_a_new_sound_moves_few():
    rng = np.random.default_rng(0)
    names = [f"{c}/kit{k}-{i}.wav" for k in range(12) for c in "abcdefgh" if rng.random() < 0.5
             for i in range(rng.integers(1, 9))]
    of = {name: find_group(name, re.compile("^[^-]+")) for name in names}
    wanted = {c: max(1, round(0.2 * n)) for c, n in Counter(map(class_of, names)).items()}
    n_first, n_moved = [], []
    for seed in range(10):
        salt = f"{seed} test"
        n_first.append(len(set(map(class_of, train_network.draw_groups(of, {}, wanted, salt)))))
        test = train_network.hold_out(of, {}, 0.2, salt)
        assert len(set(map(class_of, test))) == 8
        more = train_network.hold_out(of | {"a/kit0-99.wav": "kit0"}, {}, 0.2, salt)
        n_moved.append(len(test ^ more))
    assert min(n_first) == 6 and np.median(n_moved) <= 1


def test_group_cut_by_the_test_expression_goes_to_the_test_side_whole():
    names = [f"{c}/{speaker}-{i}.wav" for c in "ab" for speaker in "klm" for i in range(4)]
    *_, test = subsets(names, test="k-0", groups="^[klm]")
    assert test == sorted(name for name in names if "/k-" in name)


SCHEMES = {  # of public sets: names, speakers, takes, and the group of speaker 1 in class "on"
    "RAVDESS": ("03-01-0{c}-01-0{odd}-0{half}-01-{s:02}.wav", 24, 4, "01"),
    "EmoDB": ("{s:02}a0{t}{k}a.wav", 10, 10, "01"),
    "ShEMO": ("F{s:02}{k}{t:02}.wav", 12, 9, "F01"),
    "CREMA-D": ("10{s:02}_{word}_{k}_XX.wav", 90, 12, "1001"),
    "TESS": ("{who}_{word}_{k}.wav", 2, 20, "bbb"),
    "SAVEE": ("{who}_{k}{t:02}.wav", 4, 15, "bbb"),
    "FSDD": ("{c}_{who}_{t}.wav", 6, 50, "bbb"),
    "AudioMNIST": ("{c}_{s:02}_{t}.wav", 40, 50, "01"),
    "Arabic Speech Commands": ("{s:08}_NO_{t:02}_{k}.wav", 30, 4, "00000001"),
    "Speech Commands": ("{s:x}a7c2a8_nohash_{t}.wav", 90, 2, "1a7c2a8"),
    "VCTK": ("p{s}_{t:03}.wav", 12, 90, "p1"),
    "LibriSpeech": ("{s}-{r}{odd}-{t:04}.flac", 40, 30, "1"),
    "ESC-50": ("{fold}-{r}-{t}-{c}.wav", 20, 2, "101"),
    "UrbanSound8K": ("{r}-{c}-{odd}-{t}.wav", 20, 6, "101"),
    "species and batch": ("{k}_b0{fold}_{s:03}_{t}.wav", 20, 3, "001"),
    "BirdCLEF, cut": ("XC{r}_{t}.ogg", 20, 3, "XC101"),
    "BirdCLEF": ("XC{r}.ogg", 20, 1, None),
    "NSynth": ("{k}_{family}_{s:03}-{t:03}-100.wav", 12, 80, "reed_001"),
    "IDMT": ("G6{fold}-{s:05}-{c}{t}11-{n}.wav", 20, 3, "00001"),
    "drum kits": ("Kit_{s}-{k}.flac", 12, 1, "Kit_1"),
    "Freesound": ("{n}__{who}__{k} {t}.wav", 12, 5, "bbb"),
    "Medley-solos-DB": ("Medley-solos-DB_{fold}-{c}_{n}.wav", 5, 9, "DB_1"),
    "GTZAN": ("{k}.{i:05}.wav", 10, 9, None),
    "number and text": ("{i}-loud.wav", 10, 9, None),
    "class and number": ("{k}-{i}.wav", 10, 9, None),
    "text and number": ("hit {i}.wav", 10, 9, None),
    "letters and number": ("hit{i}.wav", 10, 9, None),
    "folders": ("low/{who}/{k}-{t}.wav", 5, 9, "bbb"),
    "class, speaker, take": ("{k}_{who}-{t}.wav", 5, 9, "bbb"),
    "speaker, sentence, take": ("{who}-see{half}_{odd}.wav", 5, 8, "bbb")}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_speakers_kits_and_recordings_are_suggested_for_the_names_of_public_sets(scheme):
    template, n_speakers, n_takes, wanted = SCHEMES[scheme]
    speakers = {}
    for c, s, t in itertools.product(range(4), range(n_speakers), range(n_takes)):
        i = s * n_takes + t
        k = ("off", "on", "up", "down")[c]
        name = template.format(c=c, s=s, t=t, i=i, k=k, n=7000 + 997 * c + i, r=100 * c + s,
                               odd=t % 2, half=t // 2, fold=s % 5, word=f"w{t}",
                               who="abcdefghijkl"[s % 12] * 3, family=("synthetic", "reed")[s % 2])
        speakers[f"{k}/{name}"] = s
    pattern, found = suggest_groups({name: name for name in speakers}, {})
    assert {pattern and find_group(name, re.compile(pattern)) for name, s in speakers.items()
            if s == 1 and name.startswith("on/")} == {wanted}
    assert not found or len(found) == n_speakers * (4 if "{r}" in template and wanted != "1" else 1)


@pytest.mark.parametrize("layout, pattern", [
    (("raw-{k}.mp3", "mix-{k}.wav"), None), (("low/mp3/{k}.mp3", "low/wav/{k}.wav"), None),
    (("raw/s{i}/{k}.mp3", "mix/s{i}/{k}.wav"), "^[^/]+/([^/]+)/")])
def test_no_groups_are_suggested_that_part_forty_sounds_from_their_twins(layout, pattern):
    special = {f"{'ab'[k % 2]}/" + template.format(i=k // 2 % 2, k=k): make_spectrogram(k)
               for k in range(40) for template in layout}
    assert suggest_groups(group(special, special=special)[0].of, {})[0] == pattern
    assert suggest_groups({name: name for name in special}, {})[0]  # for the names alone


def test_takes_are_no_groups_where_two_speakers_share_a_recording():
    names = [f"{c}/{c}_{s}_{t}.wav" for c in "ab" for s in ("ann", "ben", "cid") for t in range(9)]
    of = {name: name for name in names}
    assert suggest_groups(of, {}) == ("^[^_]+_([^_]+)_", ["ann", "ben", "cid"])
    assert suggest_groups(of | {"a/a_ann_1.wav": "a/a_ben_1.wav"}, {}) == (None, [])


# ---------------------------------------------------------------- folds

def folds(names, n_folds=None, by=None, groups=None, seed=0, special=None):
    found, _ = group(names, groups, special)
    pattern = by and re.compile(by)
    return train_network.split_folds(found.of, find_copies(names), seed, n_folds, pattern)


def test_folds_hold_every_sound_once_and_each_class_evenly():
    found = folds(NAMES + COPIES, 5)
    assert sorted(name for fold in found for name in fold) == sorted(NAMES + COPIES)
    copies = find_copies(NAMES + COPIES)
    for fold in found:
        assert {copies.get(name, name) for name in fold} == fold & set(NAMES)
        counts = Counter(map(class_of, fold & set(NAMES)))
        assert counts["a"] == 20 and counts["b"] == 10 and counts["c"] in (1, 2)
    assert found == folds(NAMES[::-1] + COPIES, 5) != folds(NAMES + COPIES, 5, seed=1)
    train, validation, test = subsets(NAMES + COPIES, held_out=found[2])
    assert test == sorted(found[2] & set(NAMES))
    assert not found[2] & {*train} and not validation


def test_networks_of_all_folds_together_learn_from_all_sounds():
    names = [f"{c}/{i:02d}.wav" for c in "ab" for i in range(100)]
    splits = [split(names, held_out=fold) for fold in folds(names, 5)]
    assert {name for some in splits for name in some.train} == {*names}


def test_folds_keep_groups_whole():
    names = [f"{c}/s{g}-{i}.wav" for c in "ab" for g in range(9) for i in range(5 + g)]
    found = folds(names, 3, groups=r"^s\d+")
    part(found, part_of(r"s\d+"))
    assert all(40 < len(fold) < 70 for fold in found)  # of 162 in all


@pytest.mark.parametrize("pattern, order", [
    (r"/\d+-", ["1", "10", "2"]), (r"/(\d+)-\d\.wav", ["1", "10", "2"]),  # of sources only
    (r"/(1)0-|/[12]-", ["1", "2", "10"])])  # without its capture group, the whole match counts
def test_official_folds_are_those_of_the_names_and_hold_the_copies(pattern, order):
    names = [f"{c}/{k}-{i}.wav" for c in "ab" for k in (1, 2, 10) for i in range(4)]
    names += ["a/1-0_aug1.wav", "a/10-0_aug2.wav"]
    found = folds(names, by=pattern)
    assert part(found, part_of(r"\d+(?=-)")) == [{key} for key in order]
    assert set().union(*found) == set(names)


def test_group_that_official_folds_would_cut_is_in_the_fold_of_its_first_sound(capsys):
    same = dict.fromkeys(["a/1-0.wav", "b/2-0.wav"], make_spectrogram(0))
    names = [f"{c}/{k}-{i}.wav" for c in "ab" for k in (1, 2) for i in range(4)]
    first, second = folds(names, by=r"/(\d)-", special=same)
    assert "b/2-0.wav" in first and len(first) == 9 and len(second) == 7
    assert r"--folds-by /(\d)-: 1 sounds, such as b/2-0.wav, are in the fold" in (
        capsys.readouterr().out)


# ---------------------------------------------------------------- what is refused

SPEAKERS = [f"{c}/{'s0' if c == 'b' else f's{k}'}-{k}.wav" for c in "abc" for k in range(6)]


@pytest.mark.parametrize("make, names, flags, words", [
    (split, NAMES, {"groups": "speaker"}, "matches no path below a class folder; use a"),
    (split, NAMES, {"groups": "wav"}, "found 1 in a, b, c, d"),
    (split, SPEAKERS, {"groups": r"^s\d"}, "at least 2 groups in every class, .*, found 1 in b;"),
    (split, NAMES, {"test": "nothing"}, "matches no sound; use a pattern"),
    (split, NAMES, {"test": "."}, "leaves no sound to train on in a, b, c, d"),
    (split, NAMES, {"test": "^b/"}, "leaves no sound to train on in b"),
    (folds, NAMES, {"n_folds": 101}, "--folds 101: there are too few sounds"),
    (folds, NAMES, {"by": "^a"}, "--folds-by \\^a: does not match b/000.wav"),
    (folds, NAMES, {"by": "^."}, "--folds-by \\^.: all sounds of a are in one fold"),
    (folds, NAMES, {"by": "wav"}, "all sounds of a, b, c, d are in one fold")])
def test_split_that_cannot_be_is_refused(make, names, flags, words):
    with pytest.raises(UserError, match=words):
        make(names, **flags)


@pytest.mark.parametrize("names, classes, words", [
    (["a/1.wav", "a/2.wav"], "a", "at least 2 classes.*found 1: a"),
    (["a/1.wav", "a/2.wav"], "ab", "Samples/b: .* found 0"),
    (["a/1.wav", "a/2.wav", "b/1.wav"], "ab", "Samples/b: expected at least 2 .* 1 and 0 copies"),
    (["a/1.wav", "a/2.wav", "b/1.wav", "b/1_aug1.wav"], "ab", "Samples/b: .* 1 and 1 copies"),
    (["a/1.wav", "a/2.wav", "b/1.wav", "b/1.mp3"], "ab", "Samples/b: .* found 1 and 0 copies")])
def test_set_too_small_to_split_is_refused(names, classes, words):
    source = SimpleNamespace(folder="Samples", classes=[*classes], copies=find_copies(names))
    with pytest.raises(UserError, match=words):
        check_classes(names, source)
