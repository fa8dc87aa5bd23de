"""Network recipes: modules made from a spec, the shape of a sample, and its conditions."""

from .base import Network, networks
from .conditioning import SelfConditioned
from .dit import DiT
from .mlp import MLP, FourierFeatures
from .unet import UNet

__all__ = ["MLP", "DiT", "FourierFeatures", "Network", "SelfConditioned", "UNet", "networks"]
