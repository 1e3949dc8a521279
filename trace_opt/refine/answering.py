"""One request to a trainable policy: written token by token, or the log probabilities of given answers."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trace_opt.core.adapter import Adapter
from trace_opt.core.rollout import Cost
from trace_opt.llm.base import Layer, Message, Reply, Request, lead_after, normalised
from trace_opt.llm.faults import UNSENT, fault
from trace_opt.llm.loop import stoppable
from trace_opt.refine import sampling
from trace_opt.refine.sampling import Stopped, row_seeds

if TYPE_CHECKING:
    from trace_opt.refine.policy import TrainablePolicy


class Answering(Layer):
    """One request under one adapter."""

    inner: TrainablePolicy

    def __init__(self, policy: TrainablePolicy, adapter: Adapter) -> None:
        super().__init__(policy)
        self._adapter = adapter

    async def asend(self, request: Request) -> Reply:
        """Answer on the policy's thread; giving up ends it at the next token."""
        return await stoppable(
            lambda stop: self.inner.thread.submit(_Call(self.inner, self._adapter, request, stop).answer)
        )


@dataclass(frozen=True, slots=True)
class _Call:
    """One request on the policy's thread."""

    policy: TrainablePolicy
    adapter: Adapter
    request: Request
    stop: threading.Event

    def answer(self) -> Reply:
        policy, request = self.policy, self.request
        with policy.lock:
            if self.stop.is_set():
                raise Stopped
            ids = policy.tokens_of(self._asked(), prefill=request.prefill, raw=request.raw or policy.raw)
            try:
                return self._score(ids) if request.answers else self._generate(ids)
            except ValueError as error:
                raise fault(
                    policy.name, "model", "cannot take the adapter in force", said=str(error), spent=UNSENT
                ) from error

    def _asked(self) -> list[Message]:
        messages = list(self.request.messages)
        if self.request.schema is not None:
            words = json.dumps(self.request.schema, ensure_ascii=False)
            last = messages[-1]
            text = f"{last['content']}\n\nAnswer with one JSON object that follows this JSON schema:\n{words}"
            messages[-1] = {**last, "content": text}
        return messages

    def _generate(self, ids: tuple[int, ...]) -> Reply:
        policy, request = self.policy, self.request

        def over(_: int, tokens: list[int]) -> bool:
            return any(stop in policy.text_of(tokens) for stop in request.stop)

        drawn = policy.draw(
            [ids], [0], row_seeds(request.seed or 0, [ids], [0]), max_tokens=request.max_tokens,
            temperature=request.temperature, adapter=self.adapter, over=over if request.stop else None, stopped=self.stop.is_set,
        )  # fmt: skip
        text = policy.text_of(drawn.tokens[0])
        for stop in request.stop:
            text = text.partition(stop)[0]
        return Reply(
            text=text, finish="stop" if drawn.ended[0] else "length", model=policy.name,
            cost=Cost(1, len(ids), len(drawn.tokens[0]), 0.0),
        )  # fmt: skip

    def _score(self, ids: tuple[int, ...]) -> Reply:
        import torch

        policy, request = self.policy, self.request
        last = request.messages[-1]
        started = (
            last["content"] if request.raw or policy.raw or last["role"] == "assistant" else ""
        ) + request.prefill
        lead = lead_after(started)
        answers = [policy.tokenizer.encode(lead + answer, add_special_tokens=False) for answer in request.answers]
        policy.check_length(len(ids), max(map(len, answers)))
        tokens, mask = sampling.padded(answers, policy.device)
        with torch.no_grad(), policy.lora.instead(self.adapter):
            rows = torch.zeros(len(answers), dtype=torch.long)
            found = sampling.score(
                policy.model, [ids], rows, tokens, mask, torch.ones(len(answers), device=policy.device)
            )
        scores = normalised(sampling.listed(found.double().sum(1)))
        best = max(range(len(scores)), key=scores.__getitem__)
        read = len(ids) + sum(map(len, answers))
        return Reply(text=request.answers[best], cost=Cost(1, read, 1, 0.0), logprobs=scores, model=policy.name)
