"""What ``python -m scripts.bench`` measures: one module a subject, none of them a test."""
