"""Pure tensor functions: formats, affine codes, ranges, saliency, intervals. No modules, no graph."""
