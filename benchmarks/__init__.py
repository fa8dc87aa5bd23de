"""Scripts that measure, their result files, and the tables that the pages show: python -m benchmarks.GROUP.SCRIPT"""
