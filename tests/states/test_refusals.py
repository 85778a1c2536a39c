"""What stored hidden states are refused for, by name: files that plain safetensors wrote."""

import json
import re
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from mir_task import DocumentStates, MIRError, from_states, modality_integration_rate, write_states
from mir_task.commands.cli import main
from mir_task.reports.leaderboard import board
from mir_task.reports.records import read_runs
from mir_task.states.norm import FinalNorm, NormKind

IMAGE = 7
MANIFEST = {
    "format": "mir-task hidden states",
    "version": 1,
    "model": "someone/model",
    "layers": 2,
    "hidden_size": 8,
    "dtype": "float32",
    "last_layer": "after_norm",
    "vision_token_ids": [IMAGE],
    "fingerprint": "abc",
}
METADATA = {"fingerprint": "abc"}


def tensors(seed: int, length: int = 20) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    ids = torch.arange(100, 100 + length)
    ids[1:9] = IMAGE
    return {"token_ids": ids, **{f"layer.{n}": torch.randn(length, 8) for n in (1, 2)}}


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "s" / "documents").mkdir(parents=True)
    (tmp_path / "s" / "manifest.json").write_text(json.dumps(MANIFEST))
    for n in range(6):
        save_file(tensors(n), tmp_path / "s" / "documents" / f"d{n}.safetensors", METADATA)
    return tmp_path / "s"


def change(folder: Path, name: str = "d3", metadata: dict = METADATA, **changes) -> None:
    path = folder / "documents" / f"{name}.safetensors"
    content = {key.replace("layer_", "layer."): value for key, value in changes.items()}
    content = {**load_file(path), **content}
    save_file({key: value for key, value in content.items() if value is not None}, path, metadata)


def manifest(folder: Path, **changes) -> None:
    content = {key: value for key, value in {**MANIFEST, **changes}.items() if value is not None}
    (folder / "manifest.json").write_text(json.dumps(content))


def refusal(folder: Path | list, **settings) -> str:
    with pytest.raises(MIRError) as caught:
        from_states(folder, bars=False, **settings)
    return str(caught.value)


def test_what_plain_safetensors_wrote_is_measured(folder) -> None:
    result = from_states(folder, groups=0, bars=False)
    rows = [tensors(n) for n in range(6)]
    pooled = [
        [torch.cat([of[f"layer.{k}"][part] for of in rows]) for k in (1, 2)]
        for part in (slice(1, 9), slice(9, None))
    ]
    assert result.mir == pytest.approx(modality_integration_rate(*pooled).mir, abs=1e-9)
    assert result.input_layer is None


def test_a_mask_and_other_media(folder) -> None:
    """Text starts after the last of any medium."""
    plain = from_states(folder, bars=False)
    manifest(folder, vision_token_ids=None)
    mask = tensors(0)["token_ids"] == IMAGE
    for n in range(6):
        change(folder, f"d{n}", vision_mask=mask)
    assert from_states(folder, bars=False).mir == plain.mir
    manifest(folder, vision_token_ids=None, media_token_ids=[112])
    later = from_states(folder, bars=False)
    assert (later.layers[0].vision_tokens, later.layers[0].text_tokens) == (48, 6 * 7)


