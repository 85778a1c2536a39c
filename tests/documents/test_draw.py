import hashlib
import io
import json
import sys
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet
import pytest
import scipy.io.wavfile
from PIL import Image

from mir_task import MIRError
from mir_task.documents.cells import text_of
from mir_task.documents.draw import documents, first_words, prepare
from mir_task.documents.media import open_media
from mir_task.documents.sources import PACKAGE
from mir_task.settings import Settings
from mir_task.tasks import mir_keys, packaged_tasks, read_task
from tests.adapters.qwen2_audio import tones
from tests.adapters.video_llava import clips
from tests.support import hub

TASKS = ("mir_coco", "mir_coco_cnndm", "mir_textvqa")


def settings(task: str, **changes) -> Settings:
    paths = packaged_tasks()
    return Settings.of(f"task {task}", {**mir_keys(read_task(paths[task], paths)), **changes})


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """Data root with folders of the real data sets' schema."""
    folder = tmp_path / "hub"
    hub.coco_captions(folder)
    hub.textvqa(folder)
    hub.cnn_dailymail(folder)
    monkeypatch.setenv("MIR_TASK_DATA", str(folder))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return folder


def cells(rows: datasets.Dataset) -> list[bytes]:
    return [cell["bytes"] for cell in rows["media"]]


class TestDraw:
    def test_demo_draws_all_its_images_and_texts(self) -> None:
        rows = documents("mir_demo", settings("mir_demo"))
        images, texts = zip(*(row_id.split("+") for row_id in rows["id"]), strict=True)
        assert len(set(images)) == len(set(texts)) == 100
        assert set(rows["text"]) == set(hub.PASSAGES)

    def test_nested_in_the_number_of_documents(self) -> None:
        ten, thirty = (documents("x", settings("mir_demo", mir_documents=n)) for n in (10, 30))
        assert ten[:] == thirty[:10]

    def test_seed_changes_the_draw(self) -> None:
        first, second = (
            documents("x", settings("mir_demo", mir_documents=20, mir_seed=seed))["id"]
            for seed in (0, 1)
        )
        assert list(first) != list(second)

    def test_place_of_a_row_depends_on_no_other_row(self, tmp_path) -> None:
        def order(rows: list[int]) -> list[str]:
            path = tmp_path / f"{len(rows)}.jsonl"
            path.write_text(
                "".join(json.dumps({"id": n, "image": "x.png", "text": "t"}) + "\n" for n in rows)
            )
            keys = {"mir_media_dataset": str(path), "mir_media_id": "id", "mir_documents": len(rows)}
            return list(documents("x", Settings.of("task x", keys))["id"])

        whole = order(list(range(30)))
        assert order(list(range(29, 9, -1))) == [i for i in whole if int(i) >= 10]

    @pytest.mark.parametrize(
        ("task", "first", "digest"),
        [
            ("mir_demo", ["045+p031", "043+p014", "022+p028", "013+p065"], "9223305fa54eea1b"),
            ("mir_scenes", ["s001", "s086", "s050", "s073"], "fd1a5f48ce6b2310"),
        ],
    )
    def test_draws_are_pinned(self, task: str, first: list[str], digest: str) -> None:
        ids = list(documents(task, settings(task))["id"])
        assert ids[:4] == first
        assert hashlib.sha256("\n".join(ids).encode()).hexdigest()[:16] == digest


class TestTasks:
    def test_coco_joins_the_captions_of_each_image(self, root) -> None:
        rows = documents("mir_coco", settings("mir_coco"))
        assert len(rows) == 100
        source = datasets.load_dataset(
            "parquet", data_files=str(next(root.rglob("val-*"))), split="train"
        )
        by_id = {row["question_id"]: row for row in source}
        for row in rows:
            captions = [caption.strip() for caption in by_id[row["id"]]["answer"]]
            assert row["text"] == " ".join(captions)

    def test_coco_with_news_has_the_images_of_coco(self, root) -> None:
        own, news = (documents(task, settings(task)) for task in ("mir_coco", "mir_coco_cnndm"))
        assert cells(own) == cells(news)
        assert [i.split("+")[0] for i in news["id"]] == list(own["id"])

    def test_textvqa_takes_each_image_once(self, root) -> None:
        rows = documents("mir_textvqa", settings("mir_textvqa"))
        images = [row_id.split("+")[0] for row_id in rows["id"]]
        assert len(set(images)) == 100
        assert len({*rows["text"]}) == 100

    @pytest.mark.parametrize("task", TASKS)
    def test_old_ids_and_plain_paths_do_too(self, task: str, root, tmp_path, monkeypatch) -> None:
        wanted = documents(task, settings(task))[:]
        (root / "lmms-lab-encoder").rename(root / "lmms-lab")
        assert documents(task, settings(task))[:] == wanted
        monkeypatch.delenv("MIR_TASK_DATA")
        name = "textvqa" if task == "mir_textvqa" else "COCO-Caption2017"
        paths = {"mir_media_dataset": str(root / "lmms-lab" / name)}
        if task != "mir_coco":
            paths["mir_text_dataset"] = str(root / "abisee" / "cnn_dailymail")
        assert documents(task, settings(task, **paths))[:] == wanted

    def test_other_splits_are_not_fetched(self, root) -> None:
        with pytest.raises(Exception, match=r"(?i)parquet|generat"):
            documents("mir_coco", settings("mir_coco", mir_media_split="test"))


