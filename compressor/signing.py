"""Signatures of artifacts in the format of OpenSSF Model Signing, by the extra package `model-signing`.

A signature covers every other file of the artifact. Hashes alone tell an accident; a signature also tells who made
the artifact from whoever could have changed it and its manifest together.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from compressor.errors import GateError, UserError
from compressor.files import appearing

SIGNATURE = "model.sig"


def sign(artifact: Path, private_key: Path) -> Path:
    """Sign an artifact with an elliptic-curve key (PEM, P-256, P-384 or P-521, not encrypted); returns the signature.

    Raises:
        UserError: the package is missing, or the key cannot be used.
    """
    signing, hashing = _package("signing"), _package("hashing")
    try:
        config = signing.Config().use_elliptic_key_signer(private_key=private_key)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{private_key} is no private key that can sign: {_said(error)}") from error
    config.set_hashing_config(hashing.Config().set_ignored_paths(paths=[SIGNATURE]))
    with appearing(artifact / SIGNATURE) as temporary:
        config.sign(artifact, temporary)
    return artifact / SIGNATURE


def check_signature(artifact: Path, public_key: Path) -> None:
    """Check that an artifact is signed with the private key of this public one (PEM).

    Raises:
        UserError: the package is missing, or the key cannot be used.
        GateError: there is no signature, it was made with another key, or of other files.
    """
    verifying = _package("verifying")
    try:
        config = verifying.Config().use_elliptic_key_verifier(public_key=public_key)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{public_key} is no public key: {_said(error)}") from error
    if not (artifact / SIGNATURE).is_file():
        raise GateError(f"{artifact} is not signed: it has no {SIGNATURE}")
    try:
        config.verify(artifact, artifact / SIGNATURE)
    except Exception as error:  # what reads a damaged signature has no common base
        raise GateError(f"the signature of {artifact} does not hold: {_said(error)}") from error


def _said(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _package(module: str) -> Any:
    from importlib import import_module

    try:
        return import_module(f"model_signing.{module}")
    except ImportError as error:
        raise UserError(
            'signatures need the package model-signing: pip install "compressor[sign]"'
        ) from error
