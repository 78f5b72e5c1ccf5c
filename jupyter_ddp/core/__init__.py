"""Pure: no clock, no socket, no thread, no torch, no IPython. Everything else may import it."""
