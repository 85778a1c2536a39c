"""Prepare captioned pictures: `python -m studies.decoders.clipart --packages FOLDER --output FOLDER`.

The pictures of the Debian packages openclipart-svg and openclipart-png, in the public domain, with
titles, keywords and categories, cleaned, and split so that near-identical ones are on one side. The
first folder has the .deb files, or what `dpkg-deb --extract` made of them; the same packages make the
same files.
"""

import argparse
import hashlib
import html
import io
import re
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

SIDE = 224
PART = 60_000_000
"""Most bytes of a file of the output."""
PACKAGES = ("openclipart-svg", "openclipart-png")
ROOT = Path("usr/share/openclipart")
PER_CAPTION = 8
"""Pictures kept of one title with the same keywords: icon themes and card games have hundreds."""
THUMBNAIL = 16
"""Side of the thumbnails by which pictures are compared, in colour."""
BLANK, SAME, ALIKE = 2.0, 4.0, 0.95
"""Of thumbnails, in 255ths: those whose standard deviation is less are blank; two that differ by less
(root mean square) are one picture; two of a category that correlate by more are of one series."""
NO_KEYWORDS = frozenset(
    {"", "hash", "clip art", "clipart", "svg", "png", "unsorted", "image", "public domain"}
)
DOCUMENTS = 200
"""Held-out pictures with captions."""
ASKED, SHARE, LONGEST = 40, 0.5, 4
"""Of a class at most so many pictures, and that share, are asked about; of a series at most so many."""
LIST = "pictures.sha256"
COLUMNS = ("path", "title", "keywords", "category", "label", "series", "split")

# Folders by class of question, where there are pictures of many series.
CLASSES = {
    "animals/birds": "bird",
    "animals/bugs": "bug",
    "animals/mammals": "mammal",
    "buildings": "building",
    "computer": "computer",
    "food/beverages": "drink",
    "food/desserts": "dessert",
    "food/fruit": "fruit",
    "geography": "map",
    "office": "office",
    "people": "person",
    "people/clothing": "clothing",
    "plants": "plant",
    "recreation/games": "game",
    "recreation/music": "music",
    "recreation/sports": "sport",
    "shapes": "shape",
    "signs_and_symbols": "sign",
    "signs_and_symbols/flags": "flag",
    "signs_and_symbols/led": "",
    "signs_and_symbols/weather": "",
    "tools": "tool",
    "transportation": "vehicle",
}


@dataclass
class Picture:
    """A clip-art as it stands in the packages, then as it is kept."""

    path: str
    """Below svg or png, without the suffix."""
    title: str
    keywords: list[str]
    author: str
    licence: str
    png: bytes = b""
    thumbnail: Any = None
    series: str = ""
    """Path of its first picture."""
    split: str = ""
    """train, held_out or questions; those of the fine-tuning are about pictures of train."""

    @property
    def caption(self) -> tuple[str, ...]:
        """Title and keywords, in one order."""
        return (self.title.lower(), *sorted(self.keywords))

    @property
    def folder(self) -> str:
        """Below which it lies."""
        return self.path.rpartition("/")[0]

    @property
    def category(self) -> str:
        """The first folder."""
        return self.path.partition("/")[0]

    @property
    def label(self) -> str:
        """Class of the question about it, or nothing."""
        fits = [folder for folder in CLASSES if f"{self.folder}/".startswith(f"{folder}/")]
        return CLASSES[max(fits, key=len)] if fits else ""


def text(value: str) -> str:
    """In one line, without entities and underscores."""
    return " ".join(html.unescape(value).replace("_", " ").split())


def described(root: Path) -> Iterator[Picture]:
    """Titles, keywords and authors, in the order of paths.

    Args:
        root: that has the folders svg and png.
    """
    for path in sorted(
        (root / "svg").rglob("*.svg"), key=lambda path: path.relative_to(root).as_posix()
    ):
        found = re.search(r"<metadata.*?</metadata>", path.read_text("utf-8", "replace"), re.DOTALL)
        metadata = found[0] if found else ""
        title = re.search(r"<dc:title>(.*?)</dc:title>", metadata, re.DOTALL)
        author = re.search(r"<dc:creator>.*?<dc:title>(.*?)</dc:title>", metadata, re.DOTALL)
        keywords = [
            text(word).lower() for word in re.findall(r"<rdf:li>(.*?)</rdf:li>", metadata, re.DOTALL)
        ]
        yield Picture(
            path=path.relative_to(root / "svg").with_suffix("").as_posix(),
            title=re.sub("(?i)^clip ?art by .* - ", "", text(title[1] if title else "")),
            keywords=[word for word in dict.fromkeys(keywords) if word not in NO_KEYWORDS],
            author=text(author[1] if author else "").lower(),
            licence="GPL" if "/GPL/" in metadata else "public domain",
        )


