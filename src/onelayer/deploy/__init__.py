"""Networks for use elsewhere: estimators, files, plain modules, and the Hugging Face Hub."""
