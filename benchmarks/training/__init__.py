"""Models of images trained and measured, and the options of the training compared."""
