"""Certificates for tests of TLS: authorities of a test's own, and what they sign, as files in its folder.

    ours = Authority(folder / "ours")
    server, client = ours.issue("localhost"), ours.issue("a client")
    late = ours.issue("localhost", days=(-2, -1))       # expired yesterday
    ours.file, server.certificate, server.key           # paths of PEM files

Needs ``trustme`` (in the extra ``test``).
"""

from __future__ import annotations

import datetime
import itertools
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Authority", "Issued", "files_for"]


@dataclass(frozen=True)
class Issued:
    """A certificate and its key, each in a file of its own."""

    certificate: Path
    key: Path

    def put(self, where: Issued) -> None:
        """Replace the files of another one with these, each at once, as whoever renews certificates does."""
        for ours, theirs in ((self.certificate, where.certificate), (self.key, where.key)):
            new = theirs.with_name(f".{theirs.name}.new")
            shutil.copyfile(ours, new)
            os.replace(new, theirs)

    def copy(self, folder: Path) -> Issued:
        """Return files of the same content, in another folder, which is made."""
        folder.mkdir(parents=True, exist_ok=True)
        same = Issued(folder / "certificate.pem", folder / "key.pem")
        self.put(same)
        return same

    def encrypted(self, password: str) -> Issued:
        """Return the same with a key that the password opens."""
        from cryptography.hazmat.primitives import serialization

        key = serialization.load_pem_private_key(self.key.read_bytes(), None)
        file = self.key.with_suffix(".encrypted")
        file.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.BestAvailableEncryption(password.encode()),
            )
        )
        return Issued(self.certificate, file)


class Authority:
    """An authority that nobody knows. `file` has its certificate; `folder` is made."""

    def __init__(self, folder: Path) -> None:
        import trustme

        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.file = folder / "authority.pem"
        self._authority = trustme.CA()
        self._authority.cert_pem.write_to_path(str(self.file))
        self._numbers = itertools.count(1)

    def issue(self, *names: str, days: tuple[float, float] = (-1, 2)) -> Issued:
        """Return a new certificate for host names and addresses. days: from when until when, from now."""
        now = datetime.datetime.now(datetime.UTC)
        first, last = (now + datetime.timedelta(days=each) for each in days)
        leaf = self._authority.issue_cert(*names, not_before=first, not_after=last)
        number = next(self._numbers)
        issued = Issued(self.folder / f"{number}.pem", self.folder / f"{number}.key")
        issued.certificate.write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
        issued.key.touch(0o600)
        leaf.private_key_pem.write_to_path(str(issued.key))
        return issued


def files_for(host: str, folder: Path) -> Path:
    """Make ``ca.pem``, ``cert.pem`` and ``key.pem`` for a host in a folder, and ``other.pem`` of another authority."""
    ours, theirs = Authority(folder / "ours"), Authority(folder / "theirs")
    ours.issue(host).put(Issued(folder / "cert.pem", folder / "key.pem"))
    shutil.copyfile(ours.file, folder / "ca.pem")
    shutil.copyfile(theirs.file, folder / "other.pem")
    return folder
