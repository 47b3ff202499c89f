"""scikit-learn's MLPClassifier on images, an epoch at a time by `partial_fit`, in its own random order."""

from __future__ import annotations

import sys
import time

import sklearn
from image_rows import ImageJob
from pace import Pace
from sklearn.neural_network import MLPClassifier


def classifier(job: ImageJob, lr: float) -> MLPClassifier:
    """The network, which begins with the shared weights."""

    class Begun(MLPClassifier):
        def _init_coef(self, fan_in, fan_out, dtype):
            matrix, bias = next(layers)
            return matrix.T.astype(dtype, order="C"), bias.astype(dtype)

    layers = iter(job.weights)
    widths = tuple(len(bias) for _, bias in job.weights[:-1])
    options = {"solver": "adam", "alpha": 0.0, "batch_size": job.batch_rows, "random_state": job.job["seed"]}
    return Begun(widths, learning_rate_init=lr, **options)


def main() -> None:
    began = time.perf_counter()
    job = ImageJob(sys.argv[1])
    images, labels = job.images.reshape(len(job.labels), -1), job.labels
    model, classes = classifier(job, job.job["lr"]), sorted(set(labels.tolist()))
    first, first_labels = job.first_batch()
    # The loss of a step is that of the weights before it: one that moves nothing tells it.
    still = classifier(job, 1e-30).partial_fit(first.reshape(len(first), -1), first_labels, classes=classes)
    scores = lambda images: model.predict_proba(images.reshape(len(images), -1))  # noqa: E731
    pace = Pace(job.job, began, {"accuracy": lambda: job.accuracy(scores)})
    size = sum(matrix.size + bias.size for matrix, bias in job.weights)
    pace.ready(parameters=size, version=f"scikit-learn {sklearn.__version__}", first_loss=float(still.loss_))
    for _ in range(job.epochs):
        model.partial_fit(images, labels, classes=classes)
        pace.step(float(model.loss_), len(labels), job.steps)


if __name__ == "__main__":
    main()