class TestDocuments:
    """Each names the document."""

    def test_truncated(self, folder) -> None:
        path = folder / "documents" / "d3.safetensors"
        path.write_bytes(path.read_bytes()[:900])
        said = refusal(folder)
        assert said.startswith("document 'd3': ")
        assert "d3.safetensors, a document's hidden states, cannot be read (900 bytes, " in said

    def test_empty(self, folder) -> None:
        (folder / "documents" / "d3.safetensors").write_bytes(b"")
        assert "d3.safetensors, a document's hidden states, cannot be read (0 bytes, " in refusal(folder)

    @pytest.mark.parametrize("key", ["layer_2", "token_ids"])
    def test_a_missing_key(self, folder, key) -> None:
        change(folder, **{key: None})
        name = key.replace("_2", ".2")
        assert f"document 'd3': it has no tensor '{name}'; it has layer.1, " in refusal(folder)

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"layer_1": torch.ones(19, 8)}, "layer 1 has 19 positions, layer 2 20"),
            ({"layer_1": torch.ones(20)}, "layer.1 has shape [20], not [L, d]"),
            (
                {"token_ids": torch.arange(19)},
                "token_ids has shape [19], and the hidden states have 20 positions",
            ),
            ({"token_ids": torch.ones(20)}, "token_ids is of dtype F32, not I16 or I32"),
            ({"layer_2": torch.ones(20, 8).long()}, "layer.2 is of dtype I64; float32, float16"),
            ({"layer_2": torch.ones(20, 8).double()}, "layer.2 is of dtype F64; float32, float16"),
            ({"vision_mask": torch.ones(20)}, "vision_mask is of dtype F32, not BOOL or U8"),
            ({"vision_mask": torch.zeros(20).bool()}, "leaves out 8 positions whose token ids are of"),
            (
                {"token_ids": torch.arange(100, 120)},
                "it has no vision tokens: none of its token ids is of the vision_token_ids [7]",
            ),
            (
                {"token_ids": torch.full((20,), IMAGE)},
                "it has no text tokens: none of its 20 positions stands after the last vision token",
            ),
        ],
    )
    def test_shapes_and_dtypes(self, folder, changes, said) -> None:
        change(folder, **changes)
        found = refusal(folder)
        assert found.startswith("document 'd3': ")
        assert said in found
        assert "on_error=skip" in found

    @pytest.mark.parametrize("value", [torch.nan, torch.inf])
    def test_not_finite(self, folder, value) -> None:
        states = tensors(3)["layer.2"]
        states[15, 3] = value
        change(folder, layer_2=states)
        assert re.match(r"document 'd3': .*layer 2.*", refusal(folder))

    def test_a_row_that_is_no_number(self, folder) -> None:
        change(folder, metadata={**METADATA, "row": "first"})
        assert "document 'd3': its metadata has row 'first'" in refusal(folder)

    def test_skipped_and_reported(self, folder) -> None:
        change(folder, layer_2=None)
        skipped = from_states(folder, on_error="skip", groups=0, bars=False)
        (folder / "documents" / "d3.safetensors").unlink()
        assert skipped.mir == from_states(folder, groups=0, bars=False).mir


class TestMixedModels:
    """Refused whatever is done with documents that fail."""

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            (
                {"metadata": {"fingerprint": "xyz"}},
                "d3.safetensors has fingerprint 'xyz', and the manifest 'abc'",
            ),
            ({"metadata": {}}, "d3.safetensors has fingerprint None, and the manifest 'abc'"),
            ({"layer_3": torch.ones(20, 8)}, "has layer.3 beyond the manifest's layers 1 to 2"),
            ({"layer_1": torch.ones(20, 9)}, "layer.1 has 9 dimensions, the model 8"),
            ({"layer_1": torch.ones(20, 8).half()}, "layer.1 is float16, the model's states float32"),
        ],
    )
    def test_a_file(self, folder, changes, said) -> None:
        change(folder, **changes)
        assert said in refusal(folder)
        assert said in refusal(folder, on_error="skip")

    @pytest.mark.parametrize(
        ("key", "value"), [("model", "other"), ("layers", 3), ("hidden_size", 9), ("fingerprint", "xyz")]
    )
    def test_manifests(self, folder, tmp_path, key, value) -> None:
        other = tmp_path / "other"
        (other / "documents").mkdir(parents=True)
        save_file(tensors(9), other / "documents" / "d9.safetensors", METADATA)
        manifest(other)
        assert from_states([folder, other], bars=False).layers[0].vision_tokens == 7 * 8
        manifest(other, **{key: value})
        said = refusal([folder, other])
        assert (
            f"{other / 'manifest.json'} has {key} {value!r}, and {folder / 'manifest.json'} has" in said
        )

    def test_a_document_that_is_there_twice(self, folder) -> None:
        assert "document 'd" in (said := refusal([folder, folder]))
        assert "is stored twice: " in said

    def test_two_files_of_one_id(self, folder) -> None:
        documents = folder / "documents"
        (documents / "d3.safetensors").rename(documents / "d 3.safetensors")
        (documents / "d4.safetensors").rename(documents / "d%203.safetensors")
        assert "document 'd 3' is stored twice: " in refusal(folder)


