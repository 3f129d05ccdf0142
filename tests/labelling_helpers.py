"""A workplace for labelling over a tiny network, with images in its inbox, and a client of it."""

import uuid
from contextlib import contextmanager

from PIL import Image

from learnkit.deploy.predictor import load_learner
from learnkit.serving.app import create_app
from learnkit.serving.labelling.access import Access
from learnkit.serving.labelling.routes import mount_labelling
from learnkit.serving.labelling.workplace import Workplace

ADDRESS = "http://127.0.0.1:8080"
OWN = {"Origin": ADDRESS, "X-Learnkit": "1"}


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self, now=1_700_000_000.0):
        self.now = now

    def __call__(self):
        return self.now


def put(folder, name, images, *, ext="png"):
    """Files `name0`, `name1`, ... of arrays."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{name}{number}.{ext}")


def make_workplace(tmp_path, *, model="model", **options):
    """A workplace over the bundle at `tmp_path / model`, without its threads."""
    source = tmp_path / model
    options = {"out": source, "steady": Clock(), **options}
    reopen = lambda: load_learner(options["out"])
    return Workplace(load_learner(source), tmp_path / "inbox", reopen=reopen, **options)


def opened(place):
    """The workplace, its inbox looked into; what is asked for is done at once."""
    place.desk.open()
    place.know()
    place.look(known_only=True)
    look(place)
    return place


def look(place):
    """Let the files stand still, and look into the inbox."""
    place.look()
    place.inbox.clock.now += 2
    return place.look()


@contextmanager
def client_of(place, *, login=True, **about):
    """(a client of the application, who may come in); the workplace is opened, and closed after."""
    from starlette.testclient import TestClient

    access = Access("127.0.0.1", 8080, place.secret, **about)
    app = create_app(place.predictor)
    mount_labelling(app, place, access)
    with TestClient(app, base_url=ADDRESS, headers=OWN) as client:
        if login:
            assert client.post("/label/login", json={"key": access.new_key()}).status_code == 200
        yield client, access


def new_key():
    return uuid.uuid4().hex


def name(place, ids, label, **more):
    """Answer `label` for images, and what came of it."""
    ids = [ids] if isinstance(ids, str) else ids
    return place.desk.answer({"ids": ids, "label": label, "key": new_key(), **more})


def undo(place, **more):
    return place.desk.undo({"key": new_key(), **more})


def ids_of(place, prefix=""):
    """Ids of the pictures whose names begin so, by name."""
    found = [one for one in place.book.pictures.values() if one.name.startswith(prefix)]
    return [one.id for one in sorted(found, key=lambda one: one.name)]
