"""Data of one's own is read exactly as written: inputs, and the documents or the message expected.

Each in an untidy folder too, from another working directory, without a table of MIME types and in
another locale.
"""

import gzip
import io
import json
import locale
import mimetypes
import os
import re
import tarfile
import unicodedata
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from mir_task import MIRError
from mir_task.documents.draw import documents, prepare
from mir_task.documents.media import open_media
from mir_task.settings import Settings

PNG = io.BytesIO()
Image.new("RGB", (8, 8), "red").save(PNG, "PNG")
PICTURE = PNG.getvalue()

Files = dict[str, bytes | str]


class Case(NamedTuple):
    files: Files
    keys: dict[str, Any]
    wanted: dict[str, str] | str
    """Texts by id; or a pattern of the message that refuses the whole."""
    faults: dict[str, str] = MappingProxyType({})  # type: ignore[assignment]
    """Patterns of why single documents cannot be measured."""


def numbered(count: int, ending: str = "jpg") -> Files:
    return {f"pictures/{n}.{ending}": PICTURE for n in range(1, count + 1)}


def texts(count: int) -> Files:
    return {f"texts/{n}.txt": f"Text {n}." for n in range(1, count + 1)}


def rows(kind: str, content: str | bytes, **keys: Any) -> Case:
    """A file of rows with a picture `a.jpg`, to be completed by what is wanted."""
    return Case({f"rows.{kind}": content, "a.jpg": PICTURE}, {"media": f"rows.{kind}", **keys}, "")


def case(kind: str, content: str | bytes, wanted: dict[str, str] | str, **keys: Any) -> Case:
    faults = keys.pop("faults", {})
    return rows(kind, content, **keys)._replace(wanted=wanted, faults=faults)


def lines(*values: Any, name: str = "text") -> str:
    return "\n".join(
        json.dumps({"id": f"d{n}", "image": "a.jpg", name: v}) for n, v in enumerate(values)
    )


def parquet(**columns: Any) -> bytes:
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), sink)
    return sink.getvalue()


def shard(**files: bytes) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return sink.getvalue()


PAIR = {"media": "pictures", "text": "texts", "mir_pairing": "by_id"}
BY_ID = {"mir_media_id": "id"}
TWELVE = {str(n): f"Text {n}." for n in range(1, 13)}
IN = "id,image,text\n"

