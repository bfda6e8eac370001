"""What a browser would find in a report: tables as texts, ids, and what is referred to."""

from html.parser import HTMLParser

EMPTY = {"meta", "img", "br"}


class Page(HTMLParser):
    """The page's tables as rows of cells, its texts, ids and references."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.html = html
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.handlers: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.bold: list[tuple[str, str]] = []
        """The name of the row and the text, of every bold cell."""
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        assert self._open == [], "elements that are not closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in EMPTY:
            self._open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            elif name in ("src", "href", "xlink:href", "srcset", "data", "action", "poster"):
                self.references.append(value or "")
            elif name.startswith("on"):
                self.handlers.append(name)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in EMPTY:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self._open, f"</{tag}> closes nothing"
        assert self._open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        text = " ".join(data.split())
        if not text or "style" in self._open:
            return
        self.texts.append(text)
        if {"td", "th"} & set(self._open):
            row = self.tables[-1][-1]
            row[-1] = f"{row[-1]} {text}".strip()
            if "b" in self._open:
                self.bold.append((self.tables[-1][-1][0].split(" ")[0], text))

    @property
    def text(self) -> str:
        return " ".join(self.texts)

    def row(self, table: int, name: str) -> list[str]:
        """The cells of the row whose first cell begins with a name."""
        found = [row for row in self.tables[table] if row and row[0].split(" ")[0] == name]
        assert len(found) == 1, f"{len(found)} rows {name!r}"
        return found[0]
