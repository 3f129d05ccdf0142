"""The notebook form of an object: the document it makes of itself, as HTML."""

from __future__ import annotations

import numpy as np

from learnkit.report.document import Document


class Shown:
    """A base of what shows itself in notebooks; heirs define `document`."""

    def document(self) -> Document:
        """What there is to read about it."""
        raise NotImplementedError

    def _repr_html_(self) -> str:
        # jinja2 is imported by the first notebook cell that shows something, not by `import`
        from learnkit.report.html import as_html

        return as_html(self.document())


class AxesArray(np.ndarray):
    """Axes of a figure as plots return them: an array with a short form, as cells show results.

    >>> np.full((2, 3), None).view(AxesArray)
    <2 x 3 Axes>
    """

    def __repr__(self) -> str:
        return f"<{' x '.join(map(str, self.shape))} Axes>"

    __str__ = __repr__
