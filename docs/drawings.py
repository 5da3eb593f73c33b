"""Draws the pictures of the docs, light and dark: `python docs/drawings.py` writes docs/pictures/."""

from pathlib import Path
from xml.sax.saxutils import escape

FOLDER = Path(__file__).parent / "pictures"
STYLE = """
  .page { fill: #ffffff } .band { fill: #f3f5f8 } .box { fill: #ffffff; stroke: #8a94a3; stroke-width: 1.4 }
  text { font: 15px system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; fill: #1f2733 }
  .small { font-size: 12.5px; fill: #566070 } .title { font-weight: 600 }
  .line { fill: none; stroke: #566070; stroke-width: 1.6 } .head { fill: #566070 }
  .text { stroke: #2f6fdb } .audio { stroke: #d1660f } .video { stroke: #1f8a4c }
  .text-head { fill: #2f6fdb } .audio-head { fill: #d1660f } .video-head { fill: #1f8a4c }
  @media (prefers-color-scheme: dark) {
    .page { fill: #10151c } .band { fill: #1a212b } .box { fill: #222b37; stroke: #6b7789 }
    text { fill: #e6ebf2 } .small { fill: #a3aebd } .line { stroke: #a3aebd } .head { fill: #a3aebd }
    .text { stroke: #74a7ff } .audio { stroke: #ff9d52 } .video { stroke: #57c785 }
    .text-head { fill: #74a7ff } .audio-head { fill: #ff9d52 } .video-head { fill: #57c785 }
  }
"""