CASES: dict[str, Case] = {
    # 1. What else lies in a folder changes nothing.
    "folders of pairs": Case(numbered(12) | texts(12), PAIR, TWELVE),
    "a stray csv": Case(numbered(12) | texts(12) | {"pictures/labels.csv": "a,b\n1,2"}, PAIR, TWELVE),
    "a stray metadata.jsonl": Case(
        numbered(12) | texts(12) | {"pictures/metadata.jsonl": '{"file_name": "1.jpg", "text": "x"}'},
        PAIR,
        TWELVE,
    ),
    "a stray json beside the texts": Case(
        numbered(12) | texts(12) | {"texts/x.json": "{}"}, PAIR, TWELVE
    ),
    "a stray parquet": Case(numbered(12) | texts(12) | {"texts/x.parquet": b"PAR1"}, PAIR, TWELVE),
    "a name with a split in it": Case(
        {"pictures/photo of a train.jpg": PICTURE, "pictures/test.jpg": PICTURE}
        | {"texts/photo of a train.txt": "Train.", "texts/test.txt": "Test."},
        PAIR,
        {"photo of a train": "Train.", "test": "Test."},
    ),
    "folders in folders": Case(
        {
            "pictures/x/1.jpg": PICTURE,
            "pictures/y/1.jpg": PICTURE,
            "texts/x/1.txt": "X",
            "texts/y/1.txt": "Y",
        },
        PAIR,
        {"x/1": "X", "y/1": "Y"},
    ),
    "lines of a text are one document": Case(
        numbered(1) | {"texts/1.txt": "One\ntwo\n\nthree"}, PAIR, {"1": "One\ntwo\n\nthree"}
    ),
    # 2. Cells of other types.
    "a list of captions": case("jsonl", lines([" a ", "b"]), {"d0": "a b"}, **BY_ID),
    "languages": case(
        "jsonl",
        lines({"en": "A dog.", "fr": "Un chien."}),
        {},
        faults={"d0": r"rows.jsonl, line 1, 'text' holds dict .* NAME.en selects a field"},
        **BY_ID,
    ),
    "a language": case(
        "jsonl",
        lines({"en": "A dog.", "fr": "Un chien."}),
        {"d0": "A dog."},
        mir_text_column="text.en",
        **BY_ID,
    ),
    "conversations": case(
        "jsonl",
        lines(
            [{"from": "human", "value": "?"}, {"from": "gpt", "value": "A dog."}], name="conversations"
        ),
        {"d0": "A dog."},
        mir_text_column="conversations.1.value",
        **BY_ID,
    ),
    "whole conversations": case(
        "jsonl",
        lines([{"from": "human", "value": "?"}], name="conversations"),
        {},
        faults={"d0": r"holds list .* no text; NAME.0.from selects a field"},
        mir_text_column="conversations",
        **BY_ID,
    ),
    "a turn that is not there": case(
        "jsonl",
        lines([{"value": "?"}], name="conversations"),
        {},
        faults={"d0": "a list of 1, which has no 1"},
        mir_text_column="conversations.1.value",
        **BY_ID,
    ),
    "a number": case("jsonl", lines(7), {}, faults={"d0": "int 7, no text; .*as: str"}, **BY_ID),
    "a number as text": case(
        "jsonl",
        lines(7, 2.5),
        {"d0": "7", "d1": "2.5"},
        mir_text_column={"column": "text", "as": "str"},
        **BY_ID,
    ),
    "numbers as they are written": case(
        "jsonl",
        '{"id": "x", "image": "a.jpg", "text": 2.50}\n{"id": "y", "image": "a.jpg", "text": 1e3}',
        {"x": "2.50", "y": "1e3"},
        mir_text_column={"column": "text", "as": "str"},
        **BY_ID,
    ),
    "a part of bytes": case(
        "parquet",
        parquet(id=["x"], image=["a.jpg"], text=[b"abc"]),
        {},
        faults={"x": "bytes b'abc', which has no '0'"},
        mir_text_column="text.0",
        **BY_ID,
    ),
    "a truth value": case("jsonl", lines(True), {}, faults={"d0": "bool True, no text"}, **BY_ID),
    "null": case(
        "jsonl", lines(None, "b"), {"d1": "b"}, faults={"d0": r"nothing \(null\), no text"}, **BY_ID
    ),
    "null in a list": case("jsonl", lines(["a", None]), {}, faults={"d0": "list .*, no text"}, **BY_ID),
    "a column that some rows lack": case(
        "jsonl",
        '{"id": "x", "image": "a.jpg"}\n{"id": "y", "image": "a.jpg", "text": "b"}',
        {"y": "b"},
        faults={"x": "line 1, 'text' holds nothing"},
        **BY_ID,
    ),
    "bytes": case(
        "parquet",
        parquet(id=["x"], image=["a.jpg"], text=[b"abc"]),
        {},
        faults={"x": "row 1 of rows.parquet, 'text' holds bytes b'abc', no text"},
        **BY_ID,
    ),
    "dates": case(
        "parquet",
        parquet(id=["x"], image=["a.jpg"], text=pyarrow.array([0], pyarrow.timestamp("s"))),
        {},
        faults={"x": "datetime .*, no text"},
        **BY_ID,
    ),
    "numbers in parquet": case(
        "parquet",
        parquet(id=["x"], image=["a.jpg"], text=[3]),
        {"x": "3"},
        mir_text_column={"column": "text", "as": "str"},
        **BY_ID,
    ),
    "json of a shard": case(
        "tar",
        shard(**{"s.jpg": PICTURE, "s.json": b'{"caption": "A dog."}'}),
        {},
        faults={"s": r"the sample 's', 'json' holds dict .* NAME.caption selects a field"},
        mir_media_column="jpg",
        mir_text_column="json",
    ),
    "a field of json of a shard": case(
        "tar",
        shard(**{"s.jpg": PICTURE, "s.json": b'{"caption": "A dog."}'}),
        {"s": "A dog."},
        mir_media_column="jpg",
        mir_text_column="json.caption",
    ),
    # 3. Ids as written.
    "numbers with zeros": case(
        "csv", f"{IN}007,a.jpg,a\n07,a.jpg,b\n7,a.jpg,c", {"007": "a", "07": "b", "7": "c"}, **BY_ID
    ),
    "large numbers": case(
        "jsonl",
        "\n".join(f'{{"id": {2**60 + n}, "image": "a.jpg", "text": "{n}"}}' for n in range(2)),
        {str(2**60): "0", str(2**60 + 1): "1"},
        **BY_ID,
    ),
    "large numbers in parquet": case(
        "parquet",
        parquet(id=[2**60, 2**60 + 1], image=["a.jpg"] * 2, text=["0", "1"]),
        {str(2**60): "0", str(2**60 + 1): "1"},
        **BY_ID,
    ),
    "dates as ids": case("csv", f"{IN}2026-01-02,a.jpg,a", {"2026-01-02": "a"}, **BY_ID),
    "None as an id": case("csv", f"{IN}None,a.jpg,a", {"None": "a"}, **BY_ID),
    "an id of null": case(
        "jsonl",
        '{"id": "x", "image": "a.jpg", "text": "a"}\n{"id": null, "image": "a.jpg", "text": "b"}',
        r"mir_media_id: .*rows.jsonl, line 2, 'id' holds nothing \(null\), no id",
        **BY_ID,
    ),
    "an empty id": case("csv", f"{IN},a.jpg,a", "line 2, 'id' holds str '', no id", **BY_ID),
    "a fraction as an id": case(
        "jsonl",
        '{"id": 7.5, "image": "a.jpg", "text": "a"}',
        "line 1, 'id' holds float 7.5, no id",
        **BY_ID,
    ),
    "one id twice": case(
        "csv",
        f"{IN}x,a.jpg,a\ny,a.jpg,b\nx,a.jpg,c",
        "line 4 has the id 'x' of line 2: an id names one",
        **BY_ID,
    ),
    "two files of one id": Case(
        {"pictures/boat.jpg": PICTURE, "pictures/boat.png": PICTURE} | texts(1),
        PAIR,
        r"pictures holds boat.jpg and boat.png, which are one id: rename one",
    ),
    "names composed and not": Case(
        {f"pictures/{unicodedata.normalize('NFD', 'été')}.jpg": PICTURE, "texts/été.txt": "Summer."},
        PAIR,
        {"été": "Summer."},
    ),
    "row numbers against names": Case(
        numbered(2) | {"texts.jsonl": '{"text": "a"}\n{"text": "b"}'},
        {"media": "pictures", "text": "texts.jsonl", "mir_pairing": "by_id"},
        r"texts.jsonl has no ids, so its rows are numbered, .* set mir_text_id",
    ),
    "names against names of a column": Case(
        numbered(2) | {"texts.csv": "key,text\n2,b\n1,a"},
        {"media": "pictures", "text": "texts.csv", "mir_pairing": "by_id", "mir_text_id": "key"},
        {"1": "a", "2": "b"},
    ),
    # 4. Texts of CSV.
    "words that stand for nothing elsewhere": case(
        "csv",
        f"{IN}1,a.jpg,None\n2,a.jpg,NA\n3,a.jpg,null\n4,a.jpg,nan",
        {"1": "None", "2": "NA", "3": "null", "4": "nan"},
        **BY_ID,
    ),
    "a comma without quotes": case(
        "csv",
        f"{IN}1,a.jpg,a dog, lying",
        "rows.csv, line 2: 4 fields, the header has 3; a field that",
        **BY_ID,
    ),
    "a field too few": case(
        "csv", f"{IN}1,a.jpg", "rows.csv, line 2: 2 fields, the header has 3", **BY_ID
    ),
    "a comma and a line in quotes": case(
        "csv", f'{IN}1,a.jpg,"a dog,\nlying"', {"1": "a dog,\nlying"}, **BY_ID
    ),
    "numbers are texts": case("csv", f"{IN}1,a.jpg,07.50", {"1": "07.50"}, **BY_ID),
    "tabs": case("tsv", "id\timage\ttext\n1\ta.jpg\ta, b", {"1": "a, b"}, **BY_ID),
    "quotes of the texts that happen to pair": case(
        "tsv",
        'id\timage\ttext\n1\ta.jpg\t"Stop\n2\ta.jpg\the said"',
        r"every line has 3 fields, and by its quotes one field spans lines, str 'Stop\\n2",
        **BY_ID,
    ),
    "lines in quotes with tabs": case(
        "tsv", 'id\timage\ttext\n1\ta.jpg\t"Stop\nhe said"', {"1": "Stop\nhe said"}, **BY_ID
    ),
    "a mark of UTF-8": case("csv", f"\ufeff{IN}1,a.jpg,a", {"1": "a"}, **BY_ID),
    "a quote that does not end": case(
        "csv", f'{IN}1,a.jpg,"a dog', "rows.csv, line 2: unexpected end", **BY_ID
    ),
    "two columns of one name": case("csv", "id,id,text\n1,2,3", "has two columns 'id'", **BY_ID),
    # 5. Paths are taken literally.
    "brackets in a file's name": Case(
        {"r[1].jsonl": lines("right"), "r1.jsonl": lines("wrong"), "a.jpg": PICTURE},
        {"media": "r[1].jsonl", **BY_ID},
        {"d0": "right"},
    ),
    "brackets in a folder's name": Case(
        {"[x]/1.jpg": PICTURE, "texts/1.txt": "Text."}, {**PAIR, "media": "[x]"}, {"1": "Text."}
    ),
    "two colons": Case(
        {"a::b.jsonl": lines("right"), "a.jpg": PICTURE},
        {"media": "a::b.jsonl", **BY_ID},
        {"d0": "right"},
    ),
    "a pattern of shards": Case(
        {f"s-{n}.tar": shard(**{f"k{n}.jpg": PICTURE, f"k{n}.txt": b"T"}) for n in (1, 2, 10)},
        {"media": "s-*.tar", "mir_media_column": "jpg", "mir_text_column": "txt"},
        {"k1": "T", "k2": "T", "k10": "T"},
    ),
    # 6. Endings, whatever the machine's table says.
    "endings of all kinds": Case(
        {f"pictures/{n}.{e}": PICTURE for n, e in enumerate(("webp", "avif", "jp2", "TIFF", "JPG"))}
        | {f"texts/{n}.txt": str(n) for n in range(5)},
        PAIR,
        {str(n): str(n) for n in range(5)},
    ),
    # 7. Hidden and foreign files.
    "hidden and foreign files": Case(
        numbered(2)
        | texts(2)
        | {"pictures/._1.jpg": b"x", "pictures/__MACOSX/3.jpg": b"x", "pictures/.cache/4.jpg": b"x"}
        | {
            "texts/.ipynb_checkpoints/3.txt": "x",
            "texts/README.txt": "x",
            "texts/requirements.txt": "x",
        },
        {"media": "pictures", "text": "texts"},
        {f"{a}+{b}": f"Text {b}." for a, b in (("1", "1"), ("2", "2"))},
    ),
    "hidden files of a shard": case(
        "tar",
        shard(**{"s.jpg": PICTURE, "s.txt": b"T", "._s.jpg": b"x", "__MACOSX/s.jpg": b"x"}),
        {"s": "T"},
        mir_media_column="jpg",
        mir_text_column="txt",
    ),
    # 9. What cannot be read.
    "an empty file": case("jsonl", "", "rows.jsonl holds no rows"),
    "an empty csv": case("csv", "", "rows.csv holds no rows"),
    "a header alone": case("csv", IN, "rows.csv holds no rows", **BY_ID),
    "latin-1": case(
        "csv", f"{IN}1,a.jpg,\xe9t\xe9".encode("latin-1"), "is not UTF-8 .byte 0xe9 in line 2.: save"
    ),
    "UTF-16": case(
        "jsonl", lines("a").encode("utf-16"), r"is not UTF-8 .byte 0xff in line 1.: save it as"
    ),
    "a text that is not UTF-8": Case(
        numbered(2) | {"texts/1.txt": b"\xe9t\xe9", "texts/2.txt": "Text 2."},
        PAIR,
        {"2": "Text 2."},
        {"1": r"the file 1.txt: .*1.txt is not UTF-8 .byte 0xe9 in line 1."},
    ),
    "a sample that is not UTF-8": case(
        "tar",
        shard(**{"a.jpg": PICTURE, "a.txt": b"\xe9", "b.jpg": PICTURE, "b.txt": b"B"}),
        {"b": "B"},
        faults={"a": "the sample 'a': .*rows.tar: a.txt is not UTF-8"},
        mir_media_column="jpg",
        mir_text_column="txt",
    ),
    "a sample that is no JSON": case(
        "tar",
        shard(**{"a.jpg": PICTURE, "a.json": b"{", "b.jpg": PICTURE, "b.json": b'{"caption": "B"}'}),
        {"b": "B"},
        faults={"a": "the sample 'a': .*rows.tar: a.json is no JSON"},
        mir_media_column="jpg",
        mir_text_column="json.caption",
    ),
    "files of two kinds in one pattern": Case(
        {"rows.csv": f"{IN}1,a.jpg,a", "rows.jsonl": lines("a")},
        {"media": "rows.*"},
        r"one name means files of several kinds, .*rows.csv and .*rows.jsonl",
    ),
    "no JSON": case("jsonl", lines("a") + "\n{", r"rows.jsonl, line 2 is no JSON: "),
    "a line that is no row": case(
        "jsonl", lines("a") + "\n[1]", "rows.jsonl, line 2 holds list, not a row"
    ),
    "a list of rows": case("json", f"[{lines('a')}]", {"d0": "a"}, **BY_ID),
    "no list of rows": case("json", '{"data": []}', "rows.json holds one dict, not a list of rows"),
    "truncated parquet": case(
        "parquet", parquet(id=["x"])[:-9], "rows.parquet cannot be read: ArrowInvalid"
    ),
    "a truncated shard": case(
        "tar", shard(**{"s.jpg": PICTURE})[:100], "rows.tar cannot be read: ReadError"
    ),
    "truncated gz": case(
        "jsonl.gz", gzip.compress(lines("a").encode())[:-9], "cannot be read: EOFError"
    ),
    "gz": case("jsonl.gz", gzip.compress(lines("a").encode()), {"d0": "a"}, **BY_ID),
    "gz of csv in capitals": case(
        "CSV.GZ", gzip.compress(f"{IN}1,a.jpg,a".encode()), {"1": "a"}, **BY_ID
    ),
    "an ending in capitals": case("CSV", f"{IN}1,a.jpg,a", {"1": "a"}, **BY_ID),
    "no media": case(
        "jsonl",
        '{"id": "x", "image": null, "text": "a"}\n{"id": "y", "image": "a.jpg", "text": "b"}',
        {"y": "b"},
        faults={"x": r"line 1, 'image' holds nothing \(null\), no file"},
        **BY_ID,
    ),
    "a path in an object": case(
        "jsonl", '{"id": "x", "image": {"path": "a.jpg"}, "text": "a"}', {"x": "a"}, **BY_ID
    ),
    "base64": case(
        "jsonl",
        json.dumps({"id": "x", "image": "iVBORw0KGgo" * 900, "text": "a"}),
        {},
        faults={"x": "a text of 9,900 characters, 'iVBORw0KGgo.{0,50}'…, no path; decode base64"},
        **BY_ID,
    ),
    "a mistyped file": Case(
        {"rows.jsonl": lines("a")},
        {"media": "row.jsonl"},
        r"row.jsonl is not there( .looked for at /.*/row.jsonl.)?: /.* rows.jsonl",
    ),
    "a mistyped folder": Case(
        numbered(1),
        {"media": "./picture"},
        r"/picture is not there( .looked for at /.*/picture.)?: /.* holds pictures",
    ),
    "a folder of other files": Case(
        texts(3), {"media": "texts"}, r"texts holds no image files .* among its 3 files: 1.txt, 2.txt"
    ),
    "no file of rows": Case(
        {"notes.md": "x"}, {"media": "notes.md"}, "notes.md is neither a folder nor a file of .csv"
    ),
    "a column that is not there": case(
        "csv",
        f"{IN}1,a.jpg,a",
        "mir_text_column is 'said', which .* it has id, image, text",
        mir_text_column="said",
    ),
    "an id column that is not there": case(
        "csv", f"{IN}1,a.jpg,a", "mir_media_id is 'key', which .* has id", mir_media_id="key"
    ),
}


