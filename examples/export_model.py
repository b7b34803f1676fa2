"""Export the trained network to ONNX or TensorFlow Lite, for programs without Keras.

Reads weights.keras. Writes model.onnx or model.tflite, and model.json beside it. model.json holds
the classes, the mel filters and all else that a program needs to classify a sound. For an example
see classify_onnx.py.

    pip install onnx tf2onnx onnxruntime
    python examples/export_model.py model.onnx
"""
import dataclasses
import sys
import warnings
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import utils

FORMATS = {".onnx": "onnx", ".tflite": "litert"}  # as Keras calls them


def list_filters(settings):
    """List the mel filters: for each its first FFT bin, and its weights from there."""
    filters = []
    for row in settings.filters.toarray():  # (1 + n_fft // 2,)
        filters.append({"first_bin": int(np.argmax(row > 0)), "weights": row[row > 0].tolist()})
    return filters


def main():
    parser = utils.Parser(__doc__, places=("weights",))
    parser.add_argument("model", type=Path, help="file to write, .onnx or .tflite")
    args = parser.parse_args()
    if args.model.suffix not in FORMATS:
        parser.error(f"{args.model}: expected a name that ends in .onnx or .tflite")
    utils.check_weights_path(args.weights)
    import models  # loads Keras
    network, training = models.load_network(args.weights)

    # As constants, for Keras would export tensors as further inputs.
    for part in network.layers[1:-1] if training.is_mean else [network]:
        normalization = part.layers[1]
        normalization.mean = models.keras.ops.convert_to_numpy(normalization.mean)
        normalization.variance = models.keras.ops.convert_to_numpy(normalization.variance)
    network(np.zeros((1, *network.input_shape[1:]), np.float32))  # export needs one call before it
    try:
        with utils.whole_file(args.model) as temporary, warnings.catch_warnings(action="ignore"):
            network.export(temporary, format=FORMATS[args.model.suffix], verbose=False)
    except (ImportError, ValueError, RuntimeError) as error:  # each backend fails differently
        raise utils.UserError(
            f"{args.model}: Keras cannot export it with {models.keras.backend.backend()} "
            f"({error}); use KERAS_BACKEND=tensorflow and: pip install onnx tf2onnx") from None

    utils.save_json(args.model.with_suffix(".json"), {
        "classes": training.classes,
        "background": [name for name in training.classes if utils.is_background(name)],
        "threshold": training.threshold,
        "features": dataclasses.asdict(training.features),
        "amin": utils.AMIN,
        "top_db": utils.TOP_DB,
        "mel_filters": list_filters(training.features),
        "n_frames": training.n_frames,
        "temperature": training.temperature})
    utils.say(f"Wrote {args.model}, {args.model.with_suffix('.json')}")


if __name__ == "__main__":
    utils.run(main)
