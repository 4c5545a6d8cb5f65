"""`tilting compare`: methods side by side on one page."""
