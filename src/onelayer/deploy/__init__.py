"""Trained networks for use elsewhere: files, plain modules, and the Hugging Face Hub."""
