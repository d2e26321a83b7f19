"""`dse keygen`, and files of keys: what is taken from them, and who may read them."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

pytest.importorskip("cryptography")

from dse import ConfigError
from dse.cli.keys import read_key_file, words_of_distrust
from dse.cli.main import main
from dse.cli.run.file import read_run_file
from dse.cli.run.problems import FileError
from dse.core.keys import new_key, parse_keys


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text(f"# the bus of the bank\n\n{new_key('k1')}\n  {new_key('k2')}\n")
    path.chmod(0o600)
    return path


def test_keygen_prints_a_key_of_that_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keygen", "k7"]) == 0
    (key,) = parse_keys([capsys.readouterr().out.strip()])
    assert key.id == "k7"


def test_keygen_names_keys_itself_and_never_twice_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    main(["keygen"])
    main(["keygen"])
    assert len(parse_keys(capsys.readouterr().out.split())) == 2


def test_keygen_puts_keys_into_a_file_for_the_user_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "keys"
    assert main(["keygen", "k1", "--into", str(path)]) == main(["keygen", "k2", "--into", str(path)]) == 0
    assert capsys.readouterr().out.split() == ["k1", "k2"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [key.id for key in parse_keys(read_key_file(path) or [])] == ["k1", "k2"]
    assert main(["keygen", "k1", "--into", str(path)]) == 2
    assert "two of them have the id 'k1'" in capsys.readouterr().err
    assert len(path.read_text().split()) == 2


@pytest.mark.parametrize("key_id", ["a b", "", ".", "ä", "x" * 65, "a:b"])
def test_keygen_refuses_a_name_that_cannot_be_used(key_id: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keygen", key_id]) == (0 if not key_id else 2)
    assert not capsys.readouterr().out or not key_id


def test_a_file_has_a_key_a_line_and_the_first_seals(key_file: Path) -> None:
    assert [key.id for key in parse_keys(read_key_file(key_file) or [])] == ["k1", "k2"]


@pytest.mark.parametrize(
    ("mode", "taken"), [(0o600, True), (0o440, True), (0o644, False), (0o620, False), (0o602, False)]
)
def test_a_file_that_others_may_read_or_change_is_refused(key_file: Path, mode: int, taken: bool) -> None:
    key_file.chmod(mode)
    if taken:
        assert read_key_file(key_file)
        return
    with pytest.raises(ConfigError, match=f"others may (read|change) it .*chmod 600 {key_file}"):
        read_key_file(key_file)


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"", "there is none"), (b"k1\n", "key 1"), (b"\xff\xfe", "no text"), (b"# x\n" * 20_000, "larger than 64 KiB")],
)
def test_a_file_of_something_else_is_refused_by_name(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "keys"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match=f"{path}: .*{said}"):
        read_key_file(path)


def test_a_file_that_is_not_there_or_is_none_is_refused(tmp_path: Path) -> None:
    for path, said in ((tmp_path / "nowhere", "No such file"), (tmp_path, "no regular file|Is a directory")):
        with pytest.raises(ConfigError, match=said):
            read_key_file(path)


class TestRunFile:
    @pytest.fixture
    def written(self, tmp_path: Path, key_file: Path) -> Path:
        path = tmp_path / "run.toml"
        path.write_text('transport = "fake://"\nkeys_file = "keys"\n')
        return path

    def test_keys_come_from_a_file_beside_it(self, written: Path, key_file: Path) -> None:
        file = read_run_file(str(written))
        assert file.node.keys == read_key_file(key_file)
        assert file.node.make().key_ids == ("k1", "k2")

    def test_other_keys_in_that_file_are_a_change_that_restarts_the_node(self, written: Path, key_file: Path) -> None:
        before = read_run_file(str(written)).node
        key_file.write_text(new_key("k3"))
        assert read_run_file(str(written)).node.changes(before) == ["keys"]

    def test_what_is_wrong_with_the_file_is_said_at_its_line(self, written: Path, key_file: Path) -> None:
        key_file.chmod(0o644)
        with pytest.raises(FileError) as caught:
            read_run_file(str(written))
        (line,) = caught.value.lines
        assert "run.toml:2: keys_file: " in line
        assert "others may read it" in line

    def test_both_are_too_many(self, written: Path) -> None:
        written.write_text(f'transport = "fake://"\nkeys_file = "keys"\nkeys = ["{new_key("k9")}"]\n')
        written.chmod(0o600)
        with pytest.raises(FileError, match="say one of the two"):
            read_run_file(str(written))

    def test_keys_in_a_run_file_that_others_may_read_are_refused_those_of_the_environment_not(
        self, written: Path
    ) -> None:
        key = new_key("k9")
        written.write_text(f'transport = "fake://"\nkeys = ["{key}"]\n')
        written.chmod(0o644)
        with pytest.raises(FileError, match="2: keys: the run file: has keys in it, and others may read it"):
            read_run_file(str(written))
        written.write_text('transport = "fake://"\nkeys = ["${THE_KEY}"]\n')
        assert read_run_file(str(written), environment={"THE_KEY": key}).node.keys == [key]

    def test_a_key_is_in_nothing_that_is_said(self, written: Path) -> None:
        key = new_key("k9")
        secret = key.partition(":")[2]
        written.write_text(f'transport = "fake://"\nkeys = ["{key}"]\n')
        written.chmod(0o600)
        file = read_run_file(str(written))
        assert secret not in repr(file)
        assert secret not in file.redact(f"somebody says {key} or {secret}")
        written.write_text(f'transport = "fake://"\nkeys = ["{key}", "{secret}"]\n')
        with pytest.raises(FileError) as caught:
            read_run_file(str(written))
        assert secret not in str(caught.value)


def test_what_was_dropped_is_said_in_words() -> None:
    assert words_of_distrust({}, keyed=False) == ""
    assert "3 frames dropped that are sealed" in words_of_distrust({"untrusted_sealed": 3}, keyed=False)
    said = words_of_distrust({"untrusted_unknown_key": 1, "untrusted_bad_seal": 2}, keyed=True)
    assert "1 frame dropped that are sealed with a key that is not among those given" in said
    assert "2 frames dropped that do not open" in said
