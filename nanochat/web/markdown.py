"""Markdown of an answer as HTML in which nothing is active. Rendered here, so that the page's own script stays small.

markdown-it-py reads it with HTML off, and nh3 (the ammonia crate) lets through only what the list below names. Images
become their description: a page must not fetch what a model wrote.
"""

import html
from functools import lru_cache

import nh3
from markdown_it import MarkdownIt
from markdown_it.token import Token

MAX_RENDERED = 100_000
"""Characters of one text; a longer one is shown as it is, for parsing would take the page's patience."""

MAX_NESTING = 40
"""Levels of blocks in blocks. The parser leaves out what lies deeper, so that such a text is shown as it is."""

_TAGS = {
    *("p", "br", "hr", "h1", "h2", "h3", "h4", "h5", "h6", "blockquote", "pre", "code", "em", "strong", "s", "a"),
    *("ul", "ol", "li", "table", "thead", "tbody", "tr", "th", "td"),
}
_ATTRIBUTES = {"a": {"href", "title"}, "ol": {"start"}, "code": {"class"}, "th": {"align"}, "td": {"align"}}
_CLEANER = nh3.Cleaner(
    tags=_TAGS,
    attributes=_ATTRIBUTES,
    url_schemes={"http", "https", "mailto"},
    link_rel="noopener noreferrer nofollow",
    set_tag_attribute_values={"a": {"target": "_blank"}},
    attribute_filter=lambda tag, name, value: _keep_attribute(tag, name, value),
)


def _keep_attribute(tag: str, name: str, value: str) -> str | None:
    """Of classes only the language of a block of code, of links only whole addresses: none lead into this server."""
    if name == "href":
        return value if value.lower().startswith(("http://", "https://", "mailto:")) else None
    if name == "class":
        return value if value.startswith("language-") and value.isprintable() and " " not in value else None
    return value


def _make_parser() -> MarkdownIt:
    options = {"html": False, "linkify": False, "maxNesting": MAX_NESTING}
    parser = MarkdownIt("commonmark", options).enable(["table", "strikethrough"])

    def describe_image(self, tokens: list[Token], index: int, options, env) -> str:
        return html.escape(self.renderInlineAsText(tokens[index].children or [], options, env) or "image")

    def align(self, tokens: list[Token], index: int, options, env) -> str:
        """Tables say their alignment in a style, which the page's policy forbids."""
        style = tokens[index].attrGet("style")
        if style:
            tokens[index].attrs = {"align": str(style).rpartition(":")[2]}
        return self.renderToken(tokens, index, options, env)

    parser.add_render_rule("image", describe_image)
    parser.add_render_rule("th_open", align)
    parser.add_render_rule("td_open", align)
    return parser


_PARSER = _make_parser()


@lru_cache(maxsize=512)
def render_blocks(text: str) -> tuple[str, ...]:
    """The HTML of each block of a text.

    >>> render_blocks("Hello *you*\\n\\n<b>x</b>")
    ('<p>Hello <em>you</em></p>', '<p>&lt;b&gt;x&lt;/b&gt;</p>')
    """
    return tuple(block for _, block in _render(text))


def _render(text: str) -> list[tuple[int, str]]:
    """Each block's HTML with the line that it begins in."""
    env: dict = {}
    tokens = _PARSER.parse(text, env) if len(text) <= MAX_RENDERED else []
    if len(text) > MAX_RENDERED or any(token.level >= MAX_NESTING - 1 for token in tokens):
        return [(0, f"<pre>{html.escape(text)}</pre>")]
    found: list[tuple[int, str]] = []
    block: list[Token] = []
    depth = 0
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(6, int(token.tag[1]) + 2)}"  # below those of the page
        block.append(token)
        depth += token.nesting
        if depth == 0:
            line = block[0].map[0] if block[0].map else 0
            # Cleaned block by block: what one block leaves open is closed before the next.
            found.append((line, _CLEANER.clean(_PARSER.renderer.render(block, _PARSER.options, env)).strip()))
            block = []
    return found


class GrowingMarkdown:
    """A text that grows at its end. Only its last block, which may still change, is read again.

    What a later line may change in an earlier block (the address of a link by reference) waits for the whole text.
    """

    def __init__(self) -> None:
        self.blocks: list[str] = []
        self._text = ""
        self._start = 0  # of the last block, in characters
        self._num_done = 0  # blocks before it

    def feed(self, text: str) -> tuple[int, list[str]]:
        """Add text; returns how many of the blocks stay as they are, and those that follow them now."""
        self._text += text
        tail = self._text[self._start :]
        done = self._num_done
        found = _render(tail)
        if len(found) > 1:
            lines = tail.split("\n")[: found[-1][0]]
            self._start += sum(map(len, lines)) + len(lines)
            self._num_done += len(found) - 1
        before, new = self.blocks[done:], [block for _, block in found]
        self.blocks[done:] = new
        same = 0
        while same < min(len(before), len(new)) and before[same] == new[same]:
            same += 1
        return done + same, new[same:]
