"""Extraction: what a prompt holds, what is read out of a reply, how fields are scored, and that the texts are tuned."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.loading import module_at
from trace_opt.core.context import in_force
from trace_opt.core.feedback import Feedback
from trace_opt.core.parameter import Demonstrations
from trace_opt.core.propagate import propagate
from trace_opt.core.tracer import plain, record
from trace_opt.errors import ProblemError
from trace_opt.llm.models import path_of
from trace_opt.optim.optoprime import OptoPrime
from trace_opt.problem import load_problem
from trace_opt.search.budget import Budget
from trace_opt.testing import ScriptedLLM

PATH = Path(__file__).parents[2] / "agents" / "extract.py"
extract = module_at(PATH, "agents_extract", listed=True)

EXAMPLE = {
    "text": "Ada Kim paid €1,250.50 on 3 May 2024.", "name": "Ada Kim", "date": "2024-05-03", "amount": 1250.5, "currency": "EUR",
}  # fmt: skip
RIGHT = {name: EXAMPLE[name] for name in ("name", "date", "amount", "currency")}

with_model = pytest.mark.skipif(
    path_of("smollm2") is None, reason="the embedded model is not fetched; run 'trace-opt models pull'"
)


def extractor(reply: Any = "", **options: Any) -> Any:
    """The workflow with a model that says `reply`, or what it gives for the messages."""
    script = reply if callable(reply) else lambda messages: reply
    return extract.Extractor(ScriptedLLM(script), extract.Payment, extract.PAYMENT_FIELDS, **options)


def test_the_start_is_one_message_as_a_newcomer_would_write_it() -> None:
    """Instruction, names of the fields, text."""
    assert extractor().prompt("Ada paid.") == [
        {"role": "user", "content": "Extract the fields.\nFields: name, date, amount, currency\nAda paid."}
    ]


def test_demonstrations_are_turns_with_their_records_as_json() -> None:
    """With turns the instruction and the descriptions are the system's, and what was shown is answered in JSON."""
    shown = Demonstrations(4, (EXAMPLE,))

    with in_force({"layout": extract.TURNS, "told": extract.DESCRIBED, "demonstrations": shown}):
        system, asked, answered, last = extractor().prompt("Bo paid.")

    assert system["content"].splitlines()[1:3] == [
        "- name: who pays: first and last name",
        "- date: when it was paid, as YYYY-MM-DD",
    ]
    assert (asked["content"], json.loads(answered["content"]), last["content"]) == (EXAMPLE["text"], RIGHT, "Bo paid.")


def test_all_parameters_reach_the_record_and_recording_changes_nothing() -> None:
    """Instruction, descriptions, layout and demonstrations are inputs of what comes out."""
    workflow = extractor(json.dumps(RIGHT))

    with record() as graph:
        found = workflow(EXAMPLE["text"])

    assert plain(found) == workflow(EXAMPLE["text"]) == extract.Payment(**RIGHT)
    assert set(propagate(graph, graph.output(found), Feedback(1.0))) == {
        "instruction", "fields", "told", "layout", "demonstrations"
    }  # fmt: skip


def test_the_schema_confines_every_field() -> None:
    """All fields are required, no others allowed, texts are short, and null is none of the values."""
    assert extract.schema_of(extract.Payment) == {
        "type": "object", "required": ["name", "date", "amount", "currency"], "additionalProperties": False,
        "properties": {
            "name": {"type": "string", "maxLength": 60}, "date": {"type": "string", "maxLength": 60},
            "amount": {"type": "number"}, "currency": {"type": "string", "enum": ["EUR", "GBP", "JPY", "USD"]},
        },
    }  # fmt: skip


