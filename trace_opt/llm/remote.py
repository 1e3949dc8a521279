"""Models behind a network: OpenAI's protocol through its SDK, every other provider through litellm.

Both clients are told to send each request once; retries are ours. Both live on the one loop of `trace_opt.llm.loop`,
are loaded by the first call, and are closed with the loop or when the model is dropped.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import json
import logging
import os
import re
import sys
import time
import warnings
from collections.abc import Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, cast
from weakref import finalize

from trace_opt.errors import LLMErrorKind
from trace_opt.llm import loop
from trace_opt.llm.base import Reply, Request
from trace_opt.llm.faults import ANSWERED, UNSENT, CallError, fault, kind_of, retry_after_of
from trace_opt.llm.prices import Price
from trace_opt.llm.stack import Backend
from trace_opt.llm.wire import Dialect, adapt, dialect_of, parameters_of, reply_of

if TYPE_CHECKING:
    import openai

_log = logging.getLogger("trace_opt.llm")

# the clients' own timeouts are per read; ours is total and comes first
_SPARE_SECONDS = 30.0


class OpenAI(Backend):
    """The backend that asks OpenAI, or a server that speaks its protocol.

    Args:
        name: `openai/...`, for messages.
        model: The server's name of the model.
        base_url: The server, or None for OpenAI.
        api_key: The key, or None for that of the environment (for a server: none).
        rates: The price, or None.
        timeout_s: Seconds for one request; the deadline proper is kept outside.
    """

    def __init__(
        self, name: str, model: str, base_url: str | None, api_key: str | None, rates: Price | None, timeout_s: float
    ) -> None:
        self.name = name
        self.rates = rates
        self.local = rates is not None and rates.at_most(1, 1) == 0
        self._model = model
        self._base_url = base_url
        self._api_key = api_key
        self._timeout_s = timeout_s
        self._client: tuple[object, openai.AsyncOpenAI] | None = None

    async def load(self) -> None:
        """Import the SDK."""
        await asyncio.to_thread(importlib.import_module, "openai")

    async def asend(self, request: Request) -> Reply:
        """Send one request through the SDK."""
        key = self._key()
        client = self._connected(key)
        # OpenAI's newer models refuse the old name of this option, other servers do not know the new one
        first = Dialect(length="max_tokens" if self._base_url else "max_completion_tokens")
        dialect = dialect_of(self._base_url, self._model, first)
        sent = parameters_of(request, dialect)
        if request.raw:
            raise fault(self.name, "request", "cannot go on with raw text", spent=UNSENT)
        import httpx
        import openai

        try:
            raw: Any = await cast("Any", client.chat.completions).with_raw_response.create(model=self._model, **sent)
            body = json.loads(raw.http_response.content)
        except openai.APIStatusError as error:
            raise self._answered(error, sent, dialect, key) from None
        except (openai.APIConnectionError, httpx.HTTPError) as error:
            raise self._lost(error, key) from None
        except (ValueError, RecursionError):
            raise fault(self.name, "malformed", "answered with something else than JSON", spent=None) from None
        except openai.OpenAIError as error:
            said = str(error)
            raise fault(self.name, "request", "could not be asked", said=said, spent=UNSENT, secrets=(key,)) from None
        return reply_of(body, request, self.name, self.rates)

    def _key(self) -> str:
        if self._api_key:
            return self._api_key
        if self._base_url is not None and self._base_url != os.environ.get("OPENAI_BASE_URL"):
            return "none"  # the SDK insists on one; a key of the environment is for OpenAI alone
        key = os.environ.get("OPENAI_API_KEY")
        if not key:
            if self._base_url is not None:
                return "none"
            raise CallError(
                f"{self.name!r} needs a key; set OPENAI_API_KEY, or pass api_key to connect", kind="key", spent=UNSENT
            )
        return key

    def _connected(self, key: str) -> openai.AsyncOpenAI:
        here = loop.background()
        if self._client is not None and self._client[0] is here and self._client[1].api_key == key:
            return self._client[1]
        import openai

        if self._client is not None:
            loop.close_soon(id(self._client[1]))
        client = openai.AsyncOpenAI(
            api_key=key, base_url=self._base_url, max_retries=0, timeout=self._timeout_s + _SPARE_SECONDS,
            http_client=openai.DefaultAioHttpClient(),
        )  # fmt: skip
        loop.close_with_loop(client, client.close)
        # dropped without this, each pooled socket warns
        finalize(self, loop.close_soon, id(client)).atexit = False
        self._client = here, client
        return client

    def _answered(self, error: openai.APIStatusError, sent: dict[str, Any], dialect: Dialect, key: str) -> CallError:
        body = error.body
        told = cast("dict[str, Any]", body) if isinstance(body, dict) else {}
        message = str(told.get("message") or error.message)
        said = f"{error.code or ''} {error.type or ''} {message}"
        kind = kind_of(error.status_code, said)
        adapted = error.status_code in (400, 422) and kind == "request"
        adapted = adapted and adapt(self._base_url, self._model, sent, dialect, message, error.param)
        wait = retry_after_of(error.response.headers, now=time.time())
        return fault(
            self.name, kind, f"answered {error.status_code}", said=message, retry_after=wait, adapted=adapted,
            secrets=(key,),
        )  # fmt: skip

    def _lost(self, error: Exception, key: str) -> CallError:
        import aiohttp

        cause = error.__cause__ or error
        # the transport calls every broken connection a timeout of connecting; what aiohttp said is beneath it
        origin = cause.__cause__ or cause
        late = isinstance(origin, TimeoutError)
        unsent = isinstance(origin, (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError))
        kind: LLMErrorKind = "timeout" if late else "connection"
        what = "gave no answer in time" if late else "could not be reached, or broke off its answer"
        return fault(self.name, kind, what, said=str(origin), spent=UNSENT if unsent else None, secrets=(key,))


class LiteLLM(Backend):
    """The backend that asks any provider that litellm knows.

    Args:
        name: `provider/model`.
        base_url: Where the provider is, if not at its usual place.
        api_key: The key, or None for that of the environment.
        rates: The price, or None.
        timeout_s: Seconds for one request; the deadline proper is kept outside.
    """

    def __init__(
        self, name: str, base_url: str | None, api_key: str | None, rates: Price | None, timeout_s: float
    ) -> None:
        self.name = name
        self.rates = rates
        self.local = rates is not None and rates.at_most(1, 1) == 0
        self._base_url = base_url
        self._api_key = api_key
        self._timeout_s = timeout_s

    async def load(self) -> None:
        """Import litellm, which takes seconds."""
        await asyncio.to_thread(_litellm)

    async def asend(self, request: Request) -> Reply:
        """Send one request through litellm."""
        if request.raw:
            raise fault(self.name, "request", "cannot go on with raw text", spent=UNSENT)
        litellm = _litellm()
        loop.close_with_loop(litellm, _close_litellm)
        first = Dialect(left_out=self._unsupported(litellm))
        dialect = dialect_of(self._base_url, self.name, first)
        sent = parameters_of(request, dialect)
        import openai

        token = _ours.set(True)
        try:
            answer = await litellm.acompletion(
                model=self.name, api_base=self._base_url, api_key=self._api_key, num_retries=0, max_retries=0,
                timeout=self._timeout_s + _SPARE_SECONDS, **sent,
            )  # fmt: skip
            body = answer.model_dump(warnings=False)
        except openai.OpenAIError as error:
            raise self._fault(error, sent, dialect) from None
        except (ValueError, TypeError, KeyError, AttributeError) as error:  # its readers of a provider's answer
            raise fault(
                self.name, "malformed", "answered what litellm cannot read", said=str(error), spent=None
            ) from None
        finally:
            _ours.reset(token)
            _settle_exit()
        return reply_of(body, request, self.name, self.rates)

    def _unsupported(self, litellm: Any) -> frozenset[str]:
        """The options that the provider does not take; litellm would raise, or drop them unseen."""
        try:
            known = litellm.get_supported_openai_params(model=self.name)
        except Exception:  # noqa: BLE001 # a provider that it does not know says so when it is asked
            known = None
        if known is None:
            return frozenset()
        left_out = frozenset({"temperature", "seed", "stop", "response_format"} - set(known))
        if "max_tokens" not in known and "max_completion_tokens" in known:
            left_out |= {"max_tokens"}
        if left_out and self.name not in _told:
            _told.add(self.name)
            _log.info("%s does not take %s, so it is not sent", self.name, ", ".join(sorted(left_out)))
        return left_out

    def _fault(self, error: Exception, sent: dict[str, Any], dialect: Dialect) -> CallError:
        said = re.sub(r"^litellm\.\w+: (?:\w+: )*(?:\w+Exception - )?", "", str(error))
        status = getattr(error, "status_code", None)
        kind, spent = _reading_of(type(error).__name__, status if isinstance(status, int) else None, said)
        adapted = kind == "request" and status in (400, 422)
        adapted = adapted and adapt(self._base_url, self.name, sent, dialect, said, _param_of(said))
        headers: Mapping[str, Any] = getattr(error, "litellm_response_headers", None) or {}
        wait = retry_after_of(headers, now=time.time())
        if kind == "key" and spent is UNSENT:
            what = "needs a key"
        elif kind == "model" and spent is UNSENT:
            what = "is of a provider that litellm does not know"
            said = ""
        else:
            what = f"answered {status}" if spent is not None and status is not None else "gave no usable answer"
        return fault(
            self.name, kind, what, said=_message_in(said), retry_after=wait, spent=spent, adapted=adapted,
            secrets=(self._api_key,),
        )  # fmt: skip


_UNREACHABLE = re.compile(
    r"cannot connect|connect call failed|name or service not known|connection refused", re.IGNORECASE
)
_BROKEN_OFF = re.compile(
    r"connection (?:error|reset)|reset by peer|not completed|disconnected|peer closed|incomplete|broken pipe|readerror",
    re.IGNORECASE,
)
_UNREADABLE = re.compile(
    r"json response|expecting (?:value|property|',')|unterminated string|jsondecode|has no attribute|'choices'"
    r"|not a list|nonetype|invalid response object",
    re.IGNORECASE,
)


def _reading_of(class_name: str, status: int | None, said: str) -> tuple[LLMErrorKind, Any]:
    """What an error of litellm means, and what the request cost: it gives lost answers a status of their own."""
    if "LLM Provider NOT provided" in said or class_name == "UnknownProviderError":
        return "model", UNSENT
    if class_name == "AuthenticationError" and re.search(
        r"missing .*key|no key is set|api_key client option", said, re.IGNORECASE
    ):
        return "key", UNSENT
    if class_name == "ContextWindowExceededError":
        return "too_long", ANSWERED
    if class_name == "Timeout":
        return "timeout", None if "time taken" in said or "timed out" in said else ANSWERED
    if status in (None, 200, 500):
        if _UNREACHABLE.search(said):
            return "connection", UNSENT
        if _BROKEN_OFF.search(said):
            return "connection", None
        if status == 200 or _UNREADABLE.search(said):
            return "malformed", None
    return kind_of(status if status is not None and status >= 400 else 500, said), ANSWERED


def _message_in(said: str) -> str:
    """The server's own words where litellm quotes its whole answer."""
    found = re.search(r'"message":\s*("(?:[^"\\]|\\.)*")', said)
    return str(json.loads(found[1], strict=False)) if found else said


