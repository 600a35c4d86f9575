"""Soft versions of the steps that have no gradient, and their hard originals."""
