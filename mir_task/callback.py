"""MIR while a model trains: `MIRCallback` for the Hugging Face Trainer."""

import math
import time
from collections.abc import Iterable
from typing import Any

from loguru import logger
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from mir_task.captions import gain_difference
from mir_task.errors import MIRError
from mir_task.measuring.library import Pair, measure
from mir_task.measuring.plan import DEFAULT_GROUPS
from mir_task.result import MIRResult, jackknife_stderr

WATCHED = ("mir", "caption_gain")
"""What the plateau rule can watch."""


class MIRCallback(TrainerCallback):
    """Measures MIR on held-out pairs while a model trains, and logs it through the Trainer.

    `trainer.add_callback(MIRCallback(trainer, pairs, every=500))`. Training goes on as without it, bit
    for bit: the model, its mode and the random number generators are left as they were. Every process
    takes part.

    What is logged, beside the losses: `mir`, `mir_published_fast`, `mir_stderr`, `mir_mean_term` and
    `mir_covariance_term` (sums over the layers; together the distance whose log10 is MIR),
    `mir_norm_ratio` (mean over the layers of vision over text norm), `mir_seconds`, with `patience`
    `mir_plateau` (0 or 1), with `caption_ppl=True` `caption_loss` and `caption_ppl`, and with
    `caption_gain=True` `caption_gain` and `caption_gain_stderr` too. At evaluations `eval_mir` and
    `eval_caption_gain` also go into the metrics, so that `metric_for_best_model="caption_gain"` keeps
    the checkpoint of the highest gain, `"mir"` with `greater_is_better=False` that of the lowest MIR.

    The first measurement, before the first step, raises what is wrong with model or pairs; one that
    fails later is logged as an error, and training goes on.

    Args:
        trainer: that it is added to.
        pairs: of a medium and a text, as `mir_task.measure` takes them; none of the training data.
        processor: of the model; the trainer's `processing_class` where None.
        every: steps between measurements; at the Trainer's evaluations where None.
        watch: what should improve: `"mir"` falls, `"caption_gain"` rises.
        patience: measurements in a row without improvement that make a plateau; no rule where None.
        min_delta: by how much the figure has to be better than the best so far to count as an
            improvement. It also has to be better by twice the standard error of the difference, taken
            over the same documents and so smaller than that of either value.
        stop: whether a plateau ends training.
        options: of `mir_task.measure`, such as `groups`, `encode` or `text_rows`.

    Raises:
        MIRError: `watch` is another name.
    """

    def __init__(
        self,
        trainer: Any,
        pairs: Iterable[Pair],
        *,
        processor: Any = None,
        every: int | None = None,
        watch: str = "mir",
        patience: int | None = None,
        min_delta: float = 0.0,
        stop: bool = False,
        **options: Any,
    ) -> None:
        if watch not in WATCHED:
            raise MIRError(f"watch must be one of {', '.join(WATCHED)}, got {watch!r}")
        self.trainer = trainer
        self.pairs = pairs if hasattr(pairs, "__getitem__") else list(pairs)
        self.processor = processor
        self.every = every
        self.watch = watch
        self.patience = patience
        self.min_delta = min_delta
        self.stop = stop
        self.options = {"groups": DEFAULT_GROUPS, **options}
        if watch == "caption_gain":
            self.options["caption_gain"] = True
        self.results: dict[int, MIRResult] = {}
        """By the number of steps done."""
        self.best: MIRResult | None = None
        """The result of the last improvement."""
        self._since_best = 0
        self._training = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measure before the first step."""
        self.results, self.best, self._since_best = {}, None, 0
        self._training = True
        self._measure(state, control)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measure after every so many steps."""
        if self.every is not None and state.global_step % self.every == 0:
            self._try_to_measure(state, control)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Measure at an evaluation, and put the value among its metrics."""
        # After training the model may be another at the same step: the best one, loaded again.
        known = self._training and state.global_step in self.results
        if self.every is None and not known:
            known = self._try_to_measure(state, control)
        if metrics is not None and known:
            result = self.results[state.global_step]
            found = {f"eval_{name}": getattr(result, name) for name in WATCHED}
            metrics.update({name: value for name, value in found.items() if value is not None})

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measure the model that training leaves, unless that was just done."""
        if state.global_step not in self.results:
            self._try_to_measure(state, control)
        self._training = False

    def _try_to_measure(self, state: TrainerState, control: TrainerControl) -> bool:
        try:
            self._measure(state, control)
            return True
        except Exception as error:  # noqa: BLE001 - days of training are not for a measurement to end
            logger.error(f"MIR could not be measured after step {state.global_step}: {error}")
            return False

    def _measure(self, state: TrainerState, control: TrainerControl) -> None:
        started = time.perf_counter()
        processor = self.trainer.processing_class if self.processor is None else self.processor
        result = measure(self.trainer.model, processor, self.pairs, bars=False, **self.options)
        self.results[state.global_step] = result
        values = {**flat(result), "mir_seconds": time.perf_counter() - started}
        if self.patience is not None:
            values["mir_plateau"] = float(self._is_plateau(result, state.global_step))
            if values["mir_plateau"] and self.stop:
                control.should_training_stop = True
        should_log = control.should_log
        self.trainer.log(values)
        control.should_log = should_log  # logging takes back that the losses of this step are due

    def _is_plateau(self, result: MIRResult, step: int) -> bool:
        if self.best is None or improves(result, self.best, self.min_delta, self.watch):
            self.best, self._since_best = result, 0
            return False
        self._since_best += 1
        assert self.patience is not None
        if self._since_best == self.patience:
            now, best = (getattr(of, self.watch) for of in (result, self.best))
            logger.warning(
                f"{self.watch} has not improved in {self.patience} measurements: {now:.4f} after step "
                f"{step}, {best:.4f} at its best"
            )
        return self._since_best >= self.patience


def flat(result: MIRResult) -> dict[str, float]:
    """What is logged of a result: numbers alone, without those that do not exist."""
    layers = result.layers
    values = {
        "mir": result.mir,
        "mir_published_fast": result.to_dict()["mir_published_fast"],
        "mir_stderr": result.mir_stderr,
        "mir_mean_term": sum(layer.mean_term for layer in layers),
        "mir_covariance_term": sum(layer.covariance_term for layer in layers),
        "mir_norm_ratio": sum(layer.norm_ratio for layer in layers) / len(layers),
        "caption_loss": result.caption_loss,
        "caption_ppl": result.caption_ppl,
        "caption_gain": result.caption_gain,
        "caption_gain_stderr": result.caption_gain_stderr,
    }
    return {name: value for name, value in values.items() if value is not None}


def improves(result: MIRResult, best: MIRResult, min_delta: float, watch: str = "mir") -> bool:
    """Whether a result is better by more than `min_delta` and twice the difference's standard error."""
    if watch == "caption_gain":
        rise, stderr = gain_difference(result.caption_gains, best.caption_gains) or (0.0, None)
        return rise > max(min_delta, 2 * (stderr or 0.0))
    if len(result.left_out_mir) == len(best.left_out_mir) > 1:
        pairs = zip(result.left_out_mir, best.left_out_mir, strict=True)
        noise = jackknife_stderr([new - old for new, old in pairs])
    else:  # a measurement without groups, as where documents were few: both errors as far as known
        noise = math.hypot(result.mir_stderr or 0.0, best.mir_stderr or 0.0)
    return best.mir - result.mir > max(min_delta, 2 * noise)
