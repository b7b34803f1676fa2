"""Turn sounds into log-mel spectrograms.

Reads Samples/<class>/<name>.<ext>. Writes Preproc/<class>/<name>.<ext>.npy, float32 (n_mels, n_frames) in dB,
and the settings that they were made with, Preproc/settings.json.

    python preprocess_data.py
"""
import contextlib
import dataclasses
import sys
from pathlib import Path

import numpy as np

import utils


def parse_args():
    parser = utils.Parser(__doc__, places=("samples", "preproc"))
    count = utils.number(int, 1)
    parser.add_argument("--sample-rate", type=utils.number(int, 100), metavar="HZ",
                        help="resample every sound to it (default: the rate that most files have)")
    parser.add_argument("--n-mels", type=count, default=96, help="mel bands (default: 96)")
    parser.add_argument("--n-fft", type=utils.number(int, 2),
                        help="samples in a window (default: 2048 at 44.1 kHz, as long in time at other rates)")
    parser.add_argument("--hop-length", type=count, help="samples between frames (default: 512 at 44.1 kHz, likewise)")
    parser.add_argument("--jobs", type=count, default=-1, help="sounds at a time (default: one a core)")
    return parser.parse_args()


def forget_former(preproc, names):
    """Mark `preproc` as unfinished and remove the spectrograms of sounds that are gone, and folders left empty.

    Raises UserError where it holds .npy files that no preprocessing wrote: they may be dear to someone.
    """
    mark = Path(preproc, utils.SETTINGS_FILE)
    former = utils.list_spectrograms(preproc) if preproc.exists() else []
    if former and not mark.exists():
        raise utils.UserError(f"{preproc}: expected an empty folder or one of earlier preprocessing, "
                              f"found {len(former)} .npy files without {utils.SETTINGS_FILE}")
    utils.save_json(mark, {})
    for name in sorted(set(former) - set(names)):
        path = Path(preproc, name + ".npy")
        path.unlink()
        with contextlib.suppress(OSError):  # not empty: stays
            path.parent.rmdir()


def main():
    args = parse_args()
    names, others = utils.find_sounds(args.samples)
    settings = utils.default_settings(args.sample_rate or utils.rate_of_most(args.samples, names),
                                      args.n_mels, args.n_fft, args.hop_length)
    print(f"{args.samples}: {len(names)} sounds; {settings}")
    forget_former(args.preproc, names)

    def preprocess(name):
        target = Path(args.preproc, name + ".npy")
        target.unlink(missing_ok=True)  # a sound that has become unreadable keeps no former spectrogram
        spectrogram = utils.sound_to_spectrogram(name, args.samples, settings)
        with utils.whole_file(target) as path:
            np.save(path, spectrogram)

    done, n_bad = utils.for_each(preprocess, names, "Preprocessing", args.jobs)
    if not done:
        raise utils.UserError(f"{args.samples}: expected sounds, found {n_bad} files that cannot be read")
    for class_name in utils.list_classes(args.samples):  # an empty class is for training to name
        Path(args.preproc, class_name).mkdir(parents=True, exist_ok=True)
    utils.save_json(args.preproc / utils.SETTINGS_FILE, dataclasses.asdict(settings))
    for name in others:
        print(f"left alone {Path(args.samples, name)}: not a sound", file=sys.stderr)
    print(f"{args.preproc}: {len(done)} spectrograms, {n_bad} sounds skipped, {len(others)} other files left alone\n"
          "Next: python train_network.py")
    return n_bad


if __name__ == "__main__":
    utils.run(main)
