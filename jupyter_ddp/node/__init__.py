"""One machine's agent: owns its ranks' processes, relays what they say. Free of torch and IPython."""
