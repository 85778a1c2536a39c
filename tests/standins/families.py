"""One stand-in for each structure of adapters whose code is on the Hub or in packages of their own."""

import contextlib
import copy
import queue
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from lmms_eval.api.instance import Instance
from PIL import Image, ImageOps
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from tests.standins.parts import (
    PLACEHOLDER,
    SIZE,
    ChatModel,
    HubModel,
    StandIn,
    Tower,
    ids,
    join,
    llama,
    tokenizer,
)


class InnerModel(StandIn):
    """The inner language model is called with embeddings only; nothing around it has a configuration."""

    stands_for = "moviechat, videochat2"

    def load(self) -> None:
        self._model = nn.Module()
        self._model.vision_encoder = Tower()
        self._model.mistral_model = llama()
        self._model.mistral_tokenizer = tokenizer()

    @property
    def reference(self) -> Any:
        return self._model.mistral_model

    def answer(self, image: Image.Image, text: str) -> str:
        embed = self.reference.model.embed_tokens
        prompt = ("<s>[INST]<Image>", f"</Image>[/INST][INST]{text}[/INST]")
        before, after = (embed(ids(part)) for part in prompt)
        embeds = join([(False, before), (True, self._model.vision_encoder(image)), (False, after)])
        out = self.reference.generate(inputs_embeds=embeds[None], max_new_tokens=4, do_sample=False)
        return self._model.mistral_tokenizer.decode(out[0])


class ChatMethod(StandIn):
    """`model.chat`, which overwrites the embeddings of placeholders in place."""

    stands_for = "internvideo2, internvl, internvl2, internvl3, internvl3_5, minimonkey, neo_ov"

    def load(self) -> None:
        self._model = ChatModel()
        self.tokenizer = tokenizer()

    @property
    def reference(self) -> Any:
        return self._model.language_model

    def answer(self, image: Image.Image, text: str) -> str:
        return self._model.chat(self.tokenizer, image, text, max_new_tokens=1, do_sample=False)


class AdapterEmbeds(StandIn):
    """The adapter joins embeddings; the decoder is of the Hub's own kind, with learned separators."""

    stands_for = "auroracap, xcomposer2_4KHD"

    def load(self) -> None:
        self._model = HubModel()

    @property
    def reference(self) -> Any:
        return self._model.transformer

    def answer(self, image: Image.Image, text: str) -> str:
        model = self._model
        question, rows = model.transformer.wte(ids(f"user\n{text}\nassistant\n")), model.visual(image)
        separated = torch.cat([torch.cat([line, model.separator]) for line in rows.split(4)])
        embeds = join([(False, model.transformer.wte(ids("<s>"))), (True, separated), (False, question)])
        model.generate(inputs_embeds=embeds[None], im_mask=torch.zeros(1, len(embeds)))
        return ""


class NegativeIds(AdapterEmbeds):
    """The decoder gets ids, negative ones where image rows belong, and embeds by itself."""

    stands_for = "phi3v"

    def answer(self, image: Image.Image, text: str) -> str:
        rows = self._model.visual(image)
        token_ids = torch.cat([ids("<s><|user|>"), torch.full((16,), -1), ids(f"\n{text}<|end|>")])
        self._model.generate(input_ids=token_ids[None], image_rows=rows)
        return ""


class EmbedsAhead(AdapterEmbeds):
    """Embeds all requests of a call before the first forward, in another thread."""

    stands_for = "adapters that prepare the next requests while one runs"

    def generate_until(self, requests: list[Instance]) -> list[str]:
        model = self._model

        def embedded(request: Instance) -> Tensor:
            image, text = self.read(request)
            return join([(True, model.visual(image)), (False, model.transformer.wte(ids(text)))])

        with ThreadPoolExecutor(1) as pool:
            prepared = list(pool.map(embedded, requests))
        return [str(model.generate(inputs_embeds=embeds[None])) for embeds in prepared]


