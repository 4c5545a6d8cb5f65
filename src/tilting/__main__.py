"""`python -m tilting` is `tilting`."""

from tilting.cli import run

run()
