"""Lightning pieces: the module and its callbacks, one file per concern."""

from onelayer._compat import ensure_torchvision_operators

ensure_torchvision_operators()  # before anything imports lightning
