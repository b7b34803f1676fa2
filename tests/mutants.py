"""Break the code in one place at a time and see that a test turns red.

Each mutation is applied to a copy of the project, in which the tests that concern it are run.
Prints each mutation as killed (a test failed) or survived. Exit status 1 if one survived, if one no
longer fits the code, or if its tests fail without it.

    python tests/mutants.py
    python tests/mutants.py learning rate    # only mutations with these words in their names
"""

import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
COPIED = (
    "*.py",
    "*.html",
    "*.txt",
    "Makefile",
    "*.ini",
    "tests/*.py",
    "examples/*.py",
    "benchmarks/*.py",
)


class Mutation(NamedTuple):
    name: str
    file: str
    old: str  # stands once in the file
    new: str
    tests: str  # a file of tests, and an expression that chooses some of them, or else all


MUTATIONS = [
    # training
    Mutation(
        "learning rate never falls",
        "models.py",
        "optimizer = keras.optimizers.AdamW(schedule,",
        "optimizer = keras.optimizers.AdamW(rate,",
        "training falls_along_a_cosine",
    ),
    Mutation(
        "every epoch's batches identical",
        "train_network.py",
        "batches.start_epoch(epoch)",
        "batches.start_epoch(0)",
        "training falls_along_a_cosine",
    ),
    Mutation(
        "epochs do not follow from the sounds",
        "models.py",
        "40 * math.sqrt(n_sounds)",
        "50 * math.sqrt(1000)",
        "models ten_times",
    ),
    Mutation(
        "validation sounds inside the normalisation",
        "train_network.py",
        'sounds = (spectrograms[name] for name in info["train"])',
        'sounds = (spectrograms[name] for name in info["train"] + info["validation"])',
        "models choose_neither",
    ),
    Mutation(
        "window length chosen from test sounds too",
        "train_network.py",
        'models.choose_n_frames(spectrograms[name] for name in info["train"])',
        'models.choose_n_frames(spectrograms[name] for name in info["train"] + info["test"])',
        "models choose_neither",
    ),
    Mutation(
        "normalisation weighted by frame",
        "models.py",
        "n += 1\n        mean = mean + s.mean(axis=-1, dtype=float)\n"
        '        square = square + np.einsum("...t,...t->...", s, s, dtype=float) / s.shape[-1]',
        "n += s.shape[-1]\n        mean = mean + s.sum(axis=-1, dtype=float)\n"
        '        square = square + np.einsum("...t,...t->...", s, s, dtype=float)',
        "models counts_alike",
    ),
    Mutation(
        "dropout 0",
        "models.py",
        "layers.Dropout(0.2)",
        "layers.Dropout(0)",
        "models default_network_and",
    ),
    Mutation(
        "weight decay off", "models.py", "weight_decay=0.05, ", "", "models default_network_and"
    ),
    Mutation("clipping off", "models.py", ", clipnorm=1.0", "", "models default_network_and"),
    Mutation(
        "no warm-up",
        "models.py",
        "n_warmup = n_steps // 20",
        "n_warmup = 1",
        "models default_network_and",
    ),
    Mutation(
        "batch-norm momentum 0.99",
        "models.py",
        "momentum=0.9)",
        "momentum=0.99)",
        "models default_network_and",
    ),
    Mutation(
        "mixed rows weighed by their largest part",
        "models.py",
        "return parts / total[:, None], total",
        "return targets, weights[targets.argmax(axis=1)]",
        "models count_alike_in_the_loss",
    ),
    Mutation(
        "mixup leaves the targets alone",
        "models.py",
        ", y + share[:, None] * (y[partner] - y)",
        ", y",
        "models mixup or count_alike",
    ),
    Mutation(
        "pitch never changes",
        "models.py",
        "return padded[..., frames][..., bands, :]",
        "return padded[..., frames]",
        "models warp",
    ),
    Mutation(
        "speed never changes",
        "models.py",
        "middle + speed * (np",
        "middle + 1 * (np",
        "models warp",
    ),
    Mutation(
        "one equalizer for all windows of a batch",
        "models.py",
        "for row in points]",
        "for row in points[:1].repeat(len(x), axis=0)]",
        "models eq_raises",
    ),
    Mutation(
        "speed changes from the start of a window on",
        "models.py",
        "start + middle + speed * (np.arange(self.n_frames) - middle)",
        "start + speed * np.arange(self.n_frames)",
        "models warp",
    ),
    Mutation(
        "older weights keep only their own hyperparameters",
        "train_network.py",
        'hyperparameters |= earlier["hyperparameters"]',
        'hyperparameters = earlier["hyperparameters"]',
        "training older_than",
    ),
    Mutation(
        "alterations until the end",
        "models.py",
        "epoch < self.ALTERED_SHARE * self.n_epochs",
        "True",
        "models last_quarter",
    ),
    Mutation(
        "one strength of the equalizer for all windows",
        "models.py",
        '["eq"] * rng.random((len(x), 1))',
        '["eq"] * np.ones((len(x), 1))',
        "models eq_raises",
    ),
    Mutation(
        "masks of zeros",
        "models.py",
        "window[..., frame:frame_end] = self.fill",
        "window[..., frame:frame_end] = 0",
        "models masks",
    ),
    Mutation(
        "labels never smoothed",
        "models.py",
        "y = y * (1 - smoothing) + smoothing / y.shape[1]",
        "",
        "models smoothed",
    ),
    Mutation(
        "padding at 0 dB",
        "models.py",
        "silence = max(10 * math.log10(AMIN), spectrogram.max() - TOP_DB)",
        "silence = 0",
        "features padding",
    ),
    Mutation(
        "optimizer forgotten by a stop",
        "train_network.py",
        "models.load_network(path, compile=True)",
        "models.load_network(path)\n"
        '    models.compile_network(network, "default", info["hyperparameters"], 15)',
        "training ctrl_c",
    ),
    Mutation(
        "dropout of its own after a stop",
        "train_network.py",
        'models.seed_dropout(network, info["seed"], epoch)',
        "pass",
        "training ctrl_c",
    ),
    Mutation(
        "weights replaced before the training ends",
        "train_network.py",
        "models.save_network(network, info, checkpoint_path(args.save))",
        "models.save_network(network, info, args.save)",
        "training earlier_weights_stay",
    ),
    Mutation(
        "a stopped training of other flags continued",
        "train_network.py",
        "    check_same_training(path, earlier, info)\n    say(",
        "    say(",
        "training other_settings_is_not_continued",
    ),
    Mutation(
        "a loss that is not finite",
        "train_network.py",
        "if not np.isfinite(",
        "if np.isnan(",
        "training diverges",
    ),
    Mutation(
        "no validation sounds, and nothing said",
        "train_network.py",
        'if not info["validation"]:\n        say(',
        "if False:\n        say(",
        "scripts two_sounds_a_class",
    ),
    Mutation(
        "mapped spectrograms read whole",
        "utils.py",
        'return np.asarray(np.memmap(path, np.float32, "r", offset, shape))',
        'return np.array(np.memmap(path, np.float32, "r", offset, shape))',
        "training mapped",
    ),
    Mutation(
        "windows read whole files",
        "models.py",
        "return padded[..., frames][..., bands, :]",
        "return np.array(padded)[..., frames][..., bands, :]",
        "training no_hold",
    ),
    Mutation(
        "whole arrays read for a window",
        "models.py",
        "padded = pad_spectrogram(spectrogram, self.n_frames + 2 * margin)",
        "padded = pad_spectrogram(spectrogram[..., :], self.n_frames + 2 * margin)",
        "training no_more_of_long",
    ),
    Mutation(
        "windows that hold half of the sounds",
        "models.py",
        "for s in spectrograms], 90)",
        "for s in spectrograms], 50)",
        "models nine_in_ten",
    ),
    Mutation(
        "mixup gives the partner the larger share",
        "models.py",
        "np.minimum(share, 1 - share)",
        "np.maximum(share, 1 - share)",
        "models larger_share",
    ),
    # leaks
    Mutation(
        "the split ignores its seed",
        "train_network.py",
        'hash_text(f"{salt}/{key}")',
        'hash_text(f"{key}")',
        "split seed_decides",
    ),
    Mutation(
        "copies among the test sounds",
        "train_network.py",
        '"test": originals(held_out, copies)',
        '"test": sorted(held_out)',
        "split copies_stay",
    ),
    Mutation(
        "x.wav apart from x.mp3",
        "utils.py",
        "        return stem_of(name)\n    part",
        "        return name\n    part",
        "split two_formats",
    ),
    Mutation(
        "two formats count as two recordings",
        "train_network.py",
        "{stem_of(name) for name in names if name not in copies}",
        "[name for name in names if name not in copies]",
        "split few_recordings",
    ),
    Mutation(
        "groups see the file name alone",
        "utils.py",
        '    path = name.split("/", 1)[1]\n    match',
        '    path = name.rsplit("/", 1)[1]\n    match',
        "split subfolders",
    ),
    Mutation(
        "capture groups ignored",
        "utils.py",
        "return 1 if match.re.groups and match[1] is not None else 0",
        "return 0",
        "split capture",
    ),
    Mutation(
        "a copy by its name alone",
        "utils.py",
        "if stem_of(source) in by_stem or (escape_breaks(source), found[1]) in listed:",
        "if True:",
        "split august",
    ),
    Mutation(
        "augmentations.csv not read",
        "utils.py",
        "if stem_of(source) in by_stem or (escape_breaks(source), found[1]) in listed:",
        "if stem_of(source) in by_stem:",
        "split august",
    ),
    Mutation(
        "augmentations.csv not read for spectrograms",
        "utils.py",
        "copies = find_copies(names, samples)\n        return",
        "copies = find_copies(names)\n        return",
        "augment source_is_gone",
    ),
    Mutation(
        "augmentations.csv not read for sounds",
        "utils.py",
        "copies = find_copies(names, samples)\n    return",
        "copies = find_copies(names)\n    return",
        "augment source_is_gone",
    ),
    Mutation(
        "a copy in the official fold of its own name",
        "train_network.py",
        "pattern.search(copies.get(name, name))",
        "pattern.search(name)",
        "augment official_fold",
    ),
    Mutation(
        "earlier training sounds validate",
        "train_network.py",
        "not in learned_sets]",
        "]",
        "training learned_from_neither",
    ),
    Mutation(
        "earlier training sounds are tested",
        "train_network.py",
        "not in seen_sets]",
        "]",
        "training learned_from_neither",
    ),
    Mutation(
        "sample rates that tell classes apart, and nothing said",
        "utils.py",
        "TELLING_SHARE = 0.5",
        "TELLING_SHARE = 1",
        "errors tell_classes_apart",
    ),
    Mutation(
        "no groups suggested",
        "train_network.py",
        "if n_values > most:",
        "if False:",
        "split suggested",
    ),
    # features and files
    Mutation(
        "sounds are not resampled",
        "utils.py",
        "if sample_rate == settings.sample_rate:",
        "if True:",
        "features resamples",
    ),
    Mutation(
        "amplitude instead of power",
        "utils.py",
        "power = np.square(spectrum.real) + np.square(spectrum.imag)",
        "power = np.abs(spectrum)",
        "features equals_librosa",
    ),
    Mutation(
        "a symmetric window",
        "utils.py",
        'get_window("hann", n_fft)',
        'get_window("hann", n_fft, fftbins=False)',
        "features equals_librosa",
    ),
    Mutation(
        "a stale spectrogram kept",
        "utils.py",
        'return file.read() == make_key(f"{samples}/{origin}")',
        "return True",
        "preprocess just_what_changed",
    ),
    Mutation(
        "spectrograms of other settings kept",
        "preprocess_data.py",
        'saved.get("features") == made_with["features"]',
        "True",
        "preprocess changed_settings",
    ),
    Mutation(
        "a sound that crashes its decoder ends the run",
        "utils.py",
        "crashed.extend(running.values())",
        "raise",
        "preprocess crashes_its",
    ),
    Mutation(
        "workers outlive a killed run",
        "utils.py",
        "threading.Thread(target=exit_with_parent, daemon=True).start()",
        "pass",
        "preprocess killed",
    ),
    Mutation(
        "folders and patterns not expanded",
        "augment_data.py",
        "names += expand_argument(argument)",
        "names.append(argument)",
        "augment patterns_in_quotes",
    ),
    Mutation(
        "folds that cut groups",
        "train_network.py",
        "splitter = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed)",
        "from sklearn.model_selection import StratifiedKFold; "
        "splitter = StratifiedKFold(n_folds, shuffle=True, random_state=seed)",
        "split folds",
    ),
    Mutation(
        "old folds stay beside those trained afresh",
        "train_network.py",
        "        for path in list_folds(args.save):\n            path.unlink()",
        "        pass",
        "training folds_trained_afresh",
    ),
    Mutation(
        "a group in several official folds",
        "train_network.py",
        "folds.setdefault(of_group[group[name]], set()).add(name)",
        "folds.setdefault(texts[name], set()).add(name)",
        "split official_folds_would_cut",
    ),
    Mutation(
        "channels that cancel",
        "preprocess_data.py",
        "if found.channels * found.heard < CANCELLED * found.peak:",
        "if False:",
        "check would_not_hear",
    ),
    Mutation(
        "pictures behind a sound read as sound",
        "utils.py",
        "return is_long and not has_next",
        "return is_long",
        "reading picture",
    ),
    Mutation(
        "no sound behind what the header announces",
        "utils.py",
        "    if has_rest:\n",
        "    if False:\n",
        "reading header_announces",
    ),
    Mutation(
        "MP3s sought after each block",
        "utils.py",
        "    def seekable(self):\n        return False",
        "    def seekable(self):\n        return super().seekable()",
        "reading MP3",
    ),
    Mutation(
        "two trainings write one file",
        "utils.py",
        "fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)",
        "pass",
        "training two_trainings",
    ),
    Mutation(
        "new contents under old names unnoticed",
        "train_network.py",
        "if n_added or n_removed or n_changed:",
        "if n_added or n_removed:",
        "training new_contents",
    ),
    Mutation(
        "groups suggested that part two formats",
        "train_network.py",
        "if is_rare or parts_groups or min(",
        "if is_rare or min(",
        "split part_two_formats",
    ),
    Mutation(
        "steady noises are one recording",
        "utils.py",
        "agreement < MIN_AGREEMENT",
        "agreement < -1",
        "split steady",
    ),
    Mutation(
        "a class of steady tones is one group",
        "train_network.py",
        "limit = max(MAX_TWINS,",
        "limit = max(10**9,",
        "split steady",
    ),
    Mutation(
        "identical sounds in two subsets",
        "train_network.py",
        'join(name, ("content", content))\n    for',
        'join(name, ("content", name))\n    for',
        "split identical_sounds",
    ),
    Mutation(
        "folds of different trainings pooled",
        "eval_network.py",
        "if not (is_same and has_same_sounds and is_fold):",
        "if not is_fold:",
        "evaluation folds_of_different",
    ),
    Mutation(
        "coverage drawn for the threshold below",
        "eval_network.py",
        'panel.step(thresholds, coverage, color=COLORS[1], where="post"',
        'panel.step(thresholds, coverage, color=COLORS[1], where="pre"',
        "evaluation coverage_is_drawn",
    ),
    Mutation(
        "sounds of equal confidence are parted by a threshold",
        "models.py",
        "is_last = np.diff(confidence[order], append=-1) < 0",
        "is_last = np.diff(confidence[order], append=-1) <= 0",
        "evaluation equal_confidence",
    ),
    Mutation(
        "noise relative to the sound instead of the copy",
        "augment_data.py",
        "* measure_rms(copy)",
        "* measure_rms(y)",
        "augment relative_to_the_copy",
    ),
    # the check of the sounds
    Mutation(
        "copies are checked as sounds",
        "preprocess_data.py",
        "if name not in copies and name not in errors]",
        "if name not in errors]",
        "check copies",
    ),
    Mutation(
        "crests count as clipped",
        "preprocess_data.py",
        "(is_peak[1:] & is_peak[:-1]).sum()",
        "is_peak.sum()",
        "check without_faults",
    ),
    Mutation(
        "clipping is sought on one side only",
        "preprocess_data.py",
        "if peak > 0.95 * max(peaks)",
        "if peak == max(peaks)",
        "check full_scale",
    ),
    Mutation(
        "the table of suspicious sounds stays when a sound changes",
        "preprocess_data.py",
        "    if stale:\n        (args.preproc / SUSPICIOUS_FILE).unlink(missing_ok=True)",
        "    if stale:\n        pass",
        "check damaged_later",
    ),
    # evaluation
    Mutation(
        "AUC of negated scores",
        "eval_network.py",
        "roc_auc_score(y == k, probabilities[:, k])",
        "roc_auc_score(y == k, -probabilities[:, k])",
        "evaluation scikit_learn",
    ),
    Mutation(
        "precision and recall swapped",
        "eval_network.py",
        "(recall, precision) for k, (precision, recall)",
        "(precision, recall) for k, (precision, recall)",
        "evaluation",
    ),
    Mutation(
        "macro curve without its steps",
        "eval_network.py",
        "np.nextafter(rates, -1), rates",
        "rates, rates",
        "evaluation",
    ),
    Mutation(
        "confusion shares transposed",
        "eval_network.py",
        "axes.pcolormesh(range(n), range(n), shares,",
        "axes.pcolormesh(range(n), range(n), shares.T,",
        "evaluation confusion",
    ),
    Mutation(
        "rows without sounds not marked",
        "eval_network.py",
        'names[k] += " (no test sounds)"',
        "pass",
        "evaluation confusion",
    ),
    Mutation(
        "reliability in 15 bins whatever the number",
        "eval_network.py",
        "n_bins = int(np.clip(len(y) // 20, 3, N_BINS))",
        "n_bins = N_BINS",
        "evaluation reliability",
    ),
    Mutation(
        "four digits whatever the number",
        "eval_network.py",
        ", 2, 4))",
        ", 4, 4))",
        "evaluation digits",
    ),
    Mutation(
        "new sounds uncalibrated",
        "eval_network.py",
        'models.predict_sounds(network, sounds, info["temperature"])',
        "models.predict_sounds(network, sounds)",
        "evaluation alone_and_in_a_batch",
    ),
    Mutation(
        "a threshold below which there is no validation sound",
        "models.py",
        "KEPT_SHARE = 0.95",
        "KEPT_SHARE = 1.0",
        "evaluation threshold_is_the_lowest",
    ),
    Mutation(
        "groups that are all right make the accuracy certain",
        "eval_network.py",
        "(variance + expected) / (n * share * (1 - share) + 1)",
        "variance / max(n * share * (1 - share), 1)",
        "evaluation interval",
    ),
    Mutation(
        "an interval with the normal quantile for a few groups",
        "eval_network.py",
        "wilson_interval(share, n / inflation, quantile)",
        "wilson_interval(share, n / inflation)",
        "evaluation interval",
    ),
    Mutation(
        "the confusion matrix resampled in memory",
        "eval_network.py",
        'image = axes.pcolormesh(range(n), range(n), shares, cmap="Blues"',
        'image = axes.imshow(shares, cmap="Blues"',
        "evaluation little_memory",
    ),
    Mutation(
        "relative links in a page that is reached through a link",
        "eval_network.py",
        "if (folder.resolve() / relative).resolve() != path.resolve():",
        "if not relative:",
        "report really_is",
    ),
    Mutation(
        "a threshold promised by the plain share",
        "models.py",
        "(chance <= 1 - CONFIDENCE)",
        "(accuracies >= accuracy)",
        "evaluation threshold",
    ),
    Mutation(
        "sounds at the threshold are unknown",
        "models.py",
        "probabilities.max(axis=-1) >= threshold",
        "probabilities.max(axis=-1) > threshold",
        "evaluation very_confidence",
    ),
    Mutation(
        "thresholds from predictions that are not calibrated",
        "train_network.py",
        "calibrated = models.apply_temperature(probabilities, temperature)",
        "calibrated = probabilities",
        "training thresholds_are_those",
    ),
    Mutation(
        "labels in a timeline below the threshold",
        "examples/timeline.py",
        "if predicted[start] >= 0:",
        "if True:",
        "timeline threshold",
    ),
    Mutation(
        "names run as code in the page",
        "eval_network.py",
        "autoescape=True",
        "autoescape=False",
        "report hostile",
    ),
    Mutation(
        "names with special characters break their links",
        "eval_network.py",
        'quote(os.fsencode(relative.replace(os.sep, "/")))',
        "relative",
        "report formats_play",
    ),
    Mutation(
        "24 bits are played as they are",
        "eval_network.py",
        "file.format in PLAYABLE and file.subtype in PLAYABLE_SUBTYPES",
        "file.format in PLAYABLE",
        "report browsers_play",
    ),
    Mutation(
        "each mistake is a label in doubt",
        "eval_network.py",
        "is_likely = probabilities >= limits",
        "is_likely = probabilities >= 0",
        "report confident_learning",
    ),
    Mutation(
        "the arrow keys do not play",
        "report_template.html",
        "audio.play().catch",
        "Promise.resolve().catch",
        "report arrow_keys",
    ),
    Mutation(
        "a click on a cell does not filter",
        "report_template.html",
        'predicted !== "" && item.dataset.predicted !== predicted',
        "false",
        "report click_on_a_cell",
    ),
    Mutation(
        "sounds of the page come among the user's sounds",
        "eval_network.py",
        "if sounds.resolve().is_relative_to(place.resolve()):",
        "if False:",
        "report never_come_among",
    ),
    Mutation(
        "sounds of 2 kHz are left to browsers, which are silent",
        "eval_network.py",
        "MIN_PLAYABLE = 8000",
        "MIN_PLAYABLE = 100",
        "report browsers_play",
    ),
    Mutation(
        "the page holds only the most confident mistakes",
        "eval_network.py",
        "counts[pair] += 1",
        "counts[pair] += 0",
        "report many_pairs",
    ),
    Mutation(
        "a full disk is taken for a sound that is not there",
        "eval_network.py",
        "    write_wav(target, y, sample_rate)\n",
        "    try:\n        write_wav(target, y, sample_rate)\n"
        "    except OSError:\n        return None\n",
        "report full_or_closed",
    ),
    Mutation(
        "a hidden sound goes on playing",
        "report_template.html",
        "[hidden] audio",
        "[hidden] video",
        "report hidden",
    ),
    Mutation(
        "arrow keys are taken from players",
        "report_template.html",
        "select, audio, .scroll",
        "select, .scroll",
        "report left_to_what",
    ),
    Mutation(
        "crests of few levels are taken for clipping",
        "preprocess_data.py",
        "if peak > 0.95 * max(peaks)",
        "",
        "check few_levels",
    ),
    Mutation(
        "nearly identical sounds in two subsets, and nothing said",
        "train_network.py",
        "for pair in find_twins(contents, spectrograms, source.copies):",
        "for pair in []:",
        "split two_levels or printed",
    ),
    Mutation(
        "folds pooled in another order than their names",
        "eval_network.py",
        '"names": [name for fold in folds for',
        '"names": [name for fold in folds[::-1] for',
        "evaluation folds",
    ),
    Mutation(
        "timeline clipped by the whole recording",
        "examples/timeline.py",
        "window.max() - TOP_DB",
        "decibels.max() - TOP_DB",
        "timeline",
    ),
    # commands
    Mutation(
        "no bar while sounds are scored",
        "eval_network.py",
        'predictions = utils.show_progress(predictions, len(names), "Scoring")',
        "pass",
        "commands write[evaluate]",
    ),
    Mutation(
        "weights looked for after Keras is loaded",
        "eval_network.py",
        "        utils.check_weights_path(args.weights)\n        return",
        "        return",
        "errors before_keras",
    ),
    Mutation(
        "the next command without its folder",
        "utils.py",
        "os.path.join(os.path.dirname(sys.argv[0]), script)",
        "script",
        "errors next_command",
    ),
    Mutation(
        "foreign layers built",
        "models.py",
        "if foreign := kinds - SAFE_CLASSES:",
        "if foreign := set():",
        "damage layer",
    ),
]


