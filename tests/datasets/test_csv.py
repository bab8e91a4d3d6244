"""CSV files as datasets: what is read, and what is refused."""

import csv
import errno
import io
import tempfile
import unicodedata
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hoarfrost.features.datasets import read_dataset
from hoarfrost.features.datasets.manifest import read_manifest
from hoarfrost.features.errors import DatasetError, ImageDecodeError
from tests.datasets.test_datasets import HEADER, NFC, NFD, content, names
from tests.support.builders import write_csv, write_image_folder, write_images


def write_manifest(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "images.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


# -- CSV ----------------------------------------------------------------------------------------------------------------


PLAIN = "path,label\n1.png,a\nsub dir/2.png,b\n"


@pytest.mark.parametrize(
    "text",
    [
        PLAIN.encode(),
        b"\xef\xbb\xbf" + PLAIN.encode(),
        PLAIN.replace("\n", "\r\n").encode(),
        b"\xef\xbb\xbf" + PLAIN.replace("\n", "\r\n").replace(",", ";").encode(),
        PLAIN.replace("\n", "\r").encode(),
        PLAIN.replace(",", ";").encode(),
        PLAIN.replace(",", "\t").encode(),
        PLAIN.rstrip("\n").encode(),
        PLAIN.replace("path,label", "Path , LABEL").encode(),
        PLAIN.replace("1.png,a", ' "1.png" , a '.replace(' "', '"').replace('" ', '"')).encode(),
        PLAIN.replace("\n", "\n\n").replace("b\n", "b\n,\n  ,  \n").encode(),
        b"path,label,,\n1.png,a,,\nsub dir/2.png,b,,\n",
    ],
    ids=[
        "plain",
        "BOM",
        "CRLF",
        "Excel with decimal comma",
        "CR",
        "semicolons",
        "tabs",
        "no last newline",
        "odd header",
        "quotes",
        "blank lines",
        "trailing delimiters",
    ],
)
def test_csv_dialects_are_read_the_same(tmp_path: Path, text: bytes) -> None:
    dataset = read_dataset(write_manifest(tmp_path, text))
    assert dataset.paths == ["1.png", "sub dir/2.png"]
    assert dataset.labels == ["a", "b"]
    assert (dataset.splits, dataset.patients, dataset.attributes) == (None, None, {})


def test_tsv_is_read(tmp_path: Path) -> None:
    dataset = read_dataset(write_csv(tmp_path / "images.tsv", [HEADER, ["1.png", "a"], ["2.png", "b"]], delimiter="\t"))
    assert dataset.labels == ["a", "b"]


def test_delimiter_is_told_by_the_known_columns(tmp_path: Path) -> None:
    text = 'path;label;"ratio (a,b,c,d)"\n1.png;a;1,5\n2.png;b;2,5\n'
    dataset = read_dataset(write_manifest(tmp_path, text))
    assert dataset.attributes == {"ratio (a,b,c,d)": ["1.5", "2.5"]}


def test_quoted_fields_hold_delimiters_quotes_and_line_breaks(tmp_path: Path) -> None:
    text = 'path,label,note\n"a,1.png","say ""x""","two\nlines"\n2.png,b,-\n'
    dataset = read_dataset(write_manifest(tmp_path, text))
    assert dataset.paths == ["a,1.png", "2.png"]
    assert dataset.labels == ['say "x"', "b"]
    assert dataset.attributes["note"] == ["two\nlines", "-"]


def test_labels_csv_inside_a_folder_describes_it(tmp_path: Path) -> None:
    root = write_image_folder(tmp_path / "demo", {"x": 2})
    write_csv(root / "labels.csv", [HEADER, ["x/1.png", "malignant"], ["x/0.png", "benign"]])
    dataset = read_dataset(root)
    assert dataset.name == "demo"
    assert dataset.paths == ["x/1.png", "x/0.png"]
    assert content(dataset, 0) == (root / "x/1.png").read_bytes()


def test_attributes_and_patients_are_read(tmp_path: Path) -> None:
    rows = [
        ["label", "Scanner", "path", "patient", "sex"],
        ["a", "GE", "1.png", "p1", ""],
        ["b", "", "2.png", "p2", "f"],
    ]
    dataset = read_dataset(write_csv(tmp_path / "x.csv", rows))
    assert dataset.patients == ["p1", "p2"]
    assert dataset.attributes == {"scanner": ["GE", ""], "sex": ["", "f"]}


@pytest.mark.parametrize(
    ("spelling", "split"),
    [
        ("train", "train"),
        ("Training", "train"),
        (" VAL ", "val"),
        ("validation", "val"),
        ("valid", "val"),
        ("TEST", "test"),
    ],
)
def test_split_spellings_are_understood(tmp_path: Path, spelling: str, split: str) -> None:
    rows = [[*HEADER, "split"], ["1.png", "a", spelling], ["2.png", "b", "train"]]
    assert read_dataset(write_csv(tmp_path / "x.csv", rows)).splits == [split, "train"]


@pytest.mark.parametrize(
    "name", ["höhle/ä.png", "<script>alert(1).png", "with spaces/and more.png", "a;b,c.png", "ラベル.png"]
)
def test_odd_names_in_a_csv_are_found(tmp_path: Path, name: str) -> None:
    write_images(tmp_path, [name, "2.png"])
    dataset = read_dataset(write_csv(tmp_path / "x.csv", [HEADER, [name, "a"], ["2.png", "b"]]))
    assert content(dataset, 0) == (tmp_path / name).read_bytes()


@pytest.mark.parametrize(("on_disk", "in_csv"), [(NFC, NFD), (NFD, NFC)], ids=["NFD in the CSV", "NFC in the CSV"])
def test_umlauts_are_found_however_they_are_composed(tmp_path: Path, on_disk: str, in_csv: str) -> None:
    write_images(tmp_path, [f"{on_disk}/{on_disk}.png", "2.png"])
    dataset = read_dataset(write_csv(tmp_path / "x.csv", [HEADER, [f"{in_csv}/{in_csv}.png", "a"], ["2.png", "b"]]))
    assert dataset.paths[0] == f"{on_disk}/{on_disk}.png"
    assert content(dataset, 0) == (tmp_path / on_disk / f"{on_disk}.png").read_bytes()


def test_labels_and_patients_that_look_the_same_are_the_same(tmp_path: Path) -> None:
    rows = [[*HEADER, "patient"], ["1.png", NFC, NFD], ["2.png", NFD, NFC], ["3.png", "b", "p"]]
    dataset = read_dataset(write_csv(tmp_path / "x.csv", rows))
    assert dataset.labels == [NFC, NFC, "b"]
    assert dataset.patients == [NFC, NFC, "p"]


def test_windows_backslashes_are_understood(tmp_path: Path) -> None:
    write_images(tmp_path, ["a/b/1.png", "2.png"])
    dataset = read_dataset(write_csv(tmp_path / "x.csv", [HEADER, ["a\\b\\1.png", "a"], [".\\2.png", "b"]]))
    assert dataset.paths == ["a/b/1.png", "2.png"]


def test_backslash_that_is_part_of_a_name_is_kept(tmp_path: Path) -> None:
    write_images(tmp_path, ["a\\b.png", "2.png"])
    dataset = read_dataset(write_csv(tmp_path / "x.csv", [HEADER, ["a\\b.png", "a"], ["2.png", "b"]]))
    assert dataset.paths == ["a\\b.png", "2.png"]


def test_absolute_paths_inside_the_folder_are_made_relative(tmp_path: Path) -> None:
    write_images(tmp_path / "real", ["a/1.png", "2.png"])
    (tmp_path / "link").symlink_to("real", target_is_directory=True)
    rows = [HEADER, [str(tmp_path / "link" / "a" / "1.png"), "a"], [str(tmp_path / "real" / "2.png"), "b"]]
    write_csv(tmp_path / "real" / "x.csv", rows)
    assert read_dataset(tmp_path / "link" / "x.csv").paths == ["a/1.png", "2.png"]


def test_missing_image_of_a_csv_is_an_unreadable_image(tmp_path: Path) -> None:
    dataset = read_dataset(write_manifest(tmp_path, PLAIN))
    with pytest.raises(ImageDecodeError, match="No such file or directory"):
        content(dataset, 0)


# -- CSV: refused -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"the column 'path' is missing; the header has no columns"),
        (
            "file,label\n1.png,a\n",
            r"the column 'path' is missing; the header has file, label\. Required: path and label",
        ),
        ("path,class\n1.png,a\n", r"the column 'label' is missing"),
        ("path,label\n", r"no images listed"),
        ("path,label\n1.png,a\n2.png,a\n", r"all 2 images have one class \('a'\)"),
        ("path,label\n1.png,a\n2.png,b\n./1.png,b\n", r"line 4: the path 1\.png is already in line 2"),
        ('path,label,n\n1.png,a,"x\ny"\n\n1.png,b,-\n', r"line 5: the path 1\.png is already in line 3"),
        (
            "path,label\n../1.png,a\n2.png,b\n",
            r"line 2: \.\./1\.png is outside the CSV's folder .* move it into a folder above the images",
        ),
        ("path,label\na/../../1.png,a\n2.png,b\n", r"line 2: .* is outside the CSV's folder"),
        ("path,label\n..\\x\\1.png,a\n2.png,b\n", r"line 2: \.\./x/1\.png is outside the CSV's folder"),
        ("path,label\n1.png,a\n/etc/2.png,b\n", r"line 3: /etc/2\.png is outside the CSV's folder"),
        ("path,label\nC:\\data\\1.png,a\n2.png,b\n", r"line 2: C:/data/1\.png is outside the CSV's folder"),
        ("path,label\n\\\\server\\share\\1.png,a\n2.png,b\n", r"line 2: //server/share/1\.png is outside"),
        ("path,label\n1.png,a\n  ,b\n", r"line 3: the path is empty"),
        ("path,label\n1.png,a\n2.png, \n", r"line 3: the label is empty\. Fill it in, or remove the line"),
        ("path,label,patient\n1.png,a,p\n2.png,b,\n", r"line 3: the patient is empty"),
        ("path,label,split\n1.png,a,train\n2.png,b,\n", r"line 3: '' is not a split. Use train, val or test"),
        ("path,label,split\n1.png,a,train\n2.png,b,fold 1\n", r"line 3: 'fold 1' is not a split"),
        ("path,label\n1.png,a\n2.png,b,c\n", r"line 3: 3 fields, but the header has 2\. Put a text that contains ','"),
        (
            "path,label\n1.png,a\n\n2.png\n",
            r"line 4: 1 field, but the header has 2\. Write ',' after an empty field, too",
        ),
        ("path,label,label\n1.png,a,b\n", r"two columns have the name 'label'\. Rename one"),
        ("path,label, Label\n1.png,a,b\n", r"two columns have the name 'label'"),
        ("path,label,\n1.png,a,x\n2.png,b,\n", r"column 3 has no name in the header"),
        ('path,label\n1.png,"a"b\n', r"not a well-formed CSV: .*expected after"),
        ('path,label\n1.png,"a\n', r"not a well-formed CSV: unexpected end of data"),
        ("path,label\n1.png,a\0\n2.png,b\n", r"line 2: the label contains a NUL character"),
        ("x" * 200_000, r"not a well-formed CSV: field larger than field limit"),
        (b"path,label\nh\xf6hle.png,a\n", r"not UTF-8 text .*Save it as 'CSV UTF-8'"),
        ("path,label\n1.png,a\n".encode("utf-16"), r"not UTF-8 text .*Save it as 'CSV UTF-8'"),
        (b"\x89PNG\r\n\x1a\n\0\0", r"not UTF-8 text"),
    ],
)
def test_contradictory_csv_is_refused(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(DatasetError, match=message) as refused:
        read_dataset(write_manifest(tmp_path, text))
    assert "images.csv" in str(refused.value)


def test_csv_that_may_not_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object, **__: object) -> object:
        raise PermissionError(errno.EACCES, "Permission denied")

    path = write_manifest(tmp_path, PLAIN)
    monkeypatch.setattr(Path, "open", forbidden)
    with pytest.raises(DatasetError, match=r"images\.csv: cannot be read: Permission denied"):
        read_dataset(path)


