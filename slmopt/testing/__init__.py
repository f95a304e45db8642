"""The conformance kit: hypothesis strategies for modules, weights and options, and `check_pass`, which proves a pass.

    def test_my_pass():
        check_pass(MyPass)
"""

from __future__ import annotations

try:
    import hypothesis as _hypothesis  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "slmopt.testing draws its examples with hypothesis, which is not installed: pip install 'slmopt[test]'",
        name="hypothesis",
    ) from error

from slmopt.testing.check import check_pass
from slmopt.testing.failures import ConformanceError
from slmopt.testing.language_models import language_models
from slmopt.testing.modules import modules
from slmopt.testing.options import options
from slmopt.testing.weights import weights

__all__ = ["ConformanceError", "check_pass", "language_models", "modules", "options", "weights"]
