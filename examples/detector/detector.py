"""A detector: writes HDF5 runs with images of diffraction rings into a directory, one after the other.

    python detector.py data/raw --runs 20 --rate 5

Every third run or so is too short or too dark to be worth reducing.
"""

import argparse
import time
from pathlib import Path

import h5py
import numpy as np

PIXELS = 96


def write_run(path, random):
    """Write one run under its final name and close it; the close is what a storage system announces."""
    frames = int(random.integers(4, 30))
    intensity = float(random.uniform(0.3, 2.0))
    center = PIXELS / 2 + random.uniform(-4, 4, size=2)
    rings = 40 * intensity * ring_image(center, radii=random.uniform(10, 44, size=3))
    with h5py.File(path, "w") as file:
        file.attrs["intensity"] = intensity
        file.attrs["beam_center"] = center
        file["frames"] = random.poisson(1 + rings, size=(frames, PIXELS, PIXELS)).astype(np.uint16)


def ring_image(center, radii, width=1.5):
    """Rings around the beam's center, each a Gaussian in the radius, the inner ones brighter."""
    rows, columns = np.indices((PIXELS, PIXELS))
    radius = np.hypot(rows - center[0], columns - center[1])
    return sum(10 / r * np.exp(-(((radius - r) / width) ** 2)) for r in radii)


def expose(directory, runs, rate, seed):
    """Write `runs` runs, `rate` per second; the same seed makes the same runs. Yields each path once it is closed."""
    random = np.random.default_rng(seed)
    directory.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    for number in range(runs):
        time.sleep(max(0.0, start + number / rate - time.monotonic()))
        path = directory / f"run_{number:04d}.h5"
        write_run(path, random)
        yield path


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--rate", type=float, default=5.0, help="runs per second")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    for written in expose(options.directory, options.runs, options.rate, options.seed):
        print(written)