@pytest.mark.parametrize(("reply", "kept"), [
    (json.dumps(RIGHT), {"name", "date", "amount", "currency"}),
    (f"Here you are:\n```json\n{json.dumps(RIGHT)}\n```", {"name", "date", "amount", "currency"}),
    (json.dumps(RIGHT | {"amount": "1250.5"}), {"name", "date", "currency"}),
    (json.dumps(RIGHT | {"currency": "XYZ", "__class__": "os.system"}), {"name", "date", "amount"}),
    (json.dumps(RIGHT | {"amount": True, "name": ["Ada"]}), {"date", "currency"}),
    ('{"name": "Ada", "amount": NaN, "date": null, "currency": Infinity}', {"name"}),
    ('{"name": "Ada", "amount": 1e999}', {"name"}),
    (json.dumps(RIGHT)[:-2], set()), ("", set()), ("I cannot help with that.", set()), ("[1, 2]", set()), ("null", set()),
    ("{" * 20_000, set()), ('{"a":' * 3000 + "1" + "}" * 3000, set()), (json.dumps({"name": "x" * 30_000}), set()),
])  # fmt: skip
def test_of_a_malformed_or_hostile_reply_only_what_fits_is_kept(reply: str, kept: set[str]) -> None:
    """Wrong types, unknown values, not-a-number, cut and nested replies: no exception, nothing converted."""
    found = extractor(reply)(EXAMPLE["text"]).model_dump()

    assert {name for name, value in found.items() if value is not None} == kept


@given(
    st.text(max_size=200)
    | st.dictionaries(st.sampled_from(sorted(RIGHT)), st.floats() | st.text() | st.none()).map(json.dumps)
)
def test_every_reply_gives_a_record_with_finite_numbers(reply: str) -> None:
    """Whatever is said, the record is one that can be scored."""
    found = extract.record_in(reply, extract.Payment)

    assert found.amount is None or math.isfinite(found.amount)
    assert 0 <= extract.guide(found, EXAMPLE).value <= 1


def test_every_field_is_scored_by_itself_and_in_words() -> None:
    """The share of right fields decides; case and blanks of texts do not count."""
    feedback = extract.guide(extract.Payment(name=" ada  KIM", date="3 May 2024", amount=1250.5), EXAMPLE)

    assert feedback.score == {"fields": 0.5, "name": 1.0, "date": 0.0, "amount": 1.0, "currency": 0.0}
    assert feedback.text == (
        "date: expected '2024-05-03', got '3 May 2024'; currency: expected 'EUR', got nothing that fits its type"
    )
    assert extract.guide(extract.Payment(**RIGHT), EXAMPLE).text == "every field is right"


def test_sentences_follow_from_the_seed_and_hold_their_records() -> None:
    """Distinct, repeatable, and every name and amount stands in its sentence."""
    made = extract.payments(300, 4)

    assert made == extract.payments(300, 4) != extract.payments(300, 5)
    assert len({example["text"] for example in made}) == 300
    assert all(e["name"] in e["text"] and f"{e['amount']:,}"[:4] in e["text"] for e in made)
    assert all(extract.guide(extract.Payment(**{n: e[n] for n in RIGHT}), e).value == 1.0 for e in made)


def test_training_validation_and_test_share_no_sentence() -> None:
    """The parts are disjoint, and their sizes are options."""
    problem = load_problem(PATH, {"train": "8", "val": "9", "test": "10"})

    parts = [{example["text"] for example in part} for part in (problem.train, problem.val, problem.test)]

    assert [len(part) for part in parts] == [8, 9, 10]
    assert len(set().union(*parts)) == 27


