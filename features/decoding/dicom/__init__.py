"""DICOM files: their headers, and their pixels as 8 bits. The sole user of pydicom and GDCM, which are extras."""

from hoarfrost.features.decoding.dicom.headers import DicomHeader, read_header
from hoarfrost.features.decoding.dicom.pixels import DicomImage

__all__ = ["DicomHeader", "DicomImage", "read_header"]
