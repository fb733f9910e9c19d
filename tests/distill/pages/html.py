"""What a page holds, for tests that have no browser."""

from html.parser import HTMLParser

VOID = {"meta", "link", "input", "br"}


class Element:
    """An element with its attributes, the text in it, and the elements in it."""

    def __init__(self, name, attributes):
        self.name, self.attributes, self.parts = name, dict(attributes), []

    @property
    def text(self):
        return "".join(part if isinstance(part, str) else part.text for part in self.parts)

    def all(self, name, **attributes):
        """Elements below, by name and attributes; ``class_`` is one of the classes."""
        found = []
        for part in self.parts:
            if isinstance(part, Element):
                wanted = {key.rstrip("_"): value for key, value in attributes.items()}
                classes = part.attributes.get("class", "").split()
                fits = all(value in classes if key == "class" else part.attributes.get(key) == value
                           for key, value in wanted.items())  # fmt: skip
                found += [part] * (part.name == name and fits) + part.all(name, **attributes)
        return found


class Reader(HTMLParser):
    """Reads a page, and refuses one whose elements do not close in order."""

    def __init__(self):
        super().__init__()
        self.root = Element("root", [])
        self.stack = [self.root]

    def handle_starttag(self, tag, attrs):
        element = Element(tag, attrs)
        self.stack[-1].parts.append(element)
        if tag not in VOID:
            self.stack.append(element)

    def handle_startendtag(self, tag, attrs):
        self.stack[-1].parts.append(Element(tag, attrs))

    def handle_endtag(self, tag):
        assert self.stack[-1].name == tag, f"{tag} closes {self.stack[-1].name}"
        self.stack.pop()

    def handle_data(self, data):
        self.stack[-1].parts.append(data)


def read(html):
    """The page's root."""
    reader = Reader()
    reader.feed(html)
    reader.close()
    assert reader.stack == [reader.root]
    return reader.root


def check(page):
    """What every page holds: names for all that is seen, no address outside, no name twice."""
    everything = list(walk(page))
    ids = [element.attributes["id"] for element in everything if "id" in element.attributes]
    assert len(ids) == len(set(ids))
    for element in everything:
        for key in ("src", "href", "action", "srcset", "xlink:href"):
            address = element.attributes.get(key, "#")
            assert address.startswith(("#", "data:")), address
    for plot in page.all("svg", class_="plot"):
        title, description = plot.all("title")[0], plot.all("desc")[0]
        assert title.text
        assert description.text
        assert plot.attributes["aria-labelledby"].split() == [title.attributes["id"], description.attributes["id"]]
    for link in page.all("nav")[0].all("a"):
        assert link.attributes["href"].removeprefix("#") in ids


def walk(element):
    for part in element.parts:
        if isinstance(part, Element):
            yield part
            yield from walk(part)
