"""Takes a page of Great Expectations apart and writes it again so that it needs nothing but itself.

The library's pages load styles, scripts, fonts and a logo from other people's servers when they are opened. Kept here
is what they say: text, tables, headings, anchors. The style is our own and lies inside each page, folding is done in
CSS, and a policy in the head forbids the browser to load anything at all.
"""

import posixpath
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from html import escape
from html.parser import HTMLParser
from importlib.resources import files
from urllib.parse import unquote

_VOID = {"br", "hr", "img", "input", "meta", "link", "wbr", "col", "source"}
_DROPPED = {"script", "style", "link", "meta", "img", "footer", "iframe", "object", "embed", "button", "title"}
_KEPT_ATTRIBUTES = {"class", "id", "style", "hidden", "colspan", "rowspan", "type", "name", "checked", "href"}
# Names of things that a run makes up anew each time.
_UUID = re.compile(r"-?[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_ICONS = {"text-success": ("ok", "✓"), "text-danger": ("bad", "✗"), "text-warning": ("warn", "!")}
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


@dataclass(slots=True)
class Node:
    """An element of a page; the root has no tag."""

    tag: str = ""
    attributes: dict[str, str] = field(default_factory=dict)
    children: list["Node | str"] = field(default_factory=list)

    def walk(self) -> Iterator["Node"]:
        """Yield this element and all below it, in document order."""
        yield self
        for child in self.children:
            if isinstance(child, Node):
                yield from child.walk()

    @property
    def text(self) -> str:
        """All text below, joined."""
        return "".join(child if isinstance(child, str) else child.text for child in self.children)

    @property
    def classes(self) -> set[str]:
        """The values of `class`."""
        return set(self.attributes.get("class", "").split())

    def write(self) -> str:
        """Give the HTML of this element."""
        inner = "".join(
            escape(child, quote=False) if isinstance(child, str) else child.write() for child in self.children
        )
        if not self.tag:
            return inner
        opening = "".join(f' {name}="{escape(value)}"' for name, value in self.attributes.items())
        return f"<{self.tag}{opening}>" + ("" if self.tag in _VOID else f"{inner}</{self.tag}>")


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.root = Node()
        self._open = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        node = Node(tag, {name: value or "" for name, value in attrs})
        self._open[-1].children.append(node)
        if tag not in _VOID:
            self._open.append(node)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._open[-1].children.append(Node(tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        # The library closes elements that it never opened; those that it left open end with the one around them.
        for depth in range(len(self._open) - 1, 0, -1):
            if self._open[depth].tag == tag:
                del self._open[depth:]
                return

    def handle_data(self, data: str) -> None:
        self._open[-1].children.append(re.sub(r"\s+", " ", data))


def parse(text: str) -> Node:
    """Read a page, however untidy."""
    reader = _Reader()
    reader.feed(text)
    reader.close()
    return reader.root


def offline(text: str, source: str, target: str, pages: Mapping[str, str]) -> str:
    """Give the inside of the body of a page, with links only to other pages of the report.

    Parameters
    ----------
    text : str
        The page as the library wrote it.
    source, target : str
        Its path in the library's folder and in ours.
    pages : mapping
        Path in the library's folder to path in ours, for every page.
    """
    root = parse(text)
    body = next((node for node in root.walk() if node.tag == "body"), root)

    def link(href: str) -> str | None:
        path, _, anchor = href.partition("#")
        if not path:
            return f"#{_UUID.sub('', anchor)}"
        found = pages.get(posixpath.normpath(posixpath.join(posixpath.dirname(source), unquote(path))))
        return None if found is None else posixpath.relpath(found, posixpath.dirname(target) or ".")

    return re.sub(r"(\s*\n)+", "\n", Node("", {}, _cleaned(body, link)).write())


def _cleaned(node: Node, link: Callable[[str], str | None]) -> "list[Node | str]":
    kept: list[Node | str] = []
    for child in node.children:
        if isinstance(child, str):
            kept.append(child)
        elif child.tag == "i":
            kept.append(_icon(child))
        elif not _is_dropped(child):
            inner = _cleaned(child, link)
            attributes = _attributes(child, link)
            # A link that leads out of the report is text.
            kept += inner if child.tag == "a" and "href" not in attributes else [Node(child.tag, attributes, inner)]
    return kept


def _is_dropped(node: Node) -> bool:
    # The bar with the logo, and when the library happened to load the table: another second in every report.
    moment = node.tag == "tr" and node.text.strip().startswith("ge_load_time")
    moment = moment or ("id" in node.attributes and node.text.strip() == "Batch Markers")
    return node.tag in _DROPPED or "sticky-top" in node.classes or moment


def _icon(node: Node) -> Node:
    for name, (kind, sign) in _ICONS.items():
        if name in node.classes:
            return Node("span", {"class": f"icon {kind}"}, [sign])
    return Node("span", {"class": "icon"}, [])


def _attributes(node: Node, link: Callable[[str], str | None]) -> dict[str, str]:
    kept = {name: value for name, value in node.attributes.items() if name in _KEPT_ATTRIBUTES}
    if "url(" in kept.get("style", "").lower():
        del kept["style"]
    if "id" in kept:
        kept["id"] = _UUID.sub("", kept["id"])
    if "href" in kept:
        href = link(kept.pop("href"))
        if href is not None and node.tag == "a":
            kept["href"] = href
    return kept


def page(title: str, body: str, *, home: str = "") -> str:
    """Make a whole page: our head and style, a bar with a way home, the body."""
    style = files("qc").joinpath("pages.css").read_text(encoding="utf-8")
    bar = f'<a href="{escape(home)}">All results</a> <span>{escape(title)}</span>' if home else "emlake quality report"
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<link rel="icon" href="data:,">\n<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n'
        f'<body>\n<header class="bar">{bar}</header>\n{body}\n</body>\n</html>\n'
    )
