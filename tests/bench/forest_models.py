"""Runs in the side environment `sklearn`: fits a perceptron and a forest, and writes what guard and MLServer take.

    python forest_models.py FOLDER ITEMS

It imports nothing of ours.
"""

from __future__ import annotations

import sys
from pathlib import Path

import joblib  # type: ignore[import-untyped]
import numpy as np
from skl2onnx import to_onnx  # type: ignore[import-not-found]  # lives in the side environment only
from sklearn.datasets import make_classification
from sklearn.ensemble import RandomForestClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

FEATURES, CLASSES, SEED = 16, 3, 0
FITTED_SHARE = 0.4  # of the items, for the models; the rest is the guard's


def main(folder: Path, items: int) -> None:
    values, labels = make_classification(
        items, FEATURES, n_informative=10, n_classes=CLASSES, class_sep=1.5, random_state=SEED
    )
    low, high = values.min(axis=0), values.max(axis=0)
    unit = ((values - low) / (high - low)).astype(np.float32)
    fitted = int(FITTED_SHARE * items)
    models = {
        "perceptron": make_pipeline(StandardScaler(), MLPClassifier((64, 32), max_iter=200, random_state=SEED)),
        "forest": RandomForestClassifier(100, max_depth=12, random_state=SEED),
    }
    for name, model in models.items():
        model.fit(unit[:fitted], labels[:fitted])
        print(f"{name} {model.score(unit[fitted:], labels[fitted:]):.3f}")
        exported = to_onnx(model, unit[:1], options={id(model): {"zipmap": False}})
        (folder / f"{name}.onnx").write_bytes(exported.SerializeToString())
        joblib.dump(model, folder / f"{name}.joblib")
    np.savez(folder / "data.npz", images=unit[fitted:], labels=labels[fitted:])


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
