"""Curvature: captured during the backward pass, factored, or exact for small models."""
