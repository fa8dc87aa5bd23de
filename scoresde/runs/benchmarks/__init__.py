"""The benchmark of a run, of a pipeline of diffusers, or of a target: its source, its terms, its rows drawn again."""