class TestCopies:
    @pytest.mark.parametrize("task", TASKS)
    def test_a_copy_gives_the_same_documents(self, task: str, root, tmp_path, monkeypatch) -> None:
        wanted = documents(task, settings(task))[:]
        path = prepare(task, settings(task), tmp_path / "carried")
        assert path.name == f"{task}.parquet"
        monkeypatch.setenv("MIR_TASK_DATA", str(tmp_path / "carried"))
        assert documents(task, settings(task))[:] == wanted
        fewer = documents(task, settings(task, mir_documents=7, mir_text_limit=5))
        assert list(fewer["id"]) == wanted["id"][:7]
        assert all(len(text.split()) == 5 for text in fewer["text"])

    def test_the_demo_copy_carries_its_images(self, tmp_path, monkeypatch) -> None:
        wanted = documents("mir_demo", settings("mir_demo"))
        prepare("mir_demo", settings("mir_demo"), tmp_path)
        monkeypatch.setenv("MIR_TASK_DATA", str(tmp_path))
        rows = documents("mir_demo", settings("mir_demo"))
        assert list(rows["id"]) == list(wanted["id"])
        assert open_image(rows[3]["media"]) == open_image(wanted[3]["media"])

    def test_a_copy_of_other_settings_is_refused(self, tmp_path, monkeypatch) -> None:
        prepare("mir_demo", settings("mir_demo", mir_documents=9), tmp_path)
        monkeypatch.setenv("MIR_TASK_DATA", str(tmp_path))
        with pytest.raises(
            MIRError, match="other settings of mir_demo; make it anew with `mir-task data"
        ):
            documents("mir_demo", settings("mir_demo", mir_seed=5, mir_documents=9))
        with pytest.raises(MIRError, match="holds 9 documents, 100 were asked for; make it anew"):
            documents("mir_demo", settings("mir_demo"))

    def test_a_missing_copy_is_one_message(self, monkeypatch) -> None:
        monkeypatch.delenv("MIR_TASK_DATA", raising=False)
        with pytest.raises(MIRError) as caught:
            documents("mir_textvqa", settings("mir_textvqa"))
        message = str(caught.value)
        assert f"there is no file or folder {Path.cwd() / 'lmms-lab-encoder' / 'textvqa'} or " in message
        assert (
            "lmms-lab-encoder/textvqa or lmms-lab/textvqa, configuration default, split validation"
            in message
        )
        assert "mir-task data prepare mir_textvqa --to DIR" in message
        assert "MIR_TASK_DATA=DIR" in message

    def test_a_wrong_data_root_is_named_with_its_absolute_path(self, monkeypatch, tmp_path) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "carried").mkdir()
        monkeypatch.setenv("MIR_TASK_DATA", "caried")
        looked_at = f"MIR_TASK_DATA first, which is 'caried', and there is no folder {tmp_path}/caried"
        with pytest.raises(MIRError, match=f"{looked_at}: {tmp_path} holds carried") as caught:
            documents("mir_textvqa", settings("mir_textvqa"))
        assert "network" not in str(caught.value)
        monkeypatch.setenv("MIR_TASK_DATA", "carried")
        empty = f"MIR_TASK_DATA, {tmp_path}/carried, holds none of mir_textvqa.parquet, lmms-lab"
        with pytest.raises(MIRError, match=empty):
            documents("mir_textvqa", settings("mir_textvqa"))
        monkeypatch.setenv("MIR_TASK_DATA", "nowhere")
        assert len(documents("mir_demo", settings("mir_demo", mir_documents=3))) == 3  # needs none

    @pytest.mark.parametrize("name", ["photos", "./photos", "my/own/photos", "photos/", "my photos"])
    def test_a_relative_folder_from_elsewhere_names_where_it_was_looked_for(
        self, monkeypatch, tmp_path, name
    ) -> None:
        monkeypatch.chdir(tmp_path)
        with pytest.raises(MIRError, match=f"mir_media_dataset {name}.* {tmp_path / name}") as caught:
            documents("x", settings("mir_demo", mir_media_dataset=name))
        assert name == "photos" or "Hub" not in str(caught.value)


