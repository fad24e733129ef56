"""What a model looked at while it answered, where a method changed its mind, and how far to believe it."""
