"""Break the code in one place at a time and see that a test turns red.

A mutation names a function of one of the scripts, code in it, and what stands there instead. The
code is an expression or a statement. It is found in the syntax tree, so that another layout, or
another file, changes nothing. Each mutation is applied to a copy of the project, in which its tests
are run. Prints killed (a test failed) or survived. Exit status 1 if one survived, if its code does
not stand exactly once in its function, or if its tests fail without it.

    python tests/mutants.py
    python tests/mutants.py threshold    # only mutations with this text in their names
"""
import ast
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
COPIED = "*.py", "*.html", "*.ini", "tests/*.py", "examples/*.py", "benchmarks/*.py"


class Mutation(NamedTuple):
    name: str
    function: str  # or Class.method
    old: str  # stands once in the function
    new: str
    tests: str  # a file of tests, and the expression that chooses some of them


MUTATIONS = [
    # the split
    Mutation("the split ignores its seed", "draw_groups",
             'hash_text(f"{salt}/{key}")', "hash_text(key)", "split seed_decides"),
    Mutation("the first draw is taken", "hold_out",
             "best == (0, False)", "True", "split drawn_again"),
    Mutation("copies among the test sounds", "split_sounds",
             "originals(held_out, copies)", "sorted(held_out)", "split copies_stay"),
    Mutation("two formats are apart", "find_group",
             "return stem_of(name)", "return name", "split two_formats"),
    Mutation("two formats count as two recordings", "count_recordings",
             "stem_of(name)", "name", "split few_recordings"),
    Mutation("groups see the file name alone", "find_group",
             'name.split("/", 1)[1]', 'name.rsplit("/", 1)[1]', "split subfolders"),
    Mutation("a copy by its name alone", "find_copies",
             "stem_of(source) in by_stem", "True", "split august"),
    Mutation("a test expression cuts a group", "match_groups",
             "group[name] in matched", "name in found", "split cut_by_the_test"),
    Mutation("a group in several official folds", "match_folds",
             "folds.setdefault(of_group[group[name]], set())",
             "folds.setdefault(texts[name], set())", "split official_folds_would_cut"),
    Mutation("suggested groups part twins", "find_parts",
             "parts_groups", "False", "split forty_sounds"),
    # leaks
    Mutation("identical sounds in two subsets", "group_sounds",
             'join(name, ("content", content))', 'join(name, ("content", name))',
             "split identical_sounds"),
    Mutation("another level is another recording", "find_alike",
             "difference < MAX_DIFFERENCE", "False", "split two_levels"),
    Mutation("steady noises are one recording", "compare_sounds",
             "agreement < MIN_AGREEMENT", "False", "split steady"),
    Mutation("a class of steady tones is one group", "find_twins",
             "sets.subset_size(pair[0]) + sets.subset_size(pair[1]) <= limit", "True",
             "split steady"),
    Mutation("sounds that validated earlier are tested", "leave_out_seen",
             "groups.of[name] not in groups.seen", "groups.of[name] not in groups.learned",
             "split earlier_training_saw"),
    Mutation("sounds that were learned earlier validate", "leave_out_seen",
             "groups.of[name] not in groups.learned", "True", "split earlier_training_saw"),
    Mutation("test sounds choose the window length", "main",
             "models.choose_n_frames(lengths)",
             "models.choose_n_frames([s.shape[-1] for s in spectrograms.values()])",
             "training choose_neither"),
    Mutation("test sounds in the normalisation", "build_network",
             "sounds = (spectrograms[name] for name in training.split.train)",
             "sounds = spectrograms.values()", "training choose_neither"),
    Mutation("small sets keep sounds for validation", "choose_split",
             "len(validation) < utils.MIN_VALIDATION", "not validation", "split too_few"),
    Mutation("the mean is one of the networks", "average_networks",
             "layers.Average()(outputs)", "outputs[0]", "evaluation mean_of_the_folds"),
    # features
    Mutation("amplitude instead of power", "transform_frames",
             "np.square(spectrum.real) + np.square(spectrum.imag)", "np.abs(spectrum)",
             "features equals_librosa"),
    Mutation("a symmetric window", "hann_window",
             'scipy.signal.get_window("hann", n_fft)',
             'scipy.signal.get_window("hann", n_fft, fftbins=False)', "features equals_librosa"),
    Mutation("sounds are not resampled", "convert_blocks",
             "sample_rate == settings.sample_rate", "True", "features reading_resamples"),
    Mutation("padding at 0 dB", "pad_spectrogram",
             "max(10 * math.log10(AMIN), spectrogram.max() - TOP_DB)", "0", "features padding"),
    Mutation("windows leave frames out", "cut_windows",
             "math.ceil(last / n_frames)", "last // n_frames", "features windows_cover"),
    Mutation("a swapped sound keeps its spectrogram", "make_key",
             "stamp + middle", "stamp", "preprocess change_places"),
    # training
    Mutation("alterations until the end", "Batches.start_epoch",
             "min(1, 2 * (1 - epoch / self.n_epochs))", "1", "models become_weaker"),
    Mutation("moving variances of samples", "normalize_batch",
             "variance * (n - 1) / n", "variance", "models fused"),
    Mutation("kernels take the steps of AdamW", "Muon.update_step",
             "len(variable.shape) != 4", "True", "models equally_far"),
    Mutation("one step of Newton and Schulz", "orthogonalize",
             "range(5)", "range(1)", "models equally_far"),
    Mutation("no momentum", "Muon.update_step",
             "self.MOMENTUM * momentum + gradient", "gradient", "models equally_far"),
    Mutation("mixup gives the partner the larger share", "Batches.mix",
             "np.minimum(share, 1 - share)", "np.maximum(share, 1 - share)",
             "models larger_share"),
    Mutation("masks of zeros", "Batches.mask",
             "window[..., frame:frame_end] = self.fill", "window[..., frame:frame_end] = 0",
             "models masks"),
    Mutation("mixed rows weighed by their largest part", "weigh_targets",
             "return parts / total[:, None], total",
             "return targets, weights[targets.argmax(axis=1)]", "models count_alike_in_the_loss"),
    # metrics
    Mutation("AUC of negated scores", "measure_classes",
             "metrics.roc_auc_score(y == k, p)",
             "metrics.roc_auc_score(y == k, -p)", "evaluation scikit_learn"),
    Mutation("the macro curve without its steps", "average_curves",
             "np.nextafter(rates, -1)", "rates", "evaluation curves_that_are_drawn"),
    Mutation("groups that are all right make the accuracy certain", "measure_inflation",
             "variance + expected", "variance", "evaluation interval"),
    Mutation("each mistake is a label in doubt", "find_doubtful",
             "probabilities >= limits", "probabilities >= 0", "report confident_learning"),
    Mutation("a few sounds make predictions certain", "fit_temperature",
             "deviation**2 / 2", "0",
             "evaluation few_sounds_that_are_all_right"),
    Mutation("as many labels in doubt as mistakes", "find_doubtful",
             "round(margins.sum())", "is_candidate.sum()", "report confident_learning"),
    # thresholds
    Mutation("sounds of a group are independent", "choose_threshold",
             "np.round(accuracies * n) / inflation", "np.round(accuracies * n)",
             "evaluation as_many_sounds"),
    Mutation("a threshold promised by the plain share", "choose_threshold",
             "chance <= 1 - CONFIDENCE", "accuracies >= TARGET / 100", "evaluation by_luck"),
    Mutation("a threshold that all validation sounds reach", "choose_threshold",
             "coverage <= KEPT_SHARE", "True", "evaluation threshold_is_the_lowest"),
    Mutation("sounds at the threshold are unknown", "Classifier.name",
             "probabilities.max() >= self.threshold", "probabilities.max() > self.threshold",
             "evaluation very_confidence"),
    Mutation("background is an answer", "Classifier.name", "not is_background(name)", "True",
             "detect never_detected"),
    Mutation("windows hold all of the background", "main",
             "not utils.is_background(class_of(name))", "True",
             "detect never_detected"),
    Mutation("background is louder than the sounds", "Batches.add_background",
             "find_level(window) - find_level(background) - rng.uniform(*BACKGROUND_RANGE)",
             "find_level(window) - find_level(background) + rng.uniform(*BACKGROUND_RANGE)",
             "models background"),
    Mutation("a threshold parts sounds of equal confidence", "measure_coverage",
             "np.diff(confidence[order], append=-1) < 0",
             "np.diff(confidence[order], append=-1) <= 0", "evaluation equal_confidence"),
]


