"""A loopback server of OpenAI's chat protocol for benchmarks/headlines_peers.py: one engine, one list of proposals.

Three models are served. `topic` is the embedded model that answers with the likeliest topic, as agents/headlines.py
asks it; a last assistant message is how its answer starts. `text` is the same model, generating greedily. `proposer`
knows nothing: it takes the instructions of a list in turn, in an order that the seed decides, and gives the next one
in the form that it is asked for: an object by its JSON schema, the fields of a dspy signature, or a fenced block.
Requests need the server's token.
"""

from __future__ import annotations

import itertools
import json
import random
import re
import secrets
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from trace_opt.errors import LLMError
from trace_opt.llm.base import LLM, Reply

TOPICS = ("business", "entertainment", "politics", "sports", "tech")
MOST_GENERATED = 48

PROPOSALS = (
    "Classify the headline.",
    "Topics: {topics}.",
    "Which section of a newspaper does this headline belong to: {topics}?",
    "Decide whether the headline is about {topics}.",
    "You are a news editor. Sort each headline into its section: {topics}.",
    (
        "Classify the headline into one of: business (companies, money), entertainment (film, music), politics (parties, "
        "elections), sports (matches, players), tech (computers, internet)."
    ),
    (
        "Name the topic of the headline. It is business if it is about companies or money, entertainment if about film or "
        "music, politics if about parties or elections, sports if about matches or players, tech if about computers or the "
        "internet."
    ),
    "Classify the headline into one of: {topics}.",
    "Answer with the topic only.",
    "One word: {topics}",
    "What is this headline about? Choose from {topics}.",
    "Is it about money, films, parliament, matches or computers? Answer with {topics} in that sense.",
    "Label the text with exactly one label. The labels are {topics}. Give the label and nothing else.",
    "A British broadcaster files its stories under {topics}. Under which is the following story filed?",
    (
        "Companies, shares, banks and prices are business. Actors, bands, awards and television are entertainment. Ministers, "
        "parties, taxes and votes are politics. Teams, players, cups and coaches are sports. Software, phones, games and the "
        "web are tech. What is the following?"
    ),
    "Do your best.",
    "Translate the headline into French, then name its topic.",
    (
        "Names of clubs and players mean sports; names of firms mean business; names of ministers mean politics; names of stars "
        "mean entertainment; names of gadgets mean tech. Topics: {topics}."
    ),
    "If you are not sure, answer business.",
    "Never answer business unless a company or a price is named. Choose one of {topics}.",
    "Category ({topics}):",
    "The following headline was printed in the section called",
    "Here is a headline. Its topic is one of {topics}. Say which.",
    (
        "I will give you a headline, and you will tell me its topic: {topics}. Most headlines are about people; look at what they "
        "do, not at who they are."
    ),
)

_DSPY = re.compile(r"`\[\[ ## (\w+) ## \]\]`")
_SUMMARY = "News headlines of a British broadcaster, each of them to be filed under one of five topics."


class Proposer:
    """Gives the next instruction of a list, in whatever form it is asked for.

    Args:
        seed: Decides the order; the list starts anew when it is at its end.
        proposals: The list.
    """

    def __init__(self, seed: int, proposals: Sequence[str] = PROPOSALS) -> None:
        shuffled = random.Random(f"proposals/{seed}").sample(proposals, len(proposals))
        self._next = itertools.cycle(shuffled)

    def answer(self, body: Mapping[str, Any]) -> str:
        """The text of a reply.

        Args:
            body: A request of the chat protocol.

        Raises:
            ValueError: the request asks for none of the three forms.
        """
        told = body.get("response_format") or {}
        if told.get("type") == "json_schema":
            values = told["json_schema"]["schema"]["properties"]["values"]["properties"]
            return json.dumps({"reasoning": "the next of the list", "values": dict.fromkeys(values, next(self._next))})
        asked = text_of(body["messages"][-1])
        fields = _DSPY.findall(asked[asked.rfind("Respond with the corresponding output fields") :])
        if "completed" in fields:
            said = ((name, self._field(name)) for name in fields if name != "completed")
            return "".join(f"[[ ## {name} ## ]]\n{text}\n\n" for name, text in said) + "[[ ## completed ## ]]"
        if "```" in asked:
            return f"```\n{next(self._next)}\n```"
        raise ValueError("the proposer was asked for neither an object, nor fields, nor a fenced block")

    def _field(self, name: str) -> str:
        return next(self._next) if name == "proposed_instruction" else _SUMMARY


