"""Readers, one per source: official files in, checked arrays out."""