class TestFolders:
    def test_empty(self, tmp_path) -> None:
        assert f"{tmp_path / 'manifest.json'} is missing: write_states writes it last" in refusal(
            tmp_path
        )

    def test_none(self) -> None:
        assert refusal([]) == "no folder of hidden states was given"

    def test_no_document(self, folder) -> None:
        for path in (folder / "documents").iterdir():
            path.unlink()
        assert "documents holds no document: one file ID.safetensors each" in refusal(folder)

    def test_a_missing_document(self, folder) -> None:
        manifest(folder, documents=[f"d{n}" for n in range(8)])
        assert "lacks 2 of the 8 documents of its manifest, first d6.safetensors" in refusal(folder)

    def test_a_document_that_is_not_listed(self, folder) -> None:
        manifest(folder, documents=[f"d{n}" for n in range(5)])
        assert "has 1 file(s) that its manifest does not list, first d5.safetensors" in refusal(folder)

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            (
                {"dtype": "float64"},
                "dtype: Input should be 'float32', 'float16' or 'bfloat16', got 'float64'",
            ),
            ({"layers": 0}, "layers: Input should be greater than or equal to 1, got 0"),
            ({"last_layer": None}, "last_layer: Field required"),
            ({"last_layer": "raw"}, "got 'raw'"),
            ({"last_layer": "before_norm"}, "last_layer is before_norm, so norm must say which"),
            ({"color": "red"}, "color: Extra inputs are not permitted, got 'red'"),
            ({"version": 2}, "version: Input should be 1, got 2"),
        ],
    )
    def test_a_manifest_that_does_not_fit(self, folder, changes, said) -> None:
        manifest(folder, **changes)
        assert f"{folder / 'manifest.json'} is no manifest of hidden states: " in (
            found := refusal(folder)
        )
        assert said in found

    def test_a_manifest_that_is_no_json(self, folder) -> None:
        (folder / "manifest.json").write_text("{")
        assert "is no manifest of hidden states: its content: Invalid JSON" in refusal(folder)

    def test_the_norm(self, folder) -> None:
        norm = {"kind": "rms", "epsilon": 1e-6}
        manifest(folder, last_layer="before_norm", norm=norm)
        assert "norm.safetensors, the weights of the final norm, is missing" in refusal(folder)
        for content, said in (
            ({"scale": torch.ones(8)}, "has no tensor 'weight', but scale"),
            ({"weight": torch.ones(9)}, "the final norm's weight has shape [9], not [8]"),
            ({"weight": torch.full((8,), torch.nan)}, "the final norm's weight holds NaN or infinity"),
        ):
            save_file(content, folder / "norm.safetensors")
            assert said in refusal(folder)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"modality": "audio"}, "take no modality='audio': it stands in the manifest"),
        ({"caption_gain": True}, "take no caption_gain=True: it takes logits, which are not stored"),
        ({"outlier": "drop"}, "outlier is no key (did you mean outliers?)"),
        ({"host_memory": 1e-9}, "raise host_memory or accelerator_memory"),
        ({"vision_token_ids": [1]}, "vision_token_ids goes with checkpoint"),
        ({"device": "quantum"}, "device 'quantum' cannot be used here"),
        pytest.param(
            {"device": "cuda:99"},
            "device 'cuda:99' cannot be used here",
            marks=pytest.mark.skipif(torch.cuda.device_count() > 99, reason="100 GPUs"),
        ),
    ],
)
def test_settings(folder, setting, said) -> None:
    assert said in refusal(folder, **setting)


