"""What enters and leaves: arguments of callers, files of arrays and of results, the progress of long computations."""
