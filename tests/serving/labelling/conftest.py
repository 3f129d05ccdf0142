"""What the tests of labelling share: a bundle that learns, and images in an inbox."""

import shutil

import pytest
from deploy_helpers import make_continual, shades, strange
from labelling_helpers import make_workplace, opened, put


@pytest.fixture(scope="session")
def bundle(tmp_path_factory):
    """A bundle that knows `ok` and `bad`."""
    path = tmp_path_factory.mktemp("labelling") / "model"
    make_continual({"ok": 6, "bad": 5}).save(path)
    return path


@pytest.fixture
def room(tmp_path, bundle):
    """A folder with a model and an inbox: five unknown images and two known ones."""
    shutil.copytree(bundle, tmp_path / "model")
    put(tmp_path / "inbox", "new", strange(5))
    put(tmp_path / "inbox", "ok", shades("ok", 2, seed=3))
    return tmp_path


@pytest.fixture
def start():
    """A function that opens a workplace, without its threads; all are closed in the end."""
    places = []

    def begin(room, **options):
        places.append(make_workplace(room, **options))
        return opened(places[-1])

    yield begin
    for place in places:
        place.close()


@pytest.fixture
def place(room, start):
    return start(room)
