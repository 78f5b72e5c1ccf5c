"""How node agents come to exist. Runs in the notebook kernel's process."""
