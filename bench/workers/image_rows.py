"""What all rivals of the image benchmark share: images, their order, first weights, and what is asked at the end."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


class ImageJob:
    """A job as its file describes it. Pixels are floats from 0 to 1, images (N, 28, 28)."""

    def __init__(self, path: str) -> None:
        self.job: dict[str, Any] = json.loads(Path(path).read_text())
        self.folder = Path(path).parent
        self.batch_rows: int = self.job["batch_rows"]
        self.epochs: int = self.job["epochs"]
        self.labels: NDArray[np.int64] = np.load(self.folder / "labels.npy")
        self.steps = -(-len(self.labels) // self.batch_rows)
        """Steps of an epoch."""

    @property
    def images(self) -> Floats:
        """The training images."""
        return np.load(self.folder / "images.npy").astype(np.float32) / 255

    def order(self, epoch: int) -> NDArray[np.int64]:
        """The rows of an epoch in the order that is shared by whoever can be told one."""
        return np.load(self.folder / "order.npy", mmap_mode="r")[epoch]

    @property
    def weights(self) -> list[tuple[Floats, Floats]]:
        """First weights, layer by layer: a matrix (outputs, inputs) or kernels (outputs, inputs, 3, 3), and a bias."""
        with np.load(self.folder / "weights.npz") as found:
            arrays = [found[f"arr_{i}"] for i in range(len(found.files))]
        return list(zip(arrays[::2], arrays[1::2], strict=True))

    def accuracy(self, scores: Callable[[Floats], NDArray[Any]]) -> dict[str, Any]:
        """The share of test images that scores (N, 10) of images (N, 28, 28) get right."""
        images = np.load(self.folder / "test_images.npy").astype(np.float32) / 255
        labels = np.load(self.folder / "test_labels.npy")
        right = sum(
            int((np.asarray(scores(images[i : i + 1000])).argmax(1) == labels[i : i + 1000]).sum())
            for i in range(0, len(labels), 1000)
        )
        return {"accuracy": right / len(labels), "images": len(labels)}

    def first_batch(self) -> tuple[Floats, NDArray[np.int64]]:
        """Images and labels of the first step, by which all are seen to begin alike."""
        rows = self.order(0)[: self.batch_rows]
        return np.load(self.folder / "images.npy", mmap_mode="r")[rows].astype(np.float32) / 255, self.labels[rows]