def tests_of(mutation):
    """The arguments of pytest that choose a mutation's tests."""
    file, _, expression = mutation.tests.partition(" ")
    return [f"tests/test_{file}.py", "-k", expression]


def run_tests(folder, mutation):
    """Run a mutation's tests in `folder`. Returns pytest's exit status: 0 passed, 1 failed."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-q",
        "-p",
        "no:cacheprovider",
        *tests_of(mutation),
    ]
    return subprocess.run(command, cwd=folder, capture_output=True).returncode


def copy_project(folder):
    for pattern in COPIED:
        for path in ROOT.glob(pattern):
            target = folder / path.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)


def judge(mutation):
    """Say what becomes of a mutation: "killed", "survived", or what is wrong with it."""
    with tempfile.TemporaryDirectory() as folder:
        copy_project(Path(folder))
        path = Path(folder, mutation.file)
        text = path.read_text()
        if text.count(mutation.old) != 1:
            return f"fits {text.count(mutation.old)} places of {mutation.file} instead of one"
        if run_tests(folder, mutation) != 0:
            return "its tests fail without it"
        path.write_text(text.replace(mutation.old, mutation.new))
        return {0: "survived", 1: "killed"}.get(
            run_tests(folder, mutation), "its tests cannot be run"
        )


def main():
    words = " ".join(sys.argv[1:])
    chosen = [mutation for mutation in MUTATIONS if words in mutation.name]
    began = time.perf_counter()
    with ThreadPoolExecutor(2) as pool:
        verdicts = pool.map(judge, chosen)
        n_killed = 0
        for mutation, verdict in zip(chosen, verdicts):
            print(f"{verdict:9}  {mutation.file}: {mutation.name}", flush=True)
            n_killed += verdict == "killed"
    print(f"{n_killed} of {len(chosen)} mutations killed in {time.perf_counter() - began:.0f} s")
    sys.exit(n_killed < len(chosen))


if __name__ == "__main__":
    main()
