"""Text tables, image grids, charts and pages."""
