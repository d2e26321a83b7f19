"""The options of TLS: what they ask for, and what is said of files that cannot be used."""

from __future__ import annotations

import os
import ssl
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from dse.core.tls import TLS_OPTIONS, Tls
from dse.core.url import TransportUrl
from dse.errors import InvalidUrl
from dse.testing.certificates import Authority

SECRET = "Tr0ub4dor"


def read(query: str, *, scheme: str = "rediss") -> Tls | None:
    url = TransportUrl.parse(f"{scheme}://user:{SECRET}@host{'?' if query else ''}{query}")
    return Tls.read(url, url.read_options(TLS_OPTIONS), sealed=scheme == "rediss", scheme="rediss")


def refusal(query: str, *, scheme: str = "rediss") -> str:
    with pytest.raises(InvalidUrl) as caught:
        read(query, scheme=scheme)
    assert SECRET not in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ours"))


class TestOptions:
    def test_without_a_word_there_is_no_tls(self) -> None:
        assert read("", scheme="redis") is None
        assert read("ssl=no", scheme="redis") is None

    def test_the_scheme_or_an_option_asks_for_it(self) -> None:
        assert read("") is not None
        assert read("ssl=yes", scheme="redis") is not None

    def test_what_the_scheme_asks_for_no_option_turns_off(self) -> None:
        assert "rediss:// is TLS, which option 'ssl' cannot turn off" in refusal("ssl=no")

    @pytest.mark.parametrize("option", [name for name in TLS_OPTIONS if name != "ssl"])
    def test_an_option_without_tls_is_a_mistake(self, option: str) -> None:
        said = refusal(f"{option}=yes", scheme="redis")
        assert f"option '{option}' needs TLS, that is rediss:// or ssl=true" in said

    @pytest.mark.parametrize("option", ["ssl_keyfile", "ssl_keyfile_password"])
    def test_a_key_needs_a_certificate(self, option: str) -> None:
        assert f"option '{option}' needs 'ssl_certfile'" in refusal(f"{option}=/a/file")

    @pytest.mark.parametrize("name", ["", ".host", "a..b", "x" * 300])
    def test_a_server_name_that_is_none(self, name: str) -> None:
        assert "option 'ssl_server_name' cannot be used" in refusal(f"ssl_server_name={name}")

    def test_the_certificate_is_always_verified_and_the_version_1_2_at_least(self) -> None:
        for query in ("", "ssl_check_hostname=no"):
            tls = read(query)
            assert tls is not None
            assert tls.context.verify_mode is ssl.CERT_REQUIRED
            assert tls.context.minimum_version is ssl.TLSVersion.TLSv1_2
            assert tls.context.check_hostname is not bool(query)

    def test_no_password_is_shown(self, ours: Authority) -> None:
        own = ours.issue("a").encrypted(SECRET)
        tls = read(f"ssl_certfile={own.certificate}&ssl_keyfile={own.key}&ssl_keyfile_password={SECRET}")
        assert SECRET not in repr(tls)
        assert f"ssl_keyfile={own.key}" in str(tls and tls.url)


