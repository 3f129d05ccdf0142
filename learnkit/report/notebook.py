"""The notebook form of an object: the document it makes of itself, as HTML."""

from __future__ import annotations

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