class PackageModel(LlamaForCausalLM):
    """A language model whose own `generate` replaces the id -200 by image rows."""

    def generate(self, inputs: Tensor, images: list[Image.Image], **settings: Any) -> Tensor:
        embed = self.get_input_embeddings()
        rows = []
        for token_ids, image in zip(inputs, images, strict=True):
            real = token_ids[token_ids != self.config.pad_token_id]
            place = int((real == -200).nonzero())
            before, after = embed(real[:place]), embed(real[place + 1 :])
            rows.append(join([(False, before), (True, self.tower(image)), (False, after)]))
        # Padded with zeros, which no token is embedded as.
        embeds = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        mask = torch.tensor([[1] * len(r) + [0] * (embeds.shape[1] - len(r)) for r in rows])
        return super().generate(inputs_embeds=embeds, attention_mask=mask, **settings)


class PlaceholderIds(StandIn):
    """The id -200 stands for an image, and the package expands it; batches are padded on the right."""

    stands_for = (
        "cambrian, egogpt, llama_vid, llava_onevision, llava_vid, longva, ola, oryx, ross, slime, "
        "tinyllava, vila, vita, vqtoken"
    )

    def load(self) -> None:
        self._model = llama(PackageModel)
        self._model.tower = Tower()
        self.tokenizer = tokenizer()

    @property
    def reference(self) -> Any:
        return self._model

    def generate_until(self, requests: list[Instance]) -> list[str]:
        images, texts = zip(*(self.read(request) for request in requests), strict=True)
        prompts = [
            torch.cat([ids("<s>USER: "), torch.tensor([-200]), ids(f"\n{text} ASSISTANT:")])
            for text in texts
        ]
        padded = nn.utils.rnn.pad_sequence(
            prompts, batch_first=True, padding_value=self.tokenizer.pad_token_id
        )
        self._model.generate(padded, list(images), max_new_tokens=1, do_sample=False)
        return [""] * len(requests)


class Resampled(ChatMethod):
    """A resampler makes 5 rows of 16 placeholders, whose id the configuration names; no `generate`."""

    stands_for = "minicpm_v, qwen_vl"

    def load(self) -> None:
        super().load()
        self._model.queries = nn.Parameter(torch.randn(5, SIZE))
        self._model.config.image_token_id = self.tokenizer.convert_tokens_to_ids(PLACEHOLDER)
        self._model.forward = self.forward

    def forward(self, input_ids: Tensor, image: Image.Image) -> Any:
        model = self._model
        rows = model.vision_model(image)
        resampled = torch.softmax(model.queries @ rows.T, dim=-1) @ rows
        places = (input_ids[0] == model.config.image_token_id).nonzero()
        start, end = int(places.min()), int(places.max()) + 1
        embed = model.language_model.get_input_embeddings()
        before, after = embed(input_ids[0, :start]), embed(input_ids[0, end:])
        embeds = join([(False, before), (True, resampled), (False, after)])
        return model.language_model(inputs_embeds=embeds[None], use_cache=True)

    def answer(self, image: Image.Image, text: str) -> str:
        token_ids = ids(f"<s>{PLACEHOLDER * 16}\n{text}")[None]
        return str(int(self._model(input_ids=token_ids, image=image).logits[0, -1].argmax()))


class Slices(InnerModel):
    """A thumbnail and slices, a learned newline after each line, text tokens between them.

    Embeddings are scaled outside the language model.
    """

    stands_for = "minicpm_o, minicpm_v"

    def load(self) -> None:
        super().load()
        self._model.newline = nn.Parameter(torch.randn(1, SIZE))
        self._model.mistral_model.config.scale_emb = 12

    def answer(self, image: Image.Image, text: str) -> str:
        def embed(part: str) -> tuple[bool, Tensor]:
            return False, self.reference.model.embed_tokens(ids(part)) * 12

        def lines(picture: Image.Image, count: int) -> tuple[bool, Tensor]:
            rows = self._model.vision_encoder(picture)[: 4 * count].split(4)
            return True, torch.cat([torch.cat([line, self._model.newline]) for line in rows])

        width = image.width // 2
        left, right = (image.crop((x, 0, x + width, image.height)) for x in (0, width))
        sliced = [lines(image, 2), embed("<slice>"), lines(left, 4), embed("\n"), lines(right, 4)]
        embeds = join([embed("<s>user\n"), *sliced, embed(f"<slice>\n{text}")])
        self.reference.generate(inputs_embeds=embeds[None], max_new_tokens=1, do_sample=False)
        return ""


