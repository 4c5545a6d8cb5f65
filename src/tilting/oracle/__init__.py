"""Models and controls whose every law is known: what tests and papers stand on."""
