"""Video editing by anchor frames: policies, anchored attention, the editor."""

from __future__ import annotations

from .anchors import Alone, Anchors, EachScene, Listed, Scene, Uniform, parse_anchors
from .attention import Bank, anchored_attention, bank_bytes
from .denoising import Edit, FrameDenoiser
from .editor import Edited, VideoEditor

__all__ = [
    "Alone",
    "Anchors",
    "Bank",
    "EachScene",
    "Edit",
    "Edited",
    "FrameDenoiser",
    "Listed",
    "Scene",
    "Uniform",
    "VideoEditor",
    "anchored_attention",
    "bank_bytes",
    "parse_anchors",
]
