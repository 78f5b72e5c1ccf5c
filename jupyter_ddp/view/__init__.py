"""Pure functions from a record or a snapshot to what a person sees. The only place that makes HTML."""