class Drawing:
    """An SVG file in the making; coordinates are pixels from the upper left."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self.width, self.height, self.title = width, height, title
        self.parts: list[str] = []

    def box(self, x: float, y: float, w: float, h: float, *lines: str, kind: str = "box") -> None:
        """A rectangle with centred lines of text, the first one its title."""
        self.parts.append(f'<rect class="{kind}" x="{x}" y="{y}" width="{w}" height="{h}" rx="7"/>')
        top = y + h / 2 - 9.0 * (len(lines) - 1) + 5
        for number, line in enumerate(lines):
            self.text(x + w / 2, top + 18 * number, line, kind="title" if number == 0 else "small")

    def text(self, x: float, y: float, line: str, *, kind: str = "small", anchor: str = "middle") -> None:
        self.parts.append(f'<text class="{kind}" x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escape(line)}</text>')

    def line(self, *points: tuple[float, float], colour: str = "", arrow: bool = True) -> None:
        """A line through the points, with an arrow at its end."""
        path = " ".join(f"{x:g},{y:g}" for x, y in points)
        classes = f"line {colour}".rstrip()
        self.parts.append(f'<polyline class="{classes}" points="{path}"/>')
        if arrow:
            (x0, y0), (x, y) = points[-2:]
            dx, dy = (x > x0) - (x < x0), (y > y0) - (y < y0)
            corners = [(x, y), (x - 8 * dx - 4 * dy, y - 8 * dy - 4 * dx), (x - 8 * dx + 4 * dy, y - 8 * dy + 4 * dx)]
            head = " ".join(f"{a:g},{b:g}" for a, b in corners)
            self.parts.append(f'<polygon class="{colour + "-head" if colour else "head"}" points="{head}"/>')

    def render(self) -> str:
        size = f'width="{self.width}" height="{self.height}" viewBox="0 0 {self.width} {self.height}"'
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">',
                f"<title>{escape(self.title)}</title>",
                f"<style>{STYLE}</style>",
                f'<rect class="page" width="{self.width}" height="{self.height}"/>',
                *self.parts,
                "</svg>\n",
            ]
        )


def model() -> Drawing:
    """From the streams of an utterance to its emotion."""
    d = Drawing(1320, 540, "AMuSE: streams, unimodal stage, attention between modalities, fusion, context, emotion")
    rows = {"text": 110, "audio": 250, "video": 390}
    streams = {"text": "words", "audio": "voice", "video": "faces and scene"}
    height, bus = 60, {"text": 352, "audio": 364, "video": 376}
    layers = (410, 530, 690)
    columns = [
        (85, "streams", "tokens of an utterance"),
        (243, "unimodal stage", "III-A"),
        (595, "multimodal attention network (MAN)", "III-B, one central network per modality"),
        (905, "adaptive fusion", "III-C"),
        (1095, "context", "III-D"),
        (1250, "emotion", "per utterance"),
    ]
    d.parts.append('<rect class="band" x="335" y="66" width="470" height="452" rx="10"/>')
    for x, title, subtitle in columns:
        d.text(x, 28, title, kind="title")
        d.text(x, 47, subtitle)
    for name, y in rows.items():
        middle = y + height / 2
        d.box(20, y, 130, height, name, streams[name])
        d.line((150, middle), (180, middle), colour=name)
        d.box(180, y, 126, height, "Bi-LSTM", "self-attention")
        d.line((306, middle), (layers[0], middle), colour=name)
        others = [other for other in rows if other != name]
        for number, x in enumerate(layers):
            d.box(x, y, 90, height, ("layer 1", "layer 2", "layer h")[number])
            for place, other in enumerate(others):
                d.line(
                    (x + 30 + 30 * place, y + height + 20 + 12 * place), (x + 30 + 30 * place, y + height), colour=other
                )
        for place, other in enumerate(others):
            rail = y + height + 20 + 12 * place
            d.line((bus[other], rail), (layers[-1] + 30 + 30 * place, rail), colour=other, arrow=False)
        d.line((layers[0] + 90, middle), (layers[1], middle), colour=name)
        d.line((layers[1] + 90, middle), (640, middle), colour=name, arrow=False)
        d.text(655, middle + 5, "...", kind="title")
        d.line((670, middle), (layers[2], middle), colour=name)
        d.line((layers[2] + 90, middle), (830, middle), colour=name)
    ends = {"text": 390 + height + 20, "audio": 390 + height + 32, "video": 250 + height + 32}
    starts = {"text": 140, "audio": 110 + height + 20, "video": 110 + height + 32}
    for name, y in rows.items():
        d.line((bus[name], starts[name]), (bus[name], ends[name]), colour=name, arrow=False)
        d.parts.append(f'<circle class="{name}-head" cx="{bus[name]}" cy="{y + height / 2:g}" r="4"/>')
    d.text(570, 508, "keys and values of the other modalities, projected by each layer")
    d.box(830, 110, 150, 340)
    d.text(905, 225, "each pair m, n")
    d.text(905, 262, "α fₙ + (1 − α) fₘ", kind="title")
    d.text(905, 300, "α per utterance:")
    d.text(905, 318, "learned, or Eq. 6")
    d.box(1020, 120, 150, 90, "dialogue", "Bi-LSTM over", "all utterances")
    d.box(1020, 350, 150, 90, "speaker", "Bi-LSTM over", "the speaker's own")
    d.line((980, 165), (1020, 165))
    d.line((980, 395), (1020, 395))
    d.line((980, 280), (1200, 280))
    d.text(1090, 270, "the utterance itself")
    d.box(1200, 245, 100, 70, "linear", "softmax")
    d.line((1170, 165), (1250, 165), (1250, 245))
    d.line((1170, 395), (1250, 395), (1250, 315))
    return d


def packages() -> Drawing:
    """From the model to the kernels, and what checks each of them."""
    d = Drawing(1080, 606, "The packages: model, layers, ops, backends, and how each backend is verified")
    bands = [
        (14, 92, "amuse", "the model and its tools"),
        (122, 166, "amuse_kernels", "layers and ops"),
        (304, 132, "backends", "one specification, four implementations"),
        (452, 140, "verification", "none of it needs a GPU"),
    ]
    for y, h, title, subtitle in bands:
        d.parts.append(f'<rect class="band" x="14" y="{y}" width="1052" height="{h}" rx="10"/>')
        d.text(30, y + 26, title, kind="title", anchor="start")
        for number, part in enumerate(subtitle.split(", ")):
            d.text(30, y + 46 + 17 * number, part, anchor="start")
    for x, w, lines in [
        (250, 180, ("cli, demo page", "report, explain")),
        (455, 190, ("training, evaluation", "inference, data")),
        (670, 180, ("model", "stages, fusion, context")),
    ]:
        d.box(x, 30, w, 60, *lines)
    d.line((430, 60), (455, 60))
    d.line((645, 60), (670, 60))
    d.line((760, 90), (760, 140))
    d.box(650, 140, 220, 56, "nn", "attention and fusion layers")
    d.line((760, 196), (760, 218))
    d.box(650, 218, 220, 56, "api", "argument checks, autocast")
    d.line((650, 246), (590, 246))
    d.box(370, 218, 220, 56, "ops", "schemas, autograd, dispatch")
    d.line((480, 274), (480, 290), (640, 290), (640, 318), arrow=False)
    xs = (250, 455, 660, 865)
    for x in xs:
        d.line((640, 318), (x + 95, 318), (x + 95, 336))
    for x, lines in zip(
        xs,
        [
            ("reference", "plain PyTorch,", "reads like the equations"),
            ("cpu", "C++: AVX-512, AVX2,", "baseline; OpenMP"),
            ("triton", "Triton kernels,", "tiles from a table"),
            ("cuda", "CUDA C++ kernels", "on tensor cores"),
        ],
        strict=True,
    ):
        d.box(x, 336, 190, 84, *lines)
        d.line((x + 95, 468), (x + 95, 420))
    checks = [
        ("the specification", "gradcheck in float64,", "a second implementation", "in loops, closed forms"),
        ("the reference", "error budget per dtype,", "fuzzing, sanitizers, same", "bits for any thread count"),
        ("interpreter, emulator", "Triton's interpreter; its PTX", "emulated; compiled ahead", "for six architectures"),
        ("emulator", "nvcc's PTX run on a CPU:", "races, bounds, uninitialised", "reads; planted bugs"),
    ]
    for x, lines in zip(xs, checks, strict=True):
        d.box(x, 468, 190, 108, *lines)
    return d


if __name__ == "__main__":
    for drawing in (model, packages):
        (FOLDER / f"{drawing.__name__}.svg").write_text(drawing().render(), encoding="utf-8")
