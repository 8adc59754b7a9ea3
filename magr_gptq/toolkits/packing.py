"""Widths whose packing differs between releases of compressed-tensors, under one name of the format."""

from __future__ import annotations

# findings/compressed-tensors-3-bits.sh
AMBIGUOUS = (3, 5, 6, 7)


def packing_note(bits: int, release: str) -> str | None:
    """What to tell of a checkpoint of these bits that this release packed; None where all pack them alike."""
    if bits not in AMBIGUOUS:
        return None
    return (
        f"{bits}-bit weights are packed as compressed-tensors {release} packs them; releases up to 0.16 and "
        "those after it read each other's 3, 5, 6 and 7 bits wrongly, without an error: load the checkpoint "
        "with the release that wrote it"
    )
