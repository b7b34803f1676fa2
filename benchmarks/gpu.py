"""Time the example of 2017 from nothing on a machine with a GPU, and print a table.

Synthesises, preprocesses, trains and evaluates all 20,592 guitar-effect sounds of 2 s in twelve
classes. The test notes are not heard in training. Needs the packages of requirements.txt and a
Keras backend that sees the GPU. Flags that are not its own go to train_network.py.

    KERAS_BACKEND=jax python benchmarks/gpu.py
    python benchmarks/gpu.py --notes 20 --epochs 8      (a small one, to try it without a GPU)
"""
import argparse
import csv
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GROUPS = r"^G\d\d-\d{5}"  # the dry note


def timed(folder, script, *args):
    """Run a script and pass its output on. Returns its seconds and its output."""
    command = [sys.executable, "-u", ROOT / script, *map(str, args)]
    said = []
    began = time.perf_counter()
    with subprocess.Popen(command, cwd=folder, text=True, stdout=subprocess.PIPE) as process:
        for line in process.stdout:
            print(line, end="", flush=True)
            said.append(line)
    if process.returncode:
        sys.exit(f"{script} failed")
    return time.perf_counter() - began, "".join(said)


def gpu_name():
    """The names of the GPUs, as the driver lists them."""
    if not shutil.which("nvidia-smi"):
        return "none"
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    names = subprocess.run(command, capture_output=True, text=True).stdout
    return ", ".join(names.splitlines()) or "none"


def main():
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--notes", type=int, default=624,
                        help="dry notes, of 33 sounds each (default: all 624)")
    args, flags = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        made, _ = timed(folder, "examples/guitar_effects.py", "Samples", "--notes", args.notes)
        preprocessed, _ = timed(folder, "preprocess_data.py")
        trained, said = timed(folder, "train_network.py", "--groups", GROUPS, *flags)
        evaluated, _ = timed(folder, "eval_network.py")
        scores = json.loads(Path(folder, "Results/metrics.json").read_text())
        with open(Path(folder, "Results/training_log.csv"), newline="") as file:
            log = list(csv.DictReader(file))
    n = scores["n_train"] + scores["n_test"]
    seconds = [float(row["seconds"]) for row in log]
    steps = sum(seconds)
    n_windows = sum(float(row["windows_per_second"]) * s for row, s in zip(log, seconds))
    device = re.search(r"frames \(.*\), (.*)", said)[1]
    print(f"\n| stage | seconds | windows per second |\n|---|---|---|\n"
          f"| synthesis (not counted) | {made:.1f} | {n / made:.0f} |\n"
          f"| preprocessing | {preprocessed:.1f} | {n / preprocessed:.0f} |\n"
          f"| training, {len(log)} epochs | {trained:.1f} | {n_windows / trained:.0f} |\n"
          f"| of this, the steps alone | {steps:.1f} | {n_windows / steps:.0f} |\n"
          f"| evaluation | {evaluated:.1f} | {scores['n_test'] / evaluated:.0f} |\n"
          f"| all three | {preprocessed + trained + evaluated:.1f} | |\n\n"
          f"accuracy {scores['accuracy']:.4f}, macro AUC {scores['macro_auc']:.4f} on "
          f"{scores['n_test']} sounds; GPU: {gpu_name()}; Keras: {device}")


if __name__ == "__main__":
    main()
