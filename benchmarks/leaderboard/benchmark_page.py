"""Pictures of the page of a benchmark: python -m benchmarks.leaderboard.benchmark_page [--workdir=RUNS]

Trains the digits network of ``scoresde demo`` for 300 updates, compares seven solvers on it, and photographs the page
in headless Chromium: light at 1200 pixels, dark at 400. Writes benchmark_*.png to benchmarks/leaderboard/results, in a
few minutes.
"""

from __future__ import annotations

import argparse
import base64
import io
import os
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks import only
from scoresde.cli.parser import main as command
from solvers import InputError
from solvers.files import write_atomically

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).parent / "results"
SOLVERS = "ddim, heun, dpmpp_2m, uni_pc, ipndm, ddpm, rk23"
SHOTS = (("benchmark_page", 1200, 1000, False), ("benchmark_page_narrow", 400, 1500, True))


def photograph(page: Path, folder: Path) -> None:
    """Writes the pictures of a page; the third one shows its table, sorted."""
    sys.path.append(str(ROOT / "tests"))
    with import_module("browser").browser(folder / "profile") as opened:
        for name, width, height, dark in SHOTS:
            opened.open(page, width, dark)
            opened.value("document.querySelectorAll('svg.chart .point')[1].focus({preventScroll: true})")
            save(name, opened, {"x": 0, "y": 0, "width": width, "height": height})
        opened.open(page, 1200)
        opened.value("document.querySelectorAll('table.rows thead button')[9].click()")
        top = opened.value("document.querySelector('.tools').getBoundingClientRect().top + scrollY - 60")
        save("benchmark_table", opened, {"x": 0, "y": top, "width": 1200, "height": 620})


def save(name: str, opened: Any, clip: dict[str, float]) -> None:
    """Writes a part of the page."""
    shot = opened.call("Page.captureScreenshot", captureBeyondViewport=True, clip={**clip, "scale": 1})["data"]
    picture, out = Image.open(io.BytesIO(base64.b64decode(shot))), io.BytesIO()
    picture.convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(
        out, "PNG", optimize=True
    )
    write_atomically(RESULTS / f"{name}.png", out.getvalue())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, help="folder for the run and its results; by default a temporary one")
    folder = (parser.parse_args().workdir or Path(tempfile.mkdtemp())).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    bench = [
        "benchmark",
        "--workdir=runs/digits",
        f"--solvers={SOLVERS}",
        "--nfe=5,10,20",
        "--seeds=256",
        "--out=bench",
    ]
    for words in (["train", "--config=digits_vp", "--workdir=runs/digits", "--config.training.steps=300"], bench):
        if command(words):
            raise InputError(f"scoresde {words[0]} failed")
    photograph(folder / "bench" / "report.html", folder)


if __name__ == "__main__":
    only.run(main)