class TestVLLM:
    @pytest.fixture
    def files(self, tmp_path) -> Path:
        (tmp_path / "v").mkdir()
        for n in range(3):
            of = tensors(n)
            states = torch.stack([of["layer.1"], of["layer.2"]], 1)
            save_file(
                {"hidden_states": states, "token_ids": of["token_ids"]}, tmp_path / f"v/r{n}.safetensors"
            )
        return tmp_path / "v"

    def test_what_the_checkpoint_has_to_say(self, files, llava, tmp_path) -> None:
        assert f"{tmp_path} is no folder of a checkpoint" in refusal(files, checkpoint=tmp_path)
        said = refusal(files, checkpoint=llava)
        assert f"r0.safetensors has states of 2 layers, and {llava} has 3 decoder layers: ask" in said
        assert "holds no *.safetensors of vLLM's" in refusal(tmp_path, checkpoint=llava)

    def test_files(self, files, llava) -> None:
        for path in files.iterdir():
            content = load_file(path)
            length = len(content["token_ids"])
            save_file({**content, "hidden_states": torch.randn(length, 3, 64)}, path)
        ids = {"checkpoint": llava, "vision_token_ids": [IMAGE], "groups": 0}
        assert from_states(files, bars=False, **ids).layers[0].dimensions == 64
        for content, said in (
            ({"hidden_states": torch.randn(20, 3, 32)}, "hidden_states has 32 dimensions, the model 64"),
            ({"hidden_states": torch.randn(20, 4, 64)}, "has states of 4 layers, the first file 3"),
            (
                {"hidden_states": torch.randn(20, 64)},
                "hidden_states has shape [20, 64], not [L, layers, d]",
            ),
            (
                {"token_ids": torch.arange(0)},
                "token_ids has shape [0], and the hidden states have 20 positions",
            ),
        ):
            path = files / "r2.safetensors"
            before = load_file(path)
            save_file({**before, **content}, path)
            assert said in refusal(files, **ids)
            save_file(before, path)
        save_file({"states": torch.ones(3)}, files / "r0.safetensors")
        assert "r0.safetensors has no tensor 'hidden_states'; it has states" in refusal(files, **ids)

    def test_weights(self, files, llava, tmp_path) -> None:
        (tmp_path / "c").mkdir()
        (tmp_path / "c" / "config.json").write_text((llava / "config.json").read_text())
        for path in files.iterdir():
            content = load_file(path)
            save_file({**content, "hidden_states": torch.randn(20, 3, 64)}, path)
        said = refusal(files, checkpoint=tmp_path / "c")
        assert "looked for one weight norm.weight of the text decoder" in said
        assert "found none; put it alone, as norm.weight" in said
        save_file({"norm.weight": torch.ones(63)}, tmp_path / "c" / "w.safetensors")
        assert "norm.weight" in (said := refusal(files, checkpoint=tmp_path / "c"))
        assert "has shape [63], not [64]" in said
        config = json.loads((llava / "config.json").read_text())
        (tmp_path / "c" / "config.json").write_text(json.dumps({**config, "architectures": ["Odd"]}))
        assert "is of the architecture Odd, which transformers" in refusal(
            files, checkpoint=tmp_path / "c"
        )


