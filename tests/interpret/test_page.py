import base64
import html.parser

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from crate_jax.interpret.page import Picture, Table, write_page


class _Reader(html.parser.HTMLParser):
    """What a browser would find."""

    def __init__(self):
        super().__init__()
        self.open, self.text, self.images = [], [], []

    def handle_starttag(self, tag, attrs):
        if tag == "img":
            self.images.append(dict(attrs))
        elif tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip() and "style" not in self.open:
            self.text.append((self.open[-1], data.strip()))


def _read(path):
    reader = _Reader()
    reader.feed(path.read_text())
    assert reader.open == []
    return reader


def test_a_page_carries_its_words_tables_and_figures(tmp_path):
    figure = Figure()
    FigureCanvasAgg(figure)
    figure.savefig(tmp_path / "a.png")
    parts = [
        "one & two",
        Table("T", ["name", "x"], [["<s>", "1.5"], ["'d'", "2"]], note="in nats"),
        Picture("P", tmp_path / "a.png"),
    ]
    write_page(tmp_path / "index.html", "A < B", parts)
    reader = _read(tmp_path / "index.html")
    for found in [
        ("title", "A < B"), ("h1", "A < B"), ("p", "one & two"), ("h2", "T"), ("th", "x"),
        ("td", "<s>"), ("td", "'d'"), ("p", "in nats"), ("h2", "P"),
    ]:  # fmt: skip
        assert found in reader.text
    (image,) = reader.images
    kind, _, data = image["src"].partition(",")
    assert kind == "data:image/png;base64"
    assert base64.b64decode(data) == (tmp_path / "a.png").read_bytes()


def test_a_page_that_cannot_be_made_leaves_the_old_one(tmp_path):
    write_page(tmp_path / "index.html", "old", ["words"])
    with pytest.raises(FileNotFoundError):
        write_page(tmp_path / "index.html", "new", [Picture("P", tmp_path / "none.png")])
    assert ("h1", "old") in _read(tmp_path / "index.html").text
