"""A small data set that is published as CIFAR-10 is: batch files, an archive, and their digests."""

import gzip
import hashlib
import io
import tarfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from onelayer.data.read.batches import CIFAR10, Published

IMAGES = 6
TRAIN = [f"data_batch_{i}" for i in range(1, 6)]


def md5(content):
    return hashlib.md5(content).hexdigest()


def pixels(seed, images=IMAGES):
    return np.random.default_rng(seed).integers(0, 256, (images, 3072), dtype=np.uint8)


def labels(seed, images=IMAGES):
    return np.random.default_rng(seed).integers(0, 10, images).tolist()


def batch_file(x, y):
    """The bytes that Python 2 wrote: opcodes, addresses and order of CIFAR-10's own files."""
    rows = len(x).to_bytes(2, "little")
    size = x.size.to_bytes(4, "little")
    return b"".join(
        [
            b"\x80\x02}q\x01(U\x0bbatch_labelq\x02U\x04tinyq\x03U\x06labelsq\x04]q\x05(",
            *(b"K" + bytes([label]) for label in y),
            b"eU\x04dataq\x06cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08",
            b"K\x00\x85U\x01b\x87Rq\t(K\x01M" + rows + b"M\x00\x0c\x86cnumpy\ndtype\nq\n",
            b"U\x02u1K\x00K\x01\x87Rq\x0b(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb",
            b"\x89T" + size + x.tobytes() + b"tbu.",
        ]
    )


@dataclass(frozen=True)
class Tiny:
    """The files' contents, the archive, and what is published of them."""

    contents: dict[str, bytes]
    archive: bytes
    published: Published

    def write(self, root):
        """Put the files below ``root`` as an unpacked archive would, and return their folder."""
        folder = root / self.published.folder
        folder.mkdir(parents=True)
        for name, content in self.contents.items():
            (folder / name).write_bytes(content)
        return folder


def tar_of(files):
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return gzip.compress(target.getvalue(), 1, mtime=0)  # the same bytes in every process


def make_tiny(extra=None):
    names = [*TRAIN, "test_batch"]
    contents = {name: batch_file(pixels(i), labels(i)) for i, name in enumerate(names)}
    contents |= {"batches.meta": b"names", **(extra or {})}
    folder = CIFAR10.folder
    others = {f"{folder}/readme.html": b"not wanted", "../escape": b"no"}
    archive = tar_of({f"{folder}/{name}": data for name, data in contents.items()} | others)
    published = replace(
        CIFAR10,
        urls=(),
        md5=md5(archive),
        size=len(archive),
        files={name: md5(data) for name, data in contents.items()},
        images=IMAGES,
    )
    return Tiny(contents, archive, published)


# ---- damage


class Touch:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def damage_truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def damage_empty(path):
    path.write_bytes(b"")


def damage_flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def damage_swap(path):
    path.write_bytes((path.parent / "data_batch_1").read_bytes())


def damage_remove(path):
    path.unlink()


def damage_folder(path):
    path.unlink()
    path.mkdir()


DAMAGES = [damage_truncate, damage_empty, damage_flip, damage_swap, damage_remove, damage_folder]
