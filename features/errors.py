"""The errors that users see. A message states what happened, where, why, and what to do."""

import errno
from enum import StrEnum
from typing import NamedTuple

# Of the operating system: this process may open no more files, or there is no memory to open one.
NO_MORE_FILES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})


class Unreadable(StrEnum):
    """The kinds of reasons why an image cannot be read. `{}` stands for a number, a server or a format.

    Summaries count images by kind. The operating system's own messages ("Permission denied") are kinds, too.
    """

    ACCESS_DENIED = "access denied by {}"
    SERVER_ANSWERS = "{} answers {}"
    NOT_A_FILE = "not a file but a pipe, socket or device"
    EMPTY = "the file is empty"
    FILE_TOO_LARGE = "too large a file"
    CHANGED = "changed while it was read"
    NPZ_CUT_SHORT = "the npz file was cut short while it was read"
    NO_MEMORY_TO_READ = "not enough memory to read the file"
    NO_MEMORY_TO_DECODE = "not enough memory to decode the image"
    NOT_RECOGNISED = "no image format recognised"
    DAMAGED = "damaged or truncated image"
    CRASHED = "its decoder crashed"
    GAVE_UP = "its decoder gave up"
    TOO_MANY_PIXELS = "too many pixels"
    NO_FRAME = "no frame {}"
    NO_NUMBERS = "no pixel is a number"
    NOT_RESIZED = "cannot be resized"
    OTHER_KIND = "a {} of a kind that is not read"
    DICOM_MISSING = "a DICOM file, and pydicom is missing"
    DICOM_TOO_MANY_ELEMENTS = "a DICOM header of more than {} elements"
    DICOM_INFLATES_TOO_FAR = "a deflated DICOM file of more than {} bytes"
    DICOM_HEADER = "damaged or truncated DICOM header"
    DICOM_NO_PIXELS = "a DICOM file without pixels"
    DICOM_NO_SIZE = "a DICOM image of no size"
    DICOM_RESCALE = "a DICOM rescale slope of 0, or one or an intercept that is no number"
    DICOM_LOOK_UP = "a DICOM look-up table or window that cannot be applied"
    DICOM_PIXELS = "damaged or truncated DICOM pixels"
    DICOM_NO_CODEC = "DICOM pixels of a kind that no codec reads"
    DICOM_CODEC_MISSING = "DICOM pixels whose codec is not installed, pip install 'hoarfrost[dicom]'"
    DICOM_COLOURS = "DICOM pixels in a colour space that is not read"
    DICOM_HIGH_BIT = "DICOM pixels that do not end at the lowest bit"
    DICOM_SYNTAX = "DICOM pixels of a transfer syntax that is not read"


class Reason(NamedTuple):
    """Why an image cannot be read: the kind, by which images are counted, and the full message."""

    kind: str
    text: str


class HoarfrostError(Exception):
    """The work cannot continue, and the user can fix it. Commands print the message and exit with status 1."""


class DatasetError(HoarfrostError):
    """The dataset (folder, CSV, npz) is missing, malformed or contradictory."""


class RemoteError(HoarfrostError):
    """A file server cannot be reached, or requires other credentials."""


class ImageDecodeError(HoarfrostError):
    """One image cannot be read. Extraction records it and continues.

    Parameters
    ----------
    kind : str
        One of `Unreadable`, formatted; or the operating system's message.
    details : str
        What is specific to this image; the message is "kind: details".
    text : str
        The whole message, if it does not have this form.
    """

    def __init__(self, kind: str, details: str = "", *, text: str = "") -> None:
        super().__init__(text or (f"{kind}: {details}" if details else str(kind)))
        self.kind = str(kind)


def reason_of(error: ImageDecodeError | OSError | MemoryError) -> Reason:
    """Return the reason that belongs to an error of reading or decoding an image.

    Raise HoarfrostError if the system opens no more files: nothing is known of the image then.
    """
    if isinstance(error, ImageDecodeError):
        return Reason(error.kind, str(error))
    if isinstance(error, OSError) and error.errno in NO_MORE_FILES:
        raise HoarfrostError(
            f"{error.filename or 'An image'}: cannot be opened: {error.strerror}. Allow more open files (see ulimit -n), "
            "free memory, or use fewer --workers. Then run the same command again."
        ) from error
    text = str(Unreadable.NO_MEMORY_TO_READ) if isinstance(error, MemoryError) else error.strerror or str(error)
    return Reason(text, text)


class WeightsError(HoarfrostError):
    """The encoder's weights are missing, damaged or those of another encoder."""


class EncoderError(HoarfrostError):
    """An encoder is unknown, or does not support what was requested."""


class ViewError(HoarfrostError):
    """A view does not follow the grammar, is not possible with the encoder, or is missing."""


class CacheError(HoarfrostError):
    """The cache cannot be opened, written or trusted."""


class FingerprintMismatchError(CacheError):
    """The cache holds embeddings with another fingerprint than the requested one."""


class CacheLockedError(CacheError):
    """Another process is writing to the cache."""


class TrainingError(HoarfrostError):
    """Heads cannot be trained or scored: undefined split, head or metric."""


class RunError(HoarfrostError):
    """A run folder is missing, incomplete or not written by this program."""
