"""Publishes one solver: python -m benchmarks.publish NAME [NAME ...], about a minute each, or make publish SOLVER=NAME

Measures its order and its steps-versus-quality rows, and writes solvers/conformance/orders.json, solver_orders.json and
steps_vs_quality.{csv,json,png} in benchmarks/accuracy/results, docs/solvers.md and the README's table. The rows of all
other solvers do not change. If the new measurements of the solver equal the old ones, no file changes.
"""

from __future__ import annotations

import argparse

from benchmarks import only, readme
from benchmarks.accuracy import solver_orders, steps_vs_quality


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", metavar="NAME", help="a registered solver")
    names = only.names(parser.parse_args().names)
    solver_orders.main(["--only", *names])
    steps_vs_quality.main(["--only", *names])
    readme.main()


if __name__ == "__main__":
    only.run(main)