tables = st.lists(st.tuples(names, names, names), min_size=2, max_size=8, unique_by=lambda row: row[0]).filter(
    lambda rows: len({unicodedata.normalize("NFC", label) for _, label, _ in rows}) > 1
)


@settings(max_examples=60)
@given(rows=tables, delimiter=st.sampled_from(",;\t"), newline=st.sampled_from(["\n", "\r\n"]), bom=st.booleans())
@example(rows=[('"', "a'b", "p"), ("b\nc", '"b"', "q;,\tr")], delimiter=";", newline="\r\n", bom=True)
def test_any_table_that_csv_writes_is_read_back(
    rows: list[tuple[str, str, str]], delimiter: str, newline: str, bom: bool
) -> None:
    buffer = io.StringIO()
    writer = csv.writer(buffer, delimiter=delimiter, lineterminator=newline)
    writer.writerows([["path", "label", "patient"], *rows])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.csv"
        path.write_bytes(buffer.getvalue().encode("utf-8-sig" if bom else "utf-8"))
        dataset = read_manifest(str(path), "x", str(path))  # labels and patients are checked after this
    assert dataset.paths == [path for path, _, _ in rows]
    assert dataset.labels == [unicodedata.normalize("NFC", label) for _, label, _ in rows]
    assert dataset.patients == [unicodedata.normalize("NFC", patient) for _, _, patient in rows]


@settings(max_examples=60)
@given(st.binary(max_size=200) | st.text(st.sampled_from('path,label;\t"\n\r a1'), max_size=80).map(str.encode))
def test_no_csv_leads_to_anything_but_a_clear_error(text: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.csv"
        path.write_bytes(b"path,label\n" + text)
        try:
            assert len(read_dataset(path)) >= 2
        except DatasetError as error:
            assert str(path) in str(error)  # noqa: PT017 - most examples are refused, some are not
