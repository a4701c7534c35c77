"""Regenerates the models of the provider files from a public price list."""
