"""The command line: LightningCLI's subcommands and our own.

This file imports nothing, so that ``onelayer --help`` needs no torch.
"""

SUBCOMMANDS = {
    "fit": "train, then measure the training, validation and test splits",
    "validate": "measure a checkpoint on the validation split",
    "test": "measure a checkpoint on the test split",
    "predict": "classify images or samples with a checkpoint, into a CSV",
    "export": "write a trained network as ONNX, safetensors or npz",
    "features": "turn a folder of images into features with a frozen network",
    "gradcheck": "compare every analytic gradient with autograd and with differences",
    "range": "find the rates of a cycle: a run in which the learning rate rises",
    "search": "search the regulariser (l2), coarse to fine",
    "solve": "the linear network's optimum for every l2, with a certificate",
    "report": "repeat the exercises beside their published results",
}


def describe(command: str) -> str:
    """Return the description of a subcommand as a sentence."""
    purpose = SUBCOMMANDS[command]
    return f"{purpose[0].upper()}{purpose[1:]}."