def text_of(message: Mapping[str, Any]) -> str:
    """A message's text, which clients send as such or as parts."""
    content = message["content"]
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


class Server:
    """What the requests of one run at a time are answered from.

    Args:
        llm: The embedded model.

    Attributes:
        url: For a client's base URL, while it is running.
        key: The token.
        counts: Requests by model since `begin`, and under "computed" those that no cache answered.
    """

    def __init__(self, llm: LLM) -> None:
        self.key = secrets.token_hex(16)
        self.counts: Counter[str] = Counter()
        self._llm = llm
        self._proposer = Proposer(0)
        self._lock = threading.Lock()
        self.url = ""

    def begin(self, seed: int) -> None:
        """Start the list of proposals and the counts anew."""
        self._proposer, self.counts = Proposer(seed), Counter()

    @contextmanager
    def running(self) -> Iterator[Server]:
        """Serve from a thread, within a `with` block."""
        http = _Http(("127.0.0.1", 0), _Handler)
        http.answering = self
        self.url = f"http://127.0.0.1:{http.server_port}/v1"
        thread = threading.Thread(target=http.serve_forever, args=(0.05,), name="headlines-server", daemon=True)
        thread.start()
        try:
            yield self
        finally:
            http.shutdown()
            http.server_close()
            thread.join()

    def answer(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The body of a completion.

        Raises:
            ValueError: there is no such model, or it cannot take the request.
            LLMError: the engine failed.
        """
        with self._lock:
            self.counts[body["model"]] += 1
            if body["model"] == "proposer":
                reply = Reply(text=self._proposer.answer(body))
            else:
                reply = self._asked(body)
                self.counts["computed"] += not reply.cached
        return {
            "id": f"run-{sum(self.counts.values())}", "object": "chat.completion", "created": 0, "model": body["model"],
            "choices": [{"index": 0, "finish_reason": reply.finish, "message": {"role": "assistant", "content": reply.text}}],
            "usage": {
                "prompt_tokens": reply.cost.tokens_in, "completion_tokens": reply.cost.tokens_out,
                "total_tokens": reply.cost.tokens,
            },
        }  # fmt: skip

    def _asked(self, body: Mapping[str, Any]) -> Reply:
        messages = [{"role": m["role"], "content": text_of(m)} for m in body["messages"]]
        if body["model"] == "topic":
            prefill = messages.pop()["content"] if messages[-1]["role"] == "assistant" else ""
            return self._llm.reply(messages, answers=TOPICS, prefill=prefill)
        if body["model"] == "text":
            return self._llm.reply(messages, max_tokens=min(body.get("max_tokens") or MOST_GENERATED, MOST_GENERATED))
        raise ValueError(f"there is no model {body['model']!r}; ask 'topic', 'text' or 'proposer'")


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    answering: Server


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:  # the base class's name for it
        server = self.server
        assert isinstance(server, _Http)
        raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if not secrets.compare_digest(self.headers.get("Authorization", ""), f"Bearer {server.answering.key}"):
            self._send(401, {"error": {"message": "the token is missing or wrong", "type": "authentication_error"}})
        elif self.path != "/v1/chat/completions":
            self._send(404, {"error": {"message": f"there is no {self.path!r}", "type": "not_found_error"}})
        else:
            try:
                self._send(200, server.answering.answer(json.loads(raw)))
            except (ValueError, KeyError, LLMError) as error:
                self._send(400, {"error": {"message": str(error), "type": "invalid_request_error"}})

    def _send(self, status: int, body: Mapping[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:  # the base class's name for it
        """Say nothing."""