class Swap(ast.NodeTransformer):
    """Replace code in a syntax tree, and count the places."""

    def __init__(self, old, new):
        self.old = ast.dump(parse_code(old))
        self.new = parse_code(new)
        self.n_places = 0

    def visit(self, node):
        if ast.dump(node) != self.old:
            return self.generic_visit(node)
        self.n_places += 1
        return self.new


def parse_code(text):
    """The syntax tree of an expression, or of a statement."""
    node = ast.parse(text).body[0]
    return node.value if isinstance(node, ast.Expr) else node


def list_functions(body, prefix=""):
    """Yield (name, node) of the functions and methods in the body of a module."""
    for node in body:
        if isinstance(node, ast.ClassDef):
            yield from list_functions(node.body, f"{node.name}.")
        elif isinstance(node, ast.FunctionDef):
            yield prefix + node.name, node


def mutate_project(folder, mutation):
    """Break the copy of the project in `folder`. Returns what is wrong with the mutation, or ""."""
    swap = Swap(mutation.old, mutation.new)
    for path in sorted(folder.glob("*.py")):
        tree = ast.parse(path.read_text())
        for name, node in list_functions(tree.body):
            if name == mutation.function:
                swap.visit(node)
                path.write_text(ast.unparse(tree))
    return "" if swap.n_places == 1 else f"stands {swap.n_places} times in {mutation.function}"


