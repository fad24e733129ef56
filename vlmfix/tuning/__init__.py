"""The search for recipes: methods that work together on one model and one's own data."""
