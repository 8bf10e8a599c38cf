"""Files to tensors to batches.

``sources`` provides labelled images, ``download`` brings their files, ``splits`` says which rows
are for what, ``features`` standardises them, ``loader`` gives batches, ``pictures`` reads images to
predict, and ``datamodule`` joins all for Lightning, which nothing else imports.
"""

from onelayer._compat import ensure_torchvision_operators

ensure_torchvision_operators()
