"""What tests share: tiny models, reference computations, small data."""
