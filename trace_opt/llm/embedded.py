"""A small model in this process: llama.cpp, one thread, one call at a time, the same bits every time.

Every generation streams, so that a deadline or Ctrl-C ends it at the next token or the next piece of the prompt.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trace_opt.core.rollout import Cost
from trace_opt.llm.base import Reply, Request, lead_after, normalised
from trace_opt.llm.faults import UNSENT, CallError, fault
from trace_opt.llm.loop import stoppable
from trace_opt.llm.prices import FREE
from trace_opt.llm.runtime import Body, Runtime, runtime_of
from trace_opt.llm.stack import Backend

_LEAST_PROBABILITY = 1e-30


class Embedded(Backend):
    """The backend that asks a GGUF file's model.

    Args:
        name: `embedded/...`, for messages.
        path: The GGUF file.
        adapter: A LoRA adapter for it, as a GGUF file too.
    """

    local = True
    rates = FREE

    def __init__(self, name: str, path: Path, adapter: Path | None = None) -> None:
        self.name = name
        self._path = path
        self._adapter = adapter

    async def asend(self, request: Request) -> Reply:
        """Answer on the model's own thread."""
        runtime = runtime_of(self._path, self.name, self._adapter)
        return await stoppable(lambda stop: runtime.submit(_Call(runtime, self.name, request, stop).answer))


@dataclass(frozen=True, slots=True)
class _Call:
    """One request on the runtime's thread."""

    runtime: Runtime
    name: str
    request: Request
    stop: threading.Event

    def answer(self) -> Reply:
        prompt, started = self._prompt()
        ids = self.runtime.tokens_of_prompt(prompt)
        return self._score(ids, started) if self.request.answers else self._generate(ids)

    def _prompt(self) -> tuple[str, str]:
        """The whole text to continue, and that part of it with which the assistant's answer starts."""
        request = self.request
        messages = [{"role": m["role"], "content": _printable(m["content"], self.name)} for m in request.messages]
        prefill = _printable(request.prefill, self.name)
        if request.raw:
            text = "".join(m["content"] for m in messages) + prefill
            return text, text
        last = messages[-1]
        started = (last["content"] if last["role"] == "assistant" else "") + prefill
        return self.runtime.rendered(messages) + prefill, started

    def _generate(self, prompt: Sequence[int]) -> Reply:
        request = self.request
        body: Body = {
            "prompt": prompt, "n_predict": request.max_tokens, "temperature": request.temperature,
            "seed": (request.seed or 0) % 2**31, "stop": list(request.stop), "top_k": 40, "top_p": 0.95, "min_p": 0.05,
        }  # fmt: skip
        if request.schema is not None:
            body["json_schema"] = request.schema
        text, last = self._stream(body)
        usage = last.get("usage", {})
        finish = "length" if last["choices"][0]["finish_reason"] == "length" else "stop"
        cost = Cost(1, usage.get("prompt_tokens", 0), usage.get("completion_tokens", 0), 0.0)
        return Reply(text="".join(text), finish=finish, cost=cost, model=self.name)

    def _score(self, prompt: Sequence[int], started: str) -> Reply:
        lead = lead_after(started)
        answers = [_printable(lead + answer, self.name) for answer in self.request.answers]
        tokens = [self.runtime.tokens(answer) for answer in answers]
        firsts = [ids[0] for ids in tokens]
        if len(set(firsts)) == len(firsts):
            scores, tokens_in = self._score_firsts(prompt, firsts)
        else:
            scores, tokens_in = self._score_wholes(prompt, tokens)
        scores = normalised(scores)
        best = max(range(len(scores)), key=scores.__getitem__)
        cost = Cost(1, tokens_in, 1, 0.0)
        return Reply(text=self.request.answers[best], cost=cost, logprobs=scores, model=self.name)

    def _score_firsts(self, prompt: Sequence[int], firsts: Sequence[int]) -> tuple[list[float], int]:
        """All answers in one call: the sampler is confined to their first tokens and tells their probabilities."""
        count = len(firsts)
        _, last = self._stream({
            "prompt": prompt, "n_predict": 1, "n_probs": count, "temperature": 1, "top_k": count, "top_p": 1, "min_p": 0,
            "post_sampling_probs": True, "logit_bias": [[token, 100] for token in firsts], "seed": 0,
        })  # fmt: skip
        told = {entry["id"]: entry["prob"] for entry in last["logprobs"]["content"][0]["top_probs"]}
        scores = [math.log(max(told.get(token, 0.0), _LEAST_PROBABILITY)) for token in firsts]
        return scores, last["usage"]["prompt_tokens"]

    def _score_wholes(self, ids: Sequence[int], tokens: Sequence[Sequence[int]]) -> tuple[list[float], int]:
        """Each answer token by token, for answers that start alike."""
        # answers with a common start share its score
        known: dict[tuple[int, ...], float] = {}
        scores: list[float] = []
        for answer in tokens:
            total = 0.0
            for i, token in enumerate(answer):
                head = tuple(answer[: i + 1])
                if head not in known:
                    known[head] = self._score_token([*ids, *answer[:i]], token)
                total += known[head]
            scores.append(total)
        return scores, len(ids) + sum(len(answer) for answer in tokens)

    def _score_token(self, ids: Sequence[int], token: int) -> float:
        _, last = self._stream({
            "prompt": ids, "n_predict": 1, "n_probs": 1, "temperature": 0, "logit_bias": [[token, 100]], "seed": 0,
        })  # fmt: skip
        return last["logprobs"]["content"][0]["logprob"]

    def _stream(self, body: Body) -> tuple[list[str], Body]:
        """The texts that came, and the last piece with the log-probabilities of the first."""
        texts: list[str] = []
        probabilities: list[Any] = []
        lasts: list[Body] = []

        def receive(piece: Body) -> bool:
            lasts[:] = [piece]
            if "choices" in piece:
                choice = piece["choices"][0]
                texts.append(choice["text"])
                if choice.get("logprobs"):
                    probabilities.append(choice["logprobs"])
            return self.stop.is_set()

        try:
            self.runtime.complete({**body, "stream": True, "return_progress": True}, receive)
        except (RuntimeError, ValueError, TypeError) as error:
            raise fault(self.name, "request", "cannot take this request", said=str(error)) from None
        last = lasts[0] if lasts else {}
        if "error" in last:
            self._raise(last["error"])
        if self.stop.is_set():
            raise fault(self.name, "timeout", "was stopped", spent=None)
        if "choices" not in last or last["choices"][0].get("finish_reason") is None:
            raise fault(self.name, "malformed", "ended an answer without a reason", spent=None)
        return texts, {**last, "logprobs": probabilities[0] if probabilities else None}

    def _raise(self, error: Mapping[str, Any]) -> None:
        if error.get("type") == "exceed_context_size_error":
            what = f"has a context of {error.get('n_ctx')} tokens, the prompt has {error.get('n_prompt_tokens')}"
            raise fault(self.name, "too_long", what)
        raise fault(self.name, "request", "cannot take this request", said=str(error.get("message", error)))


def _printable(text: Any, name: str) -> str:
    if not isinstance(text, str):
        raise CallError(f"{name!r} reads text only; give a message's content as text", kind="request", spent=UNSENT)
    return text.encode("utf-8", "replace").decode("utf-8")
