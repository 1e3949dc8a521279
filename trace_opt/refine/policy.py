"""A local language model that learns: frozen weights with a low-rank adapter, which is the value of a parameter.

It answers like any model (`llm.base.LLM`), so that it can be the reflector of `Episodes` or the model of any optimizer,
and it is a policy (`refine.local.LocalPolicy`), so that a refiner or an estimator by hand can train it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack, get_args

from trace_opt.core.adapter import Adapter
from trace_opt.core.parameter import Parameter
from trace_opt.core.tracer import plain
from trace_opt.errors import LLMError
from trace_opt.llm import cache, replay
from trace_opt.llm.base import LLM, Message, Reply, Request, check_fields, checked
from trace_opt.llm.faults import UNSENT, CallError, fault
from trace_opt.llm.meter import Meter, charge, metering, patiently
from trace_opt.llm.stack import seeded
from trace_opt.refine import sampling
from trace_opt.refine.answering import Answering
from trace_opt.refine.batch import Batch
from trace_opt.refine.features import last_states
from trace_opt.refine.loading import Base, load_base, source_of
from trace_opt.refine.local import Completions, Prompt, check_sampled, kept, messages_of, with_system
from trace_opt.refine.lora import Lora
from trace_opt.refine.sampling import Draws, row_seeds

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Dtype = Literal["float32", "bfloat16", "float16"]
Attention = Literal["eager", "sdpa"]

SYSTEM = "You are a helpful assistant."


class Defaults(TypedDict, total=False):
    """What a policy fills in where a request says nothing."""

    max_tokens: int
    temperature: float
    stop: tuple[str, ...]
    prefill: str
    raw: bool


class TrainablePolicy(LLM):
    """A causal language model with a LoRA adapter that can be trained.

    Nothing is loaded before it is first asked. What it says depends on the adapter in force, the prompt and the seed,
    whatever else is asked at the same time; in float32 on a CPU it does so bit for bit, for one number of torch threads.

    As a language model it answers with the value of `adapter` that is in force, as any parameter's. As a policy (`sample`,
    `log_prob`, `batch`) it takes the weights as they stand, which `load` and estimators move and an answer leaves alone:
    `policy.adapter.value = policy.dump()` makes it answer with what was trained by hand.

    Args:
        model: "smollm2" (fetched with `trace-opt models pull smollm2`), a GGUF file, or a Hugging Face folder.
        rank: Of the adapter.
        alpha: Scale of the adapter; its product counts alpha / rank times. An adapter trained at another is refused.
        layers: Which blocks have an adapter, from 0, or from the end where negative; all by default. The last ones only
            make the backward pass shorter.
        device: "cpu", "cuda", ...; by default CUDA where there is a device.
        dtype: Of the frozen weights; the adapter is always float32.
        seed: Of the adapter's initial weights.
        name: Of the parameter.
        system: The system message of conversations without one, so that a chat template does not put in its own; ""
            puts none in.
        attention: "eager" can be differentiated twice, as HARPG needs; "sdpa" is fused.
        **defaults: Fields of `Request` that calls leave out: `max_tokens=64`, `temperature=1.0`, ...; with `raw=True` all
            prompts are continued as plain text, without a chat template.

    Raises:
        LLMError: there is no such model.

    Attributes:
        adapter: What it learned, as a parameter; initially the empty `Adapter()`.
        lock: Held while the model is in use; an update by hand that runs beside other threads takes it too.
    """

    local = True

    def __init__(
        self, model: str | Path = "smollm2", *, rank: int = 8, alpha: float = 16.0, layers: Sequence[int] | None = None,
        device: str | None = None, dtype: Dtype = "float32", seed: int = 0, name: str = "policy", system: str = SYSTEM,
        attention: Attention = "eager", **defaults: Unpack[Defaults],
    ) -> None:  # fmt: skip
        check_fields(defaults)
        if rank < 1:
            raise LLMError(f"rank is {rank!r}; give a whole number of at least 1", kind="request")
        for word, given, known in (("dtype", dtype, get_args(Dtype)), ("attention", attention, get_args(Attention))):
            if given not in known:
                raise LLMError(f"{word} is {given!r}; give one of {', '.join(known)}", kind="request")
        self._source = source_of(model)
        self.name = f"local/{self._source.path.stem}"
        self.adapter: Parameter[Adapter] = Parameter(
            Adapter(), name=name, description="What a local model learned on top of its frozen weights."
        )
        self.rank = rank
        self.alpha = alpha
        self.layers = None if layers is None else tuple(layers)
        self.seed = seed
        self.dtype = dtype
        self.system = system
        self.raw = defaults.get("raw", False)
        self.attention = attention
        self._device = device
        self.defaults = {"max_tokens": 256, **dict(defaults)}
        self.lock = threading.RLock()
        self._made: tuple[Base, Lora] | None = None

    # -- the model, loaded when first needed -------------------------------------------------------------------------

    @property
    def _loaded(self) -> tuple[Base, Lora]:
        with self.lock:
            if self._made is None:
                base = load_base(self._source, dtype=self.dtype, device=self.device, attention=self.attention)
                self._made = base, Lora(base, rank=self.rank, alpha=self.alpha, layers=self.layers, seed=self.seed)
            return self._made

    @property
    def model(self) -> Any:
        """The model of transformers, its adapter within."""
        return self._loaded[1].model

    @property
    def lora(self) -> Lora:
        """The adapter's weights in the model."""
        return self._loaded[1]

    @property
    def tokenizer(self) -> Any:
        """Its tokenizer."""
        return self._loaded[0].tokenizer

    @cached_property
    def device(self) -> str:
        """Where the model is."""
        if self._device not in (None, "auto"):
            return str(self._device)
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"

    @cached_property
    def ends(self) -> frozenset[int | None]:
        """The tokens that end an answer."""
        given: int | list[int] | None = self.model.generation_config.eos_token_id
        own: int | None = self.tokenizer.eos_token_id
        return frozenset([*(given if isinstance(given, list) else [given]), own]) - {None}

    # -- a policy ----------------------------------------------------------------------------------------------------

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        """The weights of the adapter; all others are frozen and not among them."""
        return self.lora.parameters()

    def sample(
        self, prompts: Sequence[Prompt], n: int = 1, *, max_tokens: int = 48, temperature: float = 1.0, seed: int = 0
    ) -> Completions:
        """Draw completions with the weights as they stand (see `LocalPolicy.sample`).

        Equal prompts are drawn from as one, so that no two of their rows share a chance. Each row counts as a call; a
        prompt's tokens count once.

        Raises:
            ValueError: an argument makes no sense, such as a single text for the list of prompts.
            LLMError: a prompt is too long for the model.
        """
        check_sampled(prompts, n, max_tokens, temperature)
        with self.lock:
            ids = [self.tokens_of(prompt) for prompt in prompts]
            rows = [place for place in range(len(ids)) for _ in range(n)]
            drawn = self.draw(
                ids, rows, row_seeds(seed, ids, rows), max_tokens=max_tokens, temperature=temperature, adapter=None
            )
            texts = [self.text_of(row) for row in drawn.tokens]
        read, said = sum(map(len, ids)), sum(map(len, drawn.tokens))
        charge(calls=len(rows), tokens_in=read, tokens_out=said)
        return Completions(
            tuple(kept(prompt) for prompt in prompts), tuple(rows), tuple(texts),
            tuple(map(tuple, drawn.tokens)), tuple(map(tuple, drawn.log_probs)), float(temperature),
        )  # fmt: skip

    def written(self, pairs: Sequence[tuple[Prompt, str]]) -> Completions:
        """Texts from elsewhere as completions, each ended, with nothing said of their probabilities.

        Args:
            pairs: Prompts, and what would have been a good answer to each.
        """
        with self.lock:
            end: int = self.tokenizer.eos_token_id
            tokens = [(*self.tokenizer.encode(text, add_special_tokens=False), end) for _, text in pairs]
        return Completions(
            tuple(kept(prompt) for prompt, _ in pairs), tuple(range(len(pairs))), tuple(text for _, text in pairs),
            tuple(tokens), tuple(() for _ in pairs), 1.0,
        )  # fmt: skip

    def batch(self, completions: Completions, returns: Sequence[float]) -> Batch:
        """What estimators learn from (see `LocalPolicy.batch`).

        The log probabilities are those that the present weights give in one pass over the whole text: in bfloat16 the
        ones met token by token while sampling differ by up to 0.3 nats. Of texts from elsewhere (`written`) they are not
        computed: nothing but their likelihood is learned from.
        """
        import torch

        if len(returns) != len(completions):
            raise ValueError(f"batch got {len(completions)} completions and {len(returns)} returns; give one for each")
        with self.lock, torch.no_grad():
            tokens, mask = sampling.padded(completions.tokens, self.device, self.tokenizer.pad_token_id or 0)
            made = Batch(
                actions={"tokens": tokens, "temperature": torch.full((len(tokens),), completions.temperature, device=self.device)},
                rewards=torch.zeros(mask.shape, device=self.device), mask=mask,
                groups=torch.tensor(completions.prompt, device=self.device),
                prompts=tuple(self.tokens_of(prompt) for prompt in completions.prompts),
            ).earning(torch.tensor(list(returns), dtype=torch.float32, device=self.device))  # fmt: skip
            if not any(completions.log_probs):
                return made
            said = self.log_prob(made)
            return Batch(
                actions=made.actions, rewards=made.rewards, mask=mask, groups=made.groups, prompts=made.prompts,
                log_probs=said, reference=self.reference(made),
            )  # fmt: skip

    def log_prob(self, batch: Batch) -> Tensor:
        """The log probability of each token of a batch under the weights as they stand, at its temperature.

        Returns:
            Nats, shape `[n, T]`, differentiable; 0 where the mask is False.
        """
        with self.lock:
            tokens, temperature = batch.actions["tokens"], batch.actions["temperature"]
            return sampling.score(self.model, batch.prompts, batch.groups, tokens, batch.mask, temperature)

    def reference(self, batch: Batch) -> Tensor:
        """The same under the model without its adapter, without gradient."""
        import torch

        with self.lock, torch.no_grad(), self.lora.off():
            return self.log_prob(batch)

    def features(self, completions: Completions, *, base: bool = True) -> Tensor:
        """The final hidden state at the last token of each completion, shape `[n, width]`; what a reward model reads.

        Args:
            completions: Texts with their prompts.
            base: Whether the model reads them without its adapter and without gradient.
        """
        import torch

        asked = [self.tokens_of(prompt) for prompt in completions.prompts]
        texts = [(*asked[i], *tokens) for i, tokens in zip(completions.prompt, completions.tokens, strict=True)]
        with self.lock:
            if not base:
                return last_states(self.model, texts)
            with torch.no_grad(), self.lora.off():
                return last_states(self.model, texts)

    def load(self, adapter: Adapter) -> None:
        """Take an adapter's weights, unless they stand there already.

        Raises:
            ValueError: it was trained with another model, rank, alpha or choice of layers.
        """
        with self.lock:
            self.lora.load(adapter)

    def dump(self) -> Adapter:
        """The weights as they stand; before any training the empty adapter."""
        with self.lock:
            return self.lora.dump()

    # -- texts and tokens --------------------------------------------------------------------------------------------

    def tokens_of(self, prompt: Prompt, *, prefill: str = "", raw: bool | None = None) -> tuple[int, ...]:
        """The token ids that the model reads before it answers.

        Args:
            prompt: A text is one user message. A last message of the assistant is continued.
            prefill: Text with which the answer starts.
            raw: Whether contents are joined as plain text; by default as the policy was made.

        Raises:
            LLMError: the model has no chat template, or its template refuses these messages.
        """
        messages = messages_of(prompt)
        for message in messages:
            if not isinstance(message.get("content"), str):
                raise CallError(
                    f"{self.name!r} reads text only; give a message's content as text", kind="request", spent=UNSENT
                )
        if self.raw if raw is None else raw:
            text = "".join(message["content"] for message in messages) + prefill
            return tuple(self.tokenizer.encode(text))
        started = messages.pop()["content"] if messages[-1]["role"] == "assistant" else ""
        text = self._rendered(messages) + started + prefill
        return tuple(self.tokenizer.encode(text, add_special_tokens=False))

    def text_of(self, tokens: Sequence[int]) -> str:
        """The text of a completion, without what ended it."""
        return self.tokenizer.decode(
            [token for token in tokens if token not in self.ends],
            skip_special_tokens=True,
            clean_up_tokenization_spaces=False,
        )

    def _rendered(self, messages: Sequence[Message]) -> str:
        if not self.tokenizer.chat_template:
            raise fault(self.name, "request", "has no chat template; make the policy with raw=True", spent=UNSENT)
        messages = with_system(messages, self.system)
        from jinja2 import TemplateError

        try:
            return self.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
        except TemplateError as error:
            what = "has a chat template that refuses these messages"
            raise fault(self.name, "request", what, said=str(error), spent=UNSENT) from None

    # -- a language model --------------------------------------------------------------------------------------------

    @property
    def identity(self) -> str:
        """What decides its answers besides the adapter, for the keys of captured calls."""
        return (
            f"{self._source.identity} with LoRA {self.rank}/{self.alpha:g} in {self.layers or 'all'} as {self.dtype}, "
            f"seed {self.seed}, {self.attention}, {'raw' if self.raw else repr(self.system)}"
        )

    async def asend(self, request: Request) -> Reply:
        """Answer with the adapter in force, on a thread of the policy's own.

        A `schema` is asked for in words: nothing keeps the answer to it, so whoever asks must check.
        """
        adapter = self._in_force()
        identity = f"{self.identity}, {adapter.hash}"
        request = seeded(checked(request), identity)
        if (tape := replay.replaying()) is not None:
            return await tape.play(cache.key_of(identity, request), request, self)
        metered = Meter(Answering(self, adapter))
        with metering() as meter:
            reply = await patiently(lambda: metered.asend(request))
        if (capture := replay.capturing()) is not None:
            capture.keep(cache.key_of(identity, request), request, reply, meter.cost)
        return reply

    def _in_force(self) -> Adapter:
        value = self.adapter.value
        return value if type(value) is Adapter else plain(value)

    @cached_property
    def thread(self) -> ThreadPoolExecutor:
        """Where requests are answered, one after the other."""
        return ThreadPoolExecutor(1, thread_name_prefix="trace_opt-policy")

    def draw(
        self, ids: Sequence[Sequence[int]], rows: Sequence[int], seeds: Sequence[int], *, max_tokens: int,
        temperature: float, adapter: Adapter | None, over: Callable[[int, list[int]], bool] | None = None,
        stopped: Callable[[], bool] = bool,
    ) -> Draws:  # fmt: skip
        """What `sampling.draw` gives under an adapter, or under the weights as they stand."""
        self.check_length(max(map(len, ids)), max_tokens)
        with self.lora.instead(self.lora.dump() if adapter is None else adapter):
            return sampling.draw(
                self.model, ids, rows, seeds, max_tokens=max_tokens, temperature=temperature, ends=self.ends, over=over,
                stopped=stopped,
            )  # fmt: skip

    def check_length(self, prompt: int, answer: int) -> None:
        """See to it that so many tokens fit.

        Raises:
            LLMError: of kind too_long, where they do not.
        """
        room: int = self.model.config.max_position_embeddings
        if prompt + answer > room:
            raise fault(
                self.name, "too_long", f"has a context of {room} tokens; the prompt has {prompt}, the answer up to {answer}",
                spent=UNSENT,
            )  # fmt: skip