class TestFiles:
    @pytest.fixture
    def bad(self, ours: Authority, tmp_path: Path) -> Callable[[str], Path]:
        def make(kind: str) -> Path:
            file = tmp_path / f"{kind}.pem"
            if kind == "garbage":
                file.write_bytes(os.urandom(5000))
            elif kind == "empty":
                file.touch()
            elif kind == "folder":
                file.mkdir()
            elif kind == "pipe":
                os.mkfifo(file)
            elif kind == "broken":
                file.write_text(ours.file.read_text().replace("MII", "!!!", 1))
            return file

        return make

    @pytest.mark.parametrize(
        ("kind", "words"),
        [
            ("missing", "No such file"),
            ("garbage", "has no certificate in PEM form"),
            ("empty", "has no certificate in PEM form"),
            ("broken", "has no certificate in PEM form"),
            ("folder", "is not a file"),
            ("pipe", "is not a file"),  # whose opening would wait for ever
        ],
    )
    @pytest.mark.parametrize("option", ["ssl_ca_certs", "ssl_certfile"])
    def test_of_certificates(self, bad: Callable[[str], Path], option: str, kind: str, words: str) -> None:
        file = bad(kind)
        said = refusal(f"{option}={file}")
        assert f"option '{option}' cannot be used: {file}" in said
        assert words in said

    @pytest.mark.parametrize(
        ("kind", "words"),
        [
            ("missing", "No such file"),
            ("garbage", "has no private key in PEM form"),
            ("empty", "has no private key in PEM form"),
            ("folder", "is not a file"),
            ("pipe", "is not a file"),
        ],
    )
    def test_of_keys(self, ours: Authority, bad: Callable[[str], Path], kind: str, words: str) -> None:
        file = bad(kind)
        said = refusal(f"ssl_certfile={ours.issue('a').certificate}&ssl_keyfile={file}")
        assert f"option 'ssl_keyfile' cannot be used: {file}" in said
        assert words in said

    def test_that_may_not_be_read(self, ours: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
        file = ours.issue("a").certificate
        file.chmod(0)
        if os.geteuid() == 0:  # who may read everything
            monkeypatch.setattr("builtins.open", _refusing(str(file)))
        assert f"'ssl_ca_certs' cannot be used: {file}: Permission denied" in refusal(f"ssl_ca_certs={file}")

    def test_an_option_without_a_value_is_not_taken_for_the_default(self) -> None:
        assert "option 'ssl_ca_certs' cannot be used" in refusal("ssl_ca_certs=")
        assert "option 'ssl_certfile' cannot be used" in refusal("ssl_certfile=")

    def test_with_a_nul_in_the_name(self) -> None:
        assert "option 'ssl_ca_certs' cannot be used" in refusal("ssl_ca_certs=/a%00b")

    def test_of_a_key_that_does_not_fit(self, ours: Authority) -> None:
        one, other = ours.issue("a"), ours.issue("a")
        said = refusal(f"ssl_certfile={one.certificate}&ssl_keyfile={other.key}")
        assert f"the key in {other.key} does not belong to the certificate in {one.certificate}" in said

    def test_of_a_certificate_whose_key_is_elsewhere(self, ours: Authority) -> None:
        said = refusal(f"ssl_certfile={ours.issue('a').certificate}")
        assert "has no private key in PEM form" in said
        assert "name the file that has it with ssl_keyfile" in said

    def test_of_a_certificate_and_its_key_in_one(self, ours: Authority, tmp_path: Path) -> None:
        own = ours.issue("a")
        both = tmp_path / "both.pem"
        both.write_bytes(own.certificate.read_bytes() + own.key.read_bytes())
        assert read(f"ssl_certfile={both}") is not None

    def test_of_an_encrypted_key(self, ours: Authority) -> None:
        own = ours.issue("a").encrypted(SECRET)
        query = f"ssl_certfile={own.certificate}&ssl_keyfile={own.key}"
        said = refusal(query)
        assert f"the key in {own.key} is encrypted, and its password is missing (ssl_keyfile_password)" in said
        said = refusal(f"{query}&ssl_keyfile_password=wrong-{SECRET}")
        assert f"option 'ssl_keyfile_password' cannot be used: it does not open the key in {own.key}" in said
        assert "cannot be used" in refusal(f"{query}&ssl_keyfile_password={SECRET * 200}")  # longer than OpenSSL takes
        assert read(f"{query}&ssl_keyfile_password={SECRET}") is not None

    def test_are_read_again_for_a_new_life_of_the_connections_and_once_for_each(
        self, ours: Authority, tmp_path: Path
    ) -> None:
        file = tmp_path / "ca.pem"
        file.write_bytes(ours.file.read_bytes())
        tls = read(f"ssl_ca_certs={file}")
        assert tls is not None
        file.write_text("nothing")
        assert tls.context.cert_store_stats()["x509_ca"] == 1
        again = tls.again()
        with pytest.raises(InvalidUrl, match="has no certificate"):
            assert again.context
        file.write_bytes(ours.file.read_bytes() + Authority(tmp_path / "theirs").file.read_bytes())
        assert again.context.cert_store_stats()["x509_ca"] == 2

    def test_reading_waits_for_no_terminal(self, ours: Authority) -> None:
        own = ours.issue("a").encrypted(SECRET)
        done = threading.Thread(target=lambda: refusal(f"ssl_certfile={own.certificate}&ssl_keyfile={own.key}"))
        done.start()
        done.join(10)
        assert not done.is_alive()


def test_certificates_made_as_the_page_says_are_good_to_the_strictest_client(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "security.md").read_text()
    commands = page[page.index("openssl req -x509") :].partition("```")[0]
    subprocess.run(["sh", "-ec", commands], cwd=tmp_path, check=True, capture_output=True, timeout=60)
    verify = ["openssl", "verify", "-x509_strict", "-purpose", "sslserver", "-verify_hostname", "broker.example.org"]
    done = subprocess.run(
        [*verify, "-CAfile", "ca.pem", "broker.pem"], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "broker.pem: OK\n", done.stderr
    assert read(f"ssl_ca_certs={tmp_path}/ca.pem&ssl_certfile={tmp_path}/broker.pem&ssl_keyfile={tmp_path}/broker.key")


def _refusing(name: str) -> Callable[..., object]:
    real = open

    def refuse(file: object, *args: object, **kwargs: object) -> object:
        if str(file) == name:
            raise PermissionError(13, "Permission denied", name)
        return real(file, *args, **kwargs)  # type: ignore[call-overload]

    return refuse
