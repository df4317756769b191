"""Measure the speed-up from one worker process to two, each with one thread: staging, relabelling, a pyramid.

    python benchmarks/speed_up.py                    # 512^3 smooth blobs in 64 tiles; a pyramid of 512 x 1024 x 1024
    python benchmarks/speed_up.py --size 128 --chunk 32 --shape 32 256 256 --chunks 16 64 64 --rounds 1

In turns, a cluster of one worker and one of two do the same job. The time of a step goes from the start of its first
task to the end of its last one, so that the start of a cluster does not count. The speed-up is that of a pair of
neighbouring runs; the table has the median over the pairs. Where others use the cores too it comes out too low.

The codecs of zarr have threads of their own, as many as the machine has cores: one worker then uses two cores in part.
Here each worker has one thread for them; RAYON_NUM_THREADS=2 shows it as it is without.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

from problems import store_camera_noise, store_problem
from recording import Ran, recorded, span

import blockbuster

Times = dict[str, float]

os.environ.setdefault("RAYON_NUM_THREADS", "1")


def main() -> None:
    options = _options()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        kept = Path(options.folder or folder)
        blobs, threshold = store_problem("blobs", options.size, options.chunk, kept)
        noise = store_camera_noise(tuple(options.shape), tuple(options.chunks), kept)
        result = Path(folder, "result.zarr")

        def jobs() -> dict[str, Callable[[], object]]:
            return {
                "label": lambda: blockbuster.label(blobs, threshold=threshold, write_to=result),
                "pyramid": lambda: blockbuster.write_image(noise, result, n_levels=5, scale_factor=(1, 2, 2)),
            }

        pairs = []
        for number in range(options.rounds + 1):
            # Who comes first changes from pair to pair.
            order = (1, 2) if number % 2 else (2, 1)
            times = {n_workers: _run(n_workers, jobs(), result) for n_workers in order}
            if number:
                pairs.append((times[1], times[2]))
            _say(number, times)
    _report(pairs)


def _run(n_workers: int, jobs: dict[str, Callable[[], object]], result: Path) -> Times:
    """Seconds of each step of all jobs, on a new cluster that has run a little before."""
    times: Times = {}
    with blockbuster.make_local_cluster(n_workers=n_workers) as (client, cluster):
        client.run(_warm)
        for name, job in jobs.items():
            with recorded(cluster) as recorder:
                job()
            times.update(_steps(name, recorder.steps))
            shutil.rmtree(result)
    return times


def _warm() -> None:
    """Import what tasks need."""
    import cc3d  # noqa: F401
    import zarrs  # noqa: F401

    import blockbuster.resampling
    import blockbuster.steps  # noqa: F401


def _steps(job: str, ran: dict[str, list[Ran]]) -> Times:
    if job == "label":
        return {"staging": span(ran["stage"]), "relabelling": span(ran["finish"])}
    return {"pyramid": span([one for step, tasks in ran.items() if step.startswith("tiles") for one in tasks])}


def _say(number: int, times: dict[int, Times]) -> None:
    told = ", ".join(f"{step} {times[1][step]:.2f} and {times[2][step]:.2f}" for step in times[1])
    load = os.getloadavg()[0]
    print(f"{'warm-up' if number == 0 else f'pair {number}'}: {told} s; load {load:.1f}", flush=True)


def _report(pairs: list[tuple[Times, Times]]) -> None:
    print("\n| step | speed-up (median) | lowest to highest |\n|---|---|---|")
    for step in pairs[0][0]:
        ratios = [one[step] / two[step] for one, two in pairs]
        print(f"| {step} | {statistics.median(ratios):.2f} | {min(ratios):.2f} to {max(ratios):.2f} |")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--chunk", type=int, default=128)
    parser.add_argument("--shape", nargs=3, type=int, default=[512, 1024, 1024])
    parser.add_argument("--chunks", nargs=3, type=int, default=[64, 256, 256])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", help="where the images are kept for the next time")
    return parser.parse_args()


if __name__ == "__main__":
    main()
