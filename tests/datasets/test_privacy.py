"""No patient's name, id, birth date or accession number gets into any product, unless ids are asked for."""

import hashlib
import io
import random
import re
from pathlib import Path

import h5py
import numpy as np
import pytest

from hoarfrost.features.datasets import read_dataset
from hoarfrost.features.datasets.pseudonyms import Pseudonyms
from hoarfrost.features.decoding.dicom import read_header
from hoarfrost.features.decoding.images import Decoding, opened
from hoarfrost.features.errors import ImageDecodeError
from tests.support.commands import Hoarfrost
from tests.support.dicoms import dicom, encoded, grey_values

MARKED = {
    "PatientName": "MARKNAME^SECRETJANE", "PatientBirthDate": "19370219", "AccessionNumber": "MARKACCESSION77",
    "OtherPatientIDs": "MARKOTHERID", "PatientAddress": "MARKSTREET 5", "PatientTelephoneNumbers": "MARKPHONE",
    "ReferringPhysicianName": "MARKDOCTOR^X", "StudyID": "MARKSTUDY", "StudyDate": "20190817", "StudyTime": "131517",
    "PatientComments": "MARKCOMMENT", "InstitutionAddress": "MARKPLACE", "StudyInstanceUID": "1.2.77777.4242",
}  # fmt: skip
SECRETS = [
    *(value for keyword, value in MARKED.items() if keyword != "PatientName"), "MARKNAME", "SECRETJANE", "MARKID",
]  # fmt: skip


def write_archive(folder: Path, n: int = 40) -> None:
    """Write two classes of four patients' images each; some files are damaged in ways that messages might quote."""
    for i in range(n):
        path = folder / "ab"[i % 2] / f"study{i // 4}" / f"IM{i:03}"
        path.parent.mkdir(parents=True, exist_ok=True)
        values = (grey_values(seed=i) // (1 + i % 2)).astype(np.uint16)
        known = {
            "Manufacturer": "Acme",
            "PatientSex": "FM"[i % 3 % 2],
            "PatientAge": "055Y",
            "InstitutionName": "St. Elsewhere",
        }
        path.write_bytes(encoded(dicom(values, PatientID=f"MARKID{i % 8}", **MARKED, **known)))
    whole = path.read_bytes()
    for i, cut in enumerate((300, 700, len(whole) - 99)):
        (path.parent / f"cut{i}.dcm").write_bytes(whole[:cut])
    (path.parent / "odd.dcm").write_bytes(whole.replace(b"19370219", b"1937-2-9"))
    (path.parent / "bits.dcm").write_bytes(whole.replace(b"MONOCHROME2", b"MARKCHROME2"))


def texts_of(folder: Path) -> dict[Path, bytes]:
    """Return the content of all files; of HDF5 files each dataset too, as text columns are compressed."""
    found = {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    for path, content in found.items():
        if content[:4] == b"\x89HDF":
            with h5py.File(path) as file:
                members: list[h5py.Dataset] = []
                file.visititems(lambda _, item, members=members: members.append(item) and None)
                columns = [bytes(item[()]) for item in members if isinstance(item, h5py.Dataset)]
            found[path] += b"".join(columns)
    return found


@pytest.mark.usefixtures("free_backbone")
@pytest.mark.parametrize("keep_ids", [False, True])
def test_no_product_holds_what_tells_a_patient(hoarfrost: Hoarfrost, tmp_path: Path, keep_ids: bool) -> None:
    archive, products = tmp_path / "archive", tmp_path / "products"
    products.mkdir()
    write_archive(archive)
    cache, run = products / "c.h5", products / "run"
    said = []
    extract = ["extract", archive, "--cache", cache, "--weights", "random:0", "--max-bad", 0.2, "--json"]
    for arguments in (
        ["inspect", archive, "--json"],
        ["inspect", archive, "--contact-sheet", products / "sheet.png"],
        [*extract, *["--keep-ids"][:keep_ids]],
        ["cache", "info", cache, "--json"],
        ["train", "--cache", cache, "--run", run, "--positive", "a", "--head", "linear", "--epochs", 2, "--json"],
        ["report", "--run", run, "--json"],
        ["heads", run, "--json"],
        ["predict", archive, "--run", run, "--output", products / "found.csv", "--json"],
        ["predict", archive / "a", "--head", run / "heads" / "linear.safetensors", "--output", products / "flat.csv"],
    ):
        output = hoarfrost(*arguments)
        assert output.status == 0, output.stderr
        said.append(output.stdout + output.stderr)
    for number, text in enumerate(said):
        (products / f"said {number}").write_text(text)
    found = texts_of(products)
    assert sum(path.suffix == ".h5" for path in found) == 1
    assert {"report.html", "found.csv", "found_patients.csv", "linear.safetensors"} <= {path.name for path in found}
    kept = {
        (secret, path.name)
        for path, content in found.items() for secret in SECRETS if secret.encode() in content
    }  # fmt: skip
    if not keep_ids:
        assert kept == set()
    else:
        assert {secret for secret, _ in kept} <= {"MARKID", "1.2.77777.4242"}
        assert ("MARKID", "predictions.csv") in kept
    assert any(b"St. Elsewhere" in content for content in found.values())  # what may be kept is


def test_damaged_headers_that_run_into_one_another_tell_nothing(tmp_path: Path) -> None:
    kept = {"Manufacturer": "Acme", "PatientSex": "F", "InstitutionName": "St. Elsewhere", "BurnedInAnnotation": "NO"}
    data = dicom(grey_values(20, 16), bits=12, PatientID="MARKID1", **MARKED, **kept)
    whole, chance = encoded(data), random.Random(0)
    for _ in range(1500):
        damaged = bytearray(whole)
        for _ in range(chance.randint(1, 3)):
            damaged[chance.randrange(132, len(damaged) - 600)] = chance.randrange(256)
        (tmp_path / "x.dcm").write_bytes(damaged)
        header = read_header(io.BytesIO((tmp_path / "x.dcm").read_bytes()))
        said = [] if header is None else [header.site, header.scanner, header.sex, header.age, header.burned_in]
        try:
            with opened(bytes(damaged), Decoding(1 << 20)) as image:
                said.append(repr(image.kind))
                image.pixels()
        except ImageDecodeError as error:
            said.append(str(error))
        assert not [text for text in said if "MARK" in text or "1937" in text or "SECRET" in text]


def test_hashes_cannot_be_told_without_the_salt(tmp_path: Path) -> None:
    write_archive(tmp_path, 8)
    patients = read_dataset(tmp_path, name="x", pseudonyms=Pseudonyms(tmp_path.parent / "c.salt")).patients
    assert patients is not None
    unsalted = {hashlib.sha256(f"MARKID{i}".encode()).hexdigest()[:16] for i in range(8)}
    assert unsalted.isdisjoint(patients)
    assert all(re.fullmatch(r"[0-9a-f]{16}|.*\.dcm", patient) for patient in patients)