def write(folder: Path, files: Files) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


def tidy(folder: Path, monkeypatch) -> str:
    return ""


def untidy(folder: Path, monkeypatch) -> str:
    """Files that a run must not see, in every folder."""
    for place in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
        for name in (".DS_Store", "Thumbs.db", "labels.csv", "dataset_info.json", "notes.md", "x.arrow"):
            if not (place / name).exists():
                (place / name).write_text("a,b\n1,2")
    return ""


def elsewhere(folder: Path, monkeypatch) -> str:
    """Another working directory, so that paths are absolute."""
    other = folder.parent / "elsewhere"
    other.mkdir()
    monkeypatch.chdir(other)
    return f"{folder}/"


def without_mime_types(folder: Path, monkeypatch) -> str:
    monkeypatch.setattr(mimetypes, "guess_type", lambda *_, **__: (None, None))
    return ""


def other_locale(folder: Path, monkeypatch) -> str:
    monkeypatch.setenv("LC_ALL", "C")
    monkeypatch.setenv("PYTHONUTF8", "0")
    monkeypatch.setattr(locale, "getpreferredencoding", lambda *_: "ascii")
    return ""


SURROUNDINGS = (tidy, untidy, elsewhere, without_mime_types, other_locale)


def settings(case: Case, before: str, count: int) -> Settings:
    keys = {key: value for key, value in case.keys.items() if key.startswith("mir_")}
    media = case.keys["media"]
    keys["mir_media_dataset"] = before + media.removeprefix("./") if before else media
    if "text" in case.keys:
        keys["mir_text_dataset"] = f"{before}{case.keys['text']}"
    return Settings.of("task mir_mine", {"mir_documents": count, **keys})


