"""Files to tensors to batches.

``pixels`` holds images and standardises them, ``cifar10`` and ``synthetic`` provide them,
``loader`` gives batches and ``datamodule`` joins all for Lightning. Only ``datamodule`` imports
Lightning, and only the process that downloads imports torchvision.
"""

from onelayer._compat import ensure_torchvision_operators

ensure_torchvision_operators()
