import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import EfficientNetModel

import mir_task
from studies.alignment import language
from studies.decoders import clipart, halves
from studies.decoders.recipes import Recipe

DATA = os.environ.get("STUDY_DATA")
with_data = pytest.mark.skipif(
    not DATA, reason="STUDY_DATA names no folder of studies/decoders/README.md's weights and pictures"
)

SVG = """<svg><metadata><rdf:RDF><cc:Work><dc:title>{title}</dc:title><dc:subject><rdf:Bag>{keywords}
</rdf:Bag></dc:subject><dc:creator><cc:Agent><dc:title>{author}</dc:title></cc:Agent></dc:creator>
<cc:license rdf:resource="{licence}"/></cc:Work></rdf:RDF></metadata></svg>"""
FREE = "http://web.resource.org/cc/PublicDomain"


def write(
    root: Path, path: str, title: str, keywords: str, seed: int | None, author="someone", licence=FREE
) -> None:
    """A clip-art of random blocks, or a blank one."""
    for folder in ("svg", "png"):
        (root / folder / path).parent.mkdir(parents=True, exist_ok=True)
    words = "".join(f"<rdf:li>{word}</rdf:li>" for word in keywords.split(","))
    text = SVG.format(title=title, keywords=words, author=author, licence=licence)
    (root / "svg" / f"{path}.svg").write_text(text, "utf-8")
    blocks = np.full((4, 4, 3), 255, np.uint8)
    if seed is not None:
        blocks = np.random.default_rng(seed).integers(0, 256, (4, 4, 3)).astype(np.uint8)
    (root / "png" / f"{path}.png").parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(blocks).resize((60, 40), Image.Resampling.NEAREST).save(root / "png" / f"{path}.png")


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    root = tmp_path / "packages"
    for number in range(40):  # the first ten are of one series, by the names of their files
        name = "aaa" if number < 10 else chr(97 + number % 26) * (2 + number // 26)
        write(root, f"animals/birds/{name}_{number}", f"Bird {'x' * number}", "a,b", number)
        write(root, f"special/{name}_{number}", f"Thing {'y' * number}", "a,b", 50 + number)
    for number in range(12):
        write(root, f"computer/icon_{number}", "An_icon", "icon,hash,theme", 100 + number)
    write(root, "tools/saw", "Saw &amp; file", "saw, Hand_tool,saw", 200)
    write(root, "tools/saw_again", "Another saw", "saw,tool", 200)
    write(root, "tools/blank", "White", "saw,tool", None)
    write(root, "tools/untitled", "", "saw,tool", 201)
    write(root, "tools/one", "One", "clip art,tool", 202)
    write(root, "tools/lime", "Scie à lime", "saw,tool", 203)
    write(
        root,
        "tools/gpl",
        "Drill",
        "drill,tool",
        204,
        licence="http://creativecommons.org/licenses/GPL/2.0/",
    )
    return root


def test_what_is_no_captioned_picture_is_left_out_by_reason(packages: Path) -> None:
    kept, dropped = clipart.clean(packages)
    assert dropped == {
        "title and keywords of 8 others": 4,
        "same pixels as another": 1,
        "blank": 1,
        "no title": 1,
        "fewer than two keywords": 1,
        "title or keywords not ASCII": 1,
        "under the GPL": 1,
    }
    saw = next(picture for picture in kept if picture.path == "tools/saw")
    assert (saw.title, saw.keywords, saw.category, saw.label) == (
        "Saw & file",
        ["saw", "hand tool"],
        "tools",
        "tool",
    )
    assert clipart.image({"picture": saw.png}).size == (224, 224)


def test_a_series_is_on_one_side(packages: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clipart, "DOCUMENTS", 10)
    kept, _ = clipart.clean(packages)
    clipart.find_series(kept)
    icons = {picture.series for picture in kept if picture.category == "computer"}
    assert icons == {"computer/icon_0"}
    clipart.split(kept)
    sides = {}
    for picture in kept:
        sides.setdefault(picture.series, set()).add(picture.split)
    assert all(len(side) == 1 for side in sides.values())
    assert [picture.split for picture in kept].count("held_out") == 10
    asked = [picture for picture in kept if picture.split == "questions"]
    assert {picture.label for picture in asked} == {"bird"}
    assert 0 < len(asked) <= 20
    assert {picture.split for picture in kept if picture.series == "animals/birds/aaa_0"} == {"train"}


def test_the_same_packages_make_the_same_files_and_a_changed_one_is_refused(
    packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clipart, "PART", 20_000)
    lists = []
    for name in ("one", "two"):
        arguments = ["clipart", "--packages", str(packages), "--output", str(tmp_path / name)]
        monkeypatch.setattr("sys.argv", arguments)
        clipart.main()
        lists.append((tmp_path / name / clipart.LIST).read_text())
    assert lists[0] == lists[1]
    assert len(lists[0].splitlines()) > 1
    rows = clipart.read(tmp_path / "one")
    assert [row["path"] for row in rows] == sorted(row["path"] for row in rows)
    (tmp_path / "one" / "pictures-1.parquet").write_bytes(b"cut off")
    with pytest.raises(
        SystemExit, match=r"pictures-1\.parquet is missing, or not as pictures\.sha256 has it"
    ):
        clipart.read(tmp_path / "one")
    monkeypatch.setattr("sys.argv", ["clipart", "--packages", str(tmp_path), "--output", str(tmp_path)])
    with pytest.raises(SystemExit, match="apt-get download openclipart-svg openclipart-png"):
        clipart.main()


def test_the_encoder_is_an_efficientnet_whose_squeeze_excite_is_neutral_and_stays_frozen() -> None:
    torch.manual_seed(0)
    lite = halves.Lite(halves.lite_config())
    other = EfficientNetModel(halves.lite_config()).eval()
    other.load_state_dict(lite.state_dict(), strict=False)
    for block in other.encoder.blocks:
        for layer in (block.squeeze_excite.reduce, block.squeeze_excite.expand):
            torch.nn.init.zeros_(layer.weight)
        torch.nn.init.constant_(block.squeeze_excite.expand.bias, 30)
    pixels = torch.randn(2, 3, halves.SIDE, halves.SIDE)
    lite.train()
    assert not any(module.training for module in lite.modules())
    with torch.no_grad():
        tokens = lite(pixels).hidden_states[-1]
        expected = other(pixels).last_hidden_state.flatten(2).transpose(1, 2)
    assert tokens.shape == (2, halves.TOKENS, halves.FEATURES)
    torch.testing.assert_close(tokens, expected)


def test_parts_of_weights_are_joined(tmp_path: Path) -> None:
    files = [tmp_path / "w.gguf.0", tmp_path / "w.gguf.1", tmp_path / "other.0"]
    for file, content in zip(files, (b"abc", b"de", b"no"), strict=True):
        file.write_bytes(content)
    with pytest.raises(SystemExit, match=r"weights\.sha256 is missing"):
        halves.joined(tmp_path, "w.gguf")
    clipart.write_digests(files, tmp_path / halves.WEIGHTS_LIST)
    assert halves.joined(tmp_path, "w.gguf").read_bytes() == b"abcde"


@pytest.fixture(scope="module")
def family():
    from studies.decoders.real import Clipart

    return Clipart(Path(DATA))


@with_data
@pytest.mark.slow
class TestWithWeights:
    def test_training_reads_what_the_processor_writes(self, family) -> None:
        pairs, examples = family.held_out("full")
        assert len(pairs) == len(examples) == 200
        picture, text = pairs[0]
        turns = [
            {"role": "user", "content": [{"type": "image"}]},
            {"role": "assistant", "content": [{"type": "text", "text": text}]},
        ]
        processor = family.processor()
        prompt = processor.apply_chat_template(turns)
        inputs = processor(images=picture, text=prompt, return_tensors="pt")
        ids, labels = examples.conversations[0]
        written = inputs["input_ids"][0].tolist()
        assert written[: len(ids)] == ids
        assert family.tokenizer.decode(written[len(ids) :]) == "\n"
        said = [token for token in labels if token != language.IGNORED]
        assert family.tokenizer.decode(said) == text  # the end of the turn is not measured
        assert family.tokenizer.decode(ids[-1:]) == "<|im_end|>"

    def test_features_stand_for_pixels_and_mir_is_measured(self, family) -> None:
        from studies.decoders.family import Reader

        model = family.model(Recipe("smollm2", 0, 0))
        pairs, examples = family.held_out("full")
        reader = Reader(model, family.image).eval()
        inputs = family.processor()(images=pairs[0][0], text="<image>", return_tensors="pt")
        tower = model.model.vision_tower(inputs["pixel_values"]).last_hidden_state[0]
        torch.testing.assert_close(tower, examples.features[0], atol=2e-3, rtol=0)
        losses = reader.losses(**examples.batch([0]))[0]
        assert losses.mean() > 1
        model.model.language_model.set_attn_implementation("sdpa")
        fused = reader.losses(**examples.batch([0]))[0]
        torch.testing.assert_close(fused, losses, atol=1e-4, rtol=0)
        result = mir_task.measure(model, family.processor(), pairs[:4], bars=False, groups=2)
        assert 0.5 < result.mir < 3

    def test_every_class_is_asked_about_on_both_sides_by_pictures_of_other_series(self, family) -> None:
        assert len(family.classes()) > 11
        sides = {}
        for one in family.table:
            sides.setdefault(one["series"], set()).add(one["split"])
        assert all(len(each) == 1 for each in sides.values())
        questions = family.questions((0, 2))
        assert len(questions) == family.budget
        again, other = family.questions((0, 2)), family.questions((1, 2))
        assert again.conversations == questions.conversations != other.conversations
