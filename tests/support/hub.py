"""Folders with the files and columns of the data sets on the Hub, filled with the demo's documents."""

import json
from pathlib import Path

import datasets

from mir_task.documents.sources import PACKAGE

DEMO = PACKAGE / "demo"
IMAGES = sorted((DEMO / "images").glob("*.jpg"))
PASSAGES = [json.loads(line)["text"] for line in (DEMO / "passages.jsonl").read_text().splitlines()]


def _rows(count: int) -> list[dict]:
    return [{"bytes": IMAGES[n % len(IMAGES)].read_bytes(), "path": None} for n in range(count)]


def _write(folder: Path, name: str, columns: dict, image: str | None = None) -> None:
    rows = datasets.Dataset.from_dict(columns)
    if image:
        rows = rows.cast_column(image, datasets.Image())
    folder.mkdir(parents=True, exist_ok=True)
    rows.to_parquet(folder / f"{name}-00000-of-00001.parquet")


def _not_to_be_read(folder: Path, split: str) -> None:
    """Files of a split that no task uses; whoever opens one fails."""
    (folder / f"{split}-00000-of-00001.parquet").write_bytes(b"this split is not to be fetched")


def _card(folder: Path, config: str, splits: dict[str, str]) -> None:
    files = "".join(f"  - split: {split}\n    path: {path}\n" for split, path in splits.items())
    (folder / "README.md").write_text(
        f"---\nconfigs:\n- config_name: {config}\n  data_files:\n{files}---\n"
    )


def coco_captions(root: Path, name: str = "lmms-lab-encoder/COCO-Caption2017", rows: int = 110) -> None:
    folder = root / name
    captions = [[f" {sentence.strip()}. " for sentence in text.split(".")[:5]] for text in PASSAGES]
    _write(
        folder / "data",
        "val",
        {
            "question_id": [f"{n:012d}.jpg" for n in range(rows)],
            "image": _rows(rows),
            "question": ["Please carefully observe the image and come up with a caption for the image"]
            * rows,
            "answer": [captions[n % len(captions)] for n in range(rows)],
            "id": list(range(rows)),
            "license": [3] * rows,
            "file_name": [f"{n:012d}.jpg" for n in range(rows)],
            "coco_url": [""] * rows,
            "height": [240] * rows,
            "width": [320] * rows,
            "date_captured": ["2013-11-14 17:02:52"] * rows,
        },
        image="image",
    )
    _not_to_be_read(folder / "data", "test")
    _card(folder, "default", {"val": "data/val-*", "test": "data/test-*"})


def textvqa(root: Path, name: str = "lmms-lab-encoder/textvqa", images: int = 104) -> None:
    """Each image stands in two rows, as a second question on it."""
    folder, rows = root / name, 2 * images
    _write(
        folder / "data",
        "validation",
        {
            "image_id": [f"{n // 2:016x}" for n in range(rows)],
            "question_id": list(range(rows)),
            "question": ["what does it say?"] * rows,
            "question_tokens": [["what", "does", "it", "say"]] * rows,
            "image": [row for row in _rows(images) for _ in range(2)],
            "image_width": [320] * rows,
            "image_height": [240] * rows,
            "flickr_original_url": [""] * rows,
            "flickr_300k_url": [""] * rows,
            "answers": [["nothing"] * 10] * rows,
            "image_classes": [["Poster"]] * rows,
            "set_name": ["val"] * rows,
            "ocr_tokens": [["nothing"]] * rows,
        },
        image="image",
    )
    _not_to_be_read(folder / "data", "train")
    _not_to_be_read(folder / "data", "test")
    splits = ("train", "validation", "test")
    _card(folder, "default", {split: f"data/{split}-*" for split in splits})


def cnn_dailymail(root: Path, name: str = "abisee/cnn_dailymail", rows: int = 110) -> None:
    folder = root / name
    articles = [f"({n}) {PASSAGES[n % 100]} {PASSAGES[(n + 1) % 100]}" for n in range(rows)]
    _write(
        folder / "3.0.0",
        "validation",
        {
            "article": articles,
            "highlights": ["Short of it ."] * rows,
            "id": [f"{n:040x}" for n in range(rows)],
        },
    )
    _not_to_be_read(folder / "3.0.0", "train")
    _not_to_be_read(folder / "3.0.0", "test")
    _card(folder, "3.0.0", {split: f"3.0.0/{split}-*" for split in ("train", "validation", "test")})


def docvqa(root: Path, name: str = "lmms-lab-encoder/DocVQA", pages: int = 102) -> None:
    """Each page stands in two rows, as a second question on it."""
    folder, rows = root / name, 2 * pages
    _write(
        folder / "DocVQA",
        "validation",
        {
            "questionId": [str(49153 + n) for n in range(rows)],
            "question": ["What is the title?"] * rows,
            "question_types": [["layout"]] * rows,
            "image": [row for row in _rows(pages) for _ in range(2)],
            "docId": [14465 + n // 2 for n in range(rows)],
            "ucsf_document_id": ["pybv0228"] * rows,
            "ucsf_document_page_no": [str(n // 2) for n in range(rows)],
            "answers": [["nothing"]] * rows,
            "data_split": ["val"] * rows,
        },
        image="image",
    )
    _not_to_be_read(folder / "DocVQA", "test")
    _card(folder, "DocVQA", {split: f"DocVQA/{split}-*" for split in ("validation", "test")})


def chartqa(root: Path, name: str = "lmms-lab-encoder/ChartQA", rows: int = 102) -> None:
    folder = root / name
    columns = {
        "type": ["human_test"] * rows,
        "question": ["How many?"] * rows,
        "answer": ["14"] * rows,
        "image": _rows(rows),
    }
    _write(folder / "data", "test", columns, image="image")
    _card(folder, "default", {"test": "data/test-*"})


def mail(root: Path, name: str = "Yale-LILY/aeslc", rows: int = 110) -> None:
    folder = root / name
    bodies = [f"Dear {n},\n{PASSAGES[n % 100]}\nThanks" for n in range(rows)]
    columns = {"email_body": bodies, "subject_line": ["Meeting"] * rows}
    _write(folder / "data", "validation", columns)
    _not_to_be_read(folder / "data", "train")
    _not_to_be_read(folder / "data", "test")
    _card(folder, "default", {s: f"data/{s}-*" for s in ("train", "validation", "test")})


def code(root: Path, name: str = "google/code_x_glue_ct_code_to_text", rows: int = 110) -> None:
    folder = root / name
    functions = [
        f"def read_{n}(path):\n    return open(path + '{n}').read()  # {PASSAGES[n % 100]}"
        for n in range(rows)
    ]
    columns = {
        "id": list(range(rows)),
        "repo": ["owner/name"] * rows,
        "path": ["name/io.py"] * rows,
        "func_name": [f"read_{n}" for n in range(rows)],
        "original_string": functions,
        "language": ["python"] * rows,
        "code": functions,
        "code_tokens": [["def"]] * rows,
        "docstring": ["Reads."] * rows,
        "docstring_tokens": [["Reads"]] * rows,
        "sha": ["0" * 40] * rows,
        "url": [""] * rows,
    }
    _write(folder / "python", "validation", columns)
    _not_to_be_read(folder / "python", "train")
    _not_to_be_read(folder / "python", "test")
    _card(folder, "python", {s: f"python/{s}-*" for s in ("train", "validation", "test")})