@pytest.mark.parametrize("surroundings", SURROUNDINGS, ids=lambda each: each.__name__)
@pytest.mark.parametrize("name", CASES)
def test_as_written(name: str, surroundings: Callable, tmp_path, monkeypatch) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    case = CASES[name]
    write(folder, case.files)
    monkeypatch.chdir(folder)
    before = surroundings(folder, monkeypatch)
    if isinstance(case.wanted, str):
        if name == "a folder of other files" and surroundings is untidy:
            return  # it names how many files there are
        with pytest.raises(MIRError, match=case.wanted) as raised:
            documents("mir_mine", settings(case, before, 1))
        assert "task mir_mine" in str(raised.value)
        assert len(str(raised.value)) < 600
        return
    count = len(case.wanted) + len(case.faults)
    found = documents("mir_mine", settings(case, before, count))
    if case.keys.get("text") and "mir_pairing" not in case.keys:  # crossed by the draw
        ids = {part for name in case.wanted for part in name.split("+")}
        assert {part for row_id in found["id"] for part in row_id.split("+")} == ids
        return
    whole = {row["id"]: row["text"] for row in found if row["fault"] is None}
    assert whole == case.wanted
    faults = {row["id"]: row["fault"] for row in found if row["fault"] is not None}
    assert faults.keys() == case.faults.keys()
    for row_id, pattern in case.faults.items():
        assert re.search(pattern, faults[row_id])
        assert len(faults[row_id]) < 500
    for row in found:
        if row["fault"] is None:
            assert row["media"]["bytes"] == PICTURE or Path(row["media"]["path"]).read_bytes() == PICTURE
    with pytest.raises(
        MIRError, match=f"mir_documents asks for {count + 1}, and .* has {count} different"
    ):
        documents("mir_mine", settings(case, before, count + 1))


