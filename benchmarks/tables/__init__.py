"""The tables of the README and of the docs, made from the result files; ``readme.py`` writes them."""
