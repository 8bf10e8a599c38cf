"""The command line: LightningCLI's subcommands and our own.

It imports everything; ``onelayer.__main__`` answers what needs none of it.
"""
