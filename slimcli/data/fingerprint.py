"""Whether images and labels are still the ones that a run started with."""

from __future__ import annotations

import zlib

from torch import Tensor

from slimcli.data.folders import Files
from slimcli.data.memory import Images


def fingerprint(*splits: tuple[Images, Tensor]) -> str:
    """Eight hex digits that change with any image or label of any split: a checksum of their bytes.

    For files, names and sizes and the bytes of about a hundred of them stand for all: they may be too many to read, and
    whether they fit into memory must not matter.
    """
    checksum = 0
    for images, labels in splits:
        checksum = zlib.crc32(str(tuple(images.shape)).encode(), checksum)
        checksum = zlib.crc32(labels.contiguous().numpy().data, checksum)
        if isinstance(images, Files):
            for stamp in images.stamps():
                checksum = zlib.crc32(stamp.encode(), checksum)
        else:
            checksum = zlib.crc32(images.contiguous().numpy().data, checksum)
    return f"{checksum:08x}"
