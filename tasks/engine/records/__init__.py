"""A run's folder: what is written while it trains, and how it is read again."""
