"""Files to tensors to batches.

``pixels`` holds images and standardises them, ``cifar10`` and ``synthetic`` provide them,
``download`` brings files, ``loader`` gives batches and ``datamodule`` joins all for Lightning,
which nothing else imports.
"""

from onelayer._compat import ensure_torchvision_operators

ensure_torchvision_operators()