class TestWriting:
    """Refused as it is written, before it could be measured."""

    def write(self, tmp_path, *documents, **options):
        options = {"model": "m", "last_layer": "after_norm", "vision_token_ids": [IMAGE], **options}
        return write_states(tmp_path / "w", documents, **options)

    def document(self, name="a", **changes) -> DocumentStates:
        of = tensors(0)
        layers = {n: of[f"layer.{n}"] for n in (1, 2)}
        return DocumentStates(name, of["token_ids"], layers)._replace(**changes)

    def test_round_trip(self, tmp_path) -> None:
        names = ["a/b", "ü 1", "c.d", "..", ".x" * 30]
        norm = FinalNorm(NormKind(kind="layer", epsilon=1e-5), torch.rand(8), torch.rand(8))
        path = self.write(
            tmp_path,
            *(self.document(name, row=9 - n, text="hm") for n, name in enumerate(names)),
            last_layer="before_norm",
            norm=norm,
        )
        assert json.loads(path.read_text())["documents"] == names
        assert len(list((path.parent / "documents").iterdir())) == 5
        result = from_states(path.parent, groups=0, bars=False)
        layer = torch.nn.LayerNorm(8, eps=1e-5)
        layer.load_state_dict({"weight": norm.weight, "bias": norm.bias})
        last = layer(tensors(0)["layer.2"]).detach()
        norms = last[9:].norm(dim=1).double().mean()
        assert result.layers[1].text_norm == pytest.approx(float(norms), rel=1e-6)

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"layers": {1: torch.ones(20, 8), 3: torch.ones(20, 8)}}, "its layers are [1, 3]"),
            ({"layers": {2: torch.ones(20, 8)}}, "its layers are [2]"),
            ({"layers": {0: torch.ones(20, 8)}}, "it has no decoder layer, only its input"),
            ({"layers": {1: torch.ones(1, 20, 8)}}, "layer 1 has shape [1, 20, 8], not [L, d]"),
            (
                {"layers": {1: torch.ones(20, 8), 2: torch.ones(20, 9)}},
                "layer 1 is [20, 8] of torch.float32",
            ),
            ({"layers": {1: torch.ones(20, 8).double()}}, "its hidden states are float64"),
            (
                {"vision_mask": torch.ones(20)},
                "vision_mask is [20] of torch.float32, not [20] of torch.bool",
            ),
            ({"id": ""}, "its id has to be a text"),
        ],
    )
    def test_a_document(self, tmp_path, changes, said) -> None:
        with pytest.raises(MIRError, match=re.escape(said)):
            self.write(tmp_path, self.document(**changes))

    def test_documents_that_differ(self, tmp_path) -> None:
        other = self.document("b", layers={1: torch.ones(20, 8)})
        with pytest.raises(MIRError, match="document 'b' has layers 1; the first, 'a', has layers 2, "):
            self.write(tmp_path, self.document(), other)
        assert "manifest.json is missing" in refusal(tmp_path / "w")
        with pytest.raises(
            MIRError, match="is not empty; write hidden states of each model to a folder"
        ):
            self.write(tmp_path, self.document())

    def test_what_is_missing(self, tmp_path) -> None:
        with pytest.raises(
            MIRError, match="document 'a' has no vision_mask; give it, or vision_token_ids"
        ):
            self.write(tmp_path, self.document(), vision_token_ids=[])
        with pytest.raises(MIRError, match="was given no document"):
            write_states(tmp_path / "n", [], model="m", last_layer="after_norm")
        with pytest.raises(MIRError, match="last_layer is before_norm, so norm must say which"):
            write_states(tmp_path / "o", [self.document()], model="m", last_layer="before_norm")
        with pytest.raises(MIRError, match="document 'a' came before"):
            write_states(
                tmp_path / "p",
                [self.document()] * 2,
                model="m",
                last_layer="after_norm",
                vision_token_ids=[7],
            )


def test_checkpoints_of_one_name_and_tasks_with_a_slash_are_told_apart(folder, tmp_path) -> None:
    for n in range(2):
        manifest(folder, fingerprint=f"step-{n}", task="org/set")
        for path in (folder / "documents").iterdir():
            save_file(load_file(path), path, {"fingerprint": f"step-{n}"})
        arguments = ["states", str(folder), "--groups", "0", "--output_path", str(tmp_path / "out")]
        printed = CliRunner().invoke(main, arguments)
        assert printed.exit_code == 0, printed.output
    (group,) = board(read_runs([tmp_path / "out"]))["groups"]
    assert group["task"] == "org/set"
    assert sorted(row["arguments"] for row in group["rows"]) == [
        "fingerprint=step-0",
        "fingerprint=step-1",
    ]
