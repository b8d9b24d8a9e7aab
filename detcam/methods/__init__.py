"""The registry of methods: from a name to the class that computes its maps."""

from __future__ import annotations

from detcam.errors import MethodError, nearest
from detcam.methods.activation import EigenCAM
from detcam.methods.base import Method, PooledMethod
from detcam.methods.gradient import ODAM, GradCAM, GradCAMPlusPlus, HiResCAM, LayerCAM, XGradCAM

METHODS: dict[str, type[Method]] = {
    method.name: method for method in (ODAM, HiResCAM, GradCAM, GradCAMPlusPlus, XGradCAM, LayerCAM, EigenCAM)
}
DEFAULT = "odam"


def get_method(method: str | Method) -> Method:
    """The method of that name ("auto" is the default method), or the given instance itself.

    Raises:
        MethodError: if no method has that name.
    """
    if isinstance(method, Method):
        return method
    name = DEFAULT if method == "auto" else str(method).lower()
    if name not in METHODS:
        raise MethodError(f"method {method!r} does not exist: {nearest(name, METHODS)}")
    return METHODS[name]()


__all__ = ["DEFAULT", "METHODS", "Method", "PooledMethod", "get_method"]
