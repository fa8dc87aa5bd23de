"""Two import packages, one distribution: ``solvers`` (numerics) and ``scoresde`` (statistics)."""

from pathlib import Path

from setuptools import setup

extras = {
    "images": ["diffusers>=0.30", "accelerate>=0.30"],
    "metrics": ["scikit-learn>=1.3", "POT>=0.9"],
    "logging": ["tensorboard>=2.15"],
    "docs": ["sphinx>=7", "furo", "myst-parser>=2"],
    "dev": ["pytest>=8", "pytest-xdist>=3.5", "hypothesis>=6", "ruff>=0.6", "mypy>=1.10", "transformers>=4.40"],
}

setup(
    name="scoresde",
    version="0.1.0",
    description="Score-based diffusion models with pluggable solvers, likelihood and an honest benchmark",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.11",
    packages=["solvers", "scoresde", "scoresde.configs", "scoresde.interop"],
    # the configs lie at the top of the tree, where people look for them, and travel inside the package
    package_dir={"scoresde.configs": "configs"},
    package_data={"scoresde": ["py.typed", "*.html"], "solvers": ["py.typed", "*.json"]},
    install_requires=[
        "torch>=2.2",
        "numpy>=1.26",
        "scipy>=1.10",
        "torchdiffeq>=0.2.4",
        "ml_collections>=0.1.1",
        "absl-py>=2",
        "tqdm>=4.65",
        "safetensors>=0.4",
        "Pillow>=10",
        "matplotlib>=3.8",
        "jinja2>=3.1",
        "typing_extensions>=4.6",
    ],
    extras_require=extras,
    entry_points={"console_scripts": ["scoresde = scoresde.cli:main"]},
)
