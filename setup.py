"""What setup.cfg cannot say: the README as a package index shows it, where no file is beside it."""

import re
from pathlib import Path

from setuptools import setup

README = Path(__file__).with_name("README.md")
# A picture or a link to a file of the repository; [text](https://...) is left as it is.
PICTURE = re.compile(r"^!\[[^\]]*\]\((?!https?:)[^)]*\)\n+", flags=re.MULTILINE)
LINK = re.compile(r"\[([^\]]*)\]\((?!https?:)[^)]*\)")


def long_description(readme: str) -> str:
    """The text without pictures and links that lead to files beside it; their words stay."""
    return LINK.sub(r"\1", PICTURE.sub("", readme))


if __name__ == "__main__":
    setup(
        long_description=long_description(README.read_text(encoding="utf-8")),
        long_description_content_type="text/markdown",
    )
