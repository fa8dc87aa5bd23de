"""Network recipes: modules made from a spec, the shape of a sample, and its conditions."""

from .base import Network, networks
from .conditioning import SelfConditioned
from .dit import DiT
from .mlp import MLP, FourierFeatures
from .one_hot import OneHot
from .transformer import Transformer
from .unet import UNet

__all__ = [
    "MLP",
    "DiT",
    "FourierFeatures",
    "Network",
    "OneHot",
    "SelfConditioned",
    "Transformer",
    "UNet",
    "networks",
]