class TwoImages(ChatMethod):
    """The picture and its mirror image, each named by a text; only what follows both is text."""

    stands_for = "adapters that send views, thumbnails or several frames"

    def answer(self, image: Image.Image, text: str) -> str:
        def embed(part: str) -> tuple[bool, Tensor]:
            return False, self.reference.get_input_embeddings()(ids(part))

        views = [(True, self._model.vision_model(view)) for view in (image, ImageOps.mirror(image))]
        named = [embed("<s>Image-1: "), views[0], embed("\nImage-2: "), views[1]]
        embeds = join([*named, embed(f"\n{text}")])
        self.reference.generate(inputs_embeds=embeds[None], max_new_tokens=1, do_sample=False)
        return ""


@dataclass
class _Worker:
    model: Any
    tokenizer: Any


class Workers(StandIn):
    """Replicas of a model, each in a thread of its own that takes requests from a queue."""

    stands_for = "async_hf_model, nanovlm"

    def load(self) -> None:
        model = ChatModel()
        self._workers = [_Worker(copy.deepcopy(model), tokenizer()) for _ in range(2)]
        self.batch_size_per_gpu = max(self.batch_size_per_gpu, 4)

    @property
    def reference(self) -> Any:
        return self._workers[0].model.language_model

    def generate_until(self, requests: list[Instance]) -> list[str]:
        jobs: queue.Queue[Instance] = queue.Queue()
        for request in requests:
            jobs.put(request)

        def work(worker: _Worker) -> None:
            with contextlib.suppress(queue.Empty), torch.inference_mode():
                while True:
                    image, text = self.read(jobs.get_nowait())
                    worker.model.chat(worker.tokenizer, image, text, max_new_tokens=1)

        threads = [threading.Thread(target=work, args=(worker,)) for worker in self._workers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return [""] * len(requests)


class Pool(ChatMethod):
    """One model in a pool of threads; all requests of a call are inside it at once."""

    stands_for = "cosmos_wm"

    def load(self) -> None:
        super().load()
        self.batch_size_per_gpu = max(self.batch_size_per_gpu, 4)

    def generate_until(self, requests: list[Instance]) -> list[str]:
        inside = threading.Barrier(len(requests))
        layer = self.reference.model.layers[1]
        handle = layer.register_forward_hook(lambda *_: (inside.wait(timeout=60), None)[1])
        with handle, ThreadPoolExecutor(len(requests)) as pool:
            return list(pool.map(lambda request: self.answer(*self.read(request)), requests))


class Tuned(ChatMethod):
    """LoRA on the decoder, as PEFT wraps the whole model."""

    stands_for = "video_salmonn_2"

    def load(self) -> None:
        import peft

        super().load()
        targets = r".*language_model.*(q_proj|down_proj)"
        config = peft.LoraConfig(r=2, target_modules=targets, init_lora_weights=False)
        self._model = peft.get_peft_model(self._model, config).eval()


class Quantised(ChatMethod):
    """Decoder layers in 4 bits, by bitsandbytes."""

    stands_for = "adapters and checkpoints that load in 4 bits"

    bits = "load_in_4bit"

    def load(self) -> None:
        import tempfile

        from transformers import BitsAndBytesConfig

        super().load()
        config = BitsAndBytesConfig(**{self.bits: True})
        with tempfile.TemporaryDirectory() as folder:
            self._model.language_model.save_pretrained(folder)
            self._model.language_model = LlamaForCausalLM.from_pretrained(
                folder, quantization_config=config, device_map="cpu"
            )


class QuantisedTo8Bits(Quantised):
    """Decoder layers in 8 bits, by bitsandbytes."""

    stands_for = "adapters and checkpoints that load in 8 bits"

    bits = "load_in_8bit"


FAMILIES: dict[str, type[StandIn]] = {
    "standin_inner_model": InnerModel,
    "standin_chat_method": ChatMethod,
    "standin_adapter_embeds": AdapterEmbeds,
    "standin_negative_ids": NegativeIds,
    "standin_embeds_ahead": EmbedsAhead,
    "standin_placeholder_ids": PlaceholderIds,
    "standin_resampled": Resampled,
    "standin_slices": Slices,
    "standin_two_images": TwoImages,
    "standin_workers": Workers,
    "standin_pool": Pool,
    "standin_lora": Tuned,
    "standin_4bit": Quantised,
    "standin_8bit": QuantisedTo8Bits,
}
