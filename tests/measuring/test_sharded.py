"""Sharded and replicated models in several processes, of whose documents one cannot be measured."""

import json
from pathlib import Path

import pytest
import transformers

import mir_task
from mir_task.measuring.sharded import refuse_unknown_sharding
from tests.support import evaluate, fail_in_processes
from tests.support.command import torchrun

PLACES = fail_in_processes.PLACES
CAUSES = {"text": "the text is empty", "medium": "ZeroDivisionError", "forward": "do not match"}
LOGGED = "MIR could not be measured after step 1: "


@pytest.fixture(scope="module")
def found(llava, tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("processes")
    checkout = Path(__file__).parents[2]
    torchrun(2, "-m", "tests.support.fail_in_processes", str(llava), str(folder), cwd=checkout)
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]


@pytest.fixture(scope="module")
def alone(llava) -> dict[str, dict[int, float]]:
    """What one process measures without the bad document, by its place."""
    processor = transformers.AutoProcessor.from_pretrained(llava)
    model = transformers.LlavaForConditionalGeneration.from_pretrained(llava)
    values: dict[str, dict[int, float]] = {"library": {}, "callback": {}, "task": {}}
    for place in PLACES:
        rows = fail_in_processes.OneBad("text", place, processor)
        good = [pair for number, pair in enumerate(rows.pairs) if number != place]
        for name, options in (("library", {"encode": rows.encode}), ("callback", {})):
            result = mir_task.measure(model, processor, good, groups=0, bars=False, **options)
            values[name][place] = result.mir
        task = evaluate.task(mir_documents=fail_in_processes.DOCUMENTS)
        good = [pair for number, pair in enumerate(evaluate.pairs_of(task)) if number != place]
        values["task"][place] = mir_task.measure(model, processor, good, groups=0, bars=False).mir
    return values


@pytest.mark.slow
@pytest.mark.parametrize("kind", fail_in_processes.CASES)
@pytest.mark.parametrize("way", ["library", "callback", "task"])
def test_a_bad_document_ends_no_process(found, alone, kind: str, way: str) -> None:
    outcomes = [of_rank[kind][way] for of_rank in found]
    for case in outcomes[0]:
        if case.startswith("step"):  # the training step that follows is that of the model alone
            assert outcomes[0][case] == outcomes[1][case] == found[0]["ddp"]["library"]["step before"]
            continue
        *_, place, on_error = case.split()
        first, second = (of_rank[case] for of_rank in outcomes)
        if on_error == "skip":
            assert first == pytest.approx(alone[way][int(place)], abs=1e-6)
            assert second == (None if way == "task" else first)  # the harness's results are process 0's
        else:
            assert CAUSES[case.split()[0] if way == "library" else "text"] in first
            assert f"process 0 failed: MIRError: {first.removeprefix(LOGGED)}" in second


@pytest.mark.slow
def test_models_that_are_split_otherwise_are_refused_by_name(found) -> None:
    messages = found[0]["refused"]
    assert "is split over processes by tensor parallelism" in messages["tensor parallel"]
    assert "are sharded by FullyShardedDataParallel, which flattens them" in messages["fsdp1"]
    assert "are sharded by DeepSpeed's ZeRO stage 3" in messages["zero3"]
    assert all("MIR is measured under FSDP2" in messages[name] for name in ("fsdp1", "zero3"))


def test_a_whole_model_is_not_refused(llava) -> None:
    refuse_unknown_sharding(transformers.LlavaForConditionalGeneration.from_pretrained(llava))
