"""MIR through the harness's own evaluator and adapter, in one process."""

import json

import pytest
import torch

from mir_task import MIRError, MIRResult
from tests.support import evaluate, independent


@pytest.fixture(scope="module")
def adapter(llava):
    """Makes a fresh adapter: the harness deletes the model of one that has run."""
    return lambda **arguments: evaluate.load(llava, **arguments)


@pytest.mark.parametrize(
    ("force_simple", "placement"),
    [(False, None), (False, "user_generate"), (True, None), (True, "user_generate")],
)
def test_mir_equals_an_independent_computation(
    adapter, llava, tmp_path, monkeypatch, force_simple: bool, placement: str | None
) -> None:
    from transformers import LlavaForConditionalGeneration

    lm = adapter(force_simple=force_simple)
    received = evaluate.Received(LlavaForConditionalGeneration, monkeypatch)
    results = evaluate.evaluate(lm, evaluate.task(mir_placement=placement), output=tmp_path)
    scores = results["results"]["mir_test"]
    assert len(received.documents) == 6
    monkeypatch.undo()
    model = LlavaForConditionalGeneration.from_pretrained(llava, dtype=torch.float32).eval()
    wanted = independent.mir_of_model(model, received.documents)
    assert scores["mir,none"] == pytest.approx(wanted, abs=1e-4)

    report = evaluate.report(tmp_path)
    assert report["mir"] == scores["mir,none"]
    spans = [document["text_span"] for document in report["documents"]]
    if report["placement"] == "assistant_chat":
        assert all(span.endswith("</s> ASSISTANT:") for span in spans)
    elif report["placement"] == "assistant_loglikelihood":
        assert all(span.endswith("</s>") for span in spans)
    else:
        assert report["placement"] == "user_generate"
        assert all(span.endswith(" ASSISTANT:") and "</s>" not in span for span in spans)


def test_results_and_side_file(adapter, tmp_path) -> None:
    task = evaluate.task()
    results = evaluate.evaluate(adapter(), task, output=tmp_path)
    scores = results["results"]["mir_test"]
    report = evaluate.report(tmp_path)
    assert report["schema_version"] == 1
    result = MIRResult.from_dict(report)
    assert result == task.result
    assert scores["mir,none"] == result.mir
    assert scores["mir_published_fast,none"] == result.mir_published_fast
    assert scores["mir_stderr,none"] == result.mir_stderr > 0
    assert scores["mir_stderr_clt,none"] == "N/A"
    assert results["higher_is_better"]["mir_test"]["mir"] is False
    assert results["configs"]["mir_test"]["metadata"]["mir_documents"] == 6
    assert len(report["leave_one_group_out"]) == 3
    assert [d["id"] for d in report["documents"]] == list(task.test_docs()["id"])
    layer = report["layers"][0]
    assert layer["vision_tokens"] == sum(d["vision_tokens"] for d in report["documents"])
    assert layer["text_tokens"] == sum(d["text_tokens"] for d in report["documents"])
    for document, row in zip(report["documents"], task.test_docs(), strict=True):
        assert row["text"] in document["text_span"]
        assert document["vision_rule"] == "token_ids+provenance"
    for key in ("transformers", "torch", "lmms-eval", "mir-task"):
        assert report["versions"][key]
    (plot,) = tmp_path.rglob("*_mir_mir_test.png")
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_samples_carry_token_counts(adapter, tmp_path) -> None:
    results = evaluate.evaluate(adapter(), evaluate.task(), output=tmp_path, log_samples=True)
    counts = {d["row"]: d for d in evaluate.report(tmp_path)["documents"]}
    samples = results["samples"]["mir_test"]
    assert len(samples) == 6
    for sample in samples:
        document = counts[sample["doc_id"]]
        assert sample["token_counts"] == [{"input_tokens": document["tokens"]}]
        assert sample["mir"]["vision_tokens"] == document["vision_tokens"] == 16
        assert sample["mir"]["text_tokens"] == document["text_tokens"]


