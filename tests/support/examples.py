"""Miniatures of the datasets that README.md and docs/ take for granted."""

import csv
import shutil
from pathlib import Path

import numpy as np

from tests.support.builders import encode, picture, write_csv
from tests.support.dicoms import dicom, encoded, grey_values

CLASSES = ("benign", "malignant")
LESIONS = ("mel", "nv", "bkl")
FINDINGS = (
    "Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Effusion", "Emphysema", "Fibrosis", "Hernia",
    "Infiltration", "Mass", "Nodule", "Pleural_Thickening", "Pneumonia", "Pneumothorax",
)  # fmt: skip


def write_examples(place: Path) -> None:
    """Write all of them into a folder."""
    _write_folders(place)
    _write_archive(place)
    _write_skin(place)
    _write_chest(place)
    _write_medmnist(place)
    _write_checkpoint(place / "resnet18-f37072fd.pth")


def _write_image(path: Path, seed: int, kind: int) -> None:
    """Write a small picture that is the darker, the larger its `kind`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    suffix = "JPEG" if path.suffix == ".jpg" else "PNG"
    path.write_bytes(encode(picture(40, 40, seed=seed).point(lambda value: value // (1 + kind)), suffix))


def _write_folders(place: Path) -> None:
    for i in range(60):
        _write_image(place / "images" / CLASSES[i % 2] / f"{i}.png", i, i % 2)
    rows = [["path", "label"], *([f"images/benign/{i}.png", "a"] for i in (0, 2)), ["images/malignant/1.png", "b"]]
    for table in (place / "mixed.csv", place / "set" / "labels.csv"):
        write_csv(table, rows)
    shutil.copytree(place / "images", place / "set" / "images")
    names = [CLASSES[i % 2] for i in range(60)]
    cohort = [
        [f"images/{name}/{i}.png", name, f"p{i // 4 * 2 + i % 2:02}", "AB"[i // 4 % 2]] for i, name in enumerate(names)
    ]
    write_csv(place / "cohort.csv", [["path", "label", "patient", "scanner"], *cohort])


def _write_archive(place: Path) -> None:
    rows = [["path", "label"]]
    (place / "archive").mkdir()
    for i in range(40):
        (place / "archive" / f"IM{i:04d}").write_bytes(encoded(dicom(grey_values(seed=i), PatientID=f"{i // 2}")))
        rows.append([f"IM{i:04d}", "ab"[i // 2 % 2]])
    write_csv(place / "archive" / "labels.csv", rows)
    (place / "scan.dcm").write_bytes(encoded(dicom(grey_values())))


def _write_skin(place: Path) -> None:
    """Write HAM10000's layout: two folders of JPEGs and a table, two images of each lesion."""
    rows = [["lesion_id", "image_id", "dx", "dx_type", "age", "sex", "localization"]]
    for i in range(120):
        kind, name = i // 2 % 3, f"ISIC_{i:07}"
        _write_image(place / f"HAM10000_images_part_{1 + i % 2}" / f"{name}.jpg", i, kind)
        rows.append([f"HAM_{i // 2:07}", name, LESIONS[kind], "histo", "50.0", "male", "back"])
    write_csv(place / "HAM10000_metadata.csv", rows)


def _write_chest(place: Path) -> None:
    """Write ChestX-ray14's layout: findings in one column, separated by bars, and the official list of test images."""
    rng, held_out = np.random.default_rng(0), []
    columns = [
        "Image Index",
        "Finding Labels",
        "Follow-up #",
        "Patient ID",
        "Patient Age",
        "Patient Gender",
        "View Position",
    ]
    with (place / "Data_Entry_2017.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(columns)
        for i in range(160):
            name = f"{i:08}_000.png"
            found = "|".join(np.array(FINDINGS)[rng.random(14) < 0.5]) or "No Finding"
            _write_image(place / "images_001" / "images" / name, i, i % 2)
            rows.writerow([name, found, 0, i, 50, "M", "PA"])
            held_out += [name] * (i % 4 == 1)
    (place / "test_list.txt").write_text("\n".join(held_out))


def _write_medmnist(place: Path) -> None:
    rng = np.random.default_rng(0)
    for name, width in (("pneumoniamnist", 1), ("chestmnist", 14)):
        arrays = {}
        for split, n in (("train", 60), ("val", 30), ("test", 30)):
            arrays[f"{split}_images"] = rng.integers(0, 256, (n, 28, 28), np.uint8)
            arrays[f"{split}_labels"] = rng.integers(0, 2, (n, width), np.uint8)
        np.savez(place / f"{name}.npz", **arrays)


def _write_checkpoint(path: Path) -> None:
    import torch
    from torchvision.models import resnet18

    torch.manual_seed(0)
    torch.save(resnet18(weights=None).state_dict(), path)