class TestBadSource:
    def test_missing_column(self, root) -> None:
        with pytest.raises(
            MIRError, match=r"mir_media_column is 'picture', .*textvqa does .* image_id, "
        ):
            documents("x", settings("mir_textvqa", mir_media_column="picture"))

    def test_missing_split(self, root) -> None:
        with pytest.raises(MIRError, match="mir_media_split is .dev., which .* it has val, test"):
            documents("x", settings("mir_coco", mir_media_split="dev"))

    def test_missing_file(self) -> None:
        with pytest.raises(
            MIRError,
            match="x: mir_media_dataset nowhere.jsonl is not there .looked for at /.*: .* holds ",
        ):
            documents("x", settings("mir_demo", mir_media_dataset="nowhere.jsonl"))


def test_first_words_keeps_what_stands_between() -> None:
    assert first_words("One  two\nthree four", 3) == "One  two\nthree"
    assert first_words("One two ", 2) == "One two "


def test_captions_are_joined() -> None:
    assert text_of([" a cat. ", "A cat\n"]) == "a cat. A cat"
    assert text_of(" kept ") == " kept "


def encoded(image: Image.Image, form: str, **options) -> dict:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return {"bytes": stream.getvalue(), "path": None}


def open_image(cell: dict) -> Image.Image:
    return open_media(cell, "image")


def photograph() -> Image.Image:
    with Image.open(PACKAGE / "demo" / "images" / "001.jpg") as image:
        return image.copy()


class TestImages:
    def close(self, image: Image.Image, wanted: Image.Image, tolerance: float = 3) -> None:
        assert image.mode == "RGB"
        assert image.size == wanted.size
        difference = np.asarray(image, float) - np.asarray(wanted.convert("RGB"), float)
        assert np.abs(difference).mean() < tolerance

    @pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "1", "I;16", "I"])
    def test_modes(self, mode: str) -> None:
        grey = photograph().convert("L")
        if mode in ("I;16", "I"):
            values = np.asarray(grey, np.uint16) * 257
            image = (
                Image.fromarray(values) if mode == "I;16" else Image.fromarray(values.astype(np.int32))
            )
            self.close(open_image(encoded(image, "TIFF")), grey)
            return
        image = photograph().convert(mode)
        wanted = photograph() if mode in ("P", "RGBA") else image.convert("L")
        self.close(open_image(encoded(image, "PNG")), wanted, tolerance=30 if mode == "P" else 3)

    def test_cmyk(self) -> None:
        image = photograph().convert("CMYK")
        self.close(open_image(encoded(image, "JPEG", quality=95)), image, tolerance=5)

    def test_transparent_areas_are_white(self) -> None:
        image = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
        assert open_image(encoded(image, "PNG")).getpixel((1, 1)) == (255, 255, 255)

    def test_exif_rotation(self) -> None:
        image = photograph()
        exif = Image.Exif()
        exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
        turned = open_image(encoded(image, "JPEG", exif=exif, quality=95))
        self.close(turned, image.transpose(Image.Transpose.ROTATE_270))

    def test_huge(self) -> None:
        image = open_image(encoded(Image.new("RGB", (10_000, 10_000), "red"), "PNG"))
        assert image.size == (10_000, 10_000)

    @pytest.mark.parametrize("size", [(1, 1), (50, 1), (3, 40)])
    def test_sides_that_look_like_channels_are_enlarged(self, size: tuple[int, int]) -> None:
        image = open_image(encoded(Image.new("RGB", size, (250, 3, 9)), "PNG"))
        assert image.size == (4 * size[0], 4 * size[1])
        assert set(image.getdata()) == {(250, 3, 9)}

    def test_truncated(self) -> None:
        from PIL import ImageFile

        cell = encoded(photograph(), "JPEG")
        cell["bytes"] = cell["bytes"][: len(cell["bytes"]) // 2]
        before = ImageFile.LOAD_TRUNCATED_IMAGES
        for tolerant in (True, False):  # the harness sets it
            ImageFile.LOAD_TRUNCATED_IMAGES = tolerant
            with pytest.raises(MIRError, match="the image cannot be read"):
                open_image(cell)
            assert ImageFile.LOAD_TRUNCATED_IMAGES is tolerant
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def test_threads_put_back_how_truncated_files_are_read() -> None:
    from concurrent.futures import ThreadPoolExecutor

    from PIL import ImageFile

    cell = encoded(photograph(), "PNG")
    before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, True
    try:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(open_image, [cell] * 64))
        assert ImageFile.LOAD_TRUNCATED_IMAGES is True
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


