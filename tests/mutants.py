"""Break the code in one place at a time and see that a test turns red.

Each mutation is applied to a copy of the project, in which the tests that concern it are run. Prints each mutation
as killed (a test failed) or survived. Exit status 1 if one survived, if one no longer fits the code, or if its tests
fail without it.

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
COPIED = "*.py", "*.txt", "*.ini", "tests/*.py", "tests/torture/*.py", "examples/*.py", "benchmarks/*.py"


class Mutation(NamedTuple):
    name: str
    file: str
    old: str  # stands once in the file
    new: str
    tests: str  # a file of tests, and an expression that chooses some of them


MUTATIONS = [
    # training
    Mutation("learning-rate schedule never set on the optimizer", "train_network.py",
             "rate = network.optimizer.learning_rate = rate_of(", "rate = rate_of(", "training each_epoch_has"),
    Mutation("every epoch's batches identical", "models.py",
             "batches.begin(epoch)", "batches.begin(0)", "training each_epoch_has"),
    Mutation("validation sounds inside the normalisation", "models.py",
             'recipe, (spectrograms[name] for name in info["train"])',
             'recipe, (spectrograms[name] for name in info["train"] + info["validation"])', "models choose_neither"),
    Mutation("window length chosen from test sounds too", "models.py",
             'choose_n_frames(spectrograms[name] for name in info["train"])',
             'choose_n_frames(spectrograms[name] for name in info["train"] + info["test"])', "models choose_neither"),
    Mutation("normalisation weighted by frame", "models.py",
             "n += 1\n        mean = mean + s.mean(axis=-1, dtype=float)\n"
             '        square = square + np.einsum("...t,...t->...", s, s, dtype=float) / s.shape[-1]',
             "n += s.shape[-1]\n        mean = mean + s.sum(axis=-1, dtype=float)\n"
             '        square = square + np.einsum("...t,...t->...", s, s, dtype=float)', "models counts_alike"),
    Mutation("dropout 0", "models.py", "layers.Dropout(0.2)", "layers.Dropout(0)", "models default_network_and"),
    Mutation("weight decay off", "models.py", "weight_decay=0.05, ", "", "models default_network_and"),
    Mutation("clipping off", "models.py", ", clipnorm=1.0", "", "models default_network_and"),
    Mutation("batch-norm momentum 0.99", "models.py", "momentum=0.9)", "momentum=0.99)", "models default_network_and"),
    Mutation("mixed rows weighed by their largest part", "models.py",
             "return parts / total[:, None], total", "return targets, weights[targets.argmax(axis=1)]",
             "models count_alike_in_the_loss"),
    Mutation("mixup leaves the targets alone", "models.py",
             "for a in (x, y))", "if a is x else a for a in (x, y))", "models mixup or count_alike"),
    Mutation("masks of zeros", "models.py",
             "window[..., frame:frame_end] = self.fill", "window[..., frame:frame_end] = 0", "models masks"),
    Mutation("labels never smoothed", "models.py",
             'y = y * (1 - self.recipe["smoothing"]) + self.recipe["smoothing"] / y.shape[1]', "", "models smoothed"),
    Mutation("padding at 0 dB", "models.py",
             "silence = max(10 * math.log10(AMIN), spectrogram.max() - TOP_DB)", "silence = 0", "features padding"),
    Mutation("the first of several good epochs is kept", "train_network.py",
             '2 * history[best].get("val_error", 0)).max())', '2 * history[best].get("val_error", 0)).min())',
             "training lucky"),
    Mutation("original trains on at a loss of nearly nothing", "train_network.py",
             "MIN_PROGRESS = 1e-3", "MIN_PROGRESS = 0", "training original_holds"),
    Mutation("optimizer forgotten by a stop", "models.py",
             "for variable, value in zip(variables, values):", "for variable, value in zip(network.variables, values):",
             "training ctrl_c"),
    Mutation("no validation sounds, and nothing said", "eval_network.py",
             'if not info["validation"]:\n        say(', "if False:\n        say(", "scripts two_sounds_a_class"),
    Mutation("streaming reads whole arrays", "preprocess_data.py",
             "return np.asarray(array)", "return np.array(array)", "training mapped"),
    # leaks
    Mutation("the split ignores its seed", "train_network.py", 'f"{seed}/{group}"', 'f"{group}"', "split seed_decides"),
    Mutation("copies among the test sounds", "train_network.py",
             "originals(held_out, copies)", "sorted(held_out)", "split copies_stay"),
    Mutation("x.wav apart from x.mp3", "train_network.py",
             "return utils.stem_of(source)", "return source", "split two_formats"),
    Mutation("identical files on both sides", "train_network.py",
             "return [name for name in names if keys[name] not in others]", "return list(names)", "split identical"),
    Mutation("twins told by their middle frames alone", "train_network.py",
             "if counts[key] > 1]:", "if False]:", "split middle"),
    Mutation("two formats count as two recordings", "train_network.py",
             "{utils.stem_of(name) for name in names if name not in copies}", "(n for n in names if n not in copies)",
             "split few_recordings"),
    Mutation("windows hold whole arrays open", "models.py",
             "start + self.n_frames].copy()", "start + self.n_frames]", "training no_hold"),
    Mutation("whole arrays read for a window", "models.py",
             "padded = pad_to(spectrogram, self.n_frames + 2 * margin)",
             "padded = pad_to(spectrogram[..., :], self.n_frames + 2 * margin)", "training no_more_of_long"),
    Mutation("groups see the file name alone", "train_network.py",
             'path = source.split("/", 1)[1]', 'path = source.rsplit("/", 1)[1]', "split subfolders"),
    Mutation("capture groups ignored", "train_network.py",
             "part = 1 if groups.groups and match[1] is not None else 0", "part = 0", "split capture"),
    Mutation("a copy by its name alone", "utils.py",
             "if stem_of(source) in by_stem or is_listed:", "if True:", "split august"),
    Mutation("augmentations.csv not read", "utils.py",
             "if stem_of(source) in by_stem or is_listed:", "if stem_of(source) in by_stem:", "split august"),
    Mutation("earlier training sounds validate", "train_network.py",
             "not in learned_groups]", "]", "training learned_from_neither"),
    Mutation("earlier training sounds are tested", "train_network.py",
             "not in seen_groups]", "]", "training learned_from_neither"),
    Mutation("sample rates that tell classes apart, and nothing said", "preprocess_data.py",
             "TELLING_SHARE = 0.5", "TELLING_SHARE = 1", "errors tell_classes_apart"),
    Mutation("no groups suggested", "train_network.py", "if n_values > most:", "if False:", "split suggested"),
    # features and files
    Mutation("sounds are not resampled", "preprocess_data.py",
             "if sample_rate != settings.sample_rate:", "if False:", "features resamples"),
    Mutation("amplitude instead of power", "preprocess_data.py",
             "power = np.square(spectrum.real) + np.square(spectrum.imag)", "power = np.abs(spectrum)",
             "features equals_librosa"),
    Mutation("a symmetric window", "preprocess_data.py",
             "2 * np.pi / n_fft * np", "2 * np.pi / (n_fft - 1) * np", "features equals_librosa"),
    Mutation("mel filters stay behind", "preprocess_data.py", ', "filters": self.filters}', "}", "features travel"),
    Mutation("stale spectrograms removed in quadratic time", "preprocess_data.py",
             "not name.startswith(locked)]\n    for", "not name.startswith(locked_folders(wanted))]\n    for",
             "errors stale_spectrograms"),
    Mutation("folders and patterns not expanded", "augment_data.py",
             "names += expand(argument)", "names.append(argument)", "augment patterns_in_quotes"),
    # evaluation
    Mutation("ROC of negated scores", "eval_network.py", "roc_curve(truth, p)", "roc_curve(truth, -p)",
             "evaluation scikit_learn"),
    Mutation("precision and recall swapped", "eval_network.py",
             "(recall, precision)\n    counts", "(precision, recall)\n    counts", "evaluation scikit_learn"),
    Mutation("macro curve replaced by 1 - x", "eval_network.py",
             "return np.repeat(x, 2), np.stack([foot, top], axis=1).ravel()", "return x, 1 - x",
             "evaluation scikit_learn"),
    Mutation("confusion shares transposed", "eval_network.py",
             "ConfusionMatrixDisplay(shares,", "ConfusionMatrixDisplay(shares.T,", "evaluation confusion"),
    Mutation("rows without sounds not marked", "eval_network.py", 'labels[k] += " (no test sound)"', "pass",
             "evaluation confusion"),
    Mutation("timeline rows reversed", "eval_network.py", "scores[:, most].T", "scores[:, most[::-1]].T",
             "evaluation timeline_says"),
    Mutation("reliability in 15 bins whatever the number", "eval_network.py",
             "n_bins = int(np.clip(len(y) // 20, 3, N_BINS))", "n_bins = N_BINS", "evaluation reliability"),
    Mutation("titles of mistakes with a literal \\\\n", "eval_network.py",
             '"\\n".join(map(plain, lines))', 'plain("\\n".join(lines))', "evaluation legible"),
    Mutation("four digits whatever the number", "eval_network.py", ", 2, 4))}f", ", 4, 4))}f", "evaluation digits"),
    Mutation("the table of scores held in memory", "eval_network.py",
             "lines = ([*row[:3], *(f\"{p:.6f}\" for p in row[3:])] for row in rows)",
             "lines = [[*row[:3], *(f\"{p:.6f}\" for p in row[3:])] for row in rows]", "evaluation row_by_row"),
    Mutation("new sounds uncalibrated", "eval_network.py",
             'models.predict(network, heard, info["temperature"])', "models.predict(network, heard)",
             "evaluation alone_and_in_a_batch"),
    Mutation("one probability of a new sound", "eval_network.py",
             '*(f"{p:.6f}" for p in scores)])', 'f"{sure:.6f}"])', "evaluation alone_and_in_a_batch"),
    # commands
    Mutation("an export ends in a traceback", "utils.py", "n_bad = main() or 0", "n_bad = main()", "commands ONNX"),
    Mutation("no bar while sounds are scored", "eval_network.py",
             'in utils.progress(numbered, names, "Scoring"):', "in numbered:", "commands write[evaluate]"),
    Mutation("weights looked for after Keras is loaded", "eval_network.py",
             "    utils.check_weights_path(args.weights)\n", "", "errors before_keras"),
    Mutation("the next command without its folder", "utils.py",
             "os.path.join(os.path.dirname(sys.argv[0]), script)", "script", "errors next_command"),
    Mutation("foreign layers built", "models.py",
             "if foreign := kinds - OURS:", "if foreign := set():", "damage layer"),
]


def tests_of(mutation):
    """The arguments of pytest that choose a mutation's tests."""
    file, expression = mutation.tests.split(" ", 1)
    return [f"tests/test_{file}.py", "-k", expression]


def run_tests(folder, mutation):
    """Run a mutation's tests in `folder`. Returns pytest's exit status: 0 all passed, 1 some failed, 5 none chosen."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests_of(mutation)]
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
        return {0: "survived", 1: "killed"}.get(run_tests(folder, mutation), "its tests cannot be run")


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
