"""DICOM files: what their headers say, and their pixels as 8 bits. The sole user of pydicom and GDCM, an extra."""

from features.dicom.headers import DicomHeader, read_header
from features.dicom.pixels import DicomImage

__all__ = ["DicomHeader", "DicomImage", "read_header"]
