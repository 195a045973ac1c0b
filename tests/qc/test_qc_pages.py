"""Pages of the library taken apart: what they say stays, what they load goes."""

from qc.pages import offline, page, parse

PAGES = {
    "index.html": "index.html",
    "expectations/a.html": "expectations/a.html",
    "validations/a/run/time/batch.html": "validations/a.html",
}


def clean(html: str) -> str:
    return offline(f"<body>{html}</body>", "validations/a/run/time/batch.html", "validations/a.html", PAGES)


def test_scripts_styles_images_and_footers_go_with_what_is_in_them() -> None:
    text = (
        "<script>var a = '</p>';</script><style>p{}</style><img src='http://x/y.png'><footer><p>news</p></footer>kept"
    )
    assert clean(text) == "kept"


def test_handlers_and_foreign_attributes_go_and_the_element_stays() -> None:
    assert clean('<td onclick="x()" data-href="http://x" class="c" id="i">v</td>') == '<td class="c" id="i">v</td>'


def test_a_style_that_loads_something_goes() -> None:
    assert clean('<p style="background: URL(http://x)">v</p>') == "<p>v</p>"


def test_links_between_pages_follow_them_and_links_out_become_text() -> None:
    assert clean('<a href="../../../../expectations/a.html">e</a>') == '<a href="../expectations/a.html">e</a>'
    assert clean('<a href="../../../../index.html">home</a>') == '<a href="../index.html">home</a>'
    assert clean('<a href="https://example.org">out</a>') == "out"
    assert clean('<a href="javascript:x()">out</a>') == "out"


def test_names_that_a_run_makes_up_are_left_out_on_both_ends_of_a_link() -> None:
    name = "body-8237ebe4-d61a-4998-aa5c-285296484881"
    assert (
        clean(f'<a href="#{name}">more</a><div id={name}>x</div>') == '<a href="#body">more</a><div id="body">x</div>'
    )


def test_icons_become_signs() -> None:
    assert clean('<i class="fas fa-check-circle text-success"></i>') == '<span class="icon ok">✓</span>'
    assert clean('<i class="fas fa-times text-danger"></i>') == '<span class="icon bad">✗</span>'


def test_text_stays_text() -> None:
    assert clean("<p>a &lt;b&gt; &amp; c</p>") == "<p>a &lt;b&gt; &amp; c</p>"


def test_untidy_elements_are_closed() -> None:
    assert clean("<ul><li>a<hr></hr></li><li>b</ul></div>c") == "<ul><li>a<hr></li><li>b</li></ul>c"


def test_a_whole_page_forbids_the_browser_to_load_anything() -> None:
    text = page("a <title>", "<p>x</p>", home="../index.html")
    head = parse(text)
    policy = [node.attributes["content"] for node in head.walk() if "http-equiv" in node.attributes]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]
    assert "<title>a &lt;title&gt;</title>" in text
