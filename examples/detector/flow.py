"""From a detector's files to a catalogue: look at every run at once, reduce those that are worth it, register them.

A run appears as an HDF5 file. `inspect` reads its header within milliseconds. Its completion is an event too, and the
second rule picks those whose result says `worth`: they go to the batch system, and from there to the catalogue.
"""

import sqlite3
from contextlib import closing
from pathlib import Path

import h5py
import numpy as np

from eventmill import Mill, completed, files, local_path

mill = Mill("detector", parameters={"output": "/detector/results", "frames_min": 10, "intensity_min": 0.5})


@mill.function(timeout="10s")
def inspect(event):
    """Reads the header of a new run: is it worth reducing?"""
    with h5py.File(event.path) as file:
        frames, intensity = len(file["frames"]), float(file.attrs["intensity"])
    worth = frames >= event["frames_min"] and intensity >= event["intensity_min"]
    return {"path": event.subject, "frames": frames, "intensity": intensity, "worth": worth}


@mill.job(cpus=1, memory="512MB", timeout="10m")
def reduce(event):
    """Averages a run's frames, and the mean frame over the azimuth; draws the mean frame."""
    from PIL import Image  # needed here only, where the batch system runs it

    run = event.data["result"]
    with h5py.File(local_path(run["path"])) as file:
        frame, (row, column) = file["frames"][:].mean(axis=0), file.attrs["beam_center"]
    rows, columns = np.indices(frame.shape)
    radius = np.hypot(rows - row, columns - column).astype(int).ravel()
    profile = np.bincount(radius, frame.ravel()) / np.bincount(radius)

    name, output = Path(run["path"]).stem, Path(local_path(event["output"]))
    output.mkdir(parents=True, exist_ok=True)
    np.savetxt(output / f"{name}.txt", profile, fmt="%.3f", header="mean intensity at radius 0, 1, 2, … pixels")
    Image.fromarray((255 * np.sqrt(frame / frame.max())).astype(np.uint8)).save(output / f"{name}.png")
    return {"run": name, "frames": run["frames"], "ring": int(profile[5:].argmax()) + 5, "image": f"{name}.png"}


@mill.function(timeout="10s")
def register(reduced):
    """Enters a reduced run into the catalogue; entering it again changes nothing."""
    catalogue = Path(local_path(reduced["output"])) / "catalogue.sqlite"
    with closing(sqlite3.connect(catalogue)) as database, database:
        database.execute("CREATE TABLE IF NOT EXISTS runs (run PRIMARY KEY, frames, ring, image)")
        database.execute("INSERT OR REPLACE INTO runs VALUES (:run, :frames, :ring, :image)", reduced)
    return {"run": reduced["run"], "catalogue": f"{reduced['output']}/catalogue.sqlite"}


mill.on(files.written("/detector/raw/*.h5"), inspect)
mill.on(completed(inspect, {"worth": [True]}), reduce >> register)
