"""Checks that take too long for the tests: attacks on the library, and diffusers' tests of its schedulers."""
