"""Self-tests of the engine on a loaded model, and which methods act on it."""