def test_limit_offset_repeats_and_batches(adapter, tmp_path) -> None:
    whole = evaluate.evaluate(adapter(), evaluate.task(), output=tmp_path / "whole")
    assert whole["results"]["mir_test"]["mir_stderr,none"] != "N/A"
    evaluate.evaluate(adapter(), evaluate.task(), output=tmp_path / "part", limit=3, offset=2)
    part = evaluate.report(tmp_path / "part")
    ids = [d["id"] for d in evaluate.report(tmp_path / "whole")["documents"]]
    assert [d["id"] for d in part["documents"]] == ids[2:5]
    repeated = evaluate.evaluate(adapter(), evaluate.task(), repeats=3)
    assert repeated["results"]["mir_test"]["mir,none"] == whole["results"]["mir_test"]["mir,none"]


def test_the_cache_of_requests_does_not_fix_the_number_of_documents(adapter, tmp_path) -> None:
    for count in (4, 8, 3):
        output = tmp_path / str(count)
        task = evaluate.task(mir_documents=count)
        evaluate.evaluate(adapter(), task, output=output, cache_requests=True)
        assert len(evaluate.report(output)["documents"]) == count


def test_a_task_object_used_again_reports_the_run_at_hand(llava, tmp_path) -> None:
    def weaken(state: dict[str, torch.Tensor]) -> None:
        for name in state:
            if name.startswith("multi_modal_projector"):
                state[name] *= 3

    other = evaluate.variant(llava, tmp_path / "other", weights=weaken)
    first, second = evaluate.task(), evaluate.task()
    values = []
    for task, checkpoint in ((first, llava), (second, other), (first, other)):
        results = evaluate.evaluate(evaluate.load(checkpoint), task)
        values.append(results["results"]["mir_test"]["mir,none"])
    assert values[0] != values[1]
    assert values[2] == values[1]


def test_several_tasks_in_one_call(adapter, tmp_path) -> None:
    alone = evaluate.evaluate(adapter(), evaluate.task(task="mir_a", mir_seed=1))
    both = evaluate.evaluate(
        adapter(),
        evaluate.task(task="mir_a", mir_seed=1),
        evaluate.task(task="mir_b", mir_outliers="drop"),
        output=tmp_path,
    )
    assert both["results"]["mir_a"] == alone["results"]["mir_a"]
    assert both["results"]["mir_b"]["mir,none"] != alone["results"]["mir_a"]["mir,none"]
    assert len(list(tmp_path.rglob("*_mir_mir_[ab].json"))) == 2


def test_a_benchmark_in_the_same_run_keeps_its_score_and_throughput(adapter) -> None:
    from lmms_eval.models.model_utils import gen_metrics

    alone = evaluate.evaluate(adapter(), "demo_vqa", limit=5)
    beside = evaluate.evaluate(adapter(), evaluate.task(), "demo_vqa", limit=5)
    assert beside["results"]["demo_vqa"] == alone["results"]["demo_vqa"]
    assert "mir,none" in beside["results"]["mir_test"]
    assert beside["throughput"]["total_gen_tokens"] == alone["throughput"]["total_gen_tokens"] > 0
    assert len(gen_metrics.get_logged_metrics_history()) == 1
    only_mir = evaluate.evaluate(adapter(), evaluate.task(), limit=5)
    assert "throughput" not in only_mir


@pytest.mark.parametrize("names", [("mir_demo", "demo_vqa"), ("demo_vqa", "mir_demo")])
def test_side_file_is_there_before_other_tasks_run(adapter, tmp_path, monkeypatch, names) -> None:
    lm = adapter()
    monkeypatch.setattr(type(lm), "generate_until", fails_on("demo_vqa", type(lm).generate_until))
    with pytest.raises(RuntimeError, match="the benchmark broke"):
        evaluate.evaluate(lm, *names, output=tmp_path, limit=5)
    assert evaluate.report(tmp_path)["mir"]


def test_efficiency_figures_of_the_benchmark_are_its_own(adapter) -> None:
    alone = evaluate.evaluate(adapter(), "demo_vqa", limit=5, log_samples=True)
    beside = evaluate.evaluate(adapter(), "demo_vqa", "mir_demo", limit=5, log_samples=True)
    assert beside["efficiency"] == alone["efficiency"]
    assert beside["samples"]["mir_demo"][0]["token_counts"][0]["input_tokens"] > 0


