"""Why a quantized network lost accuracy: where, by what cause, and which cures help."""
