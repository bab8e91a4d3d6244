"""The patient, site and scanner in a DICOM file's header."""

import io
import re
from dataclasses import dataclass
from typing import BinaryIO

from pydicom.dataset import Dataset

from hoarfrost.features.decoding.dicom import elements
from hoarfrost.features.facts import MAX_TEXT, sound_text

OLDEST_BAND = 90  # years and more: a greater age could identify the patient
SHORTEST_NAME = 3  # letters of a name or id that is searched for in paths: shorter ones occur everywhere
SHORTEST_NUMBER = 6  # digits of an accession number that is searched for

_KEYWORDS = (
    "PatientID", "PatientName", "PatientBirthDate", "AccessionNumber", "PatientSex", "PatientAge", "StudyInstanceUID",
    "SOPClassUID", "InstitutionName", "Manufacturer", "ManufacturerModelName", "BurnedInAnnotation", "NumberOfFrames",
    "Rows", "Columns", "SamplesPerPixel", "BitsAllocated", "PhotometricInterpretation", "SpecificCharacterSet",
)  # fmt: skip


@dataclass(frozen=True)
class DicomHeader:
    """The part of a file's header that datasets use; texts are empty if the file lacks them.

    `patient_id`, `study` and `identifiers` (ids, names, dates, in lower case) never leave this process unhashed, except
    for the ids if the user keeps them. If frames are missing, `n_frames` is one more than the file has room for: the
    last one is then listed as unreadable.
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
    def patient(self) -> str:
        """The patient's id, or if that is blank, the study's; empty if both are blank."""
        return self.patient_id or self.study

    def is_identified_by(self, path: str, folder: str = "") -> bool:
        """Return whether a path contains the patient's id or name, a birth date or an accession number.

        `folder` is the dataset's folder. Only whole words of it count, because all patients share it.
        """
        words = set(re.split(r"[\W_]+", folder.casefold()))
        return any(text in path.casefold() or text in words for text in self.identifiers)


def read_header(file: BinaryIO) -> DicomHeader | None:
    """Read a file's header, no pixels. Return None if it cannot be read as DICOM; decoding it reports the reason."""
    try:
        is_whole_needed = elements.is_deflated(file.read(elements.META_BYTES))
        file.seek(0)
        return _header(io.BytesIO(elements.inflated(file.read())) if is_whole_needed else file)
    except Exception:  # pydicom raises nearly anything on damaged files
        return None


def _header(file: BinaryIO) -> DicomHeader | None:
    data = elements.read_elements(file, _KEYWORDS)
    if "SOPClassUID" not in data and "Rows" not in data:
        return None  # any file seems to contain some elements
    manufacturer, model = (sound_text(data.get(one, None)) for one in ("Manufacturer", "ManufacturerModelName"))
    return DicomHeader(
        n_frames=min(elements.n_frames_stated(data), elements.n_frames_present(data, file) + 1),
        patient_id=_text(data, "PatientID"),
        identifiers=_identifiers(data),
        study=_text(data, "StudyInstanceUID"),
        site=sound_text(data.get("InstitutionName", None)),
        scanner=model if model.startswith(manufacturer) else f"{manufacturer} {model}".strip(),
        sex=sound_text(data.get("PatientSex", None)).upper(),
        age=_age_band(_text(data, "PatientAge")),
        burned_in=sound_text(data.get("BurnedInAnnotation", None)).lower(),
    )


def _text(data: Dataset, keyword: str) -> str:
    """Return an element's text on one line, without unprintable characters."""
    value = str(data.get(keyword, None) or "")
    return " ".join("".join(c if c.isprintable() else " " for c in value).split())[:MAX_TEXT]


def _identifiers(data: Dataset) -> tuple[str, ...]:
    """Return the texts that would identify a patient in a path."""
    names = [_text(data, "PatientID"), *re.split(r"[\^=\s,]+", _text(data, "PatientName"))]
    born, accession = _text(data, "PatientBirthDate"), _text(data, "AccessionNumber")
    dates = [born, f"{born[:4]}-{born[4:6]}-{born[6:]}"] if re.fullmatch(r"\d{8}", born) else []
    numbers = [accession] if len(accession) >= SHORTEST_NUMBER else []
    return tuple(text.casefold() for text in (*(n for n in names if len(n) >= SHORTEST_NAME), *dates, *numbers))


def _age_band(age: str) -> str:
    """Return the decade of an age such as "045Y": "40-49"."""
    found = re.fullmatch(r"(\d{3})([DWMY])", age)
    if found is None:
        return ""
    years = {"Y": int(found[1]), "M": int(found[1]) // 12}.get(found[2], 0)
    decade = years // 10 * 10
    return f"{OLDEST_BAND}+" if decade >= OLDEST_BAND else f"{decade}-{decade + 9}"
