"""Answers with the best rate of matrix products this machine shows right now: what MFU is a share of.

The best of all libraries torch carries, so that no trainer can be above it by choosing another.
"""

from __future__ import annotations

import json
import sys
import time

import torch
from pace import dtype_of, read_job

from groundup.nn import products


def best_rate(shapes: list[tuple[int, int, int]], device: str, dtype: torch.dtype, seconds: float = 0.4) -> float:
    """FLOP/s (a multiply-add is two) of the fastest of `shapes`, each the median of its repetitions."""
    best = 0.0
    for m, k, n in shapes:
        a, b = torch.randn(m, k, device=device, dtype=dtype), torch.randn(n, k, device=device, dtype=dtype)
        for library in products.libraries(device, dtype):
            times = []
            deadline = time.perf_counter() + seconds
            while time.perf_counter() < deadline or len(times) < 5:
                if device == "cuda":
                    torch.cuda.synchronize()
                start = time.perf_counter()
                products.product(a, b, library)
                if device == "cuda":
                    torch.cuda.synchronize()
                times.append(time.perf_counter() - start)
            best = max(best, 2 * m * k * n / sorted(times)[len(times) // 2])
    return best


def main() -> None:
    job = read_job(sys.argv[1])
    tokens, width = job["batch_rows"] * job["context"], job["d_model"]
    square = 8192 if job["device"] == "cuda" else 2048
    shapes = [(tokens, width, 4 * width), (tokens, 4 * width, width), (square, square, square)]
    print("@" + json.dumps({"ready": True, "seconds": 0.0, "torch": torch.__version__}), flush=True)
    for _ in sys.stdin:
        rate = best_rate(shapes, job["device"], dtype_of(job))
        print("@" + json.dumps({"flops": rate}), flush=True)


if __name__ == "__main__":
    main()
