"""The whole way in one call: train, prune, quantize, export, verify, and again until the budget is met."""

from gossamer.compress.loop import compress as compress
from gossamer.compress.result import Result as Result