def render(picture: Picture, root: Path) -> Image.Image:
    """A picture on white, in the middle of a square."""
    with Image.open(root / "png" / f"{picture.path}.png") as image:
        scale = SIDE / max(image.size)
        size = tuple(max(1, round(length * scale)) for length in image.size)
        image = image.convert("RGBA").resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)
    square = Image.new("RGBA", (SIDE, SIDE), "white")
    square.alpha_composite(image, ((SIDE - size[0]) // 2, (SIDE - size[1]) // 2))
    return square.convert("RGB")


def clean(root: Path) -> tuple[list[Picture], Counter[str]]:
    """Pictures that are kept, and how many were not, by reason."""
    dropped: Counter[str] = Counter()
    captions, seen = Counter[tuple[str, ...]](), set[str]()
    kept, pictures = list[Picture](), list(described(root))
    thumbnails = np.empty((len(pictures), 3 * THUMBNAIL**2), dtype=np.float32)
    for picture in pictures:
        captions[picture.caption] += 1
        if not picture.title:
            dropped["no title"] += 1
        elif picture.licence == "GPL":
            dropped["under the GPL"] += 1
        elif not all(word.isascii() for word in (picture.title, *picture.keywords)):
            dropped["title or keywords not ASCII"] += 1
        elif len(picture.keywords) < 2:
            dropped["fewer than two keywords"] += 1
        elif captions[picture.caption] > PER_CAPTION:
            dropped[f"title and keywords of {PER_CAPTION} others"] += 1
        else:
            image = render(picture, root)
            small = image.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
            picture.thumbnail = np.asarray(small, dtype=np.float32).ravel()
            pixels = hashlib.sha256(image.tobytes()).hexdigest()
            if picture.thumbnail.std() < BLANK:
                dropped["blank"] += 1
            elif pixels in seen:
                dropped["same pixels as another"] += 1
            elif nearest(thumbnails[: len(kept)], picture.thumbnail) < SAME:
                dropped["looks the same as another"] += 1
            else:
                seen.add(pixels)
                thumbnails[len(kept)] = picture.thumbnail
                file = io.BytesIO()
                image.save(file, "png")
                picture.png = file.getvalue()
                kept.append(picture)
    return kept, dropped


def nearest(thumbnails: np.ndarray, one: np.ndarray) -> float:
    """Least root mean square difference of a thumbnail from others [n, pixels]; infinite from none."""
    squares = np.einsum("ij,ij->i", thumbnails, thumbnails) - 2 * thumbnails @ one + one @ one
    return float(np.sqrt(max(0.0, squares.min() / len(one)))) if len(squares) else float("inf")


def stem(name: str) -> str:
    """Of a title or a file name: what it has in common with others of a numbered series."""
    return " ".join(re.findall("[a-z]+", name.lower())[:2])


def find_series(pictures: Sequence[Picture]) -> None:
    """Name each picture's series, by captions, a folder's and author's common stems, and thumbnails."""
    groups = defaultdict[tuple[str, ...], list[int]](list)
    folders = defaultdict[str, list[int]](list)
    for number, picture in enumerate(pictures):
        file = picture.path.rpartition("/")[2]
        groups["caption", *picture.caption].append(number)
        groups["title", picture.folder, picture.author, stem(picture.title)].append(number)
        groups["file", picture.folder, picture.author, stem(file)].append(number)
        folders[picture.category].append(number)
    links = [(group[0], other) for group in groups.values() for other in group[1:]]
    for members in folders.values():
        rows = np.stack([pictures[number].thumbnail for number in members])
        alike = np.atleast_2d(np.corrcoef(rows)) > ALIKE  # a number, of one picture
        links += [(members[i], members[j]) for i, j in np.argwhere(np.triu(alike, 1))]
    ends = np.array(links).reshape(-1, 2).T
    graph = coo_array((np.ones(ends.shape[1]), ends), shape=(len(pictures),) * 2)
    numbers = connected_components(graph, directed=False)[1]
    first: dict[int, str] = {}
    for picture, number in zip(pictures, numbers, strict=True):
        picture.series = first.setdefault(int(number), picture.path)


def order(series: str) -> str:
    """By which series are dealt out."""
    return hashlib.sha256(series.encode()).hexdigest()


def split(pictures: Sequence[Picture]) -> None:
    """Deal out whole series, to held-out documents, to the questions of the score, and to training."""
    wanted = Counter(picture.label for picture in pictures)
    wanted = Counter({label: min(ASKED, int(SHARE * n)) for label, n in wanted.items() if label})
    groups = defaultdict[str, list[Picture]](list)
    for picture in pictures:
        groups[picture.series].append(picture)
    documents = 0
    for name in sorted(groups, key=order):
        members, labels = groups[name], Counter(picture.label for picture in groups[name])
        chosen = "train"
        if len(members) == 1 and documents < DOCUMENTS:
            documents += 1
            chosen = "held_out"
        elif len(members) <= LONGEST and labels <= wanted:
            wanted -= labels
            chosen = "questions"
        for picture in members:
            picture.split = chosen


def parts(pictures: Iterable[Picture]) -> Iterator[list[Picture]]:
    """Pictures in order, in parts that fit into a file."""
    part, size = list[Picture](), 0
    for picture in pictures:
        if part and size + len(picture.png) > 0.95 * PART:
            yield part
            part, size = [], 0
        part.append(picture)
        size += len(picture.png)
    yield part


def write(pictures: Sequence[Picture], folder: Path) -> None:
    """Write the parts and their digests."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("pictures-*.parquet"):
        old.unlink()
    files = []
    for number, part in enumerate(parts(pictures)):
        columns = {name: [getattr(picture, name) for picture in part] for name in COLUMNS}
        files.append(folder / f"pictures-{number}.parquet")
        table = pa.table({**columns, "picture": [picture.png for picture in part]})
        pq.write_table(table, files[-1], compression="none")
    write_digests(files, folder / LIST)


def write_digests(files: Sequence[Path], path: Path) -> None:
    """Write the list that `sha256sum --check` reads."""
    lines = [f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in files]
    path.write_text("".join(lines), "utf-8")


def listed(path: Path, start: str = "") -> list[Path]:
    """Files of such a list, those whose names begin so, in its order.

    Raises:
        SystemExit: the list or one of them is missing, or a file is not what it was.
    """
    if not path.is_file():
        raise SystemExit(f"{path} is missing: studies/decoders/README.md says what writes it")
    found = []
    for line in path.read_text("utf-8").splitlines():
        digest, name = line.split("  ")
        file = path.with_name(name)
        if name.startswith(start):
            if not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != digest:
                raise SystemExit(f"{file} is missing, or not as {path.name} has it: carry it once more")
            found.append(file)
    return found


def read(folder: Path) -> list[dict[str, Any]]:
    """Rows of the prepared pictures."""
    return [row for file in listed(folder / LIST) for row in pq.read_table(file).to_pylist()]


def image(row: dict[str, Any]) -> Image.Image:
    """Of a row, in RGB."""
    return Image.open(io.BytesIO(row["picture"])).convert("RGB")


def unpacked(folder: Path, temporary: Path) -> Path:
    """Where the folders svg and png are.

    Raises:
        SystemExit: neither they nor the packages are there.
    """
    for root in (folder, folder / ROOT, folder / "x" / ROOT):
        if (root / "svg").is_dir() and (root / "png").is_dir():
            return root
    for package in PACKAGES:
        found = next(folder.glob(f"{package}_*.deb"), None)
        if found is None:
            sys.exit(
                f"{folder} has neither {package}_*.deb nor what is in it: on Debian or Ubuntu, "
                f"cd {folder} && apt-get download {' '.join(PACKAGES)}"
            )
        subprocess.run(["dpkg-deb", "--extract", found, temporary], check=True)
    return temporary / ROOT


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--packages", type=Path, default=Path(), help="folder; where you are by default")
    parser.add_argument("--output", type=Path, required=True, help="folder of the parquet files")
    options = parser.parse_args()
    Image.MAX_IMAGE_PIXELS = None  # one picture has 231 million
    with tempfile.TemporaryDirectory() as temporary:
        pictures, dropped = clean(unpacked(options.packages, Path(temporary)))
    find_series(pictures)
    split(pictures)
    write(pictures, options.output)
    for reason, number in dropped.most_common():
        print(f"{number:6} dropped: {reason}")
    captions, series = ({getattr(one, name) for one in pictures} for name in ("caption", "series"))
    print(f"{len(pictures):6} kept, of {len(captions)} captions and {len(series)} series")
    for split_, number in Counter(picture.split for picture in pictures).items():
        print(f"{number:6} in {split_}")
    print("questions on the score's side and on that of training, by class:")
    counts = Counter((picture.label, picture.split) for picture in pictures)
    for label in sorted(set(CLASSES.values()) - {""}):
        print(f"{counts[label, 'questions']:6} {counts[label, 'train']:6} {label}")


if __name__ == "__main__":
    main()