def _param_of(said: str) -> str | None:
    found = re.search(r'"param":\s*"(\w+)"', said)
    return found[1] if found else None


_told: set[str] = set()
_ours: ContextVar[bool] = ContextVar("trace_opt_litellm", default=False)


@functools.lru_cache(maxsize=1)
def _litellm() -> Any:
    """litellm, loaded quietly by the first call, without a look at the network."""
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    with warnings.catch_warnings():
        # its data classes are built when first used, with warnings that are nobody's business here
        warnings.simplefilter("ignore")
        litellm: Any = importlib.import_module("litellm")
        litellm.ModelResponse(choices=[{"message": {"role": "assistant", "content": ""}}], usage=litellm.Usage())
    litellm.suppress_debug_info = True
    logging.getLogger("LiteLLM").setLevel(logging.ERROR)
    _send_once()
    return litellm


@functools.lru_cache(maxsize=1)
def _settle_exit() -> None:
    # its first call registers a clean-up at exit, which would close our connections from outside their loop
    loop.shut_down_first()


async def _close_litellm() -> None:
    await _litellm().close_litellm_async_clients()


def _send_once() -> None:
    """Keep litellm from sending a request of ours a second time when the connection breaks: we count and retry."""
    handler: Any = importlib.import_module("litellm.llms.custom_httpx.http_handler").AsyncHTTPHandler
    theirs = handler.single_connection_post_request

    async def once(self: Any, *args: Any, **kwargs: Any) -> Any:
        error = sys.exc_info()[1]  # called where litellm handles the broken connection
        if _ours.get() and error is not None:
            raise error
        return await theirs(self, *args, **kwargs)

    handler.single_connection_post_request = once
