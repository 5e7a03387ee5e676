"""The whole way in one call: train, prune, quantize, export, verify, and again until the budget is met."""
