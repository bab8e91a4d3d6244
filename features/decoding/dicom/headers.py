"""What a DICOM file's header says of its patient, site and scanner."""

import io
import re
from contextlib import nullcontext
from dataclasses import dataclass
from typing import BinaryIO

from pydicom.dataset import Dataset

from hoarfrost.features.decoding.dicom.elements import (
    META_BYTES,
    inflated,
    is_deflated,
    n_frames_there,
    n_promised,
    read_elements,
)

OLDEST_BAND = 90  # years and more: from there on an age may tell who it is
MAX_TEXT = 64  # characters of an attribute
SHORTEST_NAME = 3  # letters of a name or id that is looked for in a path: shorter ones are everywhere
SHORTEST_NUMBER = 6  # digits of an accession number that is

_KEYWORDS = (
    "PatientID", "PatientName", "PatientBirthDate", "AccessionNumber", "PatientSex", "PatientAge", "StudyInstanceUID",
    "SOPClassUID", "InstitutionName", "Manufacturer", "ManufacturerModelName", "BurnedInAnnotation", "NumberOfFrames",
    "Rows", "Columns", "SamplesPerPixel", "BitsAllocated", "PhotometricInterpretation", "SpecificCharacterSet",
)  # fmt: skip


@dataclass(frozen=True)
class DicomHeader:
    """What of a file's header the dataset uses; texts are empty where the file does not say.

    `patient_id`, `study` and `identifiers` (ids, names, dates, in small letters) never leave this process as they are, but
    for the ids if the user wants them kept. `n_frames` is one more than the file has room for, where it has not all that
    are promised: the last is then listed as missing.
    """

    n_frames: int
    patient_id: str
    identifiers: tuple[str, ...]
    study: str
    site: str
    scanner: str
    sex: str
    age: str
    burned_in: str

    @property
    def has_patient_id(self) -> bool:
        """Whether the file has a patient id."""
        return bool(self.patient_id)

    @property
    def patient(self) -> str:
        """The patient's id, or where that is blank, the study's; empty where that is blank, too."""
        return self.patient_id or self.study

    def is_identified_by(self, path: str, folder: str = "") -> bool:
        """Return whether a path holds the patient's id or name, a birth date or an accession number.

        `folder` is where the path begins: as it is anyone's, only whole words of it count.
        """
        words = set(re.split(r"[\W_]+", folder.casefold()))
        return any(text in path.casefold() or text in words for text in self.identifiers)


def read_header(file: str | BinaryIO) -> DicomHeader | None:
    """Read what a regular file says of its patient, site and scanner, and how many frames it has; no pixels.

    Returns
    -------
    DicomHeader or None
        None where the file cannot be read as DICOM; decoding it will say why.
    """
    try:
        with open(file, "rb") if isinstance(file, str) else nullcontext(file) as content:
            is_whole_needed = is_deflated(content.read(META_BYTES))
            content.seek(0)
            return _header(io.BytesIO(inflated(content.read())) if is_whole_needed else content)
    except Exception:  # pydicom raises nearly anything on damaged files
        return None


def _header(file: BinaryIO) -> DicomHeader | None:
    data = read_elements(file, _KEYWORDS)
    if "SOPClassUID" not in data and "Rows" not in data:
        return None  # elements are found in anything
    manufacturer, model = _sound_text(data, "Manufacturer"), _sound_text(data, "ManufacturerModelName")
    return DicomHeader(
        n_frames=min(n_promised(data), n_frames_there(data, file) + 1),
        patient_id=_text(data, "PatientID"),
        identifiers=_identifiers(data),
        study=_text(data, "StudyInstanceUID"),
        site=_sound_text(data, "InstitutionName"),
        scanner=model if model.startswith(manufacturer) else f"{manufacturer} {model}".strip(),
        sex=_sound_text(data, "PatientSex").upper(),
        age=_age_band(_text(data, "PatientAge")),
        burned_in=_sound_text(data, "BurnedInAnnotation").lower(),
    )


def _text(data: Dataset, keyword: str) -> str:
    """Return an element's text on one line, without what cannot be printed."""
    value = str(data.get(keyword, None) or "")
    return " ".join("".join(c if c.isprintable() else " " for c in value).split())[:MAX_TEXT]


def _sound_text(data: Dataset, keyword: str) -> str:
    """Return the text of an element if it is valid: a damaged header's may run into the patient's name."""
    value = str(data.get(keyword, None) or "").rstrip("\0 ")
    return _text(data, keyword) if value.isprintable() and len(value) <= MAX_TEXT else ""


def _identifiers(data: Dataset) -> tuple[str, ...]:
    """Return the texts that would identify a patient in a path."""
    names = [_text(data, "PatientID"), *re.split(r"[\^=\s,]+", _text(data, "PatientName"))]
    born, accession = _text(data, "PatientBirthDate"), _text(data, "AccessionNumber")
    dates = [born, f"{born[:4]}-{born[4:6]}-{born[6:]}"] if re.fullmatch(r"\d{8}", born) else []
    long_enough = [name for name in names if len(name) >= SHORTEST_NAME]
    return tuple(
        text.casefold() for text in (*long_enough, *dates, *([accession] if len(accession) >= SHORTEST_NUMBER else []))
    )


def _age_band(age: str) -> str:
    """Return the decade of an age such as "045Y": "40-49"."""
    found = re.fullmatch(r"(\d{3})([DWMY])", age)
    if found is None:
        return ""
    years = int(found[1]) if found[2] == "Y" else 0
    years = int(found[1]) // 12 if found[2] == "M" else years
    decade = years // 10 * 10
    return f"{OLDEST_BAND}+" if decade >= OLDEST_BAND else f"{decade}-{decade + 9}"