def test_records_of_ones_own_make_their_own_class(tmp_path: Path) -> None:
    """Fields, types and missing values come from the file; the model is asked for exactly these."""
    lines = [
        {"text": f"Room {n} seats {n * 2}.", "room": str(n), "seats": n * 2, "note": None if n else "x"}
        for n in range(4)
    ]
    (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n", "utf-8")

    problem = load_problem(PATH, {"path": str(tmp_path / "own.jsonl")})
    workflow = problem.workflow
    workflow.llm = ScriptedLLM(lambda messages: '{"room": "3", "seats": 6, "note": null}')

    assert (problem.val, len(problem.train)) == (None, 4)
    assert workflow.schema["required"] == ["room", "seats", "note"]
    assert problem.guide(workflow(lines[3]["text"]), lines[3]).value == 1.0
    assert set(problem.margins) == {"room", "seats", "note"}


@pytest.mark.parametrize(("content", "said"), [
    (None, "cannot be read"),
    ("", "holds 0 records"),
    ('{"text": "a", "x": 1}\nno json', "line 2 of"),
    ('{"text": "a", "x": 1}\n{"text": "a", "y": 1}', "line 2 of"),
    ('{"x": 1, "y": 2}\n', 'write an object with a "text"'),
    ('{"text": "a", "x": {"y": 1}}\n', "fields that are texts or numbers"),
    ('{"text": "a", "x": 1}\n{"text": "b", "x": "c"}', "the field 'x' holds values of 2 types"),
    ('{"text": "a", "x y": 1}\n{"text": "b", "x y": 2}', "the field 'x y' cannot be extracted under that name"),
    ('{"text": "a", "model_dump": 1}\n{"text": "b", "model_dump": 2}', "rename it"),
    ('{"text": "a", "x": null}\n{"text": "b", "x": null}', "the field 'x' holds values of 0 types"),
])  # fmt: skip
def test_a_file_that_cannot_be_used_is_one_clear_sentence(tmp_path: Path, content: str | None, said: str) -> None:
    """Missing, empty, no JSON, other fields, nested values, several types, reserved names."""
    if content is not None:
        (tmp_path / "own.jsonl").write_text(content, "utf-8")
    with pytest.raises(ProblemError, match=re.escape(said)):
        load_problem(PATH, {"path": str(tmp_path / "own.jsonl")})


@pytest.mark.parametrize(("options", "said"), [
    ({"val": "0"}, "val=0"), ({"shown": "many"}, "option 'shown' got 'many'"), ({"rewrites": "1"}, "did you mean 'rewrite'"),
])  # fmt: skip
def test_a_wrong_option_is_one_clear_sentence(options: dict[str, str], said: str) -> None:
    """Sizes, types and names of options."""
    with pytest.raises(ProblemError, match=re.escape(said)):
        load_problem(PATH, options)


def clerk(messages: Any) -> str:
    """Stands for a model that reads well and writes dates as they stand, unless it is told how they are written."""
    asked = "\n".join(message["content"] for message in messages)
    example = next(e for e in extract.payments(120, 11) if asked.endswith(e["text"]))
    iso = "YYYY-MM-DD" in asked
    return json.dumps({name: example[name] for name in RIGHT} | ({} if iso else {"date": "some day"}))


def rewrites(messages: Any) -> str:
    """Stands for an optimizer's model: first a description that is too long, then, told so, one that fits."""
    seen = "\n".join(message["content"] for message in messages)
    wrong = "expected '20" in seen and "date" in seen
    fields = {
        **extract.PAYMENT_FIELDS,
        "date": "as YYYY-MM-DD" if "160" in messages[-1]["content"][-2000:] else "d" * 161,
    }
    values = {"fields": fields, "told": extract.DESCRIBED} if wrong else {}
    return json.dumps({"reasoning": "dates", "values": values})


def test_a_rewriting_model_changes_a_description_within_its_bounds() -> None:
    """A field that breaks its own bound is refused and asked for again; the valid one is found better held out."""
    problem = load_problem(PATH, {"rewrite": "true", "train": "20", "val": "20", "test": "20"})
    problem.workflow.llm = ScriptedLLM(clerk)
    problem.workflow.fields.value = {**extract.PAYMENT_FIELDS, "date": "when it was paid"}
    proposer = ScriptedLLM(rewrites)

    run = problem.optimize(
        optimizers=[OptoPrime(proposer), *problem.optimizers[1:]], race=(), budget=Budget(trials=2), store=None
    )

    assert run.best["fields"]["date"] == "as YYYY-MM-DD"
    assert run.best["told"] == extract.DESCRIBED
    assert (run.report().start.mean, run.report().best.mean, run.report().claim) == (0.75, 1.0, "better")


def test_without_a_model_to_rewrite_the_descriptions_stay_as_they_are() -> None:
    """The structured parameter is frozen then, so that no optimizer without a model is asked to handle it."""
    assert load_problem(PATH).workflow.fields.frozen
    assert not load_problem(PATH, {"rewrite": "true"}).workflow.fields.frozen


@with_model
def test_the_embedded_model_finds_names_and_more_when_it_is_shown_how() -> None:
    """Every reply of the real model is a whole record; two sentences shown make more of its fields right."""
    problem = load_problem(PATH)
    examples = problem.train[:2]

    def share() -> float:
        found = [problem.workflow(e["text"]) for e in examples]
        assert all(None not in record.model_dump().values() for record in found)
        return sum(extract.guide(record, e).value for record, e in zip(found, examples, strict=True))

    start = share()
    shown = Demonstrations(4, tuple(problem.train[10:12]))
    with in_force({"layout": extract.TURNS, "told": extract.DESCRIBED, "demonstrations": shown}):
        assert share() > start
