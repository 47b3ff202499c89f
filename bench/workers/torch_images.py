"""Plain PyTorch on images: the loop of its own tutorials, TensorDataset, DataLoader and all.

--fused takes Adam's fused step; --indexed indexes the tensors by whole batches instead, which no tutorial does;
--one-thread computes with one, whatever the job says;
--loader goes through the DataLoader and trains nothing.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator

import torch
from image_rows import ImageJob
from pace import Pace
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler, TensorDataset


class Shared(Sampler[int]):
    """The rows of an epoch in the shared order, as quick to draw as the shuffled one of a DataLoader."""

    def __init__(self, job: ImageJob) -> None:
        self.job, self.epoch = job, 0

    def __len__(self) -> int:
        return len(self.job.labels)

    def __iter__(self) -> Iterator[int]:
        yield from self.job.order(self.epoch).tolist()


def network(job: ImageJob) -> nn.Module:
    """The network, layer by layer."""
    layers: list[nn.Module] = []
    weights = job.weights
    for place, (matrix, bias) in enumerate(weights):
        if matrix.ndim == 4:
            layer: nn.Module = nn.Conv2d(matrix.shape[1], matrix.shape[0], matrix.shape[2])
            layers += [layer, nn.ReLU(), nn.MaxPool2d(2)]
        else:
            if not any(isinstance(one, nn.Flatten) for one in layers):
                layers.append(nn.Flatten())
            layer = nn.Linear(matrix.shape[1], matrix.shape[0])
            layers += [layer, *([nn.ReLU()] if place + 1 < len(weights) else [])]
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(matrix))
            layer.bias.copy_(torch.from_numpy(bias))
    return nn.Sequential(*layers)


def loaded(job: ImageJob, data: TensorDataset) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of all epochs through a DataLoader."""
    sampler = Shared(job)
    loader = DataLoader(data, batch_size=job.batch_rows, sampler=sampler)
    for epoch in range(job.epochs):
        sampler.epoch = epoch
        yield from loader


def indexed(job: ImageJob, data: TensorDataset) -> Iterator[tuple[Tensor, Tensor]]:
    """The same batches by indexing."""
    images, labels = data.tensors
    for epoch in range(job.epochs):
        for rows in torch.from_numpy(job.order(epoch).copy()).split(job.batch_rows):
            yield images[rows], labels[rows]


def main() -> None:
    began = time.perf_counter()
    job = ImageJob(sys.argv[1])
    torch.set_num_threads(1 if "--one-thread" in sys.argv else job.job["threads"])
    data = TensorDataset(torch.from_numpy(job.images)[:, None], torch.from_numpy(job.labels))
    model = network(job)
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=job.job["lr"], fused="--fused" in sys.argv)

    @torch.no_grad()
    def scores(images):
        return model(torch.from_numpy(images)[:, None])

    images, labels = job.first_batch()
    first_loss = float(criterion(scores(images), torch.from_numpy(labels)))
    pace = Pace(job.job, began, {"accuracy": lambda: job.accuracy(scores)})
    size = sum(p.numel() for p in model.parameters())
    pace.ready(parameters=size, version=f"torch {torch.__version__}", first_loss=first_loss)
    for x, y in (indexed if "--indexed" in sys.argv else loaded)(job, data):
        if "--loader" in sys.argv:
            pace.step(0.0, len(y))
            continue
        optimizer.zero_grad()
        loss = criterion(model(x), y)
        loss.backward()
        optimizer.step()
        pace.step(loss.detach(), len(y))


if __name__ == "__main__":
    main()
