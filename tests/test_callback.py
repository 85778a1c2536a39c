"""`MIRCallback` in the Trainer."""

import copy
import json
import math
from pathlib import Path

import pytest
import torch
import transformers
from loguru import logger

import mir_task
from mir_task.callback import MIRCallback, improves
from mir_task.errors import MIRError
from mir_task.result import MIRResult
from tests.support import evaluate, runs
from tests.support.command import torchrun


@pytest.fixture(scope="module")
def pairs():
    return evaluate.pairs_of(evaluate.task(mir_documents=10))


@pytest.fixture
def model(llava):
    """With dropout, so that a random number drawn on the way would change what is learned."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    config = LlavaConfig.from_pretrained(llava)
    config.text_config.attention_dropout = config.vision_config.attention_dropout = 0.1
    return LlavaForConditionalGeneration.from_pretrained(llava, config=config)


def trainer_of(model, llava, pairs, output, **changes):
    from transformers import AutoProcessor, Trainer, TrainingArguments

    processor = AutoProcessor.from_pretrained(llava)

    def collate(rows):
        images, texts = zip(*rows, strict=True)
        prompts = [f"<image>\n{text[:200]}" for text in texts]
        inputs = processor(images=list(images), text=prompts, padding=True, return_tensors="pt")
        ignored = inputs["input_ids"] == model.config.image_token_id
        return {**inputs, "labels": inputs["input_ids"].masked_fill(ignored, -100)}

    arguments = {
        "max_steps": 6,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "logging_steps": 2,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "use_cpu": True,
        **changes,
    }
    rows, held_out = pairs[:6], pairs[6:]
    arguments = TrainingArguments(str(output), **arguments)
    trainer = Trainer(model, arguments, collate, rows, eval_dataset=held_out, processing_class=processor)
    return trainer, held_out


def logged(trainer) -> list[dict[str, float]]:
    return [entry for entry in trainer.state.log_history if "mir" in entry]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_weights_are_those_of_a_training_without_it(
    model, llava, pairs, tmp_path, checkpointing
) -> None:
    runs = []
    for watched in (False, True):
        learner = copy.deepcopy(model)
        trainer, held_out = trainer_of(
            learner, llava, pairs, tmp_path, gradient_checkpointing=checkpointing
        )
        if watched:
            trainer.add_callback(MIRCallback(trainer, held_out, every=2, groups=2))
        trainer.train()
        losses = [entry for entry in trainer.state.log_history if "loss" in entry]
        runs.append((learner.state_dict(), losses, torch.get_rng_state()))
    (plain, plain_losses, plain_random), (other, other_losses, other_random) = runs
    assert all(torch.equal(plain[key], other[key]) for key in plain)
    assert not all(torch.equal(plain[key], value) for key, value in model.state_dict().items())
    assert [entry["loss"] for entry in plain_losses] == [entry["loss"] for entry in other_losses]
    assert len(plain_losses) == 3
    assert torch.equal(plain_random, other_random)


def test_what_is_logged(model, llava, pairs, tmp_path) -> None:
    trainer, held_out = trainer_of(model, llava, pairs, tmp_path)
    callback = MIRCallback(trainer, held_out, every=4, groups=2)
    trainer.add_callback(callback)
    trainer.train()
    entries = {entry["step"]: entry for entry in logged(trainer)}
    assert list(entries) == [0, 4, 6] == list(callback.results)
    for step, entry in entries.items():
        result = callback.results[step]
        assert all(isinstance(value, float | int) for value in entry.values())
        assert entry["mir"] == result.mir
        assert entry["mir_stderr"] == result.mir_stderr > 0
        assert entry["mir_published_fast"] == result.mir_published_fast
        total = entry["mir_mean_term"] + entry["mir_covariance_term"]
        assert math.log10(total) == pytest.approx(result.mir, abs=1e-9)
        assert entry["mir_norm_ratio"] > 0
        assert entry["mir_seconds"] > 0
        assert "mir_plateau" not in entry
    assert entries[0]["mir"] != entries[6]["mir"]


def test_evaluations_carry_it_and_the_best_checkpoint_goes_by_it(model, llava, pairs, tmp_path) -> None:
    trainer, held_out = trainer_of(
        model,
        llava,
        pairs,
        tmp_path,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="mir",
        greater_is_better=False,
    )
    callback = MIRCallback(trainer, held_out)
    trainer.add_callback(callback)
    trainer.train()
    assert list(callback.results) == [0, 2, 4, 6]
    at_evaluations = {step: result.mir for step, result in callback.results.items() if step}
    assert trainer.state.best_metric == min(at_evaluations.values())
    best = min(at_evaluations, key=at_evaluations.__getitem__)
    assert trainer.state.best_global_step == best
    # After training the model may be another, though the step is still the last.
    with torch.no_grad():
        model.model.multi_modal_projector.linear_2.weight.mul_(3)
    other = mir_task.measure(model, trainer.processing_class, held_out, bars=False).mir
    assert trainer.evaluate()["eval_mir"] == other not in at_evaluations.values()


def test_a_plateau_ends_training(model, llava, pairs, tmp_path) -> None:
    trainer, held_out = trainer_of(model, llava, pairs, tmp_path, learning_rate=0.0, max_steps=20)
    callback = MIRCallback(trainer, held_out, every=2, patience=2, stop=True)
    trainer.add_callback(callback)
    trainer.train()
    assert [entry["mir_plateau"] for entry in logged(trainer)] == [0, 0, 1]
    assert trainer.state.global_step == 4

    trainer, held_out = trainer_of(model, llava, pairs, tmp_path, learning_rate=0.0)
    trainer.add_callback(MIRCallback(trainer, held_out, every=2, patience=2))
    trainer.train()
    assert [entry["mir_plateau"] for entry in logged(trainer)] == [0, 0, 1, 1]
    assert trainer.state.global_step == 6


def test_the_rule_may_watch_caption_gain(model, llava, pairs, tmp_path) -> None:
    trainer, held_out = trainer_of(
        model, llava, pairs, tmp_path, eval_strategy="steps", eval_steps=3, learning_rate=0.0
    )
    callback = MIRCallback(trainer, held_out, watch="caption_gain", patience=1)
    trainer.add_callback(callback)
    trainer.train()
    assert [entry["mir_plateau"] for entry in logged(trainer)] == [0, 1, 1]
    assert all(entry["caption_gain_stderr"] > 0 for entry in logged(trainer))
    assert trainer.evaluate()["eval_caption_gain"] == callback.results[0].caption_gain
    with pytest.raises(MIRError, match="watch must be one of mir, caption_gain, got 'loss'"):
        MIRCallback(trainer, held_out, watch="loss")


def test_a_rise_of_the_gain_is_an_improvement() -> None:
    gains = {str(n): (float(n), 5) for n in range(10)}
    best = runs.result(0.5).model_copy(update={"caption_gains": gains})
    higher = {name: (gain + 0.1, tokens) for name, (gain, tokens) in gains.items()}
    better = best.model_copy(update={"caption_gains": higher})
    assert improves(better, best, 0.0, "caption_gain")
    assert not improves(best, better, 0.0, "caption_gain")
    assert not improves(better, best, 0.2, "caption_gain")
    noisy = {name: (gain + 0.1 + (-1) ** int(name), tokens) for name, (gain, tokens) in gains.items()}
    assert not improves(best.model_copy(update={"caption_gains": noisy}), best, 0.0, "caption_gain")


def result_of(total: float, left_out: list[float]) -> MIRResult:
    """A result with that sum of distances, and those without one group each."""
    layer = runs.result(math.log10(total), layers=1).layers[0]
    return MIRResult(layers=(layer,), leave_one_group_out=tuple((value,) for value in left_out))


def test_an_improvement_is_beyond_the_noise_of_the_difference() -> None:
    best = result_of(10.0, [9.0, 11.0])
    assert best.mir_stderr > 0.04
    # Each group falls as the whole does: the values are noisy, their difference is not.
    assert improves(result_of(9.8, [8.82, 10.78]), best, 0.0)
    assert not improves(result_of(9.8, [8.0, 11.5]), best, 0.0)
    assert not improves(result_of(9.8, [8.82, 10.78]), best, 0.01)
    assert not improves(result_of(10.2, [9.18, 11.22]), best, 0.0)
    bare = best.model_copy(update={"leave_one_group_out": ()})
    assert improves(result_of(9.9, []).model_copy(update={"leave_one_group_out": ()}), bare, 0.0)


def test_a_measurement_without_groups_compares_by_the_errors_that_are_known() -> None:
    best = result_of(10.0, [9.0, 11.0])
    none = {"leave_one_group_out": ()}
    without = [result_of(total, []).model_copy(update=none) for total in (9.9, 5.0)]
    assert not improves(without[0], best, 0.0)
    assert improves(without[1], best, 0.0)
    assert not improves(best, without[0], 0.0)


class Failing(list):
    """Pairs that cannot be read from some reading on."""

    def __init__(self, pairs, readings: int) -> None:
        super().__init__(pairs)
        self.left = readings

    def __getitem__(self, number):
        self.left -= 1
        if self.left < 0:
            raise OSError("the disk is gone")
        return super().__getitem__(number)


def test_a_later_failure_does_not_end_training(model, llava, pairs, tmp_path) -> None:
    trainer, held_out = trainer_of(model, llava, pairs, tmp_path)
    trainer.add_callback(MIRCallback(trainer, Failing(held_out, 2 * len(held_out) + 1), every=4))
    messages: list[str] = []
    sink = logger.add(messages.append, level="ERROR")
    trainer.train()
    logger.remove(sink)
    assert trainer.state.global_step == 6
    assert len(logged(trainer)) == 1
    assert "MIR could not be measured after step 4: " in messages[0]
    assert "the disk is gone" in messages[0]


def test_what_is_wrong_from_the_start_is_said_before_the_first_step(
    model, llava, pairs, tmp_path
) -> None:
    trainer, held_out = trainer_of(model, llava, pairs, tmp_path)
    trainer.add_callback(MIRCallback(trainer, [(image, "") for image, _ in held_out], every=4))
    with pytest.raises(MIRError, match="document '0': the text is empty"):
        trainer.train()
    assert trainer.state.global_step == 0


@pytest.mark.slow
def test_two_processes_give_the_figure_of_one(llava, tmp_path) -> None:
    from tests.support.train_in_processes import pairs

    script = Path(__file__).with_name("support") / "train_in_processes.py"
    torchrun(2, str(script), str(llava), str(tmp_path), cwd=tmp_path)
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2))
    assert first["processes"] == 2
    assert first["wrapped"] == "DistributedDataParallel"
    assert not first["harness"]
    assert first["results"] == second["results"]
    assert first["sharded"] == pytest.approx(first["results"]["0"]["mir"], abs=1e-6)
    assert list(first["results"]) == ["0", "2", "4"]
    assert [entry["step"] for entry in first["logged"]] == [0, 2, 4]

    processor = transformers.AutoProcessor.from_pretrained(llava)
    for step, weights in (("0", llava), ("4", tmp_path / "trained")):
        model = transformers.LlavaForConditionalGeneration.from_pretrained(weights)
        alone = mir_task.measure(model, processor, pairs(5), groups=2, bars=False)
        together = MIRResult.from_dict(first["results"][step])
        assert together.mir == pytest.approx(alone.mir, abs=1e-6)
        assert together.mir_stderr == pytest.approx(alone.mir_stderr, abs=1e-6)
    values = [result["mir"] for result in first["results"].values()]
    assert len(set(values)) == 3
