"""Showing what was found: report.json, the console, and one HTML file that works offline."""