def test_there_are_many_cases() -> None:
    assert len(CASES) >= 60


def test_parquet_of_several_groups_of_rows_and_files(tmp_path) -> None:
    for n, count in enumerate((25, 7)):
        names = [f"{n}-{k}" for k in range(count)]
        columns = {"id": names, "image": [PICTURE] * count, "text": [f"text {name}" for name in names]}
        pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / f"p{n}.parquet", row_group_size=4)
    keys = {"mir_media_dataset": str(tmp_path / "p*.parquet"), "mir_media_id": "id", "mir_documents": 32}
    found = documents("mir_mine", Settings.of("x", keys))
    assert sorted(found["id"]) == sorted([f"0-{k}" for k in range(25)] + [f"1-{k}" for k in range(7)])
    assert all(row["text"] == f"text {row['id']}" for row in found)
    assert found[0]["media"]["bytes"] == PICTURE


def test_folders_and_files_that_are_links_are_read(tmp_path, monkeypatch) -> None:
    write(tmp_path, {"elsewhere/3.jpg": PICTURE, "data/pictures/1.jpg": PICTURE})
    write(tmp_path, {f"data/texts/{name}.txt": name for name in ("1", "2", "more/3")})
    pictures = tmp_path / "data" / "pictures"
    (pictures / "more").symlink_to(tmp_path / "elsewhere")
    (pictures / "2.jpg").symlink_to("gone.jpg")
    monkeypatch.chdir(tmp_path / "data")
    case = Case({}, PAIR, {"1": "1", "more/3": "more/3"})
    found = documents("mir_mine", settings(case, "", 3))
    assert set(found["id"]) == {"1", "2", "more/3"}
    for row in found:
        if row["id"] == "2":
            with pytest.raises(MIRError, match=r"No such file.*2\.jpg"):
                open_media(row["media"], "image")
        else:
            open_media(row["media"], "image")


