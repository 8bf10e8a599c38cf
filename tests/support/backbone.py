"""A tiny backbone, and folders of images for it."""

import numpy as np
import torch
from PIL import Image
from torch import nn

NAME = "tests.support.backbone.Tiny"
CLASSES = ("cat", "dog", "newt")


class Tiny(nn.Module):
    """Means of 4 × 4 patches of each colour, mixed by random weights: 24 features."""

    def __init__(self):
        super().__init__()
        self.pool, self.mix = nn.AdaptiveAvgPool2d(4), nn.Linear(48, 24)

    def forward(self, x):
        return self.mix(self.pool(x).flatten(1))


class OfBytes(nn.Module):
    """Returns no tensor."""

    def forward(self, x):
        return [x]


def image_folder(folder, n=8, seed=0):
    """Write n images of each class, which differ in brightness."""
    rng = np.random.default_rng(seed)
    for i, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for j in range(n):
            pixels = rng.integers(0, 100, (20, 24, 3)) + 70 * i
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{j}.png")
    return folder


def features_by_hand(paths, size=32):
    """Features of image files, as the words of the documentation have it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Tiny().eval()
    images = [np.array(Image.open(path).resize((size, size), 3)) for path in paths]
    X = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        return network(X).numpy()
