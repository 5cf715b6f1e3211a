"""Keys and certificates: who is who in a run, so that only its own processes may connect, each as itself.

A run has one authority. It signs a certificate for each rank, with the rank's name ``rank-K``. Both ends of a
connection show theirs (mutual TLS): a server accepts who holds a key of this run, as the rank that the certificate
names; a client accepts a server only as the rank that it wants to reach. An address is part of no certificate.
"""

import datetime
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from psl.errors import PSLError, check_count, expected

_FILES = {"authority": "authority.pem", "certificate": "certificate.pem", "key": "key.pem"}


@dataclass(frozen=True)
class Bundle:
    """What one rank needs to prove who it is, and to check others, as PEM text.

    Args:
        authority: certificate of the run's authority.
        certificate, key: of the rank; the key is secret.
    """

    authority: str
    certificate: str
    key: str

    def __repr__(self):
        return "Bundle(…)"  # a key must not end up in a log

    @classmethod
    def load(cls, folder: str | Path) -> "Bundle":
        """Read a rank's folder as `write_keys` made it.

        Raises:
            PSLError: a file is missing, or the key can be read by others than its owner.
        """
        found = {}
        for name, file in _FILES.items():
            path = Path(folder) / file
            try:
                found[name] = path.read_text()
                mode = path.stat().st_mode
            except (OSError, UnicodeDecodeError) as cause:
                got, fix = getattr(cause, "strerror", None) or "no text", "make it with python -m psl.distributed keys"
                raise expected("--keys", f"a folder with {file}", f"{path}: {got}", fix, PSLError) from cause
            if name == "key" and mode & (stat.S_IRWXG | stat.S_IRWXO):
                want, got = "a key that only its owner can read", f"{path} with mode {stat.S_IMODE(mode):o}"
                raise expected("--keys", want, got, f"chmod 600 {path}", PSLError)
        return cls(**found)


def rank_name(rank: int) -> str:
    """Return the name of a rank in certificates."""
    return f"rank-{rank}"


def make_bundles(n_ranks: int, days: float = 30.0) -> list[Bundle]:
    """Make the authority of a run, and a bundle for each rank; the authority's own key is forgotten.

    Args:
        n_ranks: processes of the run.
        days: how long the certificates hold.
    """
    until = datetime.timedelta(days=days)
    authority_key = ec.generate_private_key(ec.SECP256R1())
    authority = _signed("psl run", authority_key, None, authority_key, until)
    root, bundles = _pem(authority), []
    for rank in range(check_count("n_ranks", n_ranks)):
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _signed(rank_name(rank), key, authority, authority_key, until)
        secret = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        bundles.append(Bundle(root, _pem(certificate), secret.decode()))
    return bundles


def write_keys(folder: str | Path, n_ranks: int, days: float = 30.0) -> list[Path]:
    """Write the bundle of each rank into a folder of its own, to be copied to the rank's host; returns these folders.

    Raises:
        PSLError: the folder has keys already, or cannot be written.
    """
    folder, made = Path(folder), []
    bundles = make_bundles(n_ranks, days)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for rank, bundle in enumerate(bundles):
            place = folder / rank_name(rank)
            place.mkdir(mode=0o700)
            for name, file in _FILES.items():
                with open(os.open(place / file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as opened:
                    opened.write(getattr(bundle, name))
            made.append(place)
    except OSError as cause:
        got, fix = f"{cause.filename}: {cause.strerror}", "name a new folder: keys are never overwritten"
        raise expected("keys", "a folder to write into", got, fix, PSLError) from cause
    return made


def _signed(name: str, key, issuer: x509.Certificate | None, issuer_key, until: datetime.timedelta) -> x509.Certificate:
    own, begin = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]), datetime.datetime.now(datetime.UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(own)
        .issuer_name(own if issuer is None else issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin - datetime.timedelta(hours=1))  # clocks of boards are not exact
        .not_valid_after(begin + until)
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None if issuer else 0), critical=True)
    )
    if issuer is not None:
        usage = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        built = built.add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        built = built.add_extension(x509.ExtendedKeyUsage(usage), critical=False)
    return built.sign(issuer_key, hashes.SHA256())


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()