@pytest.mark.parametrize("target", ["..", "../..", "."])
def test_a_link_that_leads_back_is_refused(target: str, tmp_path, monkeypatch) -> None:
    write(tmp_path, {"data/pictures/x/1.jpg": PICTURE})
    (tmp_path / "data" / "pictures" / "x" / "back").symlink_to(target)
    monkeypatch.chdir(tmp_path / "data")
    with pytest.raises(MIRError, match=r"back is a link to .*, in which it stands: remove the link"):
        documents("mir_mine", settings(Case({}, {"media": "pictures"}, {}), "", 1))


def test_links_that_lead_to_each_other_are_refused(tmp_path, monkeypatch) -> None:
    write(tmp_path, {"a/1.jpg": PICTURE, "b/2.jpg": PICTURE})
    (tmp_path / "a" / "b").symlink_to(tmp_path / "b")
    (tmp_path / "b" / "a").symlink_to(tmp_path / "a")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MIRError, match=r"a/b/a is a link to"):
        documents("mir_mine", settings(Case({}, {"media": "a"}, {}), "", 1))


def test_a_home_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path, {"mine/rows.jsonl": lines("a"), "mine/a.jpg": PICTURE})
    (row,) = documents(
        "mir_mine", Settings.of("x", {"mir_documents": 1, "mir_media_dataset": "~/mine/rows.jsonl"})
    )
    assert row["media"]["path"] == str(tmp_path / "mine" / "a.jpg")


