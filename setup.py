"""The packages; all else stands in pyproject.toml. The configs lie at the top of the tree and travel in scoresde."""

from setuptools import find_packages, setup

packages = [*find_packages(include=["solvers*", "scoresde*"]), "scoresde.configs"]
setup(packages=packages, package_dir={"scoresde.configs": "configs"})
