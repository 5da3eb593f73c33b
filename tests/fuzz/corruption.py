"""Ways in which a file gets broken: cut, overwritten, pieces swapped in from elsewhere."""

import json

from hypothesis import strategies as st

FOREIGN = [
    b"",
    b"\x00" * 64,
    b"\xff\xfe" + "start,end\n".encode("utf-16-le"),
    b"PK\x03\x04" + bytes(40),
    b"\x80\x04\x95\x10\x00\x00\x00",
    b"[]",
    b"null",
    b"{}",
    b"{" * 3000,
    b"[" * 3000,
    b'"',
    b"\n" * 9,
    b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
]


@st.composite
def corrupted(draw, content: bytes) -> bytes:
    """A broken version of a file; now and then it happens to be sound."""
    data = bytearray(content)
    for kind in draw(st.lists(st.sampled_from(["cut", "overwrite", "insert", "delete", "repeat", "swap"]), max_size=3)):
        place = draw(st.integers(0, len(data)))
        size = draw(st.integers(1, 40))
        if kind == "cut":
            del data[place:]
        elif kind == "overwrite":
            data[place : place + size] = draw(st.binary(min_size=1, max_size=size))
        elif kind == "insert":
            data[place:place] = draw(st.sampled_from(_PIECES))
        elif kind == "delete":
            del data[place : place + size]
        elif kind == "repeat":
            data[place:place] = data[: draw(st.integers(0, 400))]
        else:
            data[place : place + size] = data[-size:]
    return draw(st.sampled_from([bytes(data)] * 9 + FOREIGN))


_PIECES = [
    *(b",", b'"', b"\n", b"\r", b"\x00", b"\xe9", b"\xff", b"9" * 400, b"-1", b"nan", b"inf", b"1e999", b" ", b"\t"),
    *(b'"\n"', b"x" * 140_000, "\u0660\u00b2".encode(), b" --> ", b"{}", b"[]", b"null", b": "),
]


@st.composite
def corrupted_json(draw, content: bytes) -> bytes:
    """JSON that parses and has something else in one of its places; or a broken file."""
    if draw(st.booleans()):
        return draw(corrupted(content))
    tree = json.loads(content)
    node, path = tree, []
    while isinstance(node, dict | list) and node and (not path or draw(st.booleans())):
        path.append(draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node)))))
        node = node[path[-1]]
    parent = tree
    for key in path[:-1]:
        parent = parent[key]
    if path and isinstance(parent, dict) and draw(st.booleans()):
        del parent[path[-1]]
    elif path:
        parent[path[-1]] = draw(_JSON)
    return json.dumps(tree).encode()


_HUGE = [10**3, 10**5, 2**31, 10**12, 2**63, 10**40]
_JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-9, 40), st.sampled_from(_HUGE), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=4,
)
