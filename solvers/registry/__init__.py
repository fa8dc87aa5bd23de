"""Registries: classes by name, made from specs such as ``heun`` or ``karras(rho=7)``, with checked options."""

from .options import Options
from .outside import Origin
from .ranges import Choice, Range, marks
from .registry import Info, Registry
from .spec import Spec

__all__ = ["Choice", "Info", "Options", "Origin", "Range", "Registry", "Spec", "marks"]
