"""Keras on images, by `compile` and `fit` as its documentation has it; --backend torch or tensorflow.

What Keras chooses by itself (compiling, the order of axes, how rows are shuffled) is left to it.
"""

from __future__ import annotations

import os
import sys
import time

BACKEND = sys.argv[sys.argv.index("--backend") + 1]
os.environ |= {"KERAS_BACKEND": BACKEND, "CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "2"}

import numpy as np  # noqa: E402
from image_rows import ImageJob  # noqa: E402
from pace import Pace  # noqa: E402


def use_threads(count: int) -> str:
    """Set the threads of the backend; returns its name and version."""
    if BACKEND == "torch":
        import torch

        torch.set_num_threads(count)
        return f"torch {torch.__version__}"
    import tensorflow

    tensorflow.config.threading.set_intra_op_parallelism_threads(count)
    tensorflow.config.threading.set_inter_op_parallelism_threads(count)
    return f"tensorflow {tensorflow.__version__}"


def network(job: ImageJob):
    """The network with the first weights, in Keras' order of axes."""
    import keras
    from keras import layers

    weights = job.weights
    model = keras.Sequential([keras.Input((28, 28, 1) if weights[0][0].ndim == 4 else (28, 28))])
    arrays, channels = [], 0
    for place, (matrix, bias) in enumerate(weights):
        if matrix.ndim == 4:
            model.add(layers.Conv2D(len(bias), matrix.shape[2], activation="relu"))
            model.add(layers.MaxPooling2D(2))
            arrays.append([matrix.transpose(2, 3, 1, 0), bias])
            channels = len(bias)
            continue
        if place == 0 or channels:
            model.add(layers.Flatten())
        if channels:  # the last map is flattened channel by channel there, and pixel by pixel here
            side = round((matrix.shape[1] / channels) ** 0.5)
            matrix = matrix.reshape(-1, channels, side, side).transpose(0, 2, 3, 1).reshape(len(matrix), -1)
            channels = 0
        model.add(layers.Dense(len(bias), activation="relu" if place + 1 < len(weights) else None))
        arrays.append([matrix.T, bias])
    for layer, values in zip([layer for layer in model.layers if layer.weights], arrays, strict=True):
        layer.set_weights([np.ascontiguousarray(value) for value in values])
    return model


def main() -> None:
    began = time.perf_counter()
    job = ImageJob(sys.argv[1])
    version = use_threads(job.job["threads"])
    import keras

    model = network(job)
    model.compile(
        optimizer=keras.optimizers.Adam(learning_rate=job.job["lr"], epsilon=1e-8),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    first_loss = float(model.evaluate(*job.first_batch(), batch_size=job.batch_rows, verbose=0))
    scores = lambda images: model.predict(images, batch_size=1000, verbose=0)  # noqa: E731
    pace = Pace(job.job, began, {"accuracy": lambda: job.accuracy(scores)})
    pace.ready(
        parameters=int(model.count_params()), version=f"keras {keras.__version__}, {version}", first_loss=first_loss
    )

    class Paced(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None) -> None:
            pace.step(float(logs["loss"]), len(job.labels), job.steps)

    fit = {"batch_size": job.batch_rows, "epochs": job.epochs, "verbose": 0}
    model.fit(job.images, job.labels, callbacks=[Paced()], **fit)


if __name__ == "__main__":
    main()
