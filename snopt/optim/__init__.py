"""The optimizer, its update rules, and what surrounds a step."""
