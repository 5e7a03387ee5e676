"""Ready-made data and models for the command line and the demo."""