def copy_project(folder):
    for pattern in COPIED:
        for path in ROOT.glob(pattern):
            target = folder / path.relative_to(ROOT)
            target.parent.mkdir(exist_ok=True)
            shutil.copy(path, target)


def run_tests(folder, tests):
    """Run some tests in `folder`. Returns pytest's exit status: 0 passed, 1 failed."""
    file, expression = tests.split(" ")
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider",
               f"tests/test_{file}.py", "-k", expression]
    return subprocess.run(command, cwd=folder, capture_output=True).returncode


@cache
def pass_unbroken(tests):
    """Whether some tests pass as long as nothing is broken."""
    with tempfile.TemporaryDirectory() as folder:
        copy_project(Path(folder))
        return run_tests(folder, tests) == 0


def judge(mutation):
    """Say what becomes of a mutation: "killed", "survived", or what is wrong with it."""
    with tempfile.TemporaryDirectory() as folder:
        copy_project(Path(folder))
        if mistake := mutate_project(Path(folder), mutation):
            return mistake
        if not pass_unbroken(mutation.tests):
            return "its tests fail without it"
        status = run_tests(folder, mutation.tests)
    return {0: "survived", 1: "killed"}.get(status, "its tests cannot be run")


def main():
    words = " ".join(sys.argv[1:])
    chosen = [mutation for mutation in MUTATIONS if words in mutation.name]
    began = time.perf_counter()
    n_killed = 0
    with ThreadPoolExecutor(2) as pool:
        for mutation, verdict in zip(chosen, pool.map(judge, chosen)):
            print(f"{verdict:9}  {mutation.function}: {mutation.name}", flush=True)
            n_killed += verdict == "killed"
    print(f"{n_killed} of {len(chosen)} mutations killed in {time.perf_counter() - began:.0f} s")
    sys.exit(n_killed < len(chosen))


if __name__ == "__main__":
    main()
