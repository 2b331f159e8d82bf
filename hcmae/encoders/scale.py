"""Whether a patch of the geometry is what an encoder knows: microns per pixel, and microns per side.

The rule. A patch is cut by the geometry, ``geometry.patch`` pixels at level 0 (or at ``slides.target_mpp``), and is
brought to the encoder's input as its authors do. That says nothing of scale: 256 pixels of a 40x slide hold a quarter
of the tissue of 256 pixels at 20x. So the patch's micrometres per pixel and its side in micrometres must both lie
within a factor of 1.5 of the patches that the encoder's published features were made from: 256 pixels at 20x beside 224
at 20x pass (1.14), 256 pixels at 40x do not (2). Who means it says so with ``any_scale``.
"""

from __future__ import annotations

from hcmae.encoders.registry import Encoder, EncoderError

TOLERANCE = 1.5


def check_scale(encoder: Encoder, patch: int, mpp: float, where: str) -> None:
    """Raises EncoderError where patches of ``patch`` pixels of ``mpp`` micrometres are not what the encoder knows.

    ``where`` names the slide. Encoders that state no scale are not asked.
    """
    if encoder.mpp is None:
        return
    known = encoder.patch or encoder.resize
    pixel, side = mpp / encoder.mpp, patch * mpp / (known * encoder.mpp)
    if all(1 / TOLERANCE <= ratio <= TOLERANCE for ratio in (pixel, side)):
        return
    wanted = round(known * encoder.mpp / mpp)
    raise EncoderError(
        f"{where}: patches of {patch} pixels of {mpp:.3g} um ({patch * mpp:.3g} um a side), but {encoder.label} knows "
        f"{known} pixels of {encoder.mpp:g} um ({known * encoder.mpp:g} um): cut the slides with slides.target_mpp: "
        f"{encoder.mpp:g}{'' if wanted == patch else f', or with geometry.patch: {wanted}'}, or say any_scale"
    )