def test_a_file_that_is_rewritten_is_read_anew_whatever_its_time(tmp_path) -> None:
    path = tmp_path / "rows.jsonl"
    for text in ("one", "two"):
        write(tmp_path, {"rows.jsonl": lines(text), "a.jpg": PICTURE})
        os.utime(path, (1_000_000_000, 1_000_000_000))
        keys = {"mir_documents": 1, "mir_media_dataset": str(path)}
        assert documents("mir_mine", Settings.of("x", keys))["text"] == [text]


def test_a_copy_that_is_rewritten_is_read_anew_whatever_its_time(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("MIR_TASK_DATA", str(tmp_path / "copies"))
    for text in ("one", "two"):
        write(tmp_path, {"rows.jsonl": lines(text), "a.jpg": PICTURE})
        keys = {"mir_documents": 1, "mir_media_dataset": str(tmp_path / "rows.jsonl")}
        chosen = Settings.of("x", keys)
        copy = prepare("mir_mine", chosen, tmp_path / "copies")
        os.utime(copy, (1_000_000_000, 1_000_000_000))
        assert documents("mir_mine", chosen)["text"] == [text]


def test_a_copy_of_a_bad_row_is_refused_unless_it_is_skipped(tmp_path, monkeypatch) -> None:
    write(tmp_path, {"rows.jsonl": lines(None, "b"), "a.jpg": PICTURE})
    keys = {"mir_documents": 2, "mir_media_dataset": str(tmp_path / "rows.jsonl")}
    with pytest.raises(MIRError, match=r"task mir_mine: mir_text_column: .* holds nothing \(null\)"):
        prepare("mir_mine", Settings.of("x", keys), tmp_path / "copies")
    chosen = Settings.of("x", {**keys, "mir_on_error": "skip"})
    prepare("mir_mine", chosen, tmp_path / "copies")
    wanted = documents("mir_mine", chosen)["fault"]
    monkeypatch.setenv("MIR_TASK_DATA", str(tmp_path / "copies"))
    assert documents("mir_mine", chosen)["fault"] == wanted


def deep(values: np.ndarray, form: str, **options: Any) -> dict[str, Any]:
    sink = io.BytesIO()
    Image.fromarray(values).save(sink, form, **options)
    return {"bytes": sink.getvalue(), "path": None}


RAMP = np.linspace(0, 1, 64).reshape(8, 8)


@pytest.mark.parametrize(
    ("values", "form", "options"),
    [
        ((RAMP * 65535).astype(np.uint16), "PNG", {}),
        ((RAMP * 65535).astype(np.uint16), "TIFF", {}),
        ((RAMP * 4095).astype(np.uint16), "TIFF", {}),  # twelve bits
        ((RAMP * (2**24 - 1)).astype(np.int32), "TIFF", {}),
        (RAMP.astype(np.float32), "TIFF", {}),
        ((RAMP * 255).astype(np.float32), "TIFF", {}),
        ((RAMP * 3000).astype(np.float32), "TIFF", {}),
        ((RAMP * 100).astype(np.uint16), "TIFF", {"tiffinfo": {281: 100}}),
    ],
)
def test_deep_pictures_are_as_bright_as_their_range_says(values, form, options) -> None:
    image = open_media(deep(values, form, **options), "image")
    assert image.mode == "RGB"
    assert np.abs(np.asarray(image)[..., 0] - RAMP * 255).max() < 4


def test_a_dark_picture_of_16_bits_stays_dark_where_the_file_says_so() -> None:
    image = open_media(deep((RAMP * 4095).astype(np.uint16), "PNG"), "image")
    assert np.asarray(image).max() == 15


@pytest.mark.parametrize("values", [RAMP - 0.5, np.where(RAMP > 0.5, np.nan, RAMP)])
def test_samples_that_are_none_are_refused(values) -> None:
    with pytest.raises(MIRError, match="samples that are negative or no numbers"):
        open_media(deep(values.astype(np.float32), "TIFF"), "image")