def fails_on(name: str, generate_until):
    def failing(lm, requests):
        if requests[0].task_name == name:
            raise RuntimeError("the benchmark broke")
        return generate_until(lm, requests)

    return failing


def test_an_existing_mir_task_is_inherited(adapter) -> None:
    from mir_task.harness import MIRTask

    base = MIRTask({"task": "x", "mir_base": "mir_demo", "mir_documents": 3})
    assert base.settings.text_dataset == "mir_task:demo/passages.jsonl"
    assert base.settings.documents == 3
    with pytest.raises(MIRError, match="mir_base is 'mir_nowhere', and no MIR task has that name"):
        MIRTask({"task": "x", "mir_base": "mir_nowhere"})


@pytest.fixture
def documents(tmp_path):
    """Writes documents of texts and image files, and gives the task's keys for them."""
    from PIL import Image

    def write(texts: list[str], images: dict[int, bytes] | None = None) -> dict[str, object]:
        for n in range(len(texts)):
            path = tmp_path / f"{n}.png"
            Image.new("RGB", (40, 30), (40 * n, 9, 200)).save(path)
            if images and n in images:
                path.write_bytes(images[n])
        rows = [{"id": f"doc{n}", "image": f"{n}.png", "text": t} for n, t in enumerate(texts)]
        source = tmp_path / "documents.jsonl"
        source.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return {
            "mir_base": None,
            "mir_media_dataset": str(source),
            "mir_media_id": "id",
            "mir_documents": len(texts),
            "mir_groups": 0,
        }

    return write


PROSE = [
    "The ferry leaves at noon and comes back when the tide allows it, which is seldom on time.",
    "Two clocks in one room never agree for long, and the cheaper one is not always wrong.",
    "Gravel is sold by the tonne but delivered by the lorry, so measure your drive twice.",
]


