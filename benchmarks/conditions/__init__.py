"""Guidance and posterior methods: what they sample, with exact scores and on trained networks."""
