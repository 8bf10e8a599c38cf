"""The maths, on torch and the standard library alone."""
