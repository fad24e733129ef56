"""What a model looked at while it answered, where a method changed its mind, and whether maps deserve belief."""