class TestBadInput:
    def fails(self, lm, message: str, **changes) -> None:
        with pytest.raises(MIRError, match=message):
            evaluate.evaluate(lm, evaluate.task(**changes))

    def test_no_model_in_the_process(self) -> None:
        from lmms_eval.models import get_model

        lm = get_model("dummy").create_from_arg_string("")
        self.fails(lm, "adapter Dummy holds no PyTorch model .* --model llava_hf")

    def test_an_adapter_that_would_load_another_kind_of_model(self, tmp_path) -> None:
        from lmms_eval.models import get_model

        lm = get_model("cosmos_wm").create_from_arg_string(f"output_dir={tmp_path},device=cpu")
        self.fails(lm, "CosmosWorldModel cannot load a model: .* backend='transformers_reasoner'")

    def test_unreadable_image(self, adapter, documents) -> None:
        keys = documents(PROSE, images={1: b"not a picture"})
        self.fails(adapter(), "document 'doc1': the image cannot be read .* leave out", **keys)

    def test_truncated_image(self, adapter, documents, tmp_path) -> None:
        keys = documents(PROSE)
        whole = (tmp_path / "2.png").read_bytes()
        (tmp_path / "2.png").write_bytes(whole[: len(whole) // 2])
        self.fails(adapter(), "document 'doc2': the image cannot be read", **keys)

    def test_empty_text(self, adapter, documents) -> None:
        keys = documents([PROSE[0], "  \n", PROSE[1]])
        self.fails(adapter(), "document 'doc1': the text is empty", **keys)

    def test_text_before_the_image(self, llava, tmp_path) -> None:
        checkpoint = evaluate.variant(
            llava,
            tmp_path / "backwards",
            template=lambda t: t.replace("for message in messages", "for message in messages[::-1]"),
        )
        self.fails(
            evaluate.load(checkpoint),
            "no token of the document's own text stands after the image",
            mir_placement="assistant_chat",
        )
        # Left to choose, the task takes the placement that works, and says so.
        evaluate.evaluate(evaluate.load(checkpoint), evaluate.task(), output=tmp_path / "out")
        assert evaluate.report(tmp_path / "out")["placement"] == "user_generate"

    def test_nan_names_layer_and_document(self, llava, tmp_path) -> None:
        def spoil(state: dict[str, torch.Tensor]) -> None:
            (name,) = [
                n for n in state if n.endswith("layers.1.mlp.down_proj.weight") and "vision" not in n
            ]
            state[name][0, 0] = float("nan")

        checkpoint = evaluate.variant(llava, tmp_path / "nan", weights=spoil)
        self.fails(evaluate.load(checkpoint), r"document '.*': layer 2: NaN or infinity")

    def test_one_vision_token(self, tmp_path) -> None:
        from mir_task.demo.checkpoint import make_llava

        checkpoint = make_llava(tmp_path / "tiny", hidden_size=32, layers=2, image_size=14)
        self.fails(
            evaluate.load(checkpoint),
            r"layer 0: 1 vision token\(s\); .* more documents",
            mir_documents=1,
            mir_groups=0,
        )

    def test_the_cause_of_a_swallowed_exception_comes_out(self, llava, tmp_path) -> None:
        checkpoint = evaluate.variant(
            llava, tmp_path / "mute", template=lambda t: t.replace("<image>", "")
        )
        self.fails(
            evaluate.load(checkpoint), r"ValueError: .*[Ii]mage.* the cause is the model or the options"
        )

    def test_no_vision_rows(self, llama_vision) -> None:
        lm = evaluate.load(llama_vision, model="llama_vision")
        self.fails(
            lm, "user_generate: MllamaForConditionalGeneration has no vision tokens .*cross-attention"
        )

    def test_unknown_key_and_value(self) -> None:
        with pytest.raises(MIRError, match=r"mir_documenst is no key \(did you mean mir_documents"):
            evaluate.task(mir_documenst=3)
        with pytest.raises(
            MIRError, match="task mir_test: mir_outliers is .*: it must be 'replace' or 'drop'"
        ):
            evaluate.task(mir_outliers="keep")

    def test_more_documents_than_there_are(self) -> None:
        with pytest.raises(
            MIRError, match="mir_documents asks for 101, and .* has 100 different rows: lower"
        ):
            evaluate.task(mir_documents=101)

    def test_skipping_counts_and_reports(self, adapter, documents, tmp_path) -> None:
        keys = documents([PROSE[0], "", *PROSE[1:]], images={3: b"not a picture"})
        out = tmp_path / "out"
        results = evaluate.evaluate(
            adapter(), evaluate.task(**keys, mir_on_error="skip"), output=out, log_samples=True
        )
        report = evaluate.report(out)
        assert {d["id"] for d in report["documents"]} == {"doc0", "doc2"}
        assert report["skipped"]["doc1"].startswith("the text is empty")
        assert report["skipped"]["doc3"].startswith("the image cannot be read")
        assert results["results"]["mir_test"]["mir,none"] == report["mir"]

    def test_more_than_half_skipped_is_an_error(self, adapter, documents, tmp_path) -> None:
        keys = documents([PROSE[0], PROSE[1], "", "", ""], images={2: b"none"})
        self.fails(
            adapter(),
            "3 of 5 documents could not be .* 3 of them: the text is empty.*mir_min_documents: 2",
            **keys,
            mir_on_error="skip",
        )
        task = evaluate.task(**keys, mir_on_error="skip", mir_min_documents=2)
        evaluate.evaluate(adapter(), task, output=tmp_path / "out")
        report = evaluate.report(tmp_path / "out")
        assert len(report["documents"]) == 2
        (warning,) = [w for w in report["warnings"] if "left out" in w]
        assert "3 of them: the text is empty" in warning

    def test_what_fails_for_all_is_told_once_without_a_document(self, adapter, documents) -> None:
        def broken(*arguments, **keywords):
            raise AssertionError("batches of one only")

        for keys in ({}, {"mir_on_error": "skip"}):
            lm = adapter()
            lm._model.generate = broken
            with pytest.raises(MIRError) as raised:
                evaluate.evaluate(lm, evaluate.task(**keys))
            message = str(raised.value)
            assert "AssertionError: batches of one only" in message
            assert "the cause is the model or the options that it was loaded with" in message
            assert "mir_on_error" not in message
            assert "document '" not in message

    def test_two_bad_documents_are_no_fault_of_the_model(self, adapter, documents, tmp_path) -> None:
        keys = documents(["", "", *PROSE[:3]], images={})
        evaluate.evaluate(adapter(), evaluate.task(**keys, mir_on_error="skip"), output=tmp_path / "out")
        assert len(evaluate.report(tmp_path / "out")["documents"]) == 3

    def test_skipping_everything_is_an_error(self, adapter, documents) -> None:
        keys = documents(["", " "])
        self.fails(
            adapter(),
            "no document could be measured; 2 of them: the text is empty",
            **keys,
            mir_on_error="skip",
        )


class TestLength:
    def test_texts_beyond_the_context_are_named_before_the_run(self, adapter, documents) -> None:
        long = " ".join(PROSE * 40)
        keys = documents([PROSE[0], f"A. {long}", PROSE[1], f"B. {long}"])
        lm = adapter()
        lm._model.config.text_config.max_position_embeddings = 600
        message = r"2 document\(s\) are longer than the 600 positions .*: doc[13], doc[13] "
        with pytest.raises(MIRError, match=message):
            evaluate.evaluate(lm, evaluate.task(**keys))

    def test_what_stands_beside_the_text_counts(self, adapter, documents) -> None:
        keys = documents([PROSE[0], " ".join(PROSE * 3)])
        lm = adapter()
        first = evaluate.task(**keys)
        words = lm.tokenizer.encode(first.test_docs()[1]["text"], add_special_tokens=False)
        lm._model.config.text_config.max_position_embeddings = len(words) + 10
        with pytest.raises(MIRError, match=r"1 document\(s\) are longer than the .*: doc1"):
            evaluate.evaluate(lm, first)

    def test_skipping_leaves_them_out(self, adapter, documents, tmp_path) -> None:
        keys = documents([*PROSE, " ".join(PROSE * 40)])
        lm = adapter()
        lm._model.config.text_config.max_position_embeddings = 600
        out = tmp_path / "out"
        evaluate.evaluate(lm, evaluate.task(**keys, mir_on_error="skip"), output=out)
        report = evaluate.report(out)
        assert list(report["skipped"]) == ["doc3"]
        (warning,) = [w for w in report["warnings"] if "left out" in w]
        assert warning.startswith(
            "1 document(s) could not be measured and are left out: doc3. 1 of them:"
        )

    def test_a_limit_of_words(self, adapter, documents, tmp_path) -> None:
        keys = documents([" ".join(PROSE * 40), PROSE[0]])
        lm = adapter()
        lm._model.config.text_config.max_position_embeddings = 600
        out = tmp_path / "out"
        evaluate.evaluate(lm, evaluate.task(**keys, mir_text_limit=20), output=out)
        report = evaluate.report(out)
        assert report["settings"]["mir_text_limit"] == 20
        assert len(report["documents"]) == 2


def test_fewer_tokens_than_dimensions_are_warned_of(adapter, documents, tmp_path) -> None:
    keys = documents(PROSE[:2])
    evaluate.evaluate(adapter(), evaluate.task(**keys), output=tmp_path / "out")
    (warning,) = evaluate.report(tmp_path / "out")["warnings"]
    assert warning.startswith("32 vision tokens in 64 dimensions: their covariance is singular")


@pytest.mark.parametrize(
    "name", ["grey.png", "palette.gif", "cmyk.jpg", "alpha.png", "dot.png", "huge.png"]
)
def test_images_of_every_mode_are_measured(adapter, documents, tmp_path, name: str) -> None:
    from PIL import Image

    modes = {"grey.png": "L", "palette.gif": "P", "cmyk.jpg": "CMYK", "alpha.png": "RGBA"}
    size = {"dot.png": (1, 1), "huge.png": (10_000, 10_000)}.get(name, (50, 40))
    Image.new("RGB", size, (200, 90, 10)).convert(modes.get(name, "RGB")).save(tmp_path / name)
    keys = documents(PROSE, images={1: (tmp_path / name).read_bytes()})
    scores = evaluate.evaluate(adapter(), evaluate.task(**keys))["results"]["mir_test"]
    assert isinstance(scores["mir,none"], float)


class TestPlacement:
    def failing(self, lm, monkeypatch, calls: int) -> None:
        """Have the first calls of the model run out of memory."""
        generate, left = lm._model.generate, [calls]

        def broken(*args, **kwargs):
            left[0] -= 1
            if left[0] >= 0:
                raise torch.OutOfMemoryError("out of memory")
            return generate(*args, **kwargs)

        monkeypatch.setattr(lm._model, "generate", broken)

    def test_an_accident_on_the_first_document_does_not_change_it(self, adapter, tmp_path, monkeypatch):
        wanted = evaluate.evaluate(adapter(), evaluate.task())["results"]["mir_test"]
        lm = adapter()
        self.failing(lm, monkeypatch, calls=1)
        scores = evaluate.evaluate(lm, evaluate.task(), output=tmp_path)["results"]["mir_test"]
        assert evaluate.report(tmp_path)["placement"] == "assistant_chat"
        assert scores == wanted

    def test_a_fallback_is_in_the_side_file(self, adapter, tmp_path) -> None:
        evaluate.evaluate(adapter(force_simple=True), evaluate.task(), output=tmp_path)
        report = evaluate.report(tmp_path)
        if report["placement"] == "assistant_loglikelihood":  # on transformers 4
            assert not any("does not do" in warning for warning in report["warnings"])
        else:
            assert any("does not do assistant_loglikelihood" in w for w in report["warnings"])


def test_lists_of_metadata_are_taken_in(adapter) -> None:
    task = evaluate.task(metadata=[{"version": 3.0}, {"author": "me"}])
    assert task.config.metadata["version"] == 3.0
    assert task.config.metadata["author"] == "me"


@pytest.mark.parametrize("error", [StopIteration, KeyError("x"), TypeError("metadata"), OSError("disk")])
def test_whatever_a_task_raises_while_it_loads_takes_no_other_along(adapter, monkeypatch, error) -> None:
    """`map` in the harness takes StopIteration for the end of its list."""
    from lmms_eval.tasks import TaskManager
    from loguru import logger

    from mir_task.harness import task as module

    draw = module.documents

    def failing(name: str, settings):
        if name == "mir_scenes":
            raise error
        return draw(name, settings)

    monkeypatch.setattr(module, "documents", failing)
    said: list[str] = []
    sink = logger.add(said.append, level="ERROR", format="{message}")
    tasks = TaskManager().load_task_or_group(["mir_scenes", "mir_demo", "demo_vqa"])
    logger.remove(sink)
    assert set(tasks) == {"mir_scenes", "mir_demo", "demo_vqa"}
    assert [name for name, task in tasks.items() if getattr(task, "failure", None)] == ["mir_scenes"]
    (line,) = [line for line in said if "cannot be measured" in line]
    assert "task mir_scenes of " in line
    assert "mir_scenes.yaml cannot be loaded" in line
    with pytest.raises(MIRError, match="task mir_scenes of .* cannot be loaded"):
        TaskManager().load_task_or_group(["mir_scenes"])


def test_a_task_that_cannot_be_measured_leaves_the_others_their_results(
    adapter, documents, tmp_path
) -> None:
    keys = documents(["", ""])
    for name in ("both", "benchmark"):
        bad = evaluate.task(**{**keys, "task": "mir_bad"}, mir_on_error="skip")
        tasks = [bad, *([evaluate.task()] if name == "both" else []), "demo_vqa"]
        out = tmp_path / name
        scores = evaluate.evaluate(adapter(), *tasks, output=out, limit=4)["results"]
        assert scores["mir_bad"]["mir,none"] == "N/A"
        assert isinstance(scores["demo_vqa"]["exact_match,none"], float)
        (path,) = out.rglob("*_failed_mir_bad.json")
        assert "no document could be measured; 2 of them: the text is empty" in path.read_text()
        assert len(list(out.rglob("*_mir_mir_test.json"))) == (name == "both")
    with pytest.raises(MIRError, match="no document could be measured"):
        evaluate.evaluate(adapter(), bad)


def test_a_task_whose_requests_were_not_answered_is_no_value(adapter) -> None:
    with pytest.raises(AssertionError, match="aggregated before its requests"):
        evaluate.task().aggregation()


def test_a_run_that_cannot_be_read_still_has_its_values(adapter, tmp_path, monkeypatch) -> None:
    from mir_task.harness import output

    def broken(run, frame):
        raise AttributeError("another tracker")

    monkeypatch.setattr(output, "_read", broken)
    scores = evaluate.evaluate(adapter(), evaluate.task(), output=tmp_path)["results"]["mir_test"]
    assert isinstance(scores["mir,none"], float)
    assert not list(tmp_path.rglob("*_mir_mir_test.json"))


def test_a_model_in_training_mode_is_measured_in_evaluation_mode(adapter, tmp_path) -> None:
    values = []
    for training in (False, True):
        lm = adapter()
        model = lm._model
        model.model.language_model.layers[1].register_module("noise", torch.nn.Dropout(0.5))
        layer = model.model.language_model.layers[1]
        layer.mlp.register_forward_hook(lambda _, args, out, layer=layer: layer.noise(out))
        model.train(training)
        scores = evaluate.evaluate(lm, evaluate.task())["results"]["mir_test"]
        assert model.training is training
        values.append(scores["mir,none"])
    assert values[0] == values[1]


@pytest.mark.parametrize("output", [2026, 1e3, True])
def test_output_paths_that_are_no_text(adapter, tmp_path, monkeypatch, output) -> None:
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.loggers import EvaluationTracker

    monkeypatch.chdir(tmp_path)
    tracker = EvaluationTracker(output_path=str(output))
    tracker.output_path = output
    simple_evaluate(
        model=adapter(),
        tasks=[evaluate.task()],
        task_manager=evaluate.task_manager(),
        evaluation_tracker=tracker,
        bootstrap_iters=0,
        datetime_str=None,
    )
    assert len(list((tmp_path / str(output)).rglob("*_mir_mir_test.json"))) == 1


def test_secrets_stay_out_of_the_side_file(adapter, llava, tmp_path) -> None:
    evaluate.evaluate(
        adapter(), evaluate.task(), output=tmp_path, model_args=f"folder={llava},hf_token=hf_secret123"
    )
    (path,) = tmp_path.rglob("*_mir_*.json")
    assert "secret123" not in path.read_text()


class TestBases:
    def test_a_base_of_the_tasks_own_name_is_the_packaged_one(self) -> None:
        task = evaluate.task(task="mir_demo", mir_base="mir_demo", mir_documents=3)
        assert task.settings.text_dataset == "mir_task:demo/passages.jsonl"

    def test_a_circle_is_named(self, tmp_path) -> None:
        from mir_task.tasks import read_task, tasks_in

        for name, base in (("mir_a", "mir_b"), ("mir_b", "mir_a")):
            (tmp_path / f"file_{name}.yaml").write_text(f"task: {name}\nmir_base: {base}\n")
        paths = tasks_in(tmp_path)
        assert set(paths) == {"mir_a", "mir_b"}
        with pytest.raises(MIRError, match="in a circle: mir_b -> mir_a -> mir_b"):
            read_task(paths["mir_a"], paths)


def test_a_task_that_cannot_be_measured_loses_no_other(llava, tmp_path) -> None:
    bad = evaluate.task(task="mir_bad", mir_text_rows=5000)
    good = evaluate.task(task="mir_good", mir_documents=3, mir_groups=0)
    scores = evaluate.evaluate(evaluate.load(llava), bad, good, output=tmp_path)["results"]
    assert scores["mir_bad"]["mir,none"] == "N/A"
    assert isinstance(scores["mir_good"]["mir,none"], float)
    (reason,) = tmp_path.rglob("*_failed_mir_bad.json")
    assert "5000 were asked for: lower mir_text_rows" in reason.read_text()
    reason.unlink()
    assert evaluate.report(tmp_path)["task"] == "mir_good"