class TestVideosAndAudio:
    def settings(self, source, modality: str) -> Settings:
        return Settings.of(
            "task x",
            {"mir_media_dataset": str(source), "mir_modality": modality, "mir_documents": 6},
        )

    def test_the_column_is_named_by_the_modality(self) -> None:
        of = {kind: self.settings("x.jsonl", kind) for kind in ("image", "video", "audio")}
        assert {kind: settings.media_column for kind, settings in of.items()} == {k: k for k in of}
        named = Settings.of("task x", {"mir_media_dataset": "x", "mir_media_column": "clip"})
        assert named.media_column == "clip"

    def test_channels_are_averaged(self, tmp_path) -> None:
        wave = np.random.default_rng(0).integers(-9_000, 9_000, (800, 2)).astype(np.int16)
        scipy.io.wavfile.write(tmp_path / "a.wav", 8_000, wave)
        audio = open_media({"bytes": None, "path": str(tmp_path / "a.wav")}, "audio")
        assert audio["sampling_rate"] == 8_000
        assert audio["array"].dtype == np.float32
        np.testing.assert_allclose(audio["array"], wave.mean(1) / 2**15, atol=1e-6)

    def test_a_copy_carries_audio(self, tmp_path, monkeypatch) -> None:
        keys = self.settings(tones(tmp_path)["mir_media_dataset"], "audio")
        wanted = [open_media(cell, "audio") for cell in documents("x", keys)["media"]]
        prepare("x", keys, tmp_path / "carried")
        for path in tmp_path.glob("*.wav"):
            path.unlink()
        monkeypatch.setenv("MIR_TASK_DATA", str(tmp_path / "carried"))
        for cell, audio in zip(documents("x", keys)["media"], wanted, strict=True):
            assert open_media(cell, "audio")["array"].tobytes() == audio["array"].tobytes()

    def test_a_copy_carries_videos_which_are_written_once(self, tmp_path, monkeypatch) -> None:
        keys = self.settings(clips(tmp_path)["mir_media_dataset"], "video")
        paths = [open_media(cell, "video") for cell in documents("x", keys)["media"]]
        wanted = [Path(path).read_bytes() for path in paths]
        assert len({*wanted}) == 6
        prepare("x", keys, tmp_path / "carried")
        for path in paths:
            Path(path).unlink()
        monkeypatch.setenv("MIR_TASK_DATA", str(tmp_path / "carried"))
        cells = documents("x", keys)["media"]
        written = [Path(open_media(cell, "video")) for cell in cells]
        assert [path.read_bytes() for path in written] == wanted
        assert {path.suffix for path in written} == {".mp4"}
        before = [path.stat().st_mtime_ns for path in written]
        assert [Path(open_media(cell, "video")) for cell in cells] == written
        assert [path.stat().st_mtime_ns for path in written] == before

    @pytest.mark.parametrize("modality", ["image", "video", "audio"])
    def test_columns_of_the_hub(self, tmp_path, modality: str) -> None:
        write = {"image": None, "video": clips, "audio": tones}[modality]
        if write:
            write(tmp_path)
        suffix = {"image": "jpg", "video": "mp4", "audio": "wav"}[modality]
        folder = PACKAGE / "demo" / "images" if modality == "image" else tmp_path
        contents = [path.read_bytes() for path in sorted(folder.glob(f"*.{suffix}"))[:6]]
        kind = {"image": datasets.Image, "video": datasets.Video, "audio": datasets.Audio}[modality]
        features = datasets.Features({modality: kind(decode=False), "text": datasets.Value("string")})
        table = pyarrow.table(
            {
                modality: [{"bytes": content, "path": None} for content in contents],
                "text": ["t"] * 6,
            },
            schema=features.arrow_schema,
        )
        pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
        rows = documents("x", self.settings(tmp_path / "rows.parquet", modality))
        assert sorted(cell["bytes"] for cell in rows["media"]) == sorted(contents)
        for cell in rows["media"]:
            open_media(cell, modality)
        other = "audio" if modality == "image" else "image"
        keys = {
            **self.settings(tmp_path / "rows.parquet", other).keys(),
            "mir_media_column": modality,
        }
        message = f"holds {modality} and mir_modality is {other}; set mir_modality: {modality}, or"
        with pytest.raises(MIRError, match=message):
            documents("x", Settings.of("task x", keys))

    @pytest.mark.parametrize(
        ("modality", "name", "content", "message"),
        [
            ("audio", "a.wav", b"not a sound", "the audio cannot be read .Format not recognised"),
            ("audio", "a.wav", b"", "the audio cannot be read"),
            ("audio", "a.wav", None, "the audio cannot be read .*System error"),
            ("audio", "a.png", b"", "a.png holds image and mir_modality is audio"),
            ("audio", "a.mp4", b"", "a.mp4 holds video and mir_modality is audio"),
            ("image", "a.mp4", b"", "a.mp4 holds video and mir_modality is image; set mir_modality"),
            ("video", "a.mp4", b"not a video", "the video cannot be read .*Invalid data"),
            ("video", "a.mp4", b"", "the video cannot be read"),
            ("video", "a.mp4", None, "the video cannot be read .*No such file"),
            ("video", "a.jpg", b"", "a.jpg holds image and mir_modality is video"),
        ],
    )
    def test_a_file_that_does_not_do(self, tmp_path, modality, name, content, message: str) -> None:
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(MIRError, match=message):
            open_media({"bytes": None, "path": str(path)}, modality)
        if content is not None:
            with pytest.raises(MIRError, match=message):
                open_media({"bytes": content, "path": name}, modality)

    def test_audio_without_samples(self, tmp_path) -> None:
        scipy.io.wavfile.write(tmp_path / "a.wav", 8_000, np.zeros(0, np.int16))
        with pytest.raises(MIRError, match="the audio holds no samples; replace or leave out"):
            open_media({"bytes": None, "path": str(tmp_path / "a.wav")}, "audio")

    def test_a_video_without_frames(self, tmp_path) -> None:
        scipy.io.wavfile.write(tmp_path / "sound", 8_000, np.zeros(800, np.int16))
        with pytest.raises(MIRError, match="the video cannot be read .it has no frames"):
            open_media({"bytes": None, "path": str(tmp_path / "sound")}, "video")

    def test_a_cell_without_a_file(self, tmp_path) -> None:
        path = tmp_path / "rows.jsonl"
        path.write_text('{"audio": [0.1, 0.2], "text": "t"}\n' * 6)
        keys = Settings.of(
            "x", {"mir_media_dataset": str(path), "mir_modality": "audio", "mir_documents": 1}
        )
        (fault,) = documents("x", keys)["fault"]
        assert fault.startswith(f"mir_media_column: {path}, line ")
        assert fault.endswith("'audio' holds list [0.1, 0.2], no file and no path of one")

    def test_soundfile_that_is_missing_is_named(self, monkeypatch) -> None:
        monkeypatch.setitem(sys.modules, "soundfile", None)
        with pytest.raises(MIRError, match=r"pip install 'mir-task\[audio\]'"):
            documents("x", self.settings("nowhere.jsonl", "audio"))


def test_data_in_ordinary_shapes(tmp_path) -> None:
    photograph().save(tmp_path / "a.png")
    (tmp_path / "rows.csv").write_text("id,image,text\n7,a.png,hello\n8,a.png,\n")
    keys = {"mir_media_dataset": str(tmp_path / "rows.csv"), "mir_media_id": "id", "mir_documents": 2}
    rows = {row["id"]: row for row in documents("x", Settings.of("task x", keys))}
    assert rows["7"]["text"] == "hello"
    assert rows["8"]["text"] == ""
    assert open_image(rows["7"]["media"]).size == photograph().size


def test_a_copy_carries_media_alone(tmp_path) -> None:
    (tmp_path / "secret.txt").write_text("a key")
    (tmp_path / "rows.jsonl").write_text('{"image": "secret.txt", "text": "t"}\n')
    keys = {"mir_media_dataset": str(tmp_path / "rows.jsonl"), "mir_documents": 1}
    with pytest.raises(MIRError, match="the image cannot be read"):
        prepare("x", Settings.of("x", keys), tmp_path / "copies")
    assert not (tmp_path / "copies" / "x.parquet").exists()
