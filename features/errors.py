"""What goes wrong, told to the user: what, where, why, and the way out."""


class HoarfrostError(Exception):
    """The work cannot go on for a reason that a user can act on.

    Commands print the message and exit with status 1; it never becomes a traceback.
    """


class DatasetError(HoarfrostError):
    """The description of the images (folder, CSV, npz) is missing, odd or contradictory."""


class RemoteError(HoarfrostError):
    """A server that files are to come from cannot be reached, or wants other credentials."""


class ImageDecodeError(HoarfrostError):
    """One image cannot be read; the message says why. Extraction records it and goes on."""


class WeightsError(HoarfrostError):
    """The encoder's weights are missing, damaged or not those of this encoder."""


class EncoderError(HoarfrostError):
    """An encoder is not known, or cannot do what is asked of it."""


class CacheError(HoarfrostError):
    """The cache cannot be opened, written or trusted."""


class FingerprintMismatchError(CacheError):
    """The cache holds embeddings made in another way than the one asked for."""


class CacheLockedError(CacheError):
    """Another process is writing to the cache."""


class TrainingError(HoarfrostError):
    """Heads cannot be trained or scored: undefined split, head or metric."""


class RunError(HoarfrostError):
    """A run folder is missing, incomplete or not one of ours."""
