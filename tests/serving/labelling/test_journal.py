"""The journal: lines that are whole, and what follows from them whenever they are read again."""

import json
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from labelling_helpers import Clock

from learnkit.errors import ServingError
from learnkit.serving.labelling.journal import Journal, replay, with_images

IMAGES = [{"id": f"{i:032x}", "sha": f"{i:064x}", "name": f"{i}.png"} for i in range(4)]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "journal.jsonl"


def written(path, *lines):
    journal = Journal(path, Clock())
    for line in lines:
        journal.append(line)
    journal.close()
    return path.read_bytes()


def read(path):
    journal = Journal(path)
    journal.close()
    return journal.lines


def test_a_line_is_on_the_disk_when_append_returns(path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(path.read_bytes()))
    data = written(path, {"do": "skip", "key": "k"})
    assert synced == [data] == [b'{"t": "2023-11-14T22:13:20.000Z", "do": "skip", "key": "k"}\n']


def test_a_torn_last_line_is_taken_out_wherever_it_was_torn(path):
    whole = written(path, {"do": "skip", "key": "a"})
    both = written(path, {"do": "skip", "key": "ü"})
    for end in range(len(whole), len(both)):
        path.write_bytes(both[:end])
        assert [line["key"] for line in read(path)] == ["a"]
        assert path.read_bytes() == whole


def test_a_damaged_line_in_the_middle_is_refused_with_its_number(path):
    data = written(path, {"do": "skip", "key": "a"}, {"do": "skip", "key": "b"})
    path.write_bytes(b"{]\n" + data)
    with pytest.raises(ServingError, match=r"line 1 of .* is damaged .*put the file aside"):
        Journal(path)


def test_after_an_error_the_file_is_as_before_and_goes_on(path, monkeypatch):
    journal = Journal(path, Clock())
    journal.append({"do": "skip", "key": "a"})
    before, write = path.read_bytes(), os.write

    def half(file, data):
        if len(data) > 10:
            return write(file, data[:10])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", half)
        with pytest.raises(OSError, match="No space"):
            journal.append({"do": "skip", "key": "b" * 20})
    assert path.read_bytes() == before
    journal.append({"do": "skip", "key": "c"})
    journal.close()
    assert [line["key"] for line in read(path)] == ["a", "c"]


steps = st.lists(
    st.tuples(
        st.sampled_from(["label", "skip", "ask", "learned", "refused", "undone"]),
        st.integers(0, 3),
        st.sampled_from(["A", "B"]),
    ),
    max_size=20,
)


@settings(max_examples=1000, deadline=None)
@given(steps)
def test_reading_again_gives_the_state_that_was_lived(history):
    """A model of its own keeps, for each image, the changes in force; the last one speaks."""
    lines, lived, state = [], {image["id"]: [] for image in IMAGES}, {}
    for number, (do, place, label) in enumerate(history):
        image, key = IMAGES[place], f"k{number}"
        own = lived[image["id"]]
        if do in ("label", "skip", "ask"):
            lines.append(with_images([image], do=do, key=key, label=label))
            own.append(key)
            state[key] = ["queued", do, label]
        elif own:
            lines.append({"do": do, "of": own[-1]})
            state[own[-1]][0] = do
            if do == "undone":
                own.pop()
    found = replay(json.loads(json.dumps(line)) for line in lines)
    assert {one.key: [one.state, one.do, one.about["label"]] for one in found} == state
    for image in IMAGES:
        last = found.last_of(image["id"])
        assert (last.key if last else None) == (lived[image["id"]] or [None])[-1]


def test_a_group_is_one_line_and_comes_back_as_all_its_images(path):
    line = with_images(IMAGES, do="label", key="k", label="A")
    written(path, line)
    (change,) = replay(read(path))
    assert change.images == IMAGES
    assert json.loads(path.read_text())["name"] == "0.png"
